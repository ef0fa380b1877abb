"""The content of text files: unpacked where it is compressed, and decoded."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from bigctl import memory
from bigctl.config import schema
from bigctl.data.files.paths import require_file
from bigctl.errors import DataError
from bigctl.formatting import size

COMPRESSED = (".gz", ".zst")
"""Suffixes that stand behind another one; what is packed is known by its content."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MOST, _MOST_A_BYTE = 2**28, 200
"""What is unpacked at most: so many bytes of any file, and so many more for each byte of it. No text packs as small."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Before:
    """How much of a file comes before what is looked at: its bytes, and line ends of either kind."""

    count: int = 0
    newlines: int = 0
    returns: int = 0

    def and_then(self, data: bytes) -> Before:
        found = np.frombuffer(data, np.uint8)  # which counts several times as fast as `bytes` does
        newlines, returns = (int(np.count_nonzero(found == mark)) for mark in b"\n\r")
        return Before(self.count + len(data), self.newlines + newlines, self.returns + returns)

    def without(self, data: bytes) -> Before:
        """The same, less its last bytes."""
        last = Before().and_then(data)
        return Before(self.count - last.count, self.newlines - last.newlines, self.returns - last.returns)


def suffix_of(path: Path | str) -> str:
    """The suffix that tells the format, lower case: of `rows.csv.gz` it is .csv."""
    path = Path(path)
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def read_text(source: Path | bytes, encoding: str | None = None, name: str | None = None) -> tuple[str, str]:
    """The text of a file, or of its content, and what to call it in messages.

    Args:
        source: a file, packed with gzip or Zstandard or not, or the content of one.
        encoding: of the text; None for UTF-8.
        name: what to call content in messages.

    Raises:
        DataError: the file cannot be read, is empty, or is not in this encoding; then it names the first byte, counted
            from 0, in what a packed file holds.
    """
    name = name or ("input" if isinstance(source, bytes) else str(source))
    try:
        data = source if isinstance(source, bytes) else require_file(source).read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=name) from None
    text = _decoded(_unpacked(data, name), name, encoding)
    if not text.strip():
        raise DataError("the file is empty", where=name, hint="is it the right file?")
    return text, name


def read_beginning(path: Path, most: int) -> tuple[bytes, int | None]:
    """The first lines of a file of text, unpacked, and its size on disk where there is more; None where that is all.

    Args:
        path: a file, packed or not.
        most: bytes that are read; they end with the last line that is whole.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with require_file(path).open("rb") as raw:
            packed, on_disk = raw.read(4), os.fstat(raw.fileno()).st_size
            raw.seek(0)
            stream: IO[bytes] = raw
            if packed.startswith(_GZIP):
                stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
            elif packed.startswith(_ZSTD):
                import pyarrow as pa

                stream = pa.input_stream(raw, compression="zstd")
            data = bytes(stream.read(most + 1))
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise DataError(f"the file cannot be read: {what}", where=str(path)) from None
    if len(data) <= most:
        return data, None
    end = data.rfind(b"\n") + 1
    return data[: end or most], on_disk


