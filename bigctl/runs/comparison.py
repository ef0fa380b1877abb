"""Arrays, lines and JSON compared to the last bit, each to its first difference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.errors import RunError
from bigctl.runs.directory import RunDirectory
from bigctl.runs.metrics_file import read_lines

if TYPE_CHECKING:
    import numpy as np


TIMED = "perf/"
"""What the names of metrics begin with that measure time."""
SUMMARY = ("metrics", "confusion", "step", "epoch", "stopped", "skipped", "rewinds", "selected_step", "parameters")


@dataclass(frozen=True)
class Comparison:
    """One thing that was compared.

    Attributes:
        what: such as "last checkpoint: optimizer state".
        count: how many arrays, numbers or lines it has.
        difference: the first difference in words, empty where all are equal.
        where: the path of the array, or the key, that differs first.
        step: of the first line that differs.
        largest: the largest absolute difference in an array of the same shape.
    """

    what: str
    count: int = 0
    difference: str = ""
    where: str | None = None
    step: int | None = None
    largest: float | None = None

    @property
    def equal(self) -> bool:
        return not self.difference

    def to_json(self) -> dict[str, Any]:
        values = {"what": self.what, "equal": self.equal, "count": self.count}
        if self.equal:
            return values
        return {
            **values,
            "difference": self.difference,
            "where": self.where,
            "step": self.step,
            "max_abs_difference": self.largest,
        }


# ------------------------------------------------------------------------------------------------------------ arrays


def compare_arrays(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Comparison:
    """Arrays by path: dtypes, shapes, and every bit."""
    import numpy as np

    for path in sorted({*expected, *found}):
        if path not in expected or path not in found:
            return Comparison(what, len(expected), f"{path} is in one of them only", where=path)
        a, b = np.asarray(expected[path]), np.asarray(found[path])
        if a.dtype != b.dtype or a.shape != b.shape:
            said = f"{path} is {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}"
            return Comparison(what, len(expected), said, where=path)
        if a.tobytes() != b.tobytes():
            with np.errstate(all="ignore"):
                apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
            count = int(np.count_nonzero(_bits(a) != _bits(b)))
            largest = float(np.nanmax(apart)) if np.isfinite(apart).any() else None
            amount = f", by up to {largest:.3g}" if largest is not None else ""
            said = f"{path} differs in {count:,} of {a.size:,} numbers{amount}"
            return Comparison(what, len(expected), said, where=path, largest=largest)
    return Comparison(what, len(expected))


def _bits(values: np.ndarray) -> np.ndarray:
    """An array's numbers as rows of bytes that can be compared, also where they are no numbers."""
    import numpy as np

    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.dtype((np.void, flat.dtype.itemsize)))


# ------------------------------------------------------------------------------------------------------ lines, values


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file of JSON objects, without what measures time."""
    return [{name: value for name, value in line.items() if not name.startswith(TIMED)} for line in read_lines(path)]


def compare_lines(what: str, expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Comparison:
    """Lines in their order, each with its `step`."""
    for a, b in zip(expected, found, strict=False):
        if a != b:
            differs = compare_values(what, a, b)
            step = min(a["step"], b["step"])
            said = f"at step {step:,}: {differs.difference}"
            return Comparison(what, len(expected), said, differs.where, step, differs.largest)
    if len(expected) != len(found):
        short, long = sorted((expected, found), key=len)
        step = long[len(short)]["step"]
        said = f"{len(expected)} and {len(found)} lines; the first that one of them lacks is of step {step:,}"
        return Comparison(what, len(expected), said, step=step)
    return Comparison(what, len(expected))


def compare_curve(what: str, expected: Mapping[int, Any], found: Mapping[int, Any], *, tolerance: float) -> Comparison:
    """One metric by step, to the first step that differs; `largest` is over all steps that both have.

    Args:
        what: its name.
        expected, found: step -> value; None for a number that is not finite, equal to another such one.
        tolerance: the largest difference that counts as none, relative to the larger of both; 0 for every bit.
    """
    first, largest, count = None, 0.0, 0
    for step in sorted({*expected, *found}):
        if step not in expected or step not in found:
            have = "the first" if step in expected else "the other"
            first = first or (step, f"is in {have} run only")
            continue
        a, b = expected[step], found[step]
        count += 1
        apart = abs(a - b) if _is_finite(a) and _is_finite(b) else 0.0
        largest = max(largest, apart)
        if first is None and not _within(a, b, tolerance):
            amount = f", {apart:.2g} apart" if apart else ""
            first = step, f"{_shown(a)} and {_shown(b)}{amount}"
    if first is None:
        return Comparison(what, count)
    step, said = first
    return Comparison(what, count, f"{what} at step {step:,}: {said}", where=what, step=step, largest=largest)


def _within(a: Any, b: Any, tolerance: float) -> bool:
    if not (_is_finite(a) and _is_finite(b)):
        return _shown(a) == _shown(b)
    return repr(float(a)) == repr(float(b)) or abs(a - b) <= tolerance * max(abs(a), abs(b)) > 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    broken = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "not finite" if broken else json.dumps(value)[:80]


def compare_values(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> Comparison:
    """JSON objects, to the first leaf that differs."""
    flat_a, flat_b = dict(_leaves(expected)), dict(_leaves(found))
    for name in dict.fromkeys([*flat_a, *flat_b]):
        a, b = (flat.get(name, "nothing") for flat in (flat_a, flat_b))
        if type(a) is not type(b) or a != b:
            both = isinstance(a, int | float) and isinstance(b, int | float)
            largest = abs(float(a) - float(b)) if both else None
            said = f"{name} is {json.dumps(a)[:80]} and {json.dumps(b)[:80]}"
            return Comparison(what, len(flat_a), said, where=name, largest=largest)
    return Comparison(what, len(flat_a))


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def summary_of(run: RunDirectory) -> dict[str, Any]:
    """What of a summary.json says nothing of time or place."""
    try:
        summary = run.summary()
    except RunError as error:
        return {"error": str(error)}
    return {name: summary.get(name) for name in SUMMARY}
