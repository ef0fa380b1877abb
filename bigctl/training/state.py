"""What a run is between two steps: one plain pytree on the devices, and a handful of numbers on the host."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything on the devices that the next step depends on, or that the next log line is made of.

    Attributes:
        step: updates done, int32 [].
        params: trained weights, float32.
        variables: what the model updates by itself (batch statistics).
        opt_state: the optimizer's.
        ema: averaged weights, or an empty dict.
        sums: training metrics since the last log.
        bad_step: the first step that the host must act on, see `divergence`, or -1, int32 [].
        anomaly_state: what the judgement of later steps depends on, see `divergence.new_anomaly_state`; often an empty
            dict.
    """

    step: jax.Array
    params: Tree
    variables: Tree
    opt_state: Tree
    ema: Tree
    sums: Tree
    bad_step: jax.Array
    anomaly_state: Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """What a trained model is used with, of all the state that it was trained with.

    Attributes:
        params: trained weights, float32; the averaged ones where the run has them.
        variables: what the model updates by itself (batch statistics).
    """

    params: Tree
    variables: Tree


@dataclass
class Progress:
    """The host's side of the state, saved with it.

    Attributes:
        step: updates done.
        position: training examples consumed.
        best: the best value of the selection metric so far, and at which step.
        stale: evaluations since then.
        stopped: why training ended before its length, empty if it did not.
        rewinds: how often training went back to a checkpoint after a bad step.
        rewound: how often to the present one.
        anchors: the step of the checkpoint to rewind to, and that of the best one by then: neither may be deleted.
        passed_over: training examples of `position` that no kept step was made of, because of rewinds.
        epsilon: what the steps have spent of privacy; None where nothing is promised.
        metric, mode: what `best` is of, and whether it should be large ("max") or small ("min"); empty if not told.
    """

    step: int = 0
    position: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stopped: str = ""
    best_metrics: dict[str, float] = field(default_factory=dict)
    rewinds: int = 0
    rewound: int = 0
    anchors: list[int] = field(default_factory=list)
    passed_over: int = 0
    epsilon: float | None = None
    metric: str = ""
    mode: str = ""

    def record(self, value: float, mode: str, min_delta: float, metrics: dict[str, float]) -> bool:
        """Take note of an evaluation; whether it is the best so far. A value that is not a number never is.

        Of equal values, as accuracies on a small validation split often are, that with the lower `val/loss` is better.
        """
        gain = value - self.best if self.best is not None else math.inf
        gain = gain if mode == "max" or self.best is None else -gain
        loss, best_loss = (side.get("val/loss", math.nan) for side in (metrics, self.best_metrics))
        better = math.isfinite(value) and (gain > min_delta or (gain == 0 and loss < best_loss))
        if better:
            self.best, self.best_step, self.stale, self.best_metrics = value, self.step, 0, dict(metrics)
        else:
            self.stale += 1
        return better

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def zeros_like(tree: Tree) -> Tree:
    return jax.tree.map(jnp.zeros_like, tree)
