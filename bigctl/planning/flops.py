"""Floating-point operations of a traced program: matrix products and convolutions, loops multiplied by their lengths.

A compiler's own count takes the body of a loop once, and that of a fused kernel not at all; this one walks the jaxpr.
Element-wise operations are not counted: they are bound by memory. What is computed twice to save memory (remat) counts
twice, as it is computed; inside a fused kernel for attention it counts once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.extend import core

Jaxpr = Any
Equation = Any


@dataclass
class Flops:
    """What a program computes, on all devices together.

    Attributes:
        by: operations by what they are: "matmul", "convolution", "attention".
        untold: loops whose length only the running program knows, counted once.
    """

    by: dict[str, float] = field(default_factory=dict)
    untold: int = 0

    @property
    def total(self) -> float:
        return sum(self.by.values())

    def add(self, kind: str, count: float) -> None:
        self.by[kind] = self.by.get(kind, 0.0) + count


def count(jaxpr: core.ClosedJaxpr | core.Jaxpr, platform: str) -> Flops:
    """The operations of a program that is lowered for a platform, "cpu", "gpu" or "tpu".

    What no result needs is left out, as a compiler does.
    """
    found = Flops()
    _walk(_open(jaxpr), None, 1.0, platform, found)
    return found


def _open(jaxpr: Jaxpr) -> Any:
    return jaxpr.jaxpr if hasattr(jaxpr, "consts") else jaxpr


_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "checkpoint",
    "custom_vjp_call",
    "custom_jvp_call",
    "remat2",
}
"""What runs a jaxpr with its own operands and results, one for one."""


def _walk(jaxpr: Jaxpr, needed: list[bool] | None, times: float, platform: str, found: Flops) -> list[bool]:
    """Count what the results that are needed (None for all) take; gives which of the arguments that needs."""
    chosen: dict[Any, int] = {}  # variables that say which branch is for which platform
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            chosen[equation.outvars[0]] = _branch(equation.params["platforms"], platform)
        elif equation.primitive.name == "convert_element_type" and _variable(equation.invars[0]) in chosen:
            chosen[equation.outvars[0]] = chosen[equation.invars[0]]
    outs = jaxpr.outvars if needed is None else [v for v, wanted in zip(jaxpr.outvars, needed, strict=True) if wanted]
    live = {v for v in outs if not isinstance(v, core.Literal)}
    for equation in reversed(jaxpr.eqns):
        wanted = [v in live for v in equation.outvars]
        if not any(wanted) and not equation.effects:
            continue
        used = _count(equation, wanted, chosen, times, platform, found)
        operands = equation.invars if used is None else [v for v, u in zip(equation.invars, used, strict=True) if u]
        live |= {v for v in operands if not isinstance(v, core.Literal)}
    return [v in live for v in jaxpr.invars]


def _variable(operand: Equation) -> Equation:
    return None if isinstance(operand, core.Literal) else operand


def _count(
    equation: Equation, wanted: list[bool], chosen: dict[Any, int], times: float, platform: str, found: Flops
) -> list[bool] | None:
    """Count one equation; gives which operands it needs, None for all."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        found.add("matmul", times * _dot(equation))
    elif name == "ragged_dot_general":
        found.add("matmul", times * _ragged_dot(equation))
    elif name == "conv_general_dilated":
        found.add("convolution", times * _convolution(equation))
    elif name == "ffi_call" and "fmha" in params["target_name"]:
        found.add("attention", times * _attention(equation))
    elif name == "cond":
        branches, index = [_open(branch) for branch in params["branches"]], equation.invars[0]
        known = int(index.val) if isinstance(index, core.Literal) else chosen.get(index)
        _longest(branches if known is None else [branches[known]], wanted, times, platform, found)
    else:
        inner = list(_inner(params))
        if name in _CALLS and len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
            return _walk(inner[0], wanted, times, platform, found)
        found.untold += name == "while"
        for each in inner:
            _walk(each, None, times * _repeats(name, params), platform, found)
    return None


def _branch(platforms: Sequence[Sequence[str] | None], platform: str) -> int:
    """Which of several branches is lowered: the first whose platforms have it, or that for all others."""
    names = {platform, "cuda"} if platform == "gpu" else {platform}
    for number, group in enumerate(platforms):
        if group is None or names & set(group):
            return number
    return len(platforms) - 1


def _longest(branches: list[Any], wanted: list[bool], times: float, platform: str, found: Flops) -> None:
    counted = []
    for branch in branches:
        counted.append(Flops())
        _walk(branch, wanted, times, platform, counted[-1])
    most = max(counted, key=lambda each: each.total)
    for kind, number in most.by.items():
        found.add(kind, number)
    found.untold += most.untold


def _repeats(name: str, params: dict[str, Any]) -> float:
    if name == "scan":
        return float(params["length"])
    if name == "pallas_call":
        grid = getattr(params.get("grid_mapping"), "grid", ())
        return float(math.prod(size for size in grid if isinstance(size, int)))
    if name == "shard_map":
        sizes = dict(params["mesh"].shape)
        return float(math.prod(sizes[axis] for axis in params.get("manual_axes", sizes)))
    return 1.0


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = _open(each)
            if hasattr(each, "eqns"):
                yield each


def _dot(equation: Equation) -> float:
    """2 x elements of the result x the length of what is summed over."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _ragged_dot(equation: Equation) -> float:
    """Of rows that are each multiplied with one group's matrix: as of one matrix for all."""
    rows, other, _ = (v.aval.shape for v in equation.invars)
    if len(other) == 3:  # rows [m, k] x groups [g, k, n]
        (contracted, _), _ = equation.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(rows[axis] for axis in contracted)
    return 2.0 * math.prod(rows) * other[-1]  # a gradient: groups of rows [m, k] x rows [m, n]


def _convolution(equation: Equation) -> float:
    """2 x products: of each result with those taps that lie on the input, not on padding or between its elements."""
    params = equation.params
    numbers, (x, kernel) = params["dimension_numbers"], (v.aval.shape for v in equation.invars)
    shape = equation.outvars[0].aval.shape
    products = float(shape[numbers.out_spec[0]] * shape[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]])
    for axis, (before, _) in enumerate(params["padding"]):
        results, taps = shape[numbers.out_spec[2 + axis]], kernel[numbers.rhs_spec[2 + axis]]
        stride, spread, apart = (
            (params[name] or (1,) * (axis + 1))[axis] for name in ("window_strides", "rhs_dilation", "lhs_dilation")
        )
        places = np.arange(results)[:, None] * stride + np.arange(taps) * spread - before
        inside = (places >= 0) & (places <= (x[numbers.lhs_spec[2 + axis]] - 1) * apart) & (places % apart == 0)
        products *= float(inside.sum())
    return 2.0 * products


def _attention(equation: Equation) -> float:
    """Of cuDNN's kernels: two products forward, four backward, of [batch, length, heads, depth] each."""
    queries, keys = (v.aval.shape for v in equation.invars[:2])
    batch, length, heads, depth = queries
    one = 2.0 * batch * heads * length * keys[1] * depth
    return one * (4 if "Backward" in equation.params["target_name"] else 2)
