"""Cells of a table -> columns of numbers and categories, by what the training file holds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.config.suggestions import listed
from bigctl.data import progress
from bigctl.data.files.paths import some
from bigctl.data.number_style import (
    BOOLEAN,
    DATE_PARTS,
    MISSING,
    NumberStyle,
    find_dates,
    find_style,
    has_times,
    is_ambiguous,
    is_code,
    number,
)
from bigctl.data.sources.column_files import StoredRows
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.errors import DataError

FEW = 20
"""Rows that there must be before a column is said to number them."""
_IDENTIFIER = re.compile(r"(.*[_ ])?(id|ids|index|idx|no|no\.|nr|nr\.|number|row|rownum|key)|unnamed.*|[a-z]+id|#")
_CODE = re.compile(r"^[-+]?0\d+$", re.MULTILINE)
CATEGORY = "category"
Kinds = dict[str, "NumberStyle | str | None"]
"""Of each feature: CATEGORY, or how its numbers are written, None for as programs write them."""


@dataclass(frozen=True)
class Cells:
    """What cells mean, as keys of the data say.

    Attributes:
        decimal: the mark before decimals; None to tell it from the values.
        missing: what stands for a missing value besides the usual, lower case.
        categorical, numeric: columns that are categories, or numbers, whatever they look like.
    """

    decimal: str | None = None
    missing: frozenset[str] = frozenset()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: schema.Table) -> Cells:
        missing = frozenset(text.strip().lower() for text in config.missing)
        return cls(config.decimal, missing, tuple(config.categorical), tuple(config.numeric))

    def misses(self, text: str) -> bool:
        """Whether a cell says that the value is missing."""
        folded = text.lower()
        return folded in MISSING or folded in self.missing


USUAL = Cells()
Keep = Callable[[str, Callable[[], np.ndarray]], np.ndarray]
"""Puts the rows of a typed column, which a function makes, where they belong, and gives what they are seen as from then
on."""


def as_it_is(name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Keeps a column in memory."""
    return make()


def plain_numbers(table: TextTable, name: str, cells: Cells, *, codes: bool = True) -> np.ndarray | None:
    """float64 [N] of a column in files whose cells are all numbers as programs write them, block by block; None where
    they are not, which only all cells together tell, or are infinite. `codes` allows codes such as 02134."""
    if table.blocks is None or cells.decimal not in (None, ".") or name not in table.columns:
        return None
    found = []
    read_as = {"": "nan"}
    for block in table.blocks(name):
        values = _block_of_numbers(block, cells, read_as)
        if values is None or np.isinf(values).any() or (not codes and _has_codes(block, cells)):
            return None
        found.append(values)
    return np.concatenate(found) if found else None


def _block_of_numbers(texts: list[str], cells: Cells, read_as: dict[str, str]) -> np.ndarray | None:
    """float64 [n] of some cells; what is no number to Python but means one, or is missing, is added to `read_as`."""
    if cells.missing:
        read_as |= dict.fromkeys((text for text in set(texts) if cells.misses(text)), "nan")
    if "_" in "".join(texts) and any("_" in text and text not in read_as for text in set(texts)):
        return None
    try:
        return np.array([*map(float, map(read_as.get, texts, texts))])
    except ValueError:
        for text in set(texts) - read_as.keys():
            value = number(text)
            if value is None:
                return None
            if text.lower() in MISSING or text.lower() in BOOLEAN:
                read_as[text] = repr(value)
        return np.array([*map(float, map(read_as.get, texts, texts))])


def _has_codes(texts: list[str], cells: Cells) -> bool:
    if cells.missing:
        return any(is_code(text) for text in set(texts) if not cells.misses(text))
    return _CODE.search("\n".join(texts)) is not None


def _numbers(texts: list[str], style: NumberStyle | None, cells: Cells) -> tuple[np.ndarray, list[int]]:
    """float64 [N], NaN where a value is missing or no number, and the rows of the latter."""
    if style is None:
        try:
            values = np.array([float(text) for text in texts])
            if not any("_" in text for text in texts) and not cells.missing:
                return values, []
        except ValueError:
            pass
    parse = number if style is None else style.parse
    known = {text: math.nan if text.lower() in cells.missing else parse(text) for text in set(texts)}
    found = [known[text] for text in texts]
    bad = [row for row, value in enumerate(found) if value is None]
    return np.array([math.nan if value is None else value for value in found]), bad


