"""Parquet files as one table: those of a folder or a pattern one after the other, and where each of its values is."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl import memory
from bigctl.config.schema import Parquet
from bigctl.data.files import paths
from bigctl.data.sources import text_files
from bigctl.errors import DataError
from bigctl.files import expanded

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Part:
    """The rows of one split: those of all its files, one after the other."""

    source: str
    table: pa.Table
    starts: tuple[int, ...]
    files: tuple[Path, ...]

    def at(self, row: int, column: str) -> str:
        """Where a value is: the file, the row in it from 1, and the column."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.files[file]}:row {row - self.starts[file] + 1}:{column}"

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        """Of all columns."""
        return list(self.table.column_names)

    def stored(self, name: str, what: str = "feature") -> pa.DataType:
        """The type of a column. Raises DataError with the likeliest name where there is none of this name."""
        names = self.names
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
            hint = (f"did you mean {close[0]!r}? " if close else "") + f"the columns are {paths.some(names)}"
            raise DataError(f"there is no {what} column {name!r}", where=self.source, hint=hint)
        return self.table.schema.field(name).type

    def column(self, name: str, what: str) -> pa.ChunkedArray:
        """Raises DataError where there is none of this name."""
        self.stored(name, what)
        return self.table.column(name)

    def blocks(self, name: str, what: str = "feature", first: int = 0) -> Iterator[pa.ChunkedArray]:
        """A column from a row on, some rows at a time, which of what is in memory are all. Raises DataError."""
        yield self.column(name, what).slice(first)


def read(path: str, *, only: Sequence[str] | None = None, drop: Sequence[str] = ()) -> Part:
    """The rows of a file, of all Parquet files in a folder, or of those that match a pattern, in order of their names.

    Args:
        path: what is given.
        only: the columns that are wanted, where they are there; None for all.
        drop: columns to leave out.

    Raises:
        DataError: a file is missing, damaged, or has other columns than the first; there are no rows.
    """
    return joined(path, matching(path), _read_file, only=only, drop=drop)


def joined(
    source: str,
    files: Sequence[Path],
    read_file: Callable[[Path, Sequence[str] | None], pa.Table],
    *,
    only: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Part:
    """The rows of some files, one after the other, as `read` has them; `read_file` gives the columns of one."""
    tables = alike(files, (read_file(file, only) for file in files), drop)
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    whole = concatenated(source, tables, int(starts[-1]))
    return Part(source, whole, tuple(starts[:-1].tolist()), tuple(files))


def alike(files: Sequence[Path], found: Iterable[pa.Table], drop: Sequence[str]) -> list[pa.Table]:
    """The tables of some files without what is dropped. Raises DataError where they have not the same columns, or
    store one in ways that do not go together."""
    tables: list[pa.Table] = []
    for file, table in zip(files, found, strict=True):
        for name in drop if file is files[0] else ():
            Part(str(file), table, (0,), (file,)).column(name, "data.drop")
        tables.append(table.drop_columns([name for name in drop if name in table.column_names]))
        other = sorted(set(tables[-1].column_names) ^ set(tables[0].column_names))
        if other:
            raise DataError(
                f"the column {other[0]!r} is not in all files", where=str(file), hint=f"{files[0]} has other columns"
            )
    _require_alike(files, tables)
    return tables


def concatenated(source: str, tables: Sequence[pa.Table], rows: int) -> pa.Table:
    """Tables as one. Raises DataError where they have no `rows`, or store a column in ways that do not go together."""
    import pyarrow as pa

    if not rows:
        raise DataError("there are no rows", where=source, hint="is it the right file?")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the files store a column differently: {error}", where=source, hint="write it alike") from None


def _require_alike(files: Sequence[Path], tables: Sequence[pa.Table]) -> None:
    """Raises DataError that names the first file with a column of a type that does not go with those before it."""
    import pyarrow as pa

    known = tables[0].schema
    for file, table in zip(files[1:], tables[1:], strict=True):
        try:
            known = pa.unify_schemas([known, table.schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            what = f"the file stores a column differently from those before it: {error}"
            raise DataError(what, where=str(file), hint="write it alike") from None


def matching(path: str, suffixes: Sequence[str] = Parquet.suffixes) -> list[Path]:
    """The files of a format that a path means, by their suffixes. Raises DataError where there are none."""
    found = text_files.matching(path)
    if len(found) == 1 and expanded(path) == found[0]:
        return found
    named = [file for file in found if file.suffix.lower() in suffixes]
    if not named:
        raise DataError(f"none of {len(found)} files there ends in {suffixes[0]}", where=path, hint="give a pattern")
    return named


def without_views(table: pa.Table) -> pa.Table:
    """The table with strings and bytes stored in the usual way, for which everything is there."""
    import pyarrow as pa

    views = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    fields = [field.with_type(views.get(str(field.type), field.type)) for field in table.schema]
    return table if fields == list(table.schema) else table.cast(pa.schema(fields))


def _read_file(file: Path, only: Sequence[str] | None) -> pa.Table:
    with told(file), opened(file) as parquet:
        require_one_type(file, parquet.metadata)
        names = parquet.schema_arrow.names
        wanted, rows = [name for name in names if only is None or name in only], parquet.metadata.num_rows
        memory.require(8 * rows * len(wanted), f"{rows:,} rows", where=str(file))  # equal ones take none in a file
        return without_views(parquet.read(columns=None if only is None else wanted))


@contextlib.contextmanager
def told(file: Path, what: str = "this is no Parquet file, or a damaged one") -> Iterator[None]:
    """What pyarrow raises of a file, as a DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(f"{what}: {said}", where=str(file)) from None


@contextlib.contextmanager
def opened(file: Path, **options: Any) -> Iterator[pq.ParquetFile]:
    """A Parquet file. Raises DataError where two columns have one name."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, **options) as parquet:
        names = parquet.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"duplicate column names: {paths.some(twice)}", where=str(file), hint="rename them")
        yield parquet


def require_one_type(file: Path, described: pq.FileMetaData) -> None:
    """Raises DataError where a group of rows stores a column as another type than the file says."""
    stored = [described.schema.column(column) for column in range(described.num_columns)]
    for number in range(described.num_row_groups):
        group = described.row_group(number)
        for place, column in enumerate(stored):
            found = group.column(place).physical_type
            if found != column.physical_type:
                what = f"the column {column.path!r} is {found} in row group {number + 1}, where the file says it is"
                hint = "write the file anew, with one type a column"
                raise DataError(f"{what} {column.physical_type}", where=str(file), hint=hint)
