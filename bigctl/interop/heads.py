"""The head of one model in terms of another's: its outputs in order by the names of the labels, or in another unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bigctl.data.files.paths import some
from bigctl.data.target import CLASS, CLASSES, NUMBER, TOKEN_CLASS, Target

_WHAT = {
    CLASS: "one class an example",
    CLASSES: "several classes an example",
    NUMBER: "a number",
    TOKEN_CLASS: "a class a token",
}


@dataclass(frozen=True)
class Head:
    """What a head was trained for, or is to be trained for.

    Attributes:
        target: what it predicts.
        reads: what stands for an example where it begins, see `schema.Model.head_input`; empty where there is one way.
        column: name of the target's column, where it is known.
    """

    target: Target
    reads: str = ""
    column: str | None = None


def difference(ours: Head, theirs: Head) -> str:
    """Why their head cannot become ours, in a sentence; empty if it can."""
    if ours.target.kind != theirs.target.kind:
        return f"it was trained for {_WHAT.get(theirs.target.kind, 'no target')}"
    if ours.reads != theirs.reads:
        return f"it was trained on {theirs.reads}, and here it is {ours.reads}"
    if ours.target.kind == NUMBER:
        if ours.column is not None and theirs.column is not None and ours.column != theirs.column:
            return f"it was trained for {theirs.column!r}, and here it is {ours.column!r}"
    elif not set(ours.target.names) & set(theirs.target.names):
        return "it was trained for other labels" if theirs.target.names else "its labels have no names"
    return ""


def converted(
    ours: Head, theirs: Head, arrays: Mapping[str, np.ndarray], outputs: int
) -> tuple[dict[str, np.ndarray], str]:
    """Their arrays, each [..., outputs], as ours, and what was done; empty where they are as they were.

    Two classes may have one output, the log-odds of the second. A label that they do not know begins with zeros.

    Args:
        outputs: how many ours has.
    """
    if ours.target.kind == NUMBER:
        return _rescaled(ours.target, theirs.target, arrays)
    names, known = ours.target.names, theirs.target.names
    if names == known and all(array.shape[-1] == outputs for array in arrays.values()):
        return dict(arrays), ""
    place = {name: number for number, name in enumerate(known)}
    found = {}
    for path, array in arrays.items():
        whole = np.concatenate([np.zeros_like(array), array], -1) if array.shape[-1] == 1 and len(known) == 2 else array
        columns = np.zeros((*whole.shape[:-1], len(names)), whole.dtype)
        for number, name in enumerate(names):
            if name in place:
                columns[..., number] = whole[..., place[name]]
        if outputs == 1 and len(names) == 2:
            columns = columns[..., 1:] - columns[..., :1]
        found[path] = columns
    new, dropped = [n for n in names if n not in place], [n for n in known if n not in names]
    said = ["outputs put in order by the names of the labels"]
    said += [f"new: {some(new)}"] if new else []
    said += [f"dropped: {some(dropped)}"] if dropped else []
    return found, "; ".join(said)


def _rescaled(
    ours: Target, theirs: Target, arrays: Mapping[str, Float[np.ndarray, "*dims 1"]]
) -> tuple[dict[str, np.ndarray], str]:
    """The same number, as a multiple of another deviation from another mean."""
    if (ours.mean, ours.std) == (theirs.mean, theirs.std):
        return dict(arrays), ""
    found = {path: array.astype(np.float64) * (theirs.std / ours.std) for path, array in arrays.items()}
    if "head/bias" in found:
        found["head/bias"] += (theirs.mean - ours.mean) / ours.std
    return {path: array.astype(np.float32) for path, array in found.items()}, "put into the unit of this data's target"
