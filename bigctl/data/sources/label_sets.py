"""Several classes an example: a column whose cells name all of them, between separators or as a JSON list.

An empty cell, an absent value and an empty list say that an example has no class, which is allowed. Blanks around a
name are dropped; a name that a cell holds twice counts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from bigctl.data.files.paths import some
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.data.target import CLASSES, Target
from bigctl.errors import DataError

MAX_CLASSES = 10_000
_SEPARATORS = (";", ",", "|", "\t")


def read_label_sets(
    tables: Mapping[str, TextTable], column: str, separator: str, notes: list[str]
) -> tuple[Target, dict[str, np.ndarray]]:
    """The classes of a training file, sorted, and which of them each row has, uint8 [N, classes] by split.

    Args:
        tables: the files by split, "train" among them, with the column read.
        column: the one with the classes.
        separator: what stands between two names; cells that begin with "[" are JSON lists.
        notes: what the user should hear of is added here.

    Raises:
        DataError: the column is missing, a cell is no list of names, there are no classes or far too many, or a split
            has a class that the training file has not.
    """
    if not separator:
        raise DataError("the separator is empty", where="data.label_separator", hint='give one, such as ";"')
    cells = {}
    for split, table in tables.items():
        table.require(column, "label")
        cells[split] = [
            _names(cell, separator, table.at(row, column)) for row, cell in enumerate(table.columns[column])
        ]
    train = tables["train"]
    classes = tuple(sorted({name for names in cells["train"] for name in names}))
    _check_classes(classes, train, column, separator, notes)
    place = {name: number for number, name in enumerate(classes)}
    labels = {}
    for split, rows in cells.items():
        labels[split] = np.zeros((len(rows), len(classes)), np.uint8)
        for row, names in enumerate(rows):
            for name in names:
                if name not in place:
                    raise DataError(
                        f"class {short(name)!r} is not among the training classes {some([short(c) for c in classes])}",
                        where=tables[split].at(row, column),
                        hint="correct it, or add rows with it to the training file",
                    )
                labels[split][row, place[name]] = 1
    without = int((labels["train"].sum(1) == 0).sum())
    if without:
        notes.append(f"{without} of {len(cells['train'])} training examples have no class")
    return Target(CLASSES, classes), labels


def _names(cell: str, separator: str, where: str) -> list[str]:
    """The names in a cell, each once, in the order they stand there."""
    if not cell.startswith("["):
        return list(dict.fromkeys(name.strip() for name in cell.split(separator) if name.strip()))
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        raise DataError(
            f"{short(cell)!r} begins like a JSON list and is none", where=where, hint='write ["a", "b"], or a;b'
        ) from None
    for value in values:
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
            raise DataError(f"{json.dumps(value)} in a list of classes is no name", where=where, hint="write a string")
    return list(dict.fromkeys(str(value).strip() for value in values))


def _check_classes(classes: tuple[str, ...], train: TextTable, column: str, separator: str, notes: list[str]) -> None:
    if not classes:
        raise DataError(
            f"no row of the column {column!r} names a class", where=train.source, hint="is it the right one?"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"the column {column!r} has {len(classes)} different classes, more than {MAX_CLASSES}",
            where=train.source,
            hint=f"is data.label_separator={separator!r} right, and data.labels={column} the right column?",
        )
    for other in _SEPARATORS:
        held = [name for name in classes if other in name]
        if other != separator and 2 * len(held) > len(classes):
            notes.append(
                f"most classes in the column {column!r} hold {other!r}, such as {short(held[0])!r}: is "
                f"data.label_separator={separator!r} right?"
            )
