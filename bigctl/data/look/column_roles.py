"""Which column of a table is the text, and which the target: a guess from the first rows, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigctl.data.files.paths import some
from bigctl.data.number_style import MISSING, find_dates, find_style, is_code
from bigctl.data.sources.text_rows import short
from bigctl.errors import DataError

NAMES = (
    *("label", "target", "class", "y", "category", "outcome", "sentiment", "labels", "tag", "species", "diagnosis"),
    *("response", "result", "survived", "churn", "quality", "price"),
)
"""What the column of a target is often called, the likeliest first."""
TEXTS = ("text", "review", "sentence", "content", "title", "body", "comment", "message", "description")
_WORDS, _CHARACTERS, _WIDE = 4, 20, 6
"""A text has so many words and characters on average, or so many characters of a script without blanks."""
_FEW, _SHARE = 20, 3
"""Different numbers that classes may be: so many, or a third of the rows. `table.classify` doubts by the same."""


@dataclass(frozen=True)
class Column:
    """What the first rows of a column look like.

    Attributes:
        name: of the column.
        kind: "number", "date", "text" or "category".
        distinct: how many different values there are.
        examples: the first few of them.
        whole: whether all are whole numbers.
    """

    name: str
    kind: str
    distinct: int
    examples: tuple[str, ...]
    whole: bool = False

    def __str__(self) -> str:
        shown = ", ".join(short(example, 24) for example in self.examples)
        return f"{self.name}: {self.kind}, {self.distinct:,} different, such as {shown}"


@dataclass(frozen=True)
class Roles:
    """The columns that matter, and why: `reasons` has one sentence for each that was not given."""

    text: str | None
    label: str | None
    regression: bool
    reasons: tuple[str, ...]


def describe(name: str, values: Sequence[str]) -> Column:
    """What a column of cells looks like; cells without a value are passed over."""
    present = [value for value in values if value.lower() not in MISSING]
    different = list(dict.fromkeys(present))
    examples = tuple(different[:3])
    if different and not any(map(is_code, different)) and find_style(different) is not None:
        whole = all(value.lstrip("+-").isdecimal() for value in different)
        return Column(name, "number", len(different), examples, whole)
    if different and find_dates(different) is not None:
        return Column(name, "date", len(different), examples)
    return Column(name, "text" if _is_text(present, len(different)) else "category", len(different), examples)


def _is_text(present: Sequence[str], distinct: int) -> bool:
    if not present or 2 * distinct < len(present):
        return False
    characters = sum(map(len, present)) / len(present)
    words = sum(len(value.split()) for value in present) / len(present)
    wide = sum(not value.isascii() for value in present) * 2 > len(present) and words < 2
    return characters >= _WIDE if wide else words >= _WORDS and characters >= _CHARACTERS


def find_roles(columns: Sequence[Column], rows: int, given: Mapping[str, str | None], where: str) -> Roles:
    """The text and the target among some columns.

    Args:
        columns: all of them, in the order of the file.
        rows: that were looked at.
        given: what the user has said: "text" and "label", either a column or None for none of that kind.
        where: the file, for messages.

    Raises:
        DataError: it cannot be told which column is the target.
    """
    reasons: list[str] = []
    text = given["text"] if "text" in given else _text(columns, given.get("label"), reasons)
    if "label" in given:
        label = given["label"]
    else:
        label = _label([column for column in columns if column.name != text], rows, reasons, where, text is not None)
    found = next((column for column in columns if column.name == label), None)
    regression = found is not None and found.kind == "number" and not _may_be_classes(found, rows)
    if regression and found is not None:
        what = "whole numbers, too many for classes" if found.whole else "numbers with fractions"
        reasons.append(f"{found.name!r} is a quantity to predict: it holds {what} (model.head=regression)")
    return Roles(text, label, regression, tuple(reasons))


def the_text(columns: Sequence[Column], label: str | None, where: str) -> str:
    """The column of texts beside labels that are known. Raises DataError where none looks like one."""
    found = _text(columns, label, [])
    if found is None:
        raise DataError("no column holds sentences", where=where, hint="say which holds the text with data.text=COLUMN")
    return found


def _text(columns: Sequence[Column], label: str | None, reasons: list[str]) -> str | None:
    texts = [column for column in columns if column.kind == "text" and column.name != label]
    if not texts:
        return None
    found = min(texts, key=lambda column: TEXTS.index(column.name.lower()) if column.name.lower() in TEXTS else 99)
    others = [column.name for column in texts if column is not found]
    also = f"; so do {some(others)}, which are left out (data.text_pair=COLUMN takes a second)" if others else ""
    reasons.append(f"the text is {found.name!r}, which holds sentences{also} (data.text=COLUMN)")
    return found.name


def _label(columns: Sequence[Column], rows: int, reasons: list[str], where: str, beside_text: bool) -> str | None:
    by_name = {column.name.lower(): column for column in reversed(columns)}
    for name in NAMES:
        if name in by_name:
            reasons.append(f"the target is {by_name[name].name!r}, by its name (data.label=COLUMN)")
            return by_name[name].name
    classes = [column for column in columns if _may_be_classes(column, rows)]
    last = columns[-1:] if not beside_text and columns and columns[-1].kind == "number" else classes[-1:]
    if last and (last[0] is columns[-1] or len(classes) == 1):
        which = "the last column" if last[0] is columns[-1] else "the only column of few values"
        reasons.append(f"the target is {last[0].name!r}, {which} (data.label=COLUMN)")
        return last[0].name
    names = some([short(column.name) for column in columns])
    hint = f"data.label=COLUMN{' (or null)' if beside_text else ''}; the columns are {names}"
    raise DataError("it cannot be told which column is the target", where=where, hint=hint)


def _may_be_classes(column: Column, rows: int) -> bool:
    if column.kind == "number" and not column.whole:
        return False
    return column.kind in ("number", "category") and 2 <= column.distinct <= max(_FEW, rows // _SHARE)
