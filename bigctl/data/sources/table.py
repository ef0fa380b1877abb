"""A user's own tables (`csv`, `tsv`, `jsonl`): a file -> typed columns -> one float32 matrix.

What a cell means, in training and in prediction alike: surrounding blanks are dropped; '', NA, N/A, nan, null, none and
?, in any case, are missing; true and false, in any case, are the numbers 1 and 0. A column is numeric if all its values
in the training file are numbers, written in one way, and none is a code such as 02134; dates are four numbers; all else
is categorical. The other files are held to that.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.files.paths import some, split_files
from bigctl.data.number_style import BOOLEAN, MISSING, NumberStyle, find_style, number
from bigctl.data.sources import row_blocks
from bigctl.data.sources.cells import (
    CATEGORY,
    USUAL,
    Cells,
    Keep,
    Kinds,
    as_it_is,
    doubted_points,
    infer_columns,
    numeric_column,
    plain_numbers,
    said_of,
    typed_columns,
)
from bigctl.data.sources.column_files import Chosen, StoredRows
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.sources.read_table import PLAIN, Dialect, file_facts, file_origins, load, split_columns
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.data.table_encoder import Categorical, TableEncoder
from bigctl.errors import DataError

_MISSING_HINT = "empty, NA, N/A, nan, null, none and ? count as missing; fill these in or remove the rows"
_CANONICAL = re.compile(r"-?(0|[1-9][0-9]{0,999})(\.0+)?")  # Python itself reads 4,300 digits
MAX_CLASSES = 1000
# A target of few rows may well have as many values as a third of them, and still be classes.
_MIN_CLASSES_TO_DOUBT = 20


def read_table(
    path: Path,
    *,
    label: str,
    format: str = "csv",
    validation_path: Path | None = None,
    test_path: Path | None = None,
    regression: bool = False,
    drop: Sequence[str] = (),
    dialect: Dialect = PLAIN,
    cells: Cells = USUAL,
    group: str | None = None,
    time: str | None = None,
    work: Path | None = None,
) -> Decoded:
    """Read a table with a header row (or JSON objects) into one typed column per feature, and the target `label`.

    Args:
        path: the training file, which alone decides the columns, their types, and the classes.
        label: name of the target column.
        format: "csv", "tsv" (quoting as in CSV) or "jsonl".
        validation_path, test_path: files for the splits "validation" and "test"; their further columns are ignored.
        regression: keep the target as float64 instead of class numbers.
        drop: columns to leave out; those of no use are left out by themselves, with a line in `info["notes"]`.
        dialect, cells: how the files are written, and what their cells mean.
        group, time: columns by which splits are made; that of groups is no feature.
        work: an empty folder, where there are more rows than memory should hold: they go through files in it, block by
            block, and the features stay there.

    Returns:
        Decoded of kind "table": float64 [N] with NaN, or object [N] of str with None, per feature; `label` int32 [N]
        class numbers, classes sorted (as numbers where all are integers), or float64 [N]. With `work` the features are
        in `rows`, and the splits say by ROW which they have.

    Raises:
        DataError: a file is missing or malformed, a column is missing, a value does not fit its column or target.
        OSError: there is no room in `work`.
    """
    kept = {label, group, time}
    files = split_files(path, validation_path, test_path)
    tables = _tables(files, format, lambda name: name not in drop or name in kept, dialect, work)
    rows = None if work is None else StoredRows(work)
    _check_columns(tables, label, drop, cells, path)
    notes = list(tables["train"].notes)
    seen = _without(tables["train"], {group} | ({time} if time in drop else set()))
    kinds, features = infer_columns(seen, label, cells, notes, regression, rows)
    if not features:
        raise _no_features(label, notes, path)
    style = _target_style(tables["train"], label, cells, notes) if regression else CATEGORY
    notes += doubted_points(seen, {**kinds, label: style}, cells)
    classes, targets = _target(tables, label, style, cells)
    splits = _splits(tables, targets, features, kinds, cells, rows)
    for split, table in tables.items():
        splits[split] |= split_columns(table, group, time)
    info = _facts(format, tables, label, kinds, notes)
    found = Decoded("table", splits, classes, info, styles=_styles(kinds), origins=file_origins(tables))
    return found if rows is None else dataclasses.replace(found, rows=rows.only([*kinds]))


def _splits(
    tables: Mapping[str, TextTable],
    targets: Mapping[str, np.ndarray],
    features: Columns,
    kinds: Kinds,
    cells: Cells,
    rows: StoredRows | None,
) -> dict[str, Columns]:
    """Features, or where there are `rows` their places in these, and the target."""
    splits: dict[str, Columns] = {}
    keep, first = as_it_is if rows is None else rows.keep, 0
    for split, table in tables.items():
        own = features if split == "train" else _like_training(table, kinds, cells, keep)
        if rows is not None:
            own = {ROW: np.arange(first, first := first + len(table.lines))}
        splits[split] = {**own, "label": targets[split]}
    return splits


def _facts(
    format: str, tables: Mapping[str, TextTable], label: str, kinds: Kinds, notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "source": format,
        **file_facts(tables),
        "target": label,
        "numeric": [name for name, kind in kinds.items() if kind != CATEGORY],
        "categorical": [name for name, kind in kinds.items() if kind == CATEGORY],
        "notes": notes,
    }


def _tables(
    files: Mapping[str, Path], format: str, wanted: Callable[[str], bool], dialect: Dialect, work: Path | None
) -> dict[str, TextTable]:
    if work is None:
        return {split: load(file, format, wanted, dialect=dialect) for split, file in files.items()}
    return {
        split: row_blocks.load(file, format, wanted, dialect=dialect, folder=work / split)
        for split, file in files.items()
    }


def _styles(kinds: Mapping[str, object]) -> dict[str, NumberStyle]:
    return {name: kind for name, kind in kinds.items() if isinstance(kind, NumberStyle)}


def _without(table: TextTable, names: Collection[str | None]) -> TextTable:
    return dataclasses.replace(table, columns=Chosen(table.columns, names))


def _no_features(label: str, notes: Sequence[str], path: Path) -> DataError:
    why = f": {'; '.join(notes)}" if notes else ""
    hint = "they must be numbers, or categories in which some rows agree"
    return DataError(f"no feature columns are left beside the target {label!r}{why}", where=str(path), hint=hint)


def _check_named(train: TextTable, cells: Cells) -> None:
    for key, names in (("data.categorical", cells.categorical), ("data.numeric", cells.numeric)):
        for name in names:
            if name not in train.names:
                raise DataError(f"{key} names {name!r}, which is no column", where=key, hint=train.close(name))
    if both := [name for name in cells.categorical if name in cells.numeric]:
        raise DataError(f"{both[0]!r} is in data.categorical and in data.numeric", where="data.numeric", hint="choose")


def _target_style(train: TextTable, label: str, cells: Cells, notes: list[str]) -> NumberStyle | None:
    """How the numbers of the target are written; None for as programs do."""
    if plain_numbers(train, label, cells) is not None:
        return None
    distinct = {text for text in set(train.columns[label]) if not cells.misses(text)}
    if cells.decimal in (None, ".") and all(number(text) is not None for text in distinct):
        return None
    style = find_style(distinct, cells.decimal)
    if style is None or style.missing:  # rows without a target are refused, by the usual name
        return None
    if style != NumberStyle(decimal=cells.decimal or "."):
        notes.append(said_of(label, style, distinct, train))
    return style


def _target(
    tables: dict[str, TextTable], label: str, style: NumberStyle | str | None, cells: Cells
) -> tuple[tuple[str, ...] | None, dict[str, np.ndarray]]:
    """The classes, None where the target is a number, and the targets [N] by split, written as in the training file."""
    if isinstance(style, str):
        return classify(tables, label)
    targets = {split: numeric_column(table, label, style, cells) for split, table in tables.items()}
    for split, target in targets.items():
        _require_values(tables[split], label, np.flatnonzero(np.isnan(target)))
    return None, targets


def _check_columns(tables: dict[str, TextTable], label: str, drop: Sequence[str], cells: Cells, path: Path) -> None:
    """Raise DataError where the columns that are named do not exist, or one is in the way of the target's."""
    if label in drop:
        raise DataError(f"data.drop holds the target column {label!r}", where="data.drop", hint="drop other columns")
    train = tables["train"]
    for table in tables.values():
        table.require(label, "target")
    for name in drop:
        if name not in train.names:
            hint = train.close(name)
            raise DataError(f"data.drop names {name!r}, which is no column", where=str(path), hint=hint)
    _check_named(train, cells)
    if label != "label" and "label" in train.columns:
        raise DataError(
            f"the feature column 'label' is in the way, because the target {label!r} is stored under that name",
            where=str(path),
            hint="rename the column 'label', or leave it out with data.drop=[label]",
        )


