"""Keys of the optimizers and of the learning rate over time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from bigctl.config.schema.base import STRUCTURAL, Component, Problem, Whole, key, kind

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax

    Scalar: TypeAlias = float | np.ndarray | jax.Array
    Hparams: TypeAlias = Mapping[str, Scalar]
    Rule: TypeAlias = optax.GradientTransformation | tuple[optax.GradientTransformation, ...]


@dataclass
class Optimizer(Component):
    """An update rule. Clipping, other rates of biases and of layers, and what is frozen are the same for all, and added
    around it."""

    group_name: ClassVar[str] = "optimizer"
    kind: str = kind("???")
    lr: float = key(1e-3, "Peak learning rate.", traced=True, gt=0)
    weight_decay: float = key(
        0.0, "Decoupled weight decay, times the learning rate; not on biases and norms.", traced=True, ge=0
    )
    clip: float | None = key(None, "Largest global norm of the gradient; null for none.", traced=True, gt=0)
    layer_decay: float = key(
        1.0,
        "What the learning rate is multiplied by from each layer to the one below; 1 for the same.",
        traced=True,
        off=1.0,
        gt=0,
        le=1,
    )
    bias_factor: float = key(
        1.0, "What the learning rate is multiplied by for biases, those of norms too.", traced=True, off=1.0, gt=0
    )
    norm_bias_factor: float = key(
        1.0, "What the learning rate is multiplied by for biases of norms, besides optimizer.bias_factor.",
        traced=True, off=1.0, gt=0,
    )  # fmt: skip
    bias_decay: float = key(
        0.0, "What stands for optimizer.weight_decay for biases, norms and other vectors.", traced=True, off=0.0, ge=0
    )
    freeze: list[str] = key(
        [], "Patterns of parameters that are not trained, such as embeddings or 'layers/[0-3]/'.", drift=STRUCTURAL
    )
    unfreeze: list[float] = key(
        [], "When each group of layers begins to be trained, from the head downward; what is above all layers is from "
        "the start. The layers are divided into as many groups as there are numbers "
        "[steps; below 1: fraction of the horizon].", drift=STRUCTURAL, ge=0,
    )  # fmt: skip

    def build(self, hparams: Hparams, factor: Scalar, stacked: tuple[str, ...] = ()) -> Rule:
        """The rule itself, weight decay and learning rate included: one transformation, or several in their order.

        Args:
            hparams: "optimizer.lr", "optimizer.weight_decay" and whatever else is traced, as arguments of the step.
            factor: the schedule's present multiple of the learning rate.
            stacked: patterns of parameters that hold several in one, see `Model.stacked`; only given where there are.
        """
        if not self.implementation:
            raise self.incomplete("has no method `build(hparams, factor)`")
        rule: Rule = self.implementing()(self, hparams, factor, stacked)
        return rule

    def check(self, config: Whole) -> Iterator[Problem]:
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                message = f"{pattern!r} is no regular expression: {error}"
                yield "optimizer.freeze", message, "a plain part of a path will do, such as embeddings"
        for earlier, later in itertools.pairwise(self.unfreeze):
            if later <= earlier and (earlier < 1) == (later < 1):
                message = f"a lower group of layers cannot begin at {later:g} where the one above begins at {earlier:g}"
                yield "optimizer.unfreeze", message, "give rising numbers, such as [0.1,0.2,0.3]"


@dataclass
class Sgd(Optimizer):
    implementation: ClassVar[str] = "bigctl.optim.optimizers:sgd"
    kind: str = kind("sgd")
    lr: float = key(0.1, "Peak learning rate.", traced=True, gt=0)
    momentum: float = key(0.9, "Decay of the momentum; 0 for plain gradient descent.", ge=0, lt=1)
    nesterov: bool = key(False, "Use Nesterov's look-ahead momentum.")


@dataclass
class Adagrad(Optimizer):
    implementation: ClassVar[str] = "bigctl.optim.optimizers:adagrad"
    kind: str = kind("adagrad")
    lr: float = key(1e-2, "Peak learning rate.", traced=True, gt=0)
    initial_accumulator: float = key(0.1, "Starting value of the sum of squared gradients.", ge=0)
    eps: float = key(1e-7, "Added to the denominator.", gt=0)


@dataclass
class Adam(Optimizer):
    implementation: ClassVar[str] = "bigctl.optim.optimizers:adam"
    kind: str = kind("adam")
    b1: float = key(0.9, "Decay of the first moment.", ge=0, lt=1)
    b2: float = key(0.999, "Decay of the second moment.", ge=0, lt=1)
    eps: float = key(1e-8, "Added to the denominator.", gt=0)


@dataclass
class AdamW(Adam):
    kind: str = kind("adamw")
    weight_decay: float = key(
        0.01, "Decoupled weight decay, times the learning rate; not on biases and norms.", traced=True, ge=0
    )


@dataclass
class Lion(Optimizer):
    implementation: ClassVar[str] = "bigctl.optim.optimizers:lion"
    kind: str = kind("lion")
    lr: float = key(1e-4, "Peak learning rate.", traced=True, gt=0)
    b1: float = key(0.9, "Mix of momentum and gradient in the update.", ge=0, lt=1)
    b2: float = key(0.99, "Decay of the momentum.", ge=0, lt=1)


@dataclass
class Lamb(Adam):
    """Adam with a trust ratio a matrix, for large batches."""

    implementation: ClassVar[str] = "bigctl.optim.lamb:lamb"
    kind: str = kind("lamb")
    lr: float = key(5e-3, "Peak learning rate.", traced=True, gt=0)
    weight_decay: float = key(
        0.02, "Decoupled weight decay, times the learning rate; not on biases and norms.", traced=True, ge=0
    )
    eps: float = key(1e-6, "Added to the denominator.", gt=0)


@dataclass
class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside a network (Jordan et al. 2024), Adam for all else."""

    implementation: ClassVar[str] = "bigctl.optim.muon:muon"
    kind: str = kind("muon")
    lr: float = key(
        0.02, "Peak learning rate of the matrices inside: of kernels, but not of the output layer.", traced=True,
        gt=0,
    )  # fmt: skip
    adam_lr: float = key(
        1e-3, "Peak learning rate of what Adam trains: embeddings, the output layer (head), biases and other vectors.",
        traced=True, gt=0,
    )  # fmt: skip
    momentum: float = key(0.95, "Decay of the momentum.", ge=0, lt=1)
    iterations: int = key(5, "Newton-Schulz iterations.", ge=1)