def _unpacked(data: bytes, name: str) -> bytes:
    most = min(most_unpacked(len(data)), memory.limit() // 4)  # it becomes text, and columns of that
    try:
        if data.startswith(_GZIP):
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
                found = stream.read(most + 1)
        elif data.startswith(_ZSTD):
            import pyarrow as pa

            with pa.input_stream(pa.py_buffer(data), compression="zstd") as stream:
                found = stream.read(most + 1)
        else:
            return data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file is packed, and damaged: {error}", where=name, hint="pack it again") from None
    if len(found) > most:
        raise DataError(f"the file unpacks to more than {size(most)}", where=name, hint="split it into parts")
    return bytes(found)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """The content of a file to be read by blocks, unpacked, and whether it was packed. Raises DataError."""
    name = str(file)
    packed = False
    try:
        with require_file(file).open("rb") as stream:
            begin = stream.read(4)
            stream.seek(0)
            packed = begin.startswith((_GZIP, _ZSTD))
            if begin.startswith(_GZIP):
                yield gzip.GzipFile(fileobj=stream), True  # type: ignore[misc]
            elif begin.startswith(_ZSTD):
                import pyarrow as pa

                with pa.input_stream(stream, compression="zstd") as unpacked:
                    yield unpacked, True
            else:
                yield stream, False
    except (OSError, EOFError, zlib.error) as error:
        if packed:
            raise DataError(f"the file is packed, and damaged: {error}", where=name, hint="pack it again") from None
        raise DataError(f"the file cannot be read: {getattr(error, 'strerror', error)}", where=name) from None


def most_unpacked(packed: int) -> int:
    """Bytes that a packed file of so many may hold: no text packs as small."""
    return _MOST + _MOST_A_BYTE * packed


def whole_characters(text: str) -> str:
    """A text with a question mark for each half of a character, as JSON can have and no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _decoded(data: bytes, name: str, encoding: str | None) -> str:
    codec = codec_of(data[:4], encoding)
    if not has_nul(codec) and (nul := data.find(b"\0")) >= 0:
        raise nul_byte(data, f"{name}:{line_at(data, nul)}")
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except UnicodeError as error:
        raise undecodable(error, encoding, name, data) from None


def codec_of(begin: bytes, encoding: str | None) -> str:
    """How a text is to be decoded that begins with these four bytes. Raises DataError where there is no such way."""
    marked = next((found for mark, found in _MARKS if begin.startswith(mark)), None)
    codec = encoding or marked or "utf-8-sig"
    if codec.lower().replace("_", "-") in ("utf-8", "utf8"):
        codec = "utf-8-sig"
    require_encoding(codec)
    return codec


def has_nul(codec: str) -> bool:
    """Whether text in this encoding holds bytes of 0."""
    return codecs.lookup(codec).name.startswith(("utf-16", "utf-32"))


def nul_byte(data: bytes, where: str) -> DataError:
    """What is wrong with a text that holds a byte of 0; `data` is its beginning."""
    half = data[:4096].count(b"\0") * 5 > 2 * len(data[:4096])
    hint = "it looks like UTF-16: set data.encoding=utf-16-le" if half else "is this a text file?"
    return DataError("there is a NUL byte", where=where, hint=hint)


def require_encoding(encoding: str) -> None:
    """Raises DataError where there is no such encoding of text."""
    if not schema.is_encoding(encoding):
        hint = "such as latin-1, cp1252 or utf-16"
        raise DataError(f"there is no encoding {encoding!r}", where="data.encoding", hint=hint)


def undecodable(
    error: UnicodeError, encoding: str | None, name: str, data: bytes, before: Before = Before()
) -> DataError:
    """What is wrong with a text that is not in its encoding, None for UTF-8; `data` is the whole of it, or what comes
    `before` it is known, and it ends with what was to be decoded."""
    known = encoding or "UTF-8"
    hint = f"data.encoding={encoding} says so: give that of the file, or convert it, for example with iconv"
    hint = hint if encoding else f"set data.encoding, such as {_likely(data)}, or save the file as UTF-8"
    if not isinstance(error, UnicodeDecodeError):
        return DataError(f"is not {known}: {error}", where=name, hint=hint)
    start = error.start + len(data) - len(error.object)  # which lacks the byte order mark
    what = f"byte 0x{data[start]:02x} is not {known}, at offset {before.count + start}"
    return DataError(what, where=f"{name}:{line_at(data, start, before)}", hint=hint)


def _likely(data: bytes) -> str:
    """Encodings in which a text that is not UTF-8 may be: of Chinese first where all of it is of usual characters."""
    found = []
    for codec in ("gb2312", "cp1252"):
        with contextlib.suppress(UnicodeError):
            data.decode(codec)
            found.append("gbk" if codec == "gb2312" else codec)
    found += ["latin-1"] if "cp1252" in found else ["gbk", "latin-1"] if not found else []
    return f"{', '.join(found[:-1])} or {found[-1]}"


def line_at(data: bytes, position: int, before: Before = Before()) -> int:
    """The line of a place in a file, from 1."""
    found = before.and_then(data[:position])
    return 1 + (found.newlines or found.returns)