def _sources(kinds: Kinds) -> list[str]:
    """The columns of a file that features come from, each once."""
    return list(dict.fromkeys(k.of if isinstance(k, NumberStyle) and k.date else name for name, k in kinds.items()))


def _like_training(table: TextTable, kinds: Kinds, cells: Cells, keep: Keep) -> Columns:
    """The columns of another split, with the types that training decided."""
    if absent := [name for name in _sources(kinds) if name not in table.columns]:
        raise DataError(
            f"feature column {absent[0]!r} of the training file is missing",
            where=table.source,
            hint=f"its columns are {some(table.names)}",
        )
    return typed_columns(table, kinds, cells, keep=keep)


def rows_of(
    source: Path | bytes,
    format: str,
    encoder: TableEncoder,
    *,
    dialect: Dialect = PLAIN,
    cells: Cells = USUAL,
) -> tuple[np.ndarray, dict[int, DataError], list[str]]:
    """Read a table for prediction; it needs no target, further columns are ignored.

    Args:
        source: a file, or the content of one.
        format: "csv", "tsv" or "jsonl".
        encoder: what the model was trained with.
        dialect, cells: those of the training.

    Returns:
        float32 [N, D], what is wrong with some of the rows by their number, and notes.

    Raises:
        DataError: the file is missing or malformed, or lacks a feature column.
    """
    kinds: Kinds = {c.name: CATEGORY if isinstance(c, Categorical) else c.style for c in encoder.columns}
    needed = _sources(kinds)
    table = load(source, format, needed.__contains__, dialect=dialect, collect=True)
    if absent := [name for name in needed if name not in table.columns]:
        raise DataError(
            f"the model needs the feature columns {some(absent)}, which are missing",
            where=table.source,
            hint=f"the columns found are {some(table.names)}",
        )
    bad = dict(table.bad)
    for values, row in itertools.product(table.columns.values(), bad):
        values[row] = ""
    columns = typed_columns(table, kinds, cells, bad)
    empty = sum(
        row not in bad and not any(table.columns[name][row] for name in needed) for row in range(len(table.lines))
    )
    notes = [f"{table.source}: {empty} rows have no value in any column of the model"] if empty else []
    return encoder.encode(columns), bad, notes + encoder.unseen(columns, table.source)


