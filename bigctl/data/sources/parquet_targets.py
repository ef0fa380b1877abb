"""What is to be predicted, of rows of Parquet and Arrow files: classes, numbers, or several classes a row."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from bigctl.config import schema
from bigctl.data.files import paths
from bigctl.data.sources.label_sets import read_label_sets
from bigctl.data.sources.parquet_columns import CATEGORY, NUMBER, kind_of, name_of, typed, value_blocks, values_of
from bigctl.data.sources.parquet_files import Part
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.data.target import Target
from bigctl.errors import DataError

MAX_CLASSES = 1000
_FEW = 20  # values that a target may have however few the rows are


def targets(
    parts: Mapping[str, Part], config: schema.Parquet, kind: str, regression: bool, notes: list[str]
) -> tuple[Target, dict[str, np.ndarray]]:
    """What is to be predicted, and the labels by split.

    Raises:
        DataError: the column is missing or of no use, or a row has no value, or none of the training classes.
    """
    if config.labels is not None:
        return read_label_sets(
            {s: _lists(part, config.labels) for s, part in parts.items()}, config.labels, config.label_separator, notes
        )
    if not config.label:
        return Target.usual(kind, None), {s: np.zeros(part.rows, np.int32) for s, part in parts.items()}
    for part in parts.values():
        if missing := sum(block.null_count for block in part.blocks(config.label, "target")):
            hint = "fill these in or remove the rows"
            raise DataError(f"{missing} rows have no value in the target column", where=part.source, hint=hint)
    if regression:
        found = {split: typed(part, config.label, NUMBER) for split, part in parts.items()}
        for split, values in found.items():
            if (rows := np.flatnonzero(np.isnan(values))).size:
                where = parts[split].at(int(rows[0]), config.label)
                raise DataError("the target is not a number", where=where, hint="fill it in or remove the row")
        return Target.usual(kind, None), found
    classes = _classes(parts["train"], config.label)
    place = {name: number for number, name in enumerate(classes)}
    labels = {}
    for split, part in parts.items():
        stored = values_of(part, config.label)
        numbers = np.fromiter((place.get(name_of(value), -1) for value in stored), np.int32, len(stored))
        if (unknown := np.flatnonzero(numbers < 0)).size:
            row, known = int(unknown[0]), paths.some([short(name) for name in classes])
            raise DataError(
                f"{short(name_of(stored[row]))!r} is not among the training classes {known}",
                where=part.at(row, config.label),
                hint="correct the label, or add rows with it to the training files",
            )
        labels[split] = numbers
    return Target.usual(kind, classes), labels


def _classes(train: Part, label: str) -> tuple[str, ...]:
    """The classes of the training files: integers in their order, strings in that of the alphabet."""
    import pyarrow.types as types

    stored = train.stored(label)
    whole = types.is_integer(stored) or types.is_boolean(stored)
    if not whole and kind_of(stored) != CATEGORY:
        hint = "to predict a number use model.head=regression; classes are stored as integers or strings"
        raise DataError(f"the target column {label!r} is {stored}, which is no class", where=train.source, hint=hint)
    distinct = set(values_of(train, label))
    if len(distinct) > MAX_CLASSES or (whole and len(distinct) > max(train.rows / 3, _FEW)):
        what = f"has {len(distinct)} different values in {train.rows} rows"
        hint = "to predict a number use model.head=regression" if whole else "is it the right column?"
        raise DataError(
            f"the target column {label!r} does not look like classes: it {what}", where=train.source, hint=hint
        )
    if len(distinct) == 1:
        raise DataError(f"the target column {label!r} has only one class", where=train.source, hint="two are needed")
    return tuple(name_of(value) for value in (sorted(distinct) if whole else sorted(distinct, key=name_of)))


def _lists(part: Part, name: str) -> TextTable:
    """A column of lists, or of strings with a separator, as `read_label_sets` takes it."""
    import pyarrow.types as types

    stored = part.stored(name, "label")
    several = types.is_list(stored) or types.is_large_list(stored) or types.is_fixed_size_list(stored)
    single = not several and kind_of(stored) == NUMBER and not types.is_temporal(stored)
    if not single and kind_of(stored.value_type if several else stored) != CATEGORY:
        hint = "classes of an example are a list of strings, or a string with a separator"
        raise DataError(f"the column {name!r} is {stored}", where=part.source, hint=hint)
    known: dict[str, str] = {}
    cells = [known.setdefault(cell, cell) for values in value_blocks(part, name) for cell in map(_cell, values)]
    return TextTable(part.source, tuple(part.names), {name: cells}, list(range(1, len(cells) + 1)), [])


def _cell(value: object) -> str:
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)
