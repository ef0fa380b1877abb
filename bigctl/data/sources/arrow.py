"""Arrow files and folders that Hugging Face `datasets` has saved (`data=arrow`): tables, texts and images.

Read with pyarrow alone, as `docs/parquet.md` says of Parquet files. A folder of `Dataset.save_to_disk` names its files
in state.json, one of `DatasetDict.save_to_disk` its splits in dataset_dict.json. Integers that stand for names
(`ClassLabel`) are those names.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl import memory
from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files import paths
from bigctl.data.sources import column_blocks, column_pictures, parquet, parquet_files
from bigctl.data.sources.column_blocks import Looked
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.parquet_files import Part
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.errors import DataError
from bigctl.files import expanded

if TYPE_CHECKING:
    import pyarrow as pa

_SPLITS = {"train": "train", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"), "test": "test"}
_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"
"""How a file begins that is no stream."""
_NONE = "this is no Arrow file, or a damaged one"
_ROWS, _BYTES = 2**14, 2**23
"""Rows of a block, and bytes at about which they are fewer."""
_LARGEST = 2**24
"""Bytes of a file of JSON that describes a folder."""


def identity(config: schema.Arrow) -> object:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    found = _files(config)[0]
    large = config.image is not None or _is_large(config, found)  # which are not read as a whole
    files = {split: paths.fingerprint_files(own, in_blocks=large) for split, own in found.items()}
    streamed: dict[str, object] = {}
    if _is_streamed(config, found):
        streamed["streamed"] = {split: [os.path.abspath(file) for file in own] for split, own in found.items()}
    return {"files": files, "format": "arrow"} | parquet.given_keys(config) | streamed


def _is_streamed(config: schema.Arrow, found: Mapping[str, Sequence[Path]]) -> bool:
    files = [file for own in found.values() for file in own]
    return column_pictures.is_streamed(config, files, column_pictures.Arrow)


def _is_large(config: schema.Arrow, found: Mapping[str, Sequence[Path]]) -> bool:
    """Whether it is a table, or texts, that is prepared by blocks."""
    files = [file for own in found.values() for file in own]
    return config.image is None and column_blocks.are_large(files, Blocks, parquet.wanted(config))


def by_blocks(config: schema.Arrow, regression: bool) -> Callable[[Path], Decoded] | None:
    """What decodes large files through others in a folder; None where `decode` will do."""
    files, notes = _files(config)
    if not _is_large(config, files):
        return None
    only = parquet.wanted(config)
    reads = partial(column_blocks.joined, kind=Blocks, only=only, drop=config.drop if only is None else ())

    def decode_blocks(work: Path) -> Decoded:
        parts = {split: reads(config.path, own) for split, own in files.items()}
        return _with_notes(parquet.decode_parts(parts, config, regression, work=work), notes)

    return decode_blocks


def decode(config: schema.Arrow, regression: bool) -> Decoded:
    """The rows of files as examples.

    Raises:
        DataError: there is no such file, or it is damaged; a column is missing, or of a type that cannot be used.
    """
    files, notes = _files(config)
    only, streamed = parquet.wanted(config), _is_streamed(config, files)
    drop = config.drop if only is None else ()
    if streamed:
        only = [name for name in only or () if name != config.image]
    reads = partial(read_file, mapped=streamed)
    parts = {
        split: parquet_files.joined(config.path, found, reads, only=only, drop=drop) for split, found in files.items()
    }
    pictures = partial(column_pictures.located, parts, config, column_pictures.Arrow) if streamed else None
    return _with_notes(parquet.decode_parts(parts, config, regression, pictures), notes)


def _with_notes(found: Decoded, notes: Sequence[str]) -> Decoded:
    info = {"source": "arrow", **found.info, "notes": [*notes, *found.info["notes"]]}
    return dataclasses.replace(found, info=info)


def read_for_prediction(path: Path, config: schema.Parquet, features: Features) -> Unlabelled:
    """The rows of a file: of a table, of texts, or of images in the column of the training. Raises DataError."""
    only = [config.image or "image"] if features.kind == "image" else parquet.sources_of(features)
    return parquet.predicted(_part(str(path), [path], only), config, features)


def read_column(path: Path, config: schema.Parquet, name: str) -> list[Any] | None:
    """The values of a column as they are stored; None where there is no such column. Raises DataError."""
    table = _part(str(path), [path], [name]).table
    return table.column(name).to_pylist() if name in table.column_names else None


# ------------------------------------------------------------------------------------------------------------- folders


def _files(config: schema.Arrow) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each split, and notes. Raises DataError where there are none, or a split is given twice."""
    found, notes = files_by_split(config.path)
    for split, path in (("validation", config.validation_path), ("test", config.test_path)):
        if path is None:
            continue
        if split in found:
            hint = f"leave data.{split}_path out, or give the folder of the training split alone"
            raise DataError(f"data.path has a {split} split too", where=f"data.{split}_path", hint=hint)
        found[split] = _of_one_split(path)
    return found, notes