# --- The target -------------------------------------------------------------------------------------------------------


def classify(
    tables: dict[str, TextTable], label: str, *, quantities: str = "to predict a number use model.head=regression"
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes of the training target, sorted (as numbers where all are integers), and the class numbers int32 [N].

    Args:
        tables: the files by split, "train" among them, each with the target column.
        label: name of the target column.
        quantities: what to do if the target is a quantity.

    Raises:
        DataError: labels are missing, or not of a training class; there is one class only, or the target is none.
    """
    for table in tables.values():
        _require_values(table, label, [i for i, v in enumerate(table.columns[label]) if v.lower() in MISSING])
    train = tables["train"]
    distinct = set(train.columns[label])
    integers = {text: _integer(text) for text in distinct}
    by_number = None not in integers.values()
    _doubt_classes(train, label, distinct, by_number, quantities)

    def class_name(text: str) -> str:
        number = _integer(text) if by_number else None
        return text if number is None else str(number)  # 1 and 1.0 are one class

    classes = tuple(sorted({class_name(text) for text in distinct}, key=int if by_number else str))
    if len(classes) == 1:
        raise DataError(
            f"the target column {label!r} has only one class, {short(classes[0])!r}",
            where=train.source,
            hint="a classifier needs at least two",
        )
    numbers = {name: i for i, name in enumerate(classes)}
    targets = {}
    for split, table in tables.items():
        names = [class_name(text) for text in table.columns[label]]
        if unknown := [row for row, name in enumerate(names) if name not in numbers]:
            raise DataError(
                f"label out of range: {short(names[unknown[0]])!r} is not among the training classes "
                + some([short(name) for name in classes]),
                where=table.at(unknown[0], label),
                hint="correct the label, or add rows with it to the training file",
            )
        targets[split] = np.array([numbers[name] for name in names], np.int32)
    return classes, targets


def _integer(text: str) -> int | None:
    """A whole number as programs write it; 007, 1E3 and digits of other scripts are names."""
    match = _CANONICAL.fullmatch(text)
    return int(match[1]) * (-1 if text.startswith("-") else 1) if match else None


def whole_numbers(texts: Sequence[str]) -> list[Any]:
    """Texts as whole numbers where all of them are such, as programs write them; else as they are."""
    found = [_integer(text) if "." not in text else None for text in texts]
    return list(texts) if None in found else found


def _doubt_classes(train: TextTable, label: str, distinct: set[str], by_number: bool, quantities: str) -> None:
    """Refuse a target that is a quantity, or hardly the column the user meant."""
    values = {text: number(text) for text in distinct if text.lower() not in BOOLEAN}
    numeric = by_number or (len(values) == len(distinct) and None not in values.values())
    rows = len(train.lines)
    if numeric and (fractions := [text for text, value in values.items() if value is not None and value % 1]):
        what = f"holds fractions such as {min(fractions)}"
    elif len(distinct) > MAX_CLASSES or (numeric and len(distinct) > max(rows / 3, _MIN_CLASSES_TO_DOUBT)):
        what = f"has {len(distinct)} different values in {rows} rows"
    else:
        return
    raise DataError(
        f"the target column {label!r} does not look like classes: it {what}",
        where=train.source,
        hint=quantities if numeric else f"is data.label={label} the right column?",
    )


def _require_values(table: TextTable, label: str, rows: Sequence[int] | np.ndarray) -> None:
    if len(rows):
        lines = [str(table.lines[row]) for row in rows]
        raise DataError(
            f"{len(rows)} rows have no value in the target column {label!r}: line {some(lines)}",
            where=table.source,
            hint=_MISSING_HINT,
        )
