"""Keys of the optimizers and of the learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.base import STRUCTURAL, Component, key, kind


@dataclass
class Optimizer(Component):
    group: ClassVar[str] = "optimizer"
    kind: str = kind("???")
    lr: float = key(1e-3, "Peak learning rate.", traced=True)
    weight_decay: float = key(
        0.0, "Decoupled weight decay, times the learning rate; never on biases and norms.", traced=True
    )
    clip: float | None = key(None, "Largest global norm of the gradient; null for none.", traced=True)
    layer_decay: float = key(
        1.0,
        "What the learning rate is multiplied by from each layer to the one below; 1 for the same.",
        traced=True,
        off=1.0,
    )
    freeze: list[str] = key(
        [], "Patterns of parameters that are not trained, such as embeddings or 'layers/[0-3]/'.", drift=STRUCTURAL
    )


@dataclass
class Sgd(Optimizer):
    kind: str = kind("sgd")
    lr: float = key(0.1, "Peak learning rate.", traced=True)
    momentum: float = key(0.9, "Decay of the momentum; 0 for plain gradient descent.")
    nesterov: bool = key(False, "Use Nesterov's look-ahead momentum.")


@dataclass
class Adagrad(Optimizer):
    kind: str = kind("adagrad")
    lr: float = key(1e-2, "Peak learning rate.", traced=True)
    initial_accumulator: float = key(0.1, "Starting value of the sum of squared gradients.")
    eps: float = key(1e-7, "Added to the denominator.")


@dataclass
class Adam(Optimizer):
    kind: str = kind("adam")
    b1: float = key(0.9, "Decay of the first moment.")
    b2: float = key(0.999, "Decay of the second moment.")
    eps: float = key(1e-8, "Added to the denominator.")


@dataclass
class AdamW(Adam):
    kind: str = kind("adamw")
    weight_decay: float = key(
        0.01, "Decoupled weight decay, times the learning rate; never on biases and norms.", traced=True
    )


@dataclass
class Lion(Optimizer):
    kind: str = kind("lion")
    lr: float = key(1e-4, "Peak learning rate.", traced=True)
    b1: float = key(0.9, "Mix of momentum and gradient in the update.")
    b2: float = key(0.99, "Decay of the momentum.")


@dataclass
class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside a network (Jordan et al. 2024), Adam for all else."""

    kind: str = kind("muon")
    lr: float = key(
        0.02, "Peak learning rate of the matrices inside: of kernels, but not of the output layer.", traced=True
    )
    adam_lr: float = key(
        1e-3, "Peak learning rate of what Adam trains: embeddings, the output layer (head), biases and other vectors.",
        traced=True,
    )  # fmt: skip
    momentum: float = key(0.95, "Decay of the momentum.")
    iterations: int = key(5, "Newton-Schulz iterations.")


@dataclass
class Schedule(Component):
    """The learning rate over the course of training, as a multiple of `optimizer.lr`."""

    group: ClassVar[str] = "schedule"
    kind: str = kind("???")
    warmup: float = key(0.0, "Linear warmup from zero [steps; below 1: fraction of the horizon].")
    horizon: int | None = key(
        None, "Length the schedule is laid out for; null for the whole training [steps].", decided=True
    )


@dataclass
class Constant(Schedule):
    kind: str = kind("constant")


@dataclass
class Cosine(Schedule):
    kind: str = kind("cosine")
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].")


@dataclass
class Linear(Schedule):
    kind: str = kind("linear")
    hold: float = key(0.0, "How long the peak is kept after the warmup, before the line [fraction of what is left].")
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].")


@dataclass
class Step(Schedule):
    kind: str = kind("step")
    at: list[float] = key([0.5, 0.75], "When the rate drops [fractions of the horizon].")
    factor: float = key(0.1, "What the rate is multiplied by at each drop.")