def files_by_split(path: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of the splits that a path holds, and a note of splits that are not used."""
    listed = expanded(path) / "dataset_dict.json"
    if not listed.is_file():
        return {"train": _of_one_split(path)}, []
    names = _json(listed).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError("does not list the names of splits", where=str(listed), hint="save the data set anew")
    used = {_SPLITS[name]: name for name in reversed(names) if name in _SPLITS}
    if "train" not in used:
        hint = "give the folder of the split to train on as data.path"
        raise DataError(f"there is no split called train, but {paths.some(names)}", where=path, hint=hint)
    left = [name for name in names if name not in used.values()]
    notes = [f"the splits {paths.some(left)} of {path} are left out"] if left else []
    return {split: _of_one_split(str(listed.parent / name)) for split, name in used.items()}, notes


def _of_one_split(path: str) -> list[Path]:
    """The files that a path means, in the order of their rows. Raises DataError where there are none."""
    folder = expanded(path)
    state = folder / "state.json"
    if not state.is_file():
        return parquet_files.matching(path, schema.Arrow.suffixes)
    described = _json(state)
    if described.get("_indices_files") or described.get("_indices_data_files"):
        hint = "call flatten_indices() before save_to_disk()"
        raise DataError("the rows are chosen by a list of indices beside them", where=str(state), hint=hint)
    files = described.get("_data_files")
    names = [each.get("filename") if isinstance(each, dict) else None for each in files if files] if files else []
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise DataError("does not list files beside it", where=str(state), hint="save the data set anew")
    return [paths.require_file(folder / cast(str, name)) for name in names]


def _json(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            found = json.loads(stream.read(_LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read as JSON: {error}", where=str(file), hint="save the data set anew") from None
    if not isinstance(found, dict):
        raise DataError("this is no JSON object", where=str(file), hint="save the data set anew")
    return found


# --------------------------------------------------------------------------------------------------------------- files


def _part(source: str, files: Sequence[Path], only: Sequence[str] | None, drop: Sequence[str] = ()) -> Part:
    return parquet_files.joined(source, files, read_file, only=only, drop=drop)


def read_file(file: Path, only: Sequence[str] | None, *, mapped: bool = False) -> pa.Table:
    """The columns that are wanted of one file, those of class labels as names; of a file that is mapped the others are
    not read.

    Raises:
        DataError: it is no Arrow file, or a damaged one.
    """
    import pyarrow as pa

    paths.require_file(file)
    with parquet_files.told(file, _NONE):
        if not mapped:
            memory.require(file.stat().st_size, "the file", where=str(file))
        with pa.memory_map(str(file)) if mapped else pa.OSFile(str(file)) as source:
            described, opened = _opened(source, file, only)
            table = opened.read_all().replace_schema_metadata(described.metadata)
            if only is not None and not set(only) & set(described.names):
                table = table.select([])
        table.validate(full=True)
        return parquet_files.without_views(_with_names(table, file))


def _opened(
    source: pa.NativeFile, file: Path, only: Sequence[str] | None
) -> tuple[pa.Schema, pa.RecordBatchFileReader | pa.RecordBatchStreamReader]:
    """What columns a file has, and what reads those that are wanted, or all where it has none of these."""
    import pyarrow.ipc as ipc

    begin = source.read(len(_FILE))
    source.seek(0)
    if begin.startswith(_FEATHER_1):
        raise DataError("this is the first version of Feather", where=str(file), hint="write it anew, as version 2")
    open_ = ipc.open_file if begin == _FILE else ipc.open_stream
    described = open_(source).schema
    names = described.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"duplicate column names: {paths.some(twice)}", where=str(file), hint="rename them")
    places = [place for place, name in enumerate(names) if only is None or name in only]
    source.seek(0)
    options = ipc.IpcReadOptions(included_fields=places) if only is not None and places else ipc.IpcReadOptions()
    return described, open_(source, options=options)


class _Blocks:
    """Files of Arrow by blocks: batches of rows as they were written."""

    def look(self, file: Path, only: Sequence[str] | None) -> Looked:
        import pyarrow as pa

        with parquet_files.told(file, _NONE), pa.memory_map(str(paths.require_file(file))) as source:
            described, opened = _opened(source, file, only)
            names = [name for name in described.names if only is None or name in only]
            rows, size = 0, 0
            for batch in _batches(opened):
                rows, size = rows + batch.num_rows, size + batch.nbytes
            none = [pa.array([], field.type) for field in described]
            empty = _with_names(pa.table(none, schema=described), file).select(names)
            return Looked(parquet_files.without_views(empty), rows, max(size, 8 * rows * len(names)))

    def column(self, file: Path, name: str, first: int) -> Iterator[pa.Array]:
        import pyarrow as pa

        with parquet_files.told(file, _NONE), pa.memory_map(str(file)) as source:
            described, opened = _opened(source, file, [name])
            for batch in _batches(opened):
                if first >= batch.num_rows:
                    first -= batch.num_rows
                    continue
                left, first = batch.slice(first), 0
                left.validate(full=True)
                table = pa.Table.from_batches([left]).replace_schema_metadata(described.metadata)
                found = parquet_files.without_views(_with_names(table, file)).column(name).combine_chunks()
                rows = max(1, min(_ROWS, _BYTES * len(found) // max(1, found.nbytes)))
                yield from (found.slice(start, rows) for start in range(0, len(found), rows))


Blocks: column_blocks.Kind = _Blocks()


def _batches(opened: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if hasattr(opened, "num_record_batches"):
        return map(opened.get_batch, range(opened.num_record_batches))
    return iter(opened)


def _with_names(table: pa.Table, file: Path) -> pa.Table:
    """The table with the names of classes in place of their numbers; -1, which stands for none, is null."""
    for place, name in enumerate(table.column_names):
        names = _class_names(table.schema.metadata or {}, name)
        if names is not None:
            table = table.set_column(place, name, _named(table.column(name), names, f"{file}:{name}"))
    return table


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    """What the integers of a column, or those in its lists, stand for; None where they stand for themselves."""
    try:
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]
        feature = feature[0] if isinstance(feature, list) else feature
        feature = feature if feature["_type"] == "ClassLabel" else feature["feature"]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _named(column: pa.ChunkedArray, names: Sequence[str], where: str) -> pa.ChunkedArray:
    import pyarrow as pa
    import pyarrow.types as types

    chunks = []
    for chunk in column.chunks:
        several = types.is_list(chunk.type) or types.is_large_list(chunk.type)
        numbers = chunk.values if several else chunk
        if not types.is_integer(numbers.type):
            return column
        known: dict[int | None, str | None] = {None: None, -1: None, **dict(enumerate(names))}
        values = numbers.to_pylist()
        if unknown := next((value for value in values if value not in known), None):
            raise DataError(f"there is a class {unknown}, where {len(names)} have names", where=where)
        words = pa.array([known[value] for value in values], pa.string())
        if several:
            kind = pa.LargeListArray if types.is_large_list(chunk.type) else pa.ListArray
            words = kind.from_arrays(chunk.offsets, words, mask=chunk.is_null() if chunk.null_count else None)
        chunks.append(words)
    return pa.chunked_array(chunks) if chunks else column
