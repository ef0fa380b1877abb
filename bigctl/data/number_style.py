"""How numbers and dates are written in a column of a file: separators, currencies, units, marks for missing values.

A style is found in the training file, kept with the encoder, and used for every file that is read afterwards.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
BOOLEAN = frozenset({"true", "false"})
_MARKS = frozenset(
    {"-", "--", "---", "–", "—", ".", "..", "*", "#n/a", "#na", "#n/a n/a", "<na>", "n.a.", "n.d.", "nd", "tbd"}
    | {"#null!", "#div/0!", "#value!", "#num!", "#ref!", "#name?", "missing", "unknown", "-nan", "1.#ind", "1.#qnan"}
)
"""What stands for a missing value in a column of numbers, and may be a category anywhere else."""
_CURRENCIES = frozenset(
    {"usd", "eur", "gbp", "chf", "jpy", "cny", "inr", "krw", "sek", "nok", "dkk", "pln", "czk", "rs", "rs."}
    | {"kr", "kr.", "r$", "us$", "a$", "c$", "zł", "fr.", "fr"}
)
_UNIT = re.compile(r"[^\W\d_]{1,10}[²³]?(?:/[^\W\d_]{1,6}[²³]?)?|°\s?[CFK]?|%|‰")
_SPACES = " \u00a0\u202f\u2009"
_WRITTEN = re.compile(
    rf"(\(?)\s*([-+−]?)\s*([^\d\s.,'’()+−-]*)\s*([-+−]?)\s*(\d(?:[\d.,'’{_SPACES}]*\d)?\.?|[.,]\d+)((?:[eE][-+]?\d+)?)"
    rf"\s*([^\d.,()+−-]*?)\s*(\)?)",
    re.ASCII,
)
_LEADING_ZERO = re.compile(r"[-+]?0\d")
_DATE_FORMATS = {
    "year-month-day": re.compile(r"(?P<y>\d{4})[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})"),
    "day.month.year": re.compile(r"(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})"),
    "month/day/year": re.compile(r"(?P<m>\d{1,2})[-/](?P<d>\d{1,2})[-/](?P<y>\d{4})"),
    "day/month/year": re.compile(r"(?P<d>\d{1,2})[-/](?P<m>\d{1,2})[-/](?P<y>\d{4})"),
}
_TIME = re.compile(r"[T ]\s?(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?\s?(?:Z|[+-]\d{2}:?\d{2}|UTC)?")
DATE_PARTS = ("year", "month", "day", "weekday")


def number(text: str) -> float | None:
    """The number in a cell as programs write it, NaN if it is missing, None if it is neither."""
    folded = text.lower()
    if folded in MISSING:
        return math.nan
    if folded in BOOLEAN:
        return float(folded == "true")
    if "_" in text:  # Python reads 1_000 as a number, no one else does
        return None
    try:
        return float(text)
    except ValueError:
        return None


def is_code(text: str) -> bool:
    """Whether digits are a code rather than a number: 02134 is not 2134."""
    return _LEADING_ZERO.match(text) is not None and text.lstrip("+-").isdigit()


@dataclass(frozen=True)
class NumberStyle:
    """How the numbers of a column are written, where it is not as programs write them.

    Attributes:
        decimal, group: the mark before decimals, and that between thousands ("" for none).
        affix: what stands before or behind each number: a currency, a unit, %.
        missing: further marks of missing values, lower case.
        of, date, part: of a part of a date: the column of the file, the order of its parts, and which one.
    """

    decimal: str = "."
    group: str = ""
    affix: str = ""
    missing: tuple[str, ...] = ()
    of: str = ""
    date: str = ""
    part: str = ""

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NumberStyle:
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        return cls(**{**known, "missing": tuple(known.get("missing", ()))})

    def parse(self, text: str) -> float | None:
        """The number, NaN if it is missing, None if it is neither."""
        folded = text.lower()
        if folded in MISSING or folded in self.missing:
            return math.nan
        if self.date:
            found = _date(text, self.date)
            return None if found is None else _part(found, self.part)
        if self.decimal == "." and (plain := number(text)) is not None:
            return plain
        match = _WRITTEN.fullmatch(text)
        if match is None:
            return number(text) if folded in BOOLEAN else None
        opened, sign, before, inner, core, exponent, behind, closed = match.groups()
        if bool(opened) != bool(closed) or (sign and inner) or not {before, behind} <= {"", self.affix}:
            return None
        if (before and behind) or not self._core.fullmatch(core):
            return None
        plain_text = core.replace(self.group, "") if self.group else core
        value = float(plain_text.replace(self.decimal, ".") + exponent)
        return -value if (sign or inner) in ("-", "−") or opened else value

    @cached_property
    def _core(self) -> re.Pattern[str]:
        whole = rf"[1-9]\d{{0,2}}(?:{re.escape(self.group)}\d{{3}})+|\d+" if self.group else r"\d+"
        mark = re.escape(self.decimal)
        return re.compile(rf"(?:{whole})(?:{mark}\d*)?|{mark}\d+", re.ASCII)

    def __str__(self) -> str:
        """In words, for notes."""
        if self.date:
            return f"dates ({self.date})"
        parts = [f"{self.group!r} between thousands"] if self.group else []
        parts += [f"{self.decimal!r} before decimals"] if self.decimal != "." else []
        parts += [f"each with {self.affix!r}"] if self.affix else []
        return "numbers" + (f", {', '.join(parts)}" if parts else "")


def find_style(texts: Iterable[str], decimal: str | None = None) -> NumberStyle | None:
    """How all values of a column are written as numbers; None where they are not numbers, but categories.

    Args:
        texts: its values, equal ones once.
        decimal: the mark before decimals, where the user says it.
    """
    given = [text for text in texts if text.lower() not in MISSING]
    marks = tuple(sorted({text.lower() for text in given} & _MARKS))
    values = [text for text in given if text.lower() not in marks]
    if not values or any(map(is_code, values)):
        return None
    matches = [_WRITTEN.fullmatch(text) for text in values]
    found = [match for match in matches if match is not None]
    if len(found) < len(matches):
        plain = decimal in (None, ".") and all(number(text) is not None for text in values)
        return NumberStyle(missing=marks) if plain else None
    affixes = {match[3] + match[7] for match in found}
    if len(affixes) > 1 or any(match[3] and match[7] for match in found):
        return None
    affix = affixes.pop()
    if affix and not (_is_currency(affix) or (all(match[7] for match in found) and _UNIT.fullmatch(affix))):
        return None
    cores = [match[5] for match in found]
    used = {c for core in cores for c in core if not c.isdigit()}
    for mark in (decimal,) if decimal else (".", ","):
        group = used - {mark}
        if len(group) <= 1:
            style = NumberStyle(mark, next(iter(group), ""), affix, marks)
            if all(style.parse(text) is not None for text in values):
                return style
    return None


def is_ambiguous(style: NumberStyle, texts: Iterable[str]) -> bool:
    """Whether a mark taken to stand between thousands may as well stand before decimals: 1,234 and nothing longer."""
    return style.group in (",", ".") and not any(
        text.count(style.group) > 1 or style.decimal in text for text in texts if style.group in text
    )


def find_dates(texts: Iterable[str]) -> str | None:
    """The one order in which all values of a column are dates; None where there is none, "?" where there are two."""
    values = [text for text in texts if text.lower() not in MISSING]
    fit = [order for order in _DATE_FORMATS if values and all(_date(text, order) is not None for text in values)]
    return None if not fit else fit[0] if len(fit) == 1 else "?"


def _date(text: str, order: str) -> datetime | None:
    match = _DATE_FORMATS[order].match(text)
    if match is None:
        return None
    rest = text[match.end() :]
    time = _TIME.fullmatch(rest)
    if rest and time is None:
        return None
    hour, minute, second = (int(part or 0) for part in time.groups()) if time else (0, 0, 0)
    try:
        return datetime(int(match["y"]), int(match["m"]), int(match["d"]), hour, minute, min(second, 59))
    except ValueError:
        return None


def _part(found: datetime, part: str) -> float:
    if part == "weekday":
        return float(found.weekday())
    if part == "hour":
        return found.hour + found.minute / 60
    return float(getattr(found, part))


def moments(texts: Sequence[str]) -> list[float] | None:
    """Values in order of time: numbers as they are, dates in seconds; None where some are neither."""
    found = [number(text) for text in texts]
    if all(value is not None and math.isfinite(value) for value in found):
        return [value for value in found if value is not None]
    order = find_dates(set(texts))
    if order in (None, "?"):
        return None
    dates = [_date(text, str(order)) for text in texts]
    return None if None in dates else [date.replace(tzinfo=UTC).timestamp() for date in dates if date is not None]


def has_times(texts: Iterable[str]) -> bool:
    return any(":" in text for text in texts)


def _is_currency(affix: str) -> bool:
    return affix.lower() in _CURRENCIES or all(unicodedata.category(c) == "Sc" for c in affix)
