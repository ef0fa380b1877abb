"""A user's own texts (`csv`, `tsv`, `jsonl`): a column of texts, perhaps a second one, and a column of labels.

Surrounding blanks are dropped. Unlike in a table, 'NA' or 'null' as a text are words; an empty text is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bigctl.data.files.paths import some, split_files
from bigctl.data.sources import row_blocks
from bigctl.data.sources.column_files import StoredTexts, TextColumns
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.sources.label_sets import read_label_sets
from bigctl.data.sources.read_table import PLAIN, Dialect, file_facts, file_origins, load, split_columns
from bigctl.data.sources.table import classify
from bigctl.data.sources.text_rows import TextTable
from bigctl.data.target import Target
from bigctl.errors import DataError


def read_texts(
    path: Path,
    *,
    text: str,
    text_pair: str | None = None,
    label: str | None = None,
    labels: str | None = None,
    label_separator: str = ";",
    format: str = "csv",
    validation_path: Path | None = None,
    test_path: Path | None = None,
    dialect: Dialect = PLAIN,
    group: str | None = None,
    time: str | None = None,
    work: Path | None = None,
) -> Decoded:
    """Read the texts of a file with a header row, or of JSON objects, and their labels.

    Args:
        path: the training file, which alone decides the classes.
        text, text_pair: names of the columns with the text and, where pairs are classified, the second text.
        label: name of the target column; None for unlabelled text.
        labels: name of the column with several classes a text, in place of `label`; `label_separator` is between them.
        format: "csv", "tsv" (quoting as in CSV) or "jsonl".
        validation_path, test_path: files for the splits "validation" and "test".
        dialect: how the files are written.
        group, time: columns by which splits are made.
        work: an empty folder, where there is more text than memory should hold: it goes through files in it, block by
            block, and stays there.

    Returns:
        Decoded of kind "text": object [N] of str, and int32 [N] class numbers; classes sorted, as numbers where all are
        integers. Of unlabelled text the classes are None and the labels 0; of several classes see `label_sets`. With
        `work` the texts are in `rows`, and the splits say by ROW which they have.

    Raises:
        DataError: a file is missing or malformed, a column is missing, a text is empty, or a label cannot be used.
    """
    named = _distinct({"data.text": text, "data.text_pair": text_pair, "data.label": label, "data.labels": labels})
    named |= {name for name in (group, time) if name is not None}
    files, lists = split_files(path, validation_path, test_path), [labels] if labels else []
    tables = _tables(files, format, named, dialect, lists, work)
    columns, notes = [text, *([text_pair] if text_pair else [])], list(tables["train"].notes)
    roles = _roles(text, text_pair)
    splits = _splits(tables, roles, in_files=work is not None)
    for split, table in tables.items():
        splits[split] |= split_columns(table, group, time)
        if format == "tsv" and dialect.quoting:
            notes += _doubtful_quotes(table, columns)
        if label is not None:
            table.require(label, "target")
    target, found = _targets(tables, label, labels, label_separator, notes)
    splits = {split: {**columns, "label": found[split]} for split, columns in splits.items()}
    info = {"source": format, **file_facts(tables), "text": columns, "target": labels or label, "notes": notes}
    stored = [each.columns for each in tables.values() if isinstance(each.columns, TextColumns)]
    classes = target.names if label else None
    rows = StoredTexts(dict.fromkeys(roles, stored), roles) if work is not None else None
    return Decoded("text", splits, classes, info, target, origins=file_origins(tables), rows=rows)


def _targets(
    tables: dict[str, TextTable], label: str | None, labels: str | None, separator: str, notes: list[str]
) -> tuple[Target, dict[str, np.ndarray]]:
    """What is to be predicted, and the labels by split."""
    if labels is not None:
        return read_label_sets(tables, labels, separator, notes)
    if label is None:
        return Target.usual("text", None), {
            split: np.zeros(len(each.lines), np.int32) for split, each in tables.items()
        }
    known, found = classify(tables, label, quantities=f"is data.label={label} the right column?")
    return Target.usual("text", known), found


def _tables(
    files: Mapping[str, Path], format: str, named: set[str], dialect: Dialect, lists: list[str], work: Path | None
) -> dict[str, TextTable]:
    keep = named.__contains__
    if work is None:
        return {split: load(file, format, keep, dialect=dialect, lists=lists) for split, file in files.items()}
    return {
        split: row_blocks.load(file, format, keep, dialect=dialect, lists=lists, folder=work / split)
        for split, file in files.items()
    }


def _splits(tables: Mapping[str, TextTable], roles: Mapping[str, str], *, in_files: bool) -> dict[str, Columns]:
    """The texts by split, or which rows of all files they are. Raises DataError for one that cannot be used."""
    splits: dict[str, Columns] = {}
    first = 0
    for split, table in tables.items():
        for column in roles.values():
            _check(table, column)
        if in_files:
            splits[split] = {ROW: np.arange(first, first := first + len(table.lines))}
        else:
            splits[split] = {role: _texts(table, column) for role, column in roles.items()}
    return splits


def _distinct(wanted: dict[str, str | None]) -> set[str]:
    """The columns that keys name. Raises DataError where two keys name the same one."""
    named = [name for name in wanted.values() if name is not None]
    if len(set(named)) < len(named):
        keys = [key for key, name in wanted.items() if name is not None and named.count(name) > 1]
        raise DataError(f"{' and '.join(keys)} name the same column", where=keys[1], hint="name different ones")
    return set(named)


def texts_of(
    source: Path | bytes,
    format: str,
    *,
    text: str,
    text_pair: str | None = None,
    dialect: Dialect = PLAIN,
) -> tuple[list[str | tuple[str, str]], dict[int, DataError]]:
    """Read texts to be classified, or pairs of them, and what is wrong with some, by their row; they need no labels,
    further columns are ignored.

    Args:
        source: a file, or the content of one.
        format: "csv", "tsv" or "jsonl".
        text, text_pair: names of the columns, as in training.
        dialect: that of the training.

    Raises:
        DataError: the file is missing or malformed, lacks a column, or a text is empty.
    """
    roles = _roles(text, text_pair)
    table = load(source, format, set(roles.values()).__contains__, dialect=dialect, collect=True)
    bad = dict(table.bad)
    for column in roles.values():
        _check(table, column, bad)
    found = [table.columns[column] for column in roles.values()]
    return (list(zip(*found, strict=True)) if text_pair else [*found[0]]), bad


def _roles(text: str, text_pair: str | None) -> dict[str, str]:
    return {"text": text, "text_pair": text_pair} if text_pair else {"text": text}


def _texts(table: TextTable, column: str) -> np.ndarray:
    """A column of texts, object [N] of str."""
    values = table.columns[column]
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _check(table: TextTable, column: str, bad: dict[int, DataError] | None = None) -> None:
    """Raises DataError for a text that cannot be used, or notes it in `bad`."""
    table.require(column, "text")
    empty: list[int] = []
    half: list[int] = []
    first = 0
    for values in table.parts(column):
        empty += [row for row, value in enumerate(values, first) if not value]
        try:
            "".join(values).encode()
        except UnicodeEncodeError:  # JSON can escape half of a character: "\ud83d"
            half += [row for row, value in enumerate(values, first) if any("\ud800" <= c <= "\udfff" for c in value)]
        first += len(values)
    for rows, what, hint in (
        (empty, "the text is empty", "write the text, or remove the row"),
        (half, "the text has half of a character (a lone surrogate)", "was it cut inside an emoji?"),
    ):
        for row in rows if bad is not None else rows[:1]:
            many = rows is empty and len(rows) > 1 and bad is None
            said = f"{len(rows)} texts are empty, the first of them here" if many else what
            error = DataError(said, where=table.at(row, column), hint=hint)
            if bad is None:
                raise error
            bad.setdefault(row, error)


def _doubtful_quotes(table: TextTable, columns: list[str]) -> list[str]:
    """Notes of texts that span lines and hold a tab: more likely rows lost between two plain quotes than one text."""
    cells = (enumerate(itertools.chain.from_iterable(table.parts(column))) for column in columns)
    rows = [row for column in cells for row, value in column if "\n" in value and "\t" in value]
    if not rows:
        return []
    lines = some([str(table.lines[row]) for row in sorted(set(rows))])
    hint = "if quotes are plain characters, set data.quoting=false"
    return [f"{table.source}: quotes enclose line ends and tabs in the texts on line {lines}; {hint}"]
