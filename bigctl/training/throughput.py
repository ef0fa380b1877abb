"""How fast a language model trains: tokens a second, and the share of the devices' peak that this takes.

A token costs 6 operations for each weight that multiplies it (2 forward, 4 backward) and 12 x layers x width x block
for attention over a window of `block` tokens: appendix B of PaLM (Chowdhery et al. 2022), where the model FLOPs
utilisation (MFU) is defined too. Operations that are done twice to save memory count once; a causal mask saves none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
)
"""Dense bfloat16 operations a second of a device, from its data sheet, by the first of these that is in its name."""


@dataclass(frozen=True)
class Rates:
    """From examples a second to what is said of a language model.

    Attributes:
        block: tokens an example.
        flops_per_token: operations of training, by the formula above.
        peak: operations a second of all devices together; None where it is not known.
    """

    block: int
    flops_per_token: float
    peak: float | None

    def __call__(self, examples_per_s: float, prefix: str = "") -> dict[str, float]:
        tokens = examples_per_s * self.block
        found = {f"{prefix}tokens_per_s": tokens}
        if self.peak:
            found[f"{prefix}mfu"] = tokens * self.flops_per_token / self.peak
        return found


def flops_per_token(shapes: Mapping[str, tuple[int, ...]], *, layers: int, width: int, block: int) -> float:
    """Operations that training takes for a token.

    Args:
        shapes: of all parameters, by path; tables that are only looked up count for nothing.
        layers, width: of the model.
        block: tokens a window.
    """
    looked_up = {"position/embedding"} | ({"token/embedding"} if "head/kernel" in shapes else set())
    weights = sum(math.prod(shape) for name, shape in shapes.items() if name not in looked_up)
    return 6.0 * weights + 12.0 * layers * width * block


def peak(device_kind: str, count: int, precision: str) -> float | None:
    """Operations a second of some devices, in this precision; None where it is not known."""
    if precision != "bfloat16":
        return None
    return next((count * flops for name, flops in _PEAKS if name in device_kind), None)


def rates(config: Any, params: Any, mesh: Any) -> Rates | None:
    """The rates of an experiment; None for one that is no language model.

    Args:
        config: the experiment.
        params: its parameters, or their shapes.
        mesh: its devices.
    """
    from jax.tree_util import tree_flatten_with_path

    from bigctl.parallel.partition import path_name

    layers, width = (getattr(config.model, name, None) for name in ("layers", "width"))
    if config.block is None or layers is None or width is None:
        return None
    shapes = {path_name(path): tuple(leaf.shape) for path, leaf in tree_flatten_with_path(params)[0]}
    cost = flops_per_token(shapes, layers=layers, width=width, block=config.block)
    device = mesh.devices.flat[0].device_kind
    return Rates(config.block, cost, peak(device, mesh.size, config.train.precision))
