"""Ready-made tokens (`data=tokens`), read where they lie: raw numbers as nanoGPT writes them, shards of llm.c, and the
.bin and .idx of Megatron. What else lies beside them, such as a meta.pkl, is not opened."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.files import paths
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.sources.text_files import matching
from bigctl.data.sources.token_formats import RAW, Stored, read_format
from bigctl.data.text.token_shards import Part, TokenShards
from bigctl.errors import DataError
from bigctl.files import expanded, sha256

_WHOLE = 2**28
"""Bytes up to which files are known by their content. Larger ones are by size, time of change and a sample of it."""

_SAMPLED, _SAMPLE = 1024, 4096
"""Blocks of large files that are looked at, two a file at least, and bytes of each."""

_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test)(?=[^a-z]|$)")
_SPLITS = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Shard:
    """A file with tokens, and the index beside it, where it has one."""

    file: Path
    index: Path | None

    @property
    def files(self) -> list[Path]:
        return [self.file, self.index] if self.index is not None else [self.file]


def identity(config: schema.Tokens) -> dict[str, Any]:
    """What the tokens depend on: the files, see `digests`, and the keys that say what is in them."""
    found = shards(config)
    known = digests([shard for each in found.values() for shard in each])
    files = [[split, os.path.abspath(shard.file), known[shard.file]] for split, each in found.items() for shard in each]
    return {"files": files, "format": config.format, "dtype": config.dtype, "most": config.validation_tokens}


def decode(config: schema.Tokens, regression: bool) -> Decoded:
    """The tokens of each split as a column `inputs` that stays in its files.

    Raises:
        DataError: there are no such files, or one does not hold what it says.
    """
    found = shards(config)
    known = digests([shard for each in found.values() for shard in each])
    splits: dict[str, Columns] = {}
    formats: dict[str, int] = {}
    listed: dict[str, list[str]] = {}
    for split, each in found.items():
        parts = []
        for shard in each:
            stored = read_format(shard.file, shard.index, config.format, config.dtype)
            _require_width(shard.file, stored, config.dtype)
            status = shard.file.stat()
            place = os.path.abspath(shard.file)  # of a link, beside which an index may lie, the link's
            at = (stored.dtype, stored.header, 0, stored.count, status.st_size, status.st_mtime_ns)
            parts.append(Part(place, *at, known[shard.file]))
            said = f"{stored.format}, {np.dtype(stored.dtype).name}"
            formats[said] = formats.get(said, 0) + (stored.documents or 0)
        splits[split] = {"inputs": TokenShards(parts)}  # type: ignore[dict-item]  # it stands in for an array
        names = [str(shard.file) for shard in each]
        listed[split] = names[:20] + ([f"and {len(names) - 20} more"] if len(names) > 20 else [])
    said_formats = [said + (f", {count:,} documents" if count else "") for said, count in sorted(formats.items())]
    info = {"source": "tokens", "files": listed, "format": said_formats}
    return Decoded("tokens", splits, None, info, most=config.validation_tokens)


# --------------------------------------------------------------------------------------------------------------- files


def files(config: schema.Tokens) -> Iterator[tuple[str, Path]]:
    """See `catalog.files`."""
    for each in shards(config).values():
        for shard in each:
            yield from (("data.path", file) for file in shard.files)


def shards(config: schema.Tokens) -> dict[str, list[Shard]]:
    """The files of each split, in the order of their names: what they are called says which split they are of.

    Raises:
        DataError: if there are none, or a split is given twice.
    """
    found: dict[str, list[Shard]] = {}
    for shard, split in _named(config.path):
        found.setdefault(split, []).append(shard)
    if set(found) == {"validation"} or set(found) == {"test"}:  # whoever names nothing else means to train on it
        found = {"train": next(iter(found.values()))}
    for split, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path is None:
            continue
        if split in found:
            hint = f"leave data.{split}_path out, or name the training files alone in data.path"
            raise DataError(f"data.path has files of the {split} split too", where=f"data.{split}_path", hint=hint)
        found[split] = [shard for shard, _ in _named(path)]
    owner: dict[Path, str] = {}
    for split, each in found.items():
        for shard in each:
            if owner.setdefault(shard.file.resolve(), split) != split:
                what = f"is in the {owner[shard.file.resolve()]} split and in the {split} split"
                raise DataError(what, where=str(shard.file), hint="choose files that do not overlap")
    return found


def _named(path: str) -> Iterator[tuple[Shard, str]]:
    """The files that a path means, each with the split that its name, or that of its folder, says: else training."""
    seen = set()
    single = expanded(path).is_file()
    fixed = expanded(re.split(r"[*?\[{]", path)[0] or ".")
    root = fixed if fixed.is_dir() else fixed.parent
    for shard in _shards(path):
        if shard.file in seen:
            continue
        seen.add(shard.file)
        inside = shard.file.relative_to(root) if shard.file.is_relative_to(root) else Path(shard.file.name)
        found = _SPLIT.findall("/".join(inside.with_suffix("").parts).lower())
        yield shard, _SPLITS.get(found[-1], found[-1]) if found and not single else "train"


def _shards(path: str) -> Iterator[Shard]:
    for each in [path] if expanded(path).exists() else paths.braces(path):
        given = expanded(each)
        if not given.exists() and given.with_name(f"{given.name}.idx").is_file():  # as Megatron calls its data
            given = given.with_name(f"{given.name}.bin")
        files = matching(str(given))
        if given.is_dir():
            files = [file for file in files if file.suffix == ".bin"]
            if not files:
                hint = "files of tokens are called .bin; give a pattern for others"
                raise DataError("the folder holds no .bin", where=each, hint=hint)
        for file in files:
            file = file.with_suffix(".bin") if file.suffix == ".idx" else file
            paths.require_file(file)
            index = file.with_suffix(".idx")
            yield Shard(file, index if file.suffix == ".bin" and index.is_file() else None)


# ----------------------------------------------------------------------------------------------------- what they hold


def digests(found: Sequence[Shard]) -> dict[Path, str]:
    """What each file is known by, that of its index included: its content where all of them are small, else size, time
    of change, and a sample of the content.

    Raises:
        DataError: where one cannot be read.
    """
    files = [file for shard in found for file in shard.files]
    try:
        whole = not sampled(files)
        blocks = max(2, _SAMPLED // max(1, len(files)))
        known = {file: sha256(file) if whole else _sampled(file, blocks) for file in files}
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(error.filename)) from error
    return {shard.file: "".join(known[file][:32] for file in shard.files) for shard in found}


def sampled(files: Sequence[Path]) -> Sequence[Path]:
    """Those of the files of a set that are known by samples of their content. Raises OSError."""
    return [] if sum(file.stat().st_size for file in files) <= _WHOLE else files


def _sampled(file: Path, blocks: int) -> str:
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        for place in np.linspace(0, max(0, status.st_size - _SAMPLE), blocks).astype(np.int64).tolist():
            digest.update(os.pread(stream.fileno(), _SAMPLE, place))
    return digest.hexdigest()


def _require_width(file: Path, stored: Stored, dtype: str | None) -> None:
    """That raw tokens are not of four bytes where two are taken for granted: then every second one is next to 0."""
    if stored.format != RAW or dtype is not None or stored.count % 2:
        return
    low, high = 0, 0
    with file.open("rb") as stream:
        for place in np.linspace(0, max(0, stored.count // (_SAMPLE // 2) - 1), 64).astype(np.int64).tolist():
            values = np.frombuffer(os.pread(stream.fileno(), _SAMPLE, place * _SAMPLE), "<u2")
            low, high = max(low, int(values[::2].max())), max(high, int(values[1::2].max()))
    if (high == 0 and low) or (high < 4 and low > 255):  # no vocabulary has 2**18 tokens, or few have
        what = f"every second number is {'0' if high == 0 else f'{high} at most'}, as in a file of uint32"
        raise DataError(what, where=str(file), hint="set data.dtype=uint32, or data.dtype=uint16 if it is not")
