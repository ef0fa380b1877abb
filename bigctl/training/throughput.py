"""How fast a task of tokens trains: tokens a second, and the share of the devices' peak that this takes.

The model FLOPs utilisation (MFU) is that of PaLM (Chowdhery et al. 2022, appendix B): operations that are done twice to
save memory count once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from bigctl.training.task import Task

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
    """From examples a second to tokens a second and utilisation.

    Attributes:
        tokens: in an example.
        flops_per_token: operations of training; None where they are not known.
        peak: operations a second of all devices together; None where it is not known.
    """

    tokens: int
    flops_per_token: float | None
    peak: float | None

    def __call__(self, examples_per_s: float, prefix: str = "") -> dict[str, float]:
        tokens = examples_per_s * self.tokens
        found = {f"{prefix}tokens_per_s": tokens}
        if self.peak and self.flops_per_token is not None:
            found[f"{prefix}mfu"] = tokens * self.flops_per_token / self.peak
        return found


def peak(device_kind: str, count: int, precision: str) -> float | None:
    """Operations a second of some devices, in this precision; None where it is not known."""
    if precision != "bfloat16":
        return None
    return next((count * flops for name, flops in _PEAKS if name in device_kind), None)


def rates(task: Task, params: Any, mesh: Mesh, precision: str) -> Rates | None:
    """The rates of an experiment; None where its examples are not counted in tokens.

    Args:
        task: what is trained.
        params: its parameters, or their shapes.
        mesh: its devices.
        precision: `train.precision`.
    """
    from jax.tree_util import tree_flatten_with_path

    from bigctl.parallel.partition import path_name

    if task.tokens_per_example is None:
        return None
    shapes = {path_name(path): tuple(leaf.shape) for path, leaf in tree_flatten_with_path(params)[0]}
    flops = task.flops_per_example(shapes)
    per_token = None if flops is None else flops / task.tokens_per_example
    device = mesh.devices.flat[0].device_kind
    return Rates(task.tokens_per_example, per_token, peak(device, mesh.size, precision))
