"""Images in one folder and a file of rows (csv, tsv, jsonl) that names the classes of each, several or none.

The column `file_name`, with a path below the folder, is called as in Hugging Face's `metadata.csv`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bigctl.data.dataset import SPLITS
from bigctl.data.files.paths import require_folder, some, walk
from bigctl.data.sources import image_decoding, image_index
from bigctl.data.sources.content import suffix_of
from bigctl.data.sources.decoded import Decoded, Origins
from bigctl.data.sources.image_index import USUAL, Wanted
from bigctl.data.sources.label_sets import read_label_sets
from bigctl.data.sources.read_table import SUFFIXES, Dialect, load
from bigctl.data.sources.text_rows import TextTable
from bigctl.errors import DataError

_SPLIT = "split"
_SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}


def read_labelled_images(
    path: Path,
    labels_file: Path,
    *,
    labels: str = "labels",
    separator: str = ";",
    file_name: str = "file_name",
    split: str | None = None,
    encoding: str | None = None,
    wanted: Wanted = USUAL,
) -> Decoded:
    """Read the images that a file of labels names.

    Args:
        path: the folder.
        labels_file: one row an image.
        labels, separator: its column with the classes, see `label_sets`.
        file_name: its column with the path of the image below the folder.
        split: its column that says "train", "validation" or "test"; None for one split, "train".
        encoding: of the file of labels; None for UTF-8.
        wanted: how the images are to be read.

    Returns:
        Decoded images, uint8 [N, H, W, C], or where they are, and labels, uint8 [N, classes], in the order of the rows.

    Raises:
        DataError: folder, file or a column is missing, an image is not there or named twice, or is none.
    """
    require_folder(path)
    format = SUFFIXES.get(suffix_of(labels_file))
    if format is None:
        known = ", ".join(SUFFIXES)
        raise DataError(f"the suffix {labels_file.suffix!r} tells no format", where=str(labels_file), hint=known)
    asked = {file_name, labels} | ({split} if split else set() if format == "jsonl" else {_SPLIT})
    table = load(labels_file, format, asked.__contains__, dialect=Dialect(encoding=encoding), lists=(labels,))
    table.require(file_name, "file name")
    files = [path / name for name in table.columns[file_name]]
    _check_files(table, file_name, files, path)
    rows = _rows(table, split)
    unused = split is None and set(map(str.lower, table.columns.get(_SPLIT, ["-"]))) <= {*_SPLITS, *SPLITS}
    notes = [*table.notes, *([f"the column {_SPLIT!r} is not used: data.split={_SPLIT} goes by it"] if unused else [])]
    target, sets = read_label_sets({name: _part(table, own) for name, own in rows.items()}, labels, separator, notes)
    order = [row for own in rows.values() for row in own]
    bad, paths = dict[int, DataError](), [files[row] for row in order]
    images, index = image_index.read(paths, [path], wanted, bad)
    splits = image_index.by_split(images, {name: sets[name] for name in rows}, bad)
    info: dict[str, Any] = {
        "source": "image_folder",
        "path": str(path),
        "labels_file": str(labels_file),
        "images": {name: len(columns["label"]) for name, columns in splits.items()},
        "image_shape": list((images if index is None else index).shape[1:]),
        "ignored_files": _not_named(files, path),
        **image_index.left_out(bad, len(paths), notes),
    }
    origins = _origins(table.columns[file_name], rows, bad)
    return Decoded("image", splits, None, info, target, origins=origins, index=index)


def _origins(files: list[str], rows: dict[str, list[int]], bad: dict[int, DataError]) -> Origins:
    return image_index.origins({name: [files[row] for row in own] for name, own in rows.items()}, bad)


def _not_named(files: list[Path], folder: Path) -> int:
    """Pictures in the folder that no row names."""
    named = {file.resolve() for file in files}
    return sum(file.resolve() not in named for file in walk(folder) if image_decoding.is_image_name(file))


def _check_files(table: TextTable, column: str, files: list[Path], folder: Path) -> None:
    absent = [row for row, file in enumerate(files) if not file.is_file()]
    if absent:
        more = f", and {len(absent) - 1} more are not" if len(absent) > 1 else ""
        raise DataError(
            f"{table.columns[column][absent[0]]!r} is not in the folder {folder}{more}",
            where=table.at(absent[0], column),
            hint="paths are those below data.path",
        )
    twice = [name for name, count in Counter(table.columns[column]).items() if count > 1]
    if twice:
        raise DataError(f"images are named twice: {some(twice)}", where=table.source, hint="keep one row for each")


def _rows(table: TextTable, split: str | None) -> dict[str, list[int]]:
    """The rows of each split."""
    if split is None:
        return {"train": list(range(len(table.lines)))}
    table.require(split, "split")
    found: dict[str, list[int]] = {}
    for row, value in enumerate(table.columns[split]):
        name = _SPLITS.get(value.lower(), value.lower())
        if name not in SPLITS:
            hint = "write train, validation or test"
            raise DataError(f"{value!r} is no split", where=table.at(row, split), hint=hint)
        found.setdefault(name, []).append(row)
    if "train" not in found:
        raise DataError("no row is of the training split", where=table.source, hint=f"write train into {split!r}")
    return found


def _part(table: TextTable, rows: list[int]) -> TextTable:
    """Some rows of a table."""
    columns = {name: [values[row] for row in rows] for name, values in table.columns.items()}
    lines = [table.lines[row] for row in rows]
    return TextTable(table.source, table.names, columns, lines, table.notes, table.header, table.absent)
