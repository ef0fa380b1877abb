"""Files of columns (Parquet, Arrow) that are too large for memory: each column is read by itself, some rows at a time,
whenever it is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bigctl.data.sources import parquet_files
from bigctl.data.sources.parquet_files import Part
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LARGE = 2**25
"""Bytes of the columns that are wanted of all files, not compressed, from which on they are read by blocks."""

_ROWS, _BYTES = 2**14, 2**23
"""Rows of a block, and bytes at about which they are fewer."""


@dataclass(frozen=True)
class Looked:
    """A file as far as its columns tell without being read.

    Attributes:
        empty: a table without rows that has its columns, those that are wanted.
        rows: how many it has.
        bytes: of these columns once they are read, about.
    """

    empty: pa.Table
    rows: int
    bytes: int


class Kind(Protocol):
    """A kind of files with columns."""

    def look(self, file: Path, only: Sequence[str] | None) -> Looked:
        """What there is; `only` are the columns that are wanted, None for all. Raises DataError."""

    def column(self, file: Path, name: str, first: int) -> Iterator[pa.Array]:
        """A column from a row on, by blocks. Raises DataError."""


class _Parquet:
    def look(self, file: Path, only: Sequence[str] | None) -> Looked:
        with parquet_files.told(file), parquet_files.opened(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
            parquet_files.require_one_type(file, parquet.metadata)
            empty = parquet_files.without_views(schema.empty_table())
            names = [name for name in schema.names if only is None or name in only]
            return Looked(empty.select(names), rows, max(_size(parquet.metadata, names), 8 * rows * len(names)))

    def column(self, file: Path, name: str, first: int) -> Iterator[pa.Array]:
        with parquet_files.told(file), parquet_files.opened(file, buffer_size=2**20, pre_buffer=False) as parquet:
            described = parquet.metadata
            rows = max(1, min(_ROWS, _BYTES * described.num_rows // max(1, _size(described, [name]))))
            groups = np.cumsum([described.row_group(n).num_rows for n in range(described.num_row_groups)])
            begun = int(np.searchsorted(groups, first, side="right"))
            first -= int(groups[begun - 1]) if begun else 0
            left = [*range(begun, len(groups))]
            for batch in parquet.iter_batches(batch_size=rows, row_groups=left, columns=[name]) if left else ():
                if first < batch.num_rows:
                    yield batch.column(batch.schema.get_field_index(name)).slice(first)
                first = max(0, first - batch.num_rows)


def _size(described: pq.FileMetaData, names: Sequence[str]) -> int:
    """Bytes of some columns, not compressed."""
    roots = [described.schema.column(place).path.split(".")[0] for place in range(described.num_columns)]
    places = [place for place, root in enumerate(roots) if root in names]
    groups = (described.row_group(number) for number in range(described.num_row_groups))
    return sum(group.column(place).total_uncompressed_size for group in groups for place in places)


Parquet: Kind = _Parquet()


@dataclass(frozen=True)
class LargePart(Part):
    """The rows of one split, of files that are read by blocks; `table` has their columns and no rows.

    Attributes:
        kind: of the files.
        total: how many rows they have.
    """

    kind: Kind
    total: int

    @property
    def rows(self) -> int:
        return self.total

    def column(self, name: str, what: str) -> pa.ChunkedArray:
        import pyarrow as pa

        chunks = [chunk for block in self.blocks(name, what) for chunk in block.chunks]
        return pa.chunked_array(chunks, self.stored(name, what))

    def blocks(self, name: str, what: str = "feature", first: int = 0) -> Iterator[pa.ChunkedArray]:
        import pyarrow as pa

        stored, ends = self.stored(name, what), [*self.starts[1:], self.total]
        for file, start, end in zip(self.files, self.starts, ends, strict=True):
            for block in self.kind.column(file, name, max(0, first - start)) if first < end else ():
                try:
                    found = block if block.type == stored else block.cast(stored)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    what, hint = f"the files store a column differently: {error}", "write it alike"
                    raise DataError(what, where=self.source, hint=hint) from None
                yield pa.chunked_array([found])


def joined(source: str, files: Sequence[Path], kind: Kind, *, only: Sequence[str] | None, drop: Sequence[str]) -> Part:
    """The rows of some files, one after the other, as `parquet_files.joined` has them. Raises DataError."""
    looked = [kind.look(file, only) for file in files]
    starts = np.cumsum([0, *(each.rows for each in looked)]).tolist()
    tables = parquet_files.alike(files, (each.empty for each in looked), drop)
    table = parquet_files.concatenated(source, tables, starts[-1])
    return LargePart(source, table, tuple(starts[:-1]), tuple(files), kind, starts[-1])


def are_large(files: Sequence[Path], kind: Kind, only: Sequence[str] | None) -> bool:
    """Whether some files together hold more than is read as a whole."""
    try:
        sizes = (kind.look(file, only).bytes for file in files)
        return any(size >= LARGE for size in itertools.accumulate(sizes))
    except DataError:  # which reading it as a whole tells
        return False
