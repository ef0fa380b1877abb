"""A user's own tables (`csv`, `tsv`, `jsonl`): a file -> typed columns -> one float32 matrix.

What a cell means, in training and in prediction alike: surrounding blanks are dropped; '', NA, N/A, nan, null, none and
?, in any case, are missing; true and false, in any case, are the numbers 1 and 0. A column is numeric if all its values
in the training file are numbers, else categorical; the other files are held to that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.paths import some, split_files
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.sources.read_table import TextTable, file_facts, load, short
from bigctl.data.table_encoder import Categorical, TableEncoder
from bigctl.errors import DataError

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_MISSING_HINT = "empty, NA, N/A, nan, null, none and ? count as missing; fill these in or remove the rows"
_BOOLEAN = frozenset({"true", "false"})
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
    columns: Sequence[str] | None = None,
    quoting: bool = True,
) -> Decoded:
    """Read a table with a header row (or JSON objects) into one typed column per feature, and the target `label`.

    Args:
        path: the training file, which alone decides the columns, their types, and the classes.
        label: name of the target column.
        format: "csv", "tsv" (quoting as in CSV) or "jsonl".
        validation_path, test_path: files for the splits "validation" and "test"; their further columns are ignored.
        regression: keep the target as float64 instead of class numbers.
        drop: columns to leave out. Left out by themselves, with a line in `info["notes"]`, are columns without a name,
            without any value, and categorical columns in which no two rows agree (names, identifiers, free text).
        columns, quoting: see `rows.load`.

    Returns:
        Decoded of kind "table": float64 [N] with NaN, or object [N] of str with None, per feature; `label` int32 [N]
        class numbers, classes sorted (as numbers where all are integers), or float64 [N].

    Raises:
        DataError: the file is missing or malformed, a column is missing, a value does not fit its column or target.
    """
    tables = {
        split: load(file, format, lambda name: name not in drop or name == label, columns=columns, quoting=quoting)
        for split, file in split_files(path, validation_path, test_path).items()
    }
    _check_columns(tables, label, drop, path)
    notes = list(tables["train"].notes)
    features = _infer(tables["train"], label, notes)
    if not features:
        why = f": {'; '.join(notes)}" if notes else ""
        hint = "they must be numbers, or categories in which some rows agree"
        raise DataError(f"no feature columns are left beside the target {label!r}{why}", where=str(path), hint=hint)
    classes, targets = None, {split: _numeric(table, label) for split, table in tables.items()} if regression else {}
    for split, target in targets.items():
        _require_values(tables[split], label, np.flatnonzero(np.isnan(target)))
    if not regression:
        classes, targets = classify(tables, label)
    splits = {
        split: {**(features if split == "train" else _like_training(table, features)), "label": targets[split]}
        for split, table in tables.items()
    }
    numeric = [name for name, values in features.items() if values.dtype != object]
    info: dict[str, Any] = {
        "source": format,
        **file_facts(tables),
        "target": label,
        "numeric": numeric,
        "categorical": [name for name in features if name not in numeric],
    }
    return Decoded("table", splits, classes, {**info, "notes": notes})


def _check_columns(tables: dict[str, TextTable], label: str, drop: Sequence[str], path: Path) -> None:
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
    if label != "label" and "label" in train.columns:
        raise DataError(
            f"the feature column 'label' is in the way, because the target {label!r} is stored under that name",
            where=str(path),
            hint="rename the column 'label', or leave it out with data.drop=[label]",
        )


def _like_training(table: TextTable, features: Columns) -> Columns:
    """The columns of another split, with the types that training decided."""
    if absent := [name for name in features if name not in table.columns]:
        raise DataError(
            f"feature column {absent[0]!r} of the training file is missing",
            where=table.source,
            hint=f"its columns are {some(table.names)}",
        )
    return _typed(table, {name: values.dtype == object for name, values in features.items()})


def rows_of(
    source: Path | bytes,
    format: str,
    encoder: TableEncoder,
    *,
    columns: Sequence[str] | None = None,
    quoting: bool = True,
) -> np.ndarray:
    """Read a table for prediction into the encoder's float32 [N, D]; it needs no target, further columns are ignored.

    Args:
        source: a file, or the content of one.
        format: "csv", "tsv" or "jsonl".
        encoder: what the model was trained with.
        columns, quoting: see `read_table.load`.

    Raises:
        DataError: the file is missing or malformed, lacks a feature column, or has text where numbers are due.
    """
    kinds = {column.name: isinstance(column, Categorical) for column in encoder.columns}
    table = load(source, format, lambda name: name in kinds, columns=columns, quoting=quoting)
    if absent := [name for name in kinds if name not in table.columns]:
        raise DataError(
            f"the model needs the feature columns {some(absent)}, which are missing",
            where=table.source,
            hint=f"the columns found are {some(table.names)}",
        )
    return encoder.encode(_typed(table, kinds))


# --- Strings to columns -----------------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    """The number in a cell, NaN if it is missing, None if it is neither."""
    folded = text.lower()
    if folded in _MISSING:
        return math.nan
    if folded in _BOOLEAN:
        return float(folded == "true")
    if "_" in text:  # Python reads 1_000 as a number, no one else does
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(texts: list[str]) -> tuple[np.ndarray, list[int]]:
    """float64 [N], NaN where a value is missing or no number, and the rows of the latter."""
    try:
        values = np.array([float(text) for text in texts])
        if not any("_" in text for text in texts):
            return values, []
    except ValueError:
        pass
    known = {text: _number(text) for text in set(texts)}
    found = [known[text] for text in texts]
    bad = [row for row, number in enumerate(found) if number is None]
    return np.array([math.nan if number is None else number for number in found]), bad


def _numeric(table: TextTable, name: str) -> np.ndarray:
    values, bad = _numbers(table.columns[name])
    if bad:
        raise DataError(
            f"{table.columns[name][bad[0]]!r} is not a number, and the column is numeric" + _more(len(bad)),
            where=table.at(bad[0], name),
            hint="correct the value, or leave it empty if it is unknown",
        )
    return _finite(table, name, values)


def _finite(table: TextTable, name: str, values: np.ndarray) -> np.ndarray:
    if (rows := np.flatnonzero(np.isinf(values))).size:
        row = int(rows[0])
        raise DataError(
            f"the value {table.columns[name][row]!r} is infinite" + _more(len(rows)),
            where=table.at(row, name),
            hint="give a finite number, or leave it empty if it is unknown",
        )
    return values


def _categorical(texts: list[str]) -> np.ndarray:
    missing = {text for text in set(texts) if text.lower() in _MISSING}
    return np.array([None if text in missing else text for text in texts], dtype=object)


def _typed(table: TextTable, categorical: dict[str, bool]) -> Columns:
    return {
        name: _categorical(table.columns[name]) if is_categorical else _numeric(table, name)
        for name, is_categorical in categorical.items()
    }


def _infer(train: TextTable, label: str, notes: list[str]) -> Columns:
    """The training columns that are of use, each with the type that fits all its values."""
    features: Columns = {}
    for name, texts in train.columns.items():
        if name == label:
            continue
        numbers, bad = _numbers(texts)
        if not bad:
            if np.isnan(numbers).all():
                notes.append(f"column {name!r} has no values and is left out")
            else:
                features[name] = _finite(train, name, numbers)
            continue
        values = _categorical(texts)
        if None not in (distinct := set(values)) and len(distinct) == len(values):
            notes.append(f"column {name!r} is different in every row, like a name or an identifier, and is left out")
            continue
        features[name] = values
        # A stray word turns thousands of numbers into categories; the user should hear of it.
        if len(bad) <= 0.1 * sum(value is not None for value in values):
            notes.append(
                f"column {name!r} is categorical only because {len(bad)} of its values are not numbers, "
                f"the first {texts[bad[0]]!r} on line {train.lines[bad[0]]}"
            )
    return features


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
        _require_values(table, label, [i for i, v in enumerate(table.columns[label]) if v.lower() in _MISSING])
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
    try:
        return int(text) if "_" not in text else None
    except ValueError:
        number = _number(text) if text.lower() not in _BOOLEAN else None
        return int(number) if number is not None and number.is_integer() else None


def _doubt_classes(train: TextTable, label: str, distinct: set[str], by_number: bool, quantities: str) -> None:
    """Refuse a target that is a quantity, or hardly the column the user meant."""
    numeric = by_number or all(_number(text) is not None and text.lower() not in _BOOLEAN for text in distinct)
    rows = len(train.lines)
    if numeric and not by_number and (fractions := [text for text in distinct if _integer(text) is None]):
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


def _more(count: int) -> str:
    return f"; {count - 1} more like it" if count > 1 else ""