def numeric_column(
    table: TextTable, name: str, style: NumberStyle | None, cells: Cells, bad: dict[int, DataError] | None = None
) -> np.ndarray:
    """A column of numbers. Raises DataError for what is none, or notes it in `bad` by its row."""
    if style is None and (plain := plain_numbers(table, name, cells)) is not None:
        return plain
    texts = table.columns[style.of if style is not None and style.date else name]
    values, wrong = _numbers(texts, style, cells)
    infinite = np.flatnonzero(np.isinf(values)).tolist()
    unknown = "or leave it empty if it is unknown"
    what_not = "is not a number, and the column is numeric"
    if style is not None and style.date:
        name, what_not = style.of, f"is not a date, and the column holds dates, {style.date}"
    for rows, before, what, hint in (
        (wrong, "", what_not, f"correct the value, {unknown}"),
        (infinite, "the value ", "is infinite", f"give a finite number, {unknown}"),
    ):
        for row in rows if bad is not None else rows[:1]:
            more = f"; {len(rows) - 1} more like it" if len(rows) > 1 and bad is None else ""
            error = DataError(f"{before}{short(texts[row])!r} {what}{more}", where=table.at(row, name), hint=hint)
            if bad is None:
                raise error
            bad.setdefault(row, error)
            values[row] = math.nan
    return values


def _categorical(texts: list[str], cells: Cells) -> np.ndarray:
    missing = {text for text in set(texts) if cells.misses(text)}
    return np.array([None if text in missing else text for text in texts], dtype=object)


def typed_columns(
    table: TextTable, kinds: Kinds, cells: Cells, bad: dict[int, DataError] | None = None, keep: Keep = as_it_is
) -> Columns:
    """Columns of the kinds that training decided: "category", or how numbers are written, None for as programs do."""
    return {name: keep(name, partial(_typed, table, name, kind, cells, bad)) for name, kind in kinds.items()}


def _typed(
    table: TextTable, name: str, kind: NumberStyle | str | None, cells: Cells, bad: dict[int, DataError] | None
) -> np.ndarray:
    if isinstance(kind, str):
        return _categorical(table.columns[name], cells)
    return numeric_column(table, name, kind, cells, bad)


def infer_columns(
    train: TextTable, label: str, cells: Cells, notes: list[str], regression: bool, stored: StoredRows | None = None
) -> tuple[Kinds, Columns]:
    """The training columns that are of use, each with the kind that fits all its values. With `stored` they are put
    there, and those that an earlier start has told are not looked at again."""
    kinds: Kinds = {}
    features: Columns = {}
    keep = as_it_is if stored is None else stored.keep
    for name in progress.each("data: telling what columns hold", [*train.columns], "columns"):
        if name == label:
            continue
        values: Columns = {}
        told = None if stored is None else stored.known(f"told {name}")
        if told is not None:
            found, said = _of_json(told[0]), told[1]
        else:
            found, said, values = _column(train, name, cells)
            if stored is not None:
                stored.remember(f"told {name}", [_as_json(found), said])
        notes += said
        kinds |= found
        for own, kind in found.items():
            make = partial(values.__getitem__, own) if values else partial(_typed, train, own, kind, cells, None)
            features[own] = keep(own, make)
    for name in _counters(train, label, kinds, features, cells, regression, notes):
        del kinds[name], features[name]
    return kinds, features


def _column(train: TextTable, name: str, cells: Cells) -> tuple[Kinds, list[str], Columns]:
    """What a training column becomes, which is nothing where it is of no use; what there is to say; and the values."""
    if name not in cells.categorical:
        plain = plain_numbers(train, name, cells, codes=name in cells.numeric)
        if plain is not None and not np.isnan(plain).all():
            return {name: None}, [], {name: plain}
    distinct = {text for text in set(train.columns[name]) if not cells.misses(text)}
    if not distinct:
        return {}, [f"column {name!r} has no values and is left out"], {}
    notes: list[str] = []
    found = _kinds(name, distinct, cells, train, notes)
    values = typed_columns(train, found, cells)
    if found == {name: CATEGORY} and name not in cells.categorical:
        column = values[name]
        if None not in (different := set(column)) and len(different) == len(column):
            what = "different in every row, like a name or an identifier, and is left out"
            return {}, [*notes, f"column {name!r} is {what}"], {}
    if found == {name: CATEGORY}:
        notes += _stray_words(train, name, cells)
    return found, notes, values


def _as_json(kinds: Kinds) -> dict[str, Any]:
    return {name: kind.to_json() if isinstance(kind, NumberStyle) else kind for name, kind in kinds.items()}


def _of_json(kinds: Mapping[str, Any]) -> Kinds:
    return {name: NumberStyle.from_json(kind) if isinstance(kind, dict) else kind for name, kind in kinds.items()}


def _counters(
    train: TextTable, label: str, kinds: Kinds, features: Columns, cells: Cells, regression: bool, notes: list[str]
) -> list[str]:
    """Columns that number the rows and tell nothing but their order, where others are left: they are of no use for new
    rows, and in a file sorted by class they give the class away."""
    counting = []
    for name, values in features.items():
        rows = len(values)
        if kinds[name] is None and rows >= FEW and np.array_equal(values - values[0], np.arange(rows)):
            counting.append(name)
    labels = train.columns[label]
    changes = sum(one != other for one, other in zip(labels, labels[1:], strict=False))
    in_order = not regression and changes == len(set(labels)) - 1
    found = []
    for name in counting:
        if name in cells.numeric or len(counting) == len(features):
            continue
        if in_order or _IDENTIFIER.fullmatch(name.lower()):
            notes.append(f"column {name!r} numbers the rows and is left out; {listed('data.numeric', name)} keeps it")
            found.append(name)
        else:
            notes.append(f"column {name!r} numbers the rows; {listed('data.drop', name)} leaves it out")
    return found


