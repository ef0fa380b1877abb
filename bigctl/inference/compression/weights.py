"""Weights rounded or pruned, and the room that they then need. Matrices are seen as [outputs, inputs]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bigctl.errors import RunError
from bigctl.inference.compression.method import INT4, INT8, MAGNITUDE, PATTERN, PRUNE, Method
from bigctl.interop import rounding

Arrays = Mapping[str, np.ndarray]
Norms = Mapping[str, np.ndarray]
"""Of the inputs of layers, by the path of their kernel: float64 [inputs]."""
_HEADS = ("head/", "decoder/")
_TABLES = ("embedding", "position")
"""Last parts of paths of arrays whose rows are looked up."""
_ADAPTERS = ("lora_a", "lora_b")
_MATRICES = ("first", "second", "ngrams", *_ADAPTERS)
"""Of those that multiply, besides names that end with `kernel`: convolutions of `speed_cnn`, and what each hashed run
of tokens adds to each output, whose rows are too short for scales of their own."""


@dataclass(frozen=True)
class Smaller:
    """What became of a model's weights.

    Attributes:
        values: all of them, by path, float32.
        layers: how many were changed, and `left` the bytes, as float32, of each other array of two or more dimensions,
            by path.
        before, after: bytes of those that were changed, as float32, and as integers with their scales, or without the
            zeros with a bit for each place.
        zeros: the share of zeros among them.
    """

    values: dict[str, np.ndarray]
    layers: int
    left: Mapping[str, int]
    before: int
    after: int
    zeros: float


def smaller(values: Arrays, method: Method, norms: Norms, where: str) -> Smaller:
    """The weights after a method. Raises RunError if there are none that it is for."""
    changed: dict[str, np.ndarray] = {}
    after = zeros = 0
    for name in unchanged(values):
        if not _takes(name, method, norms):
            continue
        parts = [_one(part, method, norms.get(name)) for part in _matrices(name, values[name])]
        size = sum(each for _, each in parts)
        if size >= 4 * values[name].size:  # rows shorter than a group
            continue
        changed[name] = _restored(name, [part for part, _ in parts], values[name])
        after += size
        zeros += int((changed[name] == 0).sum())
    if not changed:
        what = f"{method} is for matrices that multiply what layers are given, and this model has none that it can take"
        raise RunError(
            what, where=where, hint="by=magnitude takes convolutions too" if method.method == PRUNE else None
        )
    elements = sum(each.size for each in changed.values())
    left = unchanged({name: each for name, each in values.items() if name not in changed})
    return Smaller({**values, **changed}, len(changed), left, 4 * elements, after, zeros / elements)


def unchanged(values: Arrays) -> dict[str, int]:
    """The bytes of each floating array of two or more dimensions, as float32."""
    return {
        name: 4 * each.size for name, each in values.items() if each.ndim > 1 and np.issubdtype(each.dtype, np.floating)
    }


def _is_table(name: str) -> bool:
    return name.endswith(_TABLES)


def _takes(name: str, method: Method, norms: Norms) -> bool:
    last = name.rpartition("/")[2]
    if not (last.endswith("kernel") or last in _MATRICES or _is_table(name)):
        return False
    if method.method != PRUNE:
        return True
    if _is_table(name) or name.startswith(_HEADS) or last in _ADAPTERS:  # what decides in the end stays whole, too
        return False
    return method.by == MAGNITUDE or name in norms


def _matrices(name: str, values: np.ndarray) -> list[np.ndarray]:
    """[outputs, inputs], or rows of a table; of stacked layers and experts one each."""
    if _is_table(name):
        return [values.reshape(len(values), -1)]
    if values.ndim == 3:
        return [part.T for part in values]
    return [values.reshape(-1, values.shape[-1]).T]


def _restored(name: str, parts: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    if _is_table(name):
        return parts[0].reshape(like.shape)
    found = np.stack([part.T for part in parts]) if like.ndim == 3 else parts[0].T
    return np.ascontiguousarray(found.reshape(like.shape))


def _one(rows: np.ndarray, method: Method, norms: np.ndarray | None) -> tuple[np.ndarray, int]:
    """A matrix after a method, and its bytes then."""
    rows = np.asarray(rows, np.float32)
    if method.method == INT8:
        whole, scale = rounding.to_int8(rows)
        return whole * scale, whole.nbytes + scale.nbytes
    if method.method == INT4:
        found, scales = rounding.to_int4(rows, method.group)
        return rounding.from_int4(found, scales, rows.shape[1]), found.size // 2 + scales.nbytes
    scores = np.abs(rows) if method.by == MAGNITUDE or norms is None else np.abs(rows) * norms
    kept = _SCHEMES[method.pattern](scores, method)
    return rows * kept, 4 * int(kept.sum()) + -(-kept.size // 8)


def _any(scores: np.ndarray, method: Method) -> np.ndarray:
    """Which weights stay: the best of each output by Wanda, which compares those alone, of the whole layer else."""
    count = int(method.sparsity * (scores.size if method.by == MAGNITUDE else scores.shape[1]) + 1e-9)
    flat = scores.reshape(1, -1) if method.by == MAGNITUDE else scores
    kept = np.ones(flat.shape, bool)
    if count:
        np.put_along_axis(kept, np.argpartition(flat, count - 1, axis=1)[:, :count], False, 1)
    return kept.reshape(scores.shape)


def _two_of_four(scores: np.ndarray, method: Method) -> np.ndarray:
    """The better two of every four neighbouring inputs stay; inputs that are left over all do."""
    whole = scores.shape[1] // 4 * 4
    kept = np.ones(scores.shape, bool)
    groups = scores[:, :whole].reshape(len(scores), -1, 4)
    best = np.zeros(groups.shape, bool)
    np.put_along_axis(best, np.argsort(-groups, axis=-1, kind="stable")[..., :2], True, -1)
    kept[:, :whole] = best.reshape(len(scores), whole)
    return kept


_SCHEMES: dict[str, Callable[[np.ndarray, Method], np.ndarray]] = {"": _any, PATTERN: _two_of_four}
