"""How values are shown to people and written as JSON."""

from __future__ import annotations

import math
import time
import unicodedata
from collections.abc import Sequence
from typing import Any


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python has the bytes of a name that is not as halves of characters."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become null, arrays lists."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if callable(convert := getattr(value, "tolist", None)):  # of numpy and jax, scalars too
        return plain(convert())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> str:
    """A metric: four decimals, or three digits where these say more; "-" for none, or one that is not finite."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def grouped(value: object) -> str:
    """A number with its thousands apart and at most four significant digits; "-" for none; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def size(count: float) -> str:
    """Bytes, in the largest binary unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def alike(names: Sequence[str]) -> str:
    """Those that share a place, in words: "a", "a and b, alike", "a, b and 2 more, alike"."""
    if len(names) == 1:
        return names[0]
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} more, alike"
    return f"{', '.join(names[:-1])} and {names[-1]}, alike"


def clock(seconds: float) -> str:
    """A length of time as 1:05, or 2:10:00."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese, Japanese and Korean characters take two, marks that sit on
    another character none."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def padded(text: str, width: int) -> str:
    """A text filled with blanks up to so many columns."""
    return text + " " * (width - columns(text))


def cut(text: str, room: int, mark: str = "...") -> str:
    """As much of a text as fits so many columns, with a mark where something is left out."""
    if columns(text) <= room:
        return text
    left, kept = room - columns(mark), 0
    for character in text:
        left -= _columns_of(character)
        if left < 0:
            break
        kept += 1
    return text[:kept] + mark


def age(timestamp: float) -> str:
    """How long ago that was, in the largest unit that fits."""
    seconds = max(0.0, time.time() - timestamp)
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def parameters(count: int, active: int) -> str:
    """How many parameters a model has, and how many of them a token is multiplied with where those are not all."""
    return f"{count:,} parameters" + (f", {active:,} of them active for each token" if active < count else "")