def _kinds(name: str, distinct: set[str], cells: Cells, train: TextTable, notes: list[str]) -> Kinds:
    """What a column of these values is; the parts of a date are several columns."""
    if name in cells.categorical:
        return {name: CATEGORY}
    codes = sorted(text for text in distinct if is_code(text)) if name not in cells.numeric else []
    plain = cells.decimal in (None, ".") and all(number(text) is not None for text in distinct)
    if plain and not codes:
        return {name: None}
    if codes:
        if plain:
            hint = f"{listed('data.numeric', name)} reads numbers"
            notes.append(f"column {name!r} is read as categories, for codes such as {codes[0]}; {hint}")
        return {name: CATEGORY}
    if style := find_style(distinct, cells.decimal):
        if style != NumberStyle(decimal=cells.decimal or "."):
            notes.append(said_of(name, style, distinct, train))
        return {name: style}
    order = find_dates(distinct)
    if order == "?":
        notes.append(f"column {name!r} holds dates, of which it cannot be told what is the day and what the month")
    elif order is not None:
        parts = (*DATE_PARTS, *(("hour",) if has_times(distinct) else ()))
        notes.append(f"column {name!r} is read as dates, {order}: {', '.join(parts)}")
        return {f"{name}.{part}": NumberStyle(of=name, date=order, part=part) for part in parts}
    notes += _unfit(name, distinct, cells)
    return {name: CATEGORY}


def _unfit(name: str, distinct: set[str], cells: Cells) -> list[str]:
    """A note where the decimal mark that the user gave, and it alone, makes categories of numbers."""
    if cells.decimal is None:
        return []
    usual = find_style(distinct)
    if usual is None:
        return []
    marks = NumberStyle(cells.decimal, affix=usual.affix, missing=usual.missing)
    wrong = [text for text in sorted(distinct) if marks.parse(text) is None] or sorted(distinct)
    why = f"{short(wrong[0])!r} is no number with data.decimal='{cells.decimal}'"
    return [f"column {name!r} is read as categories, for {why}; without that key it is read as {usual}"]


def doubted_points(train: TextTable, kinds: Kinds, cells: Cells) -> list[str]:
    """A note for each column whose points are read as decimal marks, and as well stand between thousands, where other
    columns have decimal commas."""
    commas = [
        kind.of if kind.date else name
        for name, kind in kinds.items()
        if isinstance(kind, NumberStyle) and kind.decimal == ","
    ]
    notes = []
    for name, kind in kinds.items() if commas and cells.decimal is None else ():
        style = kind or NumberStyle()
        if isinstance(style, str) or style.date or style.group or style.decimal == ",":
            continue
        values = sorted({text for text in set(train.columns[name]) if not cells.misses(text)})
        other = NumberStyle(",", ".", style.affix, style.missing)
        points = [text for text in values if "." in text and text.lower() not in style.missing]
        if points and all(other.parse(text) is not None for text in values):
            example = short(points[0])
            read = f"{example!r} is read as {style.parse(example):g}, with '.' before decimals"
            hint = f"data.decimal=',' reads {other.parse(example):g}"
            notes.append(f"column {name!r}: {read}, where column {commas[0]!r} has ','; {hint}")
    return notes


def said_of(name: str, style: NumberStyle, distinct: set[str], train: TextTable) -> str:
    """The note on numbers that are not written as programs do."""
    said = f"column {name!r} is read as {style}"
    if style.missing:
        count = sum(text.lower() in style.missing for text in train.columns[name])
        marks = some([repr(mark) for mark in style.missing])
        said += f"; {marks} {'is' if len(style.missing) == 1 else 'are'} taken for missing, in {count} rows"
    if is_ambiguous(style, distinct):
        said += f"; data.decimal='{style.group}' takes {style.group!r} for the decimal mark"
    return f"{said}; {listed('data.categorical', name)} leaves it as it is"


def _stray_words(train: TextTable, name: str, cells: Cells) -> list[str]:
    """A note where a few words turn a column of numbers into categories; the user should hear of it."""
    texts = train.columns[name]
    _, bad = _numbers(texts, None, cells)
    values = sum(not cells.misses(text) for text in texts)
    if 2 * len(bad) > values or name in cells.categorical or not bad or any(map(is_code, set(texts))):
        return []
    return [
        f"column {name!r} is categorical only because {len(bad)} of its values are not numbers, "
        f"the first {short(texts[bad[0]])!r} on line {train.lines[bad[0]]}; data.missing=[...] says what is missing"
    ]
