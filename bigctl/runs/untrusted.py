"""JSON of runs and sweeps, read without trust: a run may be damaged, half written, or made by somebody to do harm.

What comes out of here is bounded and has the types that bigctl writes: numbers are finite and fit into 64 bits, texts
are UTF-8, nothing is nested deeper than `DEEPEST`, and every field that a shape names is of its type, or absent. All
that reads such files (listings, pages, comparison, sweeps, resuming) reads them here. Free of jax.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl.files import read_regular

LARGEST = 64 << 20
"""Of a file that is one value [bytes]."""
DEEPEST = 32
_INT64 = 2**63


@dataclass(frozen=True)
class Number:
    """A number within bounds."""

    low: float
    high: float
    whole: bool = True


COUNT = Number(0, 2**53)
TIME = Number(0, 2.5e11, whole=False)
"""Seconds since the epoch, up to the year 9892."""
NUMBERS: dict[Any, Any] = {str: float}

Shape = Any
"""What a value must be: `str`, `int`, `bool`, `float` (any number), a `Number`; `object` for anything; `[shape]` for a
list; `{str: shape}` for a mapping; `{"name": shape, ...}` for one of which these fields are known. Null fits all."""

RECORD: Shape = {
    "schema": COUNT, "created": TIME, "updated": TIME, "status": str, "recipe": str, "message": str, "exit_code": int,
    "plugins": [str], "overrides": [str], "parameters": COUNT, "steps": COUNT,
    "starts": [{"time": TIME, "step": COUNT, "argv": [str], "folder": str, "changed": [str], "notes": [str]}],
    "data": {
        "fingerprint": str, "prepared": str, "sizes": {str: COUNT}, "info": {str: object},
        "files": {str: object}, "drawn": [{"name": str, "tokens": COUNT, "share": float, "epochs": float}],
        "features": {"kind": str, "shape": [COUNT], "target": {"kind": str, "names": [str]}},
    },
    "packages": {str: str}, "machine": {str: object},
    "code": {"commit": str, "dirty": bool, "diff": str, "diff_cut": bool},
    "devices": {"count": COUNT, "kind": str, "platform": str, "processes": COUNT, "mesh": {str: COUNT}},
    "derived_from": {"derived_from": str, "step": COUNT}, "compression": {"method": str},
    "teacher": {"run": str, "step": COUNT, "logits": str},
    "selection": {"metric": str, "mode": str},
    "batch_size": {"size": COUNT, "sentence": str, "free": COUNT, "tried": [{str: object}]},
}  # fmt: skip
"""Of run.json."""
BASELINE: Shape = {
    "name": str, "metrics": NUMBERS, "selected_by": str, "seconds": float, "binary": {str: NUMBERS},
    "all": [{"name": str, "metrics": NUMBERS, "seconds": float, "binary": {str: NUMBERS}}],
}  # fmt: skip
"""Of baseline.json beside prepared data, and of `baseline` in summary.json."""
SUMMARY: Shape = {
    "schema": COUNT, "run": str, "recipe": str, "status": str, "step": COUNT, "epoch": float, "stopped": str,
    "skipped": COUNT, "rewinds": COUNT, "selected_step": COUNT, "selected_by": str, "metrics": NUMBERS,
    "confusion": [[float]], "classes": [str], "parameters": COUNT, "data": {str: object}, "resumed_from": COUNT,
    "devices": RECORD["devices"], "timings": NUMBERS, "examples_per_s": float, "profile": [str], "tokens_per_s": float,
    "mfu": float, "flops_per_token": float, "positive": str, "curves": {str: object}, "mistakes": [{str: object}],
    "privacy": {
        "epsilon": float, "delta": float, "steps": COUNT, "noise": float, "sampling_rate": float, "clip": float,
        "accountant": str, "unit": str,
    },
    "federated": {
        "clients": COUNT, "scored": COUNT, "split": str, "accuracy": NUMBERS, "spread": float,
        "spread_by_chance": float, "histogram": [COUNT],
        "worst": [{"client": COUNT, "examples": COUNT, "scored": COUNT, "accuracy": float, "classes": str}],
    },
    "baseline": BASELINE, "waiting": {"share": float, "cause": str, "seconds": NUMBERS, "sentence": str},
}  # fmt: skip
"""Of summary.json."""
META: Shape = {
    "step": COUNT,
    "progress": {
        "step": COUNT, "best": float, "best_step": COUNT, "best_metrics": {str: object}, "stopped": str,
    },
}  # fmt: skip
"""Of meta.json of a checkpoint, as far as it is shown."""


def parse(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or not one that bigctl writes."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_int64)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    opening = (b"[", b"{", b"\\u") if isinstance(text, bytes) else ("[", "{", "\\u")
    lists, mappings, escapes = (text.count(mark) for mark in opening)  # type: ignore[arg-type]
    if lists + mappings > DEEPEST and _deeper(value, DEEPEST):
        raise ValueError("it is nested too deep")
    return _with_whole_texts(value) if escapes else value


def mapping(text: bytes | str, shape: Shape = None) -> dict[str, Any]:
    """A JSON object of a shape. Raises ValueError, whose text says what is wrong."""
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if shape is not None and (problem := misfit(value, shape)):
        raise ValueError(problem)
    return value


def read(path: Path, shape: Shape = None) -> dict[str, Any]:
    """The JSON object that a file holds. Raises OSError, and ValueError whose text says what is wrong."""
    return mapping(read_regular(path, most=LARGEST), shape)


def step_line(line: bytes) -> dict[str, Any] | None:
    """A line of a file that has an object with its step on each; None if it is none."""
    try:
        values = mapping(line, {"step": COUNT})
    except ValueError:
        return None
    return None if values.get("step") is None else values


def metrics_line(line: bytes) -> dict[str, Any] | None:
    """A line of `metrics.jsonl`: its step and its numbers, null for those that were not finite; None if it is none."""
    if (values := step_line(line)) is None:
        return None
    return {name: value for name, value in values.items() if value is None or not _no_number(value)}


def metrics_lines(content: bytes) -> Iterator[dict[str, Any] | None]:
    """All lines of a `metrics.jsonl`, None for those that are damaged; empty ones are left out."""
    return (metrics_line(line) for line in content.split(b"\n") if line)


def misfit(value: object, shape: Shape) -> str:
    """What does not fit a shape, in a sentence; empty if all does."""
    return _misfit(value, shape).removeprefix(".")


def _misfit(value: object, shape: Shape) -> str:
    """As `misfit`, whose place in the whole is put before it by the caller: a value that fits costs no text."""
    if value is None or shape is object:
        return ""
    if shape is float or shape is int or shape is str:  # most of all values: quick where they are what is expected
        kind = type(value)
        if kind is shape or (kind is int and shape is float):
            return ""
        return f" is not a {'text' if shape is str else 'number'}"
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return " is not a mapping"
        every = shape.get(str)
        for name, item in value.items():
            inner = shape.get(name, every)
            if inner is not None and (problem := _misfit(item, inner)):
                return f".{name}{problem}"
        return ""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return " is not a list"
        for place, item in enumerate(value):
            if item is None and shape[0] is str:
                return f"[{place}] is not a text"
            if problem := _misfit(item, shape[0]):
                return f"[{place}]{problem}"
        return ""
    if isinstance(shape, Number):
        if _no_number(value) or (shape.whole and not isinstance(value, int)):
            return f" is not a {'whole ' * shape.whole}number"
        assert isinstance(value, int | float)
        return "" if shape.low <= value <= shape.high else " is out of bounds"
    return "" if isinstance(value, shape) else " is not true or false"


def _no_number(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float)


def _refuse(token: str) -> None:
    raise ValueError(f"{token} stands in it, which is written as null")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError("a number in it is too large")
    return value


def _int64(token: str) -> int:
    if len(token) > 20 or not -_INT64 <= (value := int(token)) < _INT64:
        raise ValueError("a number in it is too large")
    return value


def _deeper(value: object, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        inner = (item for each in level for item in (each.values() if isinstance(each, dict) else each))  # type: ignore[attr-defined]
        level = [item for item in inner if type(item) is dict or type(item) is list]  # as json makes them
        if not level:
            return False
    return True


def _with_whole_texts(value: Any) -> Any:
    """Half of a surrogate pair, which `\\u` can write and no file can hold, becomes U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_with_whole_texts(item) for item in value]
    if isinstance(value, dict):
        return {_with_whole_texts(name): _with_whole_texts(item) for name, item in value.items()}
    return value