@dataclass
class Schedule(Component):
    """The learning rate over the course of training, as a multiple of `optimizer.lr`."""

    group_name: ClassVar[str] = "schedule"
    kind: str = kind("???")
    warmup: float = key(0.0, "Linear warmup from zero [steps; below 1: fraction of the horizon].", ge=0)
    horizon: int | None = key(
        None, "Length the schedule is laid out for; null for the whole training [steps].", decided=True, ge=1
    )

    def multiple(self, progress: Scalar, step: Scalar, horizon: int, xp: ModuleType) -> Scalar:
        """The multiple of the peak learning rate after the warmup.

        Args:
            progress: from 0 at the end of the warmup to 1 at the horizon, and 1 after it.
            step: which update it is for, counted from 0.
            horizon: length the schedule is laid out for [steps].
            xp: jax.numpy in the compiled step, numpy for the logs.
        """
        older = getattr(self, "factor", None)  # the name and arguments of this method in plugins for version 0.1
        if not callable(older):
            raise self.incomplete("has no method `multiple(progress, step, horizon, xp)`")
        value: Scalar = older(progress, xp)
        return value

    def check(self, config: Whole) -> Iterator[Problem]:
        horizon = self.horizon or config.train.steps
        if horizon is not None and self.warmup > horizon:
            yield "schedule.warmup", *self.warmup_problem(horizon)

    def warmup_problem(self, horizon: int) -> tuple[str, str]:
        """What to say of a warmup that is longer than the horizon, and the remedy."""
        message = f"schedule.warmup={self.warmup:g} is longer than training ({horizon} steps)"
        return message, "shorten the warmup; below 1 it is a fraction of the training"


@dataclass
class Constant(Schedule):
    kind: str = kind("constant")

    def multiple(self, progress: Scalar, step: Scalar, horizon: int, xp: ModuleType) -> Scalar:
        value: Scalar = xp.ones_like(progress)
        return value


@dataclass
class Cosine(Schedule):
    kind: str = kind("cosine")
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].", ge=0)

    def multiple(self, progress: Scalar, step: Scalar, horizon: int, xp: ModuleType) -> Scalar:
        value: Scalar = self.final + (1 - self.final) * 0.5 * (1 + xp.cos(math.pi * progress))
        return value


@dataclass
class Linear(Schedule):
    kind: str = kind("linear")
    hold: float = key(0.0, "How long the peak is kept after the warmup, before the line [fraction of what is left].",
                      ge=0, lt=1)  # fmt: skip
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].", ge=0)

    def multiple(self, progress: Scalar, step: Scalar, horizon: int, xp: ModuleType) -> Scalar:
        line: Scalar = xp.clip((progress - self.hold) / (1 - self.hold), 0.0, 1.0)
        return 1 - (1 - self.final) * line


@dataclass
class Step(Schedule):
    kind: str = kind("step")
    at: list[float] = key([0.5, 0.75], "When the rate drops [fractions of the horizon].", gt=0, lt=1)
    factor: float = key(0.1, "What the rate is multiplied by at each drop.", gt=0)

    def multiple(self, progress: Scalar, step: Scalar, horizon: int, xp: ModuleType) -> Scalar:
        value: Scalar = xp.ones_like(progress)
        for at in self.at:
            value = xp.where(step >= at * horizon, value * self.factor, value)
        return value
