"""Tar archives read by the places of their members: nothing is ever unpacked under a name that an archive gives.

Members that share a name up to its first dot are one example, as WebDataset has it.
"""

from __future__ import annotations

import gzip
import os
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bigctl.data.files.paths import hidden, require_file
from bigctl.data.pictures import packs
from bigctl.data.pictures.stores import Held
from bigctl.data.progress import Progress
from bigctl.errors import DataError
from bigctl.formatting import size

_BLOCK = tarfile.BLOCKSIZE
_GZIP = b"\x1f\x8b"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_HEADER = 2**20
"""Bytes of a member that names another one, or says more of it."""
_MOST_A_BYTE = 200
"""Bytes that are unpacked of each byte at most: no archive of pictures packs as small."""


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: its path.
        start: where it begins [bytes].
        size: its size [bytes].
        problem: why it is not read; empty where it can be.
    """

    name: str
    start: int
    size: int
    problem: str = ""


@dataclass(frozen=True)
class Example:
    """Files of one archive that belong together.

    Attributes:
        name: what they share, their path up to the first dot of the file's name.
        fields: the files, by what stands behind that dot, in lower case.
        problem: why it cannot be read; empty where it can.
    """

    name: str
    fields: dict[str, Member] = field(default_factory=dict)
    problem: str = ""


def examples(held: Held) -> Iterator[Example]:
    """The examples of an archive in the order of its members. Raises DataError as `members` does."""
    current: Example | None = None
    for member in members(held):
        above, slash, last = member.name.rpartition("/")
        stem, _, suffix = last.partition(".")
        name = above + slash + stem
        if member.problem:
            if current is not None:
                yield current
            yield Example(member.name, problem=member.problem)
            current = None
            continue
        if current is not None and (current.name != name):
            yield current
            current = None
        if current is None:
            current = Example(name)
        if suffix.lower() in current.fields:
            yield Example(name, problem=f"two members are called {member.name}")
            current = None
            continue
        current.fields[suffix.lower()] = member
    if current is not None:
        yield current


def members(held: Held) -> Iterator[Member]:
    """The files of an archive that is not compressed, in order; folders and hidden files are left out.

    Raises:
        DataError: it is no tar archive, is damaged, or was cut short.
    """
    at, long_name, described, general = 0, "", dict[str, str](), dict[str, str]()
    shown = held.shown
    with open(held.path, "rb") as stream:
        while True:
            info = _header(os.pread(stream.fileno(), _BLOCK, at), at, shown)
            if info is None:
                return
            at += _BLOCK
            known = general | described
            length = int(known.get("size", info.size))
            if length < 0 or at + length > held.bytes:
                raise _cut(shown, info.name)
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                content = os.pread(stream.fileno(), min(info.size, _LARGEST_HEADER), at)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = os.fsdecode(content.rstrip(b"\0"))
                elif info.type == tarfile.XHDTYPE:
                    described = _records(content)
                elif info.type == tarfile.XGLTYPE:
                    general |= _records(content)
                at += _padded(info.size)
                continue
            given = known.get("path") or long_name or info.name
            parts = [part for part in given.split("/") if part not in ("", ".")]
            problem = _problem(given, parts, info, known)
            if not info.isdir() and (problem or not any(map(hidden, parts))):
                yield Member("/".join(parts), at, length, problem)
            if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
                at += _padded(length)
            long_name, described = "", {}


def _header(block: bytes, at: int, shown: str) -> tarfile.TarInfo | None:
    """What a block says of the member that follows; None at the end of the archive."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return None
    except tarfile.HeaderError:
        if len(block) < _BLOCK and at:
            raise _cut(shown) from None
        if not at:
            what = "the file is empty" if not block else "this is no tar archive"
            raise DataError(what, where=shown, hint="is it the right file?") from None
        what = f"the archive is damaged: there is no member where one begins, at byte {at:,}"
        raise DataError(what, where=shown, hint="fetch or write it anew") from None


def _cut(shown: str, name: str = "") -> DataError:
    what = f"the archive was cut short{f': it ends within {name}' if name else ', it has no end'}"
    return DataError(what, where=shown, hint="fetch or write it anew")


def _problem(name: str, parts: list[str], info: tarfile.TarInfo, known: dict[str, str]) -> str:
    if ".." in parts or name.startswith("/"):
        return f"the member {name!r} leads out of the archive"
    if info.issym() or info.islnk():
        return f"the member {name!r} is a link to {info.linkname!r}, not a file"
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in known):
        return f"the member {name!r} is stored as a sparse file"
    if not info.isreg() and not info.isdir():
        return f"the member {name!r} is a pipe, a device or the like, not a file"
    return ""


def _records(content: bytes) -> dict[str, str]:
    """What an extended header says: "length key=value" a line. What is no such line ends it."""
    found = dict[str, str]()
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or len(digits) > 8 or not len(digits) + 1 < int(digits) <= len(content):
            break
        key, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        text = os.fsdecode(value)
        if key != b"size" or text.isdigit():
            found[os.fsdecode(key)] = text
        content = content[int(digits) :]
    return found


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


# --------------------------------------------------------------------------------------------------------- compression


def held(file: Path) -> Held:
    """An archive with random access: the file itself, or of a compressed one a copy in the cache, made once and told.

    Raises:
        DataError: it is missing, compressed otherwise, or damaged.
    """
    require_file(file)
    try:
        with file.open("rb") as stream:
            begin = stream.read(6)
        for mark, name in _OTHERS.items():
            if begin.startswith(mark):
                what = f"the archive is compressed with {name}, which has no random access"
                raise DataError(
                    what, where=str(file), hint="unpack it into a plain .tar; pictures are compressed already"
                )
        if not begin.startswith(_GZIP):
            return Held.of(file)
        copy = packs.kept(file, "tar", lambda folder: _unpack(file, folder / "shard.tar"))
        return Held.of(copy / "shard.tar", str(file))
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from None


def _unpack(file: Path, copy: Path) -> None:
    """Write what a compressed archive holds as one plain archive. Raises OSError, DataError."""
    packed = file.stat().st_size
    done = 0
    try:
        with (
            file.open("rb") as raw,
            gzip.GzipFile(fileobj=raw) as stream,
            copy.open("wb") as out,
            Progress(f"data: unpacking {file.name}", packed) as progress,
        ):
            while block := stream.read(2**20):
                done += out.write(block)
                if done > 2**28 + _MOST_A_BYTE * packed:
                    what = f"more than {_MOST_A_BYTE} bytes are unpacked of each byte"
                    raise DataError(what, where=str(file), hint="no archive of pictures packs as small")
                progress.update(raw.tell())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = "was cut short" if isinstance(error, EOFError) else f"is damaged: {error}"
        raise DataError(f"the compressed archive {what}", where=str(file), hint="fetch or write it anew") from None
    told = f"data: {file} is compressed, which has no random access: a copy of {size(done)} is kept in {packs.root()}"
    print(told, file=sys.stderr)
