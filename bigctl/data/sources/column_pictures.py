"""Pictures in a column of Parquet or Arrow files, found without decoding them.

In a file that is not compressed they are where they are. A Parquet file mostly keeps them in compressed pages, which
have no random access: reading one picture means unpacking its group of rows (10 ms where that has 100 photographs of
95 kB, 70 to 170 where it has 1,000; decoding one takes 4), so that these are copied into the cache once, as they are.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bigctl.config import schema
from bigctl.data.files import paths
from bigctl.data.pictures import packs
from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.pictures.stores import Held, Ranges
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding, image_index, parquet_pages
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.image_index import Wanted
from bigctl.data.sources.parquet_columns import Bad, encoded_images
from bigctl.data.sources.parquet_files import Part
from bigctl.errors import DataError
from bigctl.formatting import size

if TYPE_CHECKING:
    import pyarrow as pa

Pictures = Callable[[Mapping[str, Bad | None]], tuple[dict[str, Columns], EncodedImages | None]]
"""From where rows that cannot be used are noted, by split, to the column `image` of each split."""
_ROWS = 64
"""Rows that are read at once."""
_CONTENT, _STARTS, _SIZES = "pictures.bin", "starts.npy", "sizes.npy"


class _NoColumnError(Exception):
    """There is no such column; the arguments are the names of all."""


class Kind(Protocol):
    """A kind of files with columns."""

    def rows(self, file: Path) -> int:
        """How many it has. Raises pyarrow's errors."""

    def blocks(self, file: Path, column: str) -> Iterator[tuple[pa.Array, int]]:
        """A column by blocks, each with the address in memory at which the mapped file begins, or 0. Raises pyarrow's
        errors, and where there is no such column one with the names of those that there are."""

    def places(self, file: Path, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the pictures begin in a file, and their sizes; None where they have no place there, as it is
        compressed. Raises as `blocks`."""


class _Parquet:
    def rows(self, file: Path) -> int:
        import pyarrow.parquet as pq

        return int(pq.read_metadata(file).num_rows)

    def blocks(self, file: Path, column: str) -> Iterator[tuple[pa.Array, int]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(file, buffer_size=2**20) as opened:
            if column not in (names := opened.schema_arrow.names):
                raise _NoColumnError(*names)
            leaf = self._leaf(opened.schema_arrow, column)
            for batch in opened.iter_batches(batch_size=_ROWS, columns=[leaf]):
                yield batch.column(0), 0

    def places(self, file: Path, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        import pyarrow.parquet as pq

        schema = pq.read_schema(file)
        if column not in schema.names:
            raise _NoColumnError(*schema.names)
        leaf = self._leaf(schema, column)
        return parquet_pages.places(file, leaf, lambda block: _contents(block, column, file))

    def _leaf(self, schema: pa.Schema, column: str) -> str:
        import pyarrow as pa

        kind = schema.field(column).type
        return f"{column}.bytes" if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else column


class _Arrow:
    def rows(self, file: Path) -> int:
        return sum(batch.num_rows for batch, _ in self._batches(file))

    def blocks(self, file: Path, column: str) -> Iterator[tuple[pa.Array, int]]:
        for batch, base in self._batches(file):
            if column not in batch.schema.names:
                raise _NoColumnError(*batch.schema.names)
            yield batch.column(column), base

    def places(self, file: Path, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        total = file.stat().st_size
        starts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block, base in _blocks(file, column, self):
            contents = _contents(block, column, file)
            contents.validate(full=True)
            offsets, content = _offsets(contents)
            first = content.address - base if content is not None else 0
            if len(offsets) > 1 and not (first >= 0 and first + int(offsets[-1]) <= total):
                return None
            starts.append(first + offsets[:-1])
            sizes.append(_lengths(contents, offsets))
        return np.concatenate(starts), np.concatenate(sizes)

    def _batches(self, file: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
        import pyarrow as pa
        import pyarrow.ipc as ipc

        # Of a file that is mapped no more than what is looked at is read; a choice of columns would copy these.
        with pa.memory_map(str(file)) as mapped:
            whole = mapped.read_buffer()
            if whole[:6].to_pybytes() == b"ARROW1":
                opened = ipc.open_file(pa.BufferReader(whole))
                batches = map(opened.get_batch, range(opened.num_record_batches))
            else:
                batches = iter(ipc.open_stream(pa.BufferReader(whole)))
            for batch in batches:
                yield batch, whole.address


Parquet: Kind = _Parquet()
Arrow: Kind = _Arrow()


def is_streamed(config: schema.Parquet, files: Sequence[Path], kind: Kind) -> bool:
    """Whether the pictures of some files are decoded while training: as is said, or by what they take once decoded.
    Raises DataError for a file that cannot be read."""
    if config.image is None:
        return False
    if config.decoding is not None:
        return config.decoding == schema.DECODE_STREAM
    height, width = config.image_size or _first_shape(files[0], config.image, kind)
    pixels = height * width * (config.channels or 3)
    rows = 0
    for file in files:
        with _told(file):
            rows += kind.rows(file)
    return rows * pixels > image_index.FEW


def _first_shape(file: Path, column: str, kind: Kind) -> tuple[int, int]:
    with contextlib.suppress(DataError):
        for block, _ in _blocks(file, column, kind):
            first = next((value.as_py() for value in _contents(block, column, file) if value.is_valid), None)
            if first is not None:
                return image_decoding.header(first, str(file))[0]
    return 0, 0


def located(
    parts: Mapping[str, Part], config: schema.Parquet, kind: Kind, bad: Mapping[str, Bad | None]
) -> tuple[dict[str, Columns], EncodedImages | None]:
    """Where the pictures of each split are: places in an index, int64 [N], and that.

    Args:
        parts: the rows of each split.
        config: what names the column.
        kind: of the files.
        bad: where rows that cannot be used are noted, by split, if they are to be left out.

    Raises:
        DataError: the column is missing or holds no bytes; a file is damaged; a picture cannot be used.
    """
    column = config.image or ""
    found = {split: [_of_file(file, column, kind) for file in part.files] for split, part in parts.items()}
    whole = picture_stores.joined([ranges for own in found.values() for ranges in own])
    hint = "store its bytes, or remove the row"
    wrong = {
        row: DataError("there is no image", where=whole.name(row), hint=hint)
        for row in np.flatnonzero(whole.sizes < 0).tolist()
    }
    skip = None not in bad.values()
    image_decoding.refuse(dict(wrong), wrong if skip else None, len(whole.sizes))
    height_width = (config.image_size[0], config.image_size[1]) if config.image_size else None
    wanted = Wanted(
        height_width, config.channels, config.background, config.resize, skip, config.bad_limit, streamed=True
    )
    images, index = image_index.read_ranges(whole, wanted, wrong)
    places = np.zeros(len(whole.sizes), np.int64)
    places[[row for row in range(len(places)) if row not in wrong]] = images
    splits: dict[str, Columns] = {}
    start = 0
    for split, own in found.items():
        end = start + sum(len(ranges.sizes) for ranges in own)
        splits[split] = {"image": places[start:end]}
        if (noted := bad[split]) is not None:
            noted |= {row - start: error for row, error in wrong.items() if start <= row < end}
        start = end
    return splits, index


def decoded(parts: Mapping[str, Part], config: schema.Parquet, bad: Mapping[str, Bad | None]) -> dict[str, Columns]:
    """The pictures of each split, uint8 [N, H, W, C]; whether they are grey is a matter of all of them.

    Raises:
        DataError: for one that cannot be used.
    """
    found = {split: encoded_images(part, config.image or "", bad[split]) for split, part in parts.items()}
    wanted = (config.image_size[0], config.image_size[1]) if config.image_size else None
    contents = [content for own, _ in found.values() for content in own]
    names = [name for _, own in found.values() for name in own]
    wrong: Bad | None = None if None in bad.values() else {}
    look = (config.background, config.resize)
    decoded = image_decoding.decode_all(contents, wanted, config.channels, names, wrong, *look)
    image_index.refuse_many(wrong or {}, len(contents), config.bad_limit)
    if wrong:
        whole = np.zeros((len(contents), *decoded.shape[1:]), np.uint8)
        whole[[place for place in range(len(contents)) if place not in wrong]] = decoded
        decoded = whole
    splits: dict[str, Columns] = {}
    start = 0
    for split, (own, _) in found.items():
        end = start + len(own)
        splits[split] = {"image": decoded[start:end]}
        if (noted := bad[split]) is not None:
            noted |= {place - start: error for place, error in (wrong or {}).items() if start <= place < end} | noted
        start = end
    return splits


# ----------------------------------------------------------------------------------------------------------- one file


def _of_file(file: Path, column: str, kind: Kind) -> Ranges:
    """Where the pictures of one file are; those that are not there have the size -1."""
    with _told(file, column):
        if (found := kind.places(file, column)) is not None:
            return _named(Held.of(file), *found, column)
        folder = packs.kept(file, f"column {column}", lambda folder: _pack(file, column, kind, folder))
        starts, sizes = (np.load(folder / name, allow_pickle=False) for name in (_STARTS, _SIZES))
        return _named(Held.of(folder / _CONTENT, str(file)), starts, sizes, column)


def _named(held: Held, starts: np.ndarray, sizes: np.ndarray, column: str) -> Ranges:
    names = [f"row {row}:{column}".encode() for row in range(1, len(sizes) + 1)]
    return picture_stores.in_one(held, names, starts, sizes)


def _pack(file: Path, column: str, kind: Kind, folder: Path) -> None:
    """Copy the pictures of a file into a folder."""
    import pyarrow as pa

    starts, sizes, at, total = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0, kind.rows(file)
    rows = 0
    with (folder / _CONTENT).open("wb") as out, Progress(f"data: copying {file.name}", total, ("rows", 1)) as progress:
        for block, _ in _blocks(file, column, kind):
            contents = _contents(block, column, file).cast(pa.large_binary())
            offsets, content = _offsets(contents)
            starts.append(at + offsets[:-1] - offsets[0])
            sizes.append(_lengths(contents, offsets))
            if content is not None:
                at += out.write(memoryview(content)[int(offsets[0]) : int(offsets[-1])])
            progress.update(rows := rows + len(contents))
    np.save(folder / _STARTS, np.concatenate(starts))
    np.save(folder / _SIZES, np.concatenate(sizes))
    why = "has its pictures in compressed pages, which have no random access"
    print(f"data: {file} {why}: a copy of {size(at)} is kept in {packs.root()}", file=sys.stderr)


def _blocks(file: Path, column: str, kind: Kind) -> Iterator[tuple[pa.Array, int]]:
    """A column by blocks. Raises DataError."""
    with _told(file, column):
        yield from kind.blocks(file, column)


def _contents(block: pa.Array, column: str, file: Path) -> pa.Array:
    """The bytes of a column, of structs their field `bytes`. Raises DataError where it has none."""
    import pyarrow as pa
    import pyarrow.types as types

    found = block
    if types.is_struct(found.type) and found.type.get_field_index("bytes") >= 0:  # as Hugging Face writes images
        found = found.flatten()[found.type.get_field_index("bytes")]
    if types.is_dictionary(found.type):
        found = found.dictionary_decode()
    if str(found.type) == "binary_view":
        found = found.cast(pa.large_binary())
    if not (types.is_binary(found.type) or types.is_large_binary(found.type)):
        what = f"the column {column!r} is {block.type}, not of bytes"
        raise DataError(what, where=str(file), hint="name another")
    return found


def _offsets(contents: pa.Array) -> tuple[np.ndarray, pa.Buffer | None]:
    """Where the values of an array begin and end in its content, int64 [n + 1], and that."""
    import pyarrow.types as types

    _, offsets, content = contents.buffers()
    width = np.int64 if types.is_large_binary(contents.type) else np.int32
    if offsets is None or not len(contents):
        return np.zeros(len(contents) + 1, np.int64), content
    found = np.frombuffer(offsets, width, len(contents) + 1, contents.offset * np.dtype(width).itemsize)
    return found.astype(np.int64), content


def _lengths(contents: pa.Array, offsets: np.ndarray) -> np.ndarray:
    missing = contents.is_null().to_numpy(zero_copy_only=False)
    return np.where(missing, parquet_pages.MISSING, np.diff(offsets))


@contextlib.contextmanager
def _told(file: Path, column: str = "") -> Iterator[None]:
    """What pyarrow raises of a file, as a DataError."""
    import pyarrow as pa

    try:
        yield
    except _NoColumnError as error:
        names = [str(name) for name in error.args]
        close = difflib.get_close_matches(column, names, n=1)
        hint = (f"did you mean {close[0]!r}? " if close else "") + f"the columns are {paths.some(names)}"
        raise DataError(f"there is no image column {column!r}", where=str(file), hint=hint) from None
    except (pa.ArrowException, OSError) as error:
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"the file is damaged, or of another kind: {what}", where=str(file)) from None
