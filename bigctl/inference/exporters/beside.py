"""What rounding the weights of an exported model costs and gains: its score and its time beside those of float32."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from bigctl.data.target import CLASS, CLASSES, NUMBER, TOKEN_CLASS
from bigctl.errors import RunError
from bigctl.formatting import size
from bigctl.inference.exporters.network import Arrays, Network
from bigctl.inference.trained import TrainedRun

ALIKE = 1.05
"""Two medians whose ratio is less may be those of one file."""
SIZES = (1, 64)
"""Examples a batch that are timed."""
SECONDS, ROUNDS = 1.5, 200
"""How long a batch of each size is timed [s], and how often at most."""
ROWS, WINDOWS = 4096, 64
"""Validation rows, or windows of a text, that are compared at most: evenly spaced batches."""
SCORED = {
    CLASS: "accuracy",
    CLASSES: "accuracy of each class",
    TOKEN_CLASS: "accuracy of tokens",
    NUMBER: "absolute error",
    "next": "loss [nats a token]",
}
"""What is compared, by kind of target; of others, with nothing to score by, agreement alone."""


class Copy(Protocol):
    """A model in some runtime: inputs -> outputs, by name.

    Attributes:
        runtime: what computes it, for people.
    """

    runtime: str

    def __call__(self, inputs: Arrays) -> Arrays: ...

    def peak_memory(self, inputs: Arrays) -> int | None:
        """Bytes that it takes at most for a batch, see `peak_memory.measured`."""


@dataclass(frozen=True)
class Memory:
    """What loading it and one batch take at most [bytes], of float32 and of the other, see `peak_memory.measured`."""

    batch: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"batch {self.batch}: {size(self.before)} -> {size(self.after)} of memory at most"


@dataclass(frozen=True)
class Times:
    """Of one batch [ms]: the median and the 99th percentile, of float32 and of the other in turns."""

    batch: int
    rounds: int
    before_p50: float
    before_p99: float
    after_p50: float
    after_p99: float

    @property
    def slower(self) -> bool:
        return self.after_p50 > ALIKE * self.before_p50

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: {self.before_p50:.3g} -> {self.after_p50:.3g} ms "
            f"(p99 {self.before_p99:.3g} -> {self.after_p99:.3g}, {self.rounds} in turns)"
        )


@dataclass(frozen=True)
class Beside:
    """A copy of a model beside the model itself.

    Attributes:
        scored: what was measured, see `SCORED`; empty where nothing can be.
        on: rows of what.
        before, after: the scores, means over rows.
        interval: of the difference of the means, 95% by the differences of single rows.
        agreement: the share of predictions that are the same; of numbers, how far they are apart, as a part of the
            largest.
        times: of batches of each size.
        around: half of the 95% interval of either score.
        runtime: what computed the copy.
        memory: of the largest batch, where all sizes are timed; None else, and where nothing tells.
    """

    scored: str
    on: str
    before: float
    after: float
    interval: float
    agreement: float
    times: tuple[Times, ...]
    around: tuple[float, float] = (0.0, 0.0)
    runtime: str = ""
    memory: Memory | None = None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return {**found, "before_score": found.pop("before"), "after_score": found.pop("after")}

    @property
    def lines(self) -> list[str]:
        """For people: score, agreement, times, memory, and whether it is slower here."""
        alike = f"the same predictions for {100 * self.agreement:.2f}% of {self.on}"
        if self.scored == SCORED[NUMBER]:
            alike = f"within {self.agreement:.2g} of the largest value on {self.on}"
        found = [f"in {self.runtime}: {alike}" if self.runtime else alike]
        if self.scored:
            change = f"{self.after - self.before:+.4f} +- {self.interval:.4f}"
            found.append(f"{self.scored} {self.before:.4f} -> {self.after:.4f} ({change}) on {self.on}")
        found += [str(each) for each in self.times]
        found += [str(self.memory)] if self.memory else []
        if slow := [str(each.batch) for each in self.times if each.slower]:
            found.append(f"slower here at batch {' and '.join(slow)}: keep float32 where time matters")
        return found


def compare(
    trained: TrainedRun, network: Network, before: Copy, after: Copy, where: str, sizes: Sequence[int] = SIZES
) -> Beside:
    """A copy beside float32, on the validation split (see `ROWS`), or on `network.batches` without data.

    Raises:
        RunError: if the copy gives something that is no number, or has another shape.
    """
    kind = "next" if trained.features.kind == "stream" else trained.features.target.kind
    if trained.config.recipe.purpose != "predict" and kind != "next":
        kind = "none"
    scores: list[tuple[np.ndarray, np.ndarray]] = []
    same: list[np.ndarray] = []
    rows = 0
    for inputs, batch in _batches(trained, network):
        one, other = (next(iter(copy(inputs).values())) for copy in (before, after))
        if one.shape != other.shape or (np.isfinite(one) & ~np.isfinite(other)).any():
            hint = "nothing was written: keep float32"
            raise RunError("gives what is no number once its weights are rounded", where=where, hint=hint)
        rows += len(one)
        same.append(_same(kind, one, other, batch))
        if kind in SCORED and ("label" in batch or "targets" in batch):
            scores.append((_score(kind, one, batch), _score(kind, other, batch)))
    agreed = np.concatenate(same)
    agreement = float(agreed.max(initial=0.0) if kind == NUMBER else agreed.mean())
    first, second = (np.concatenate([pair[place] for pair in scores]) if scores else np.zeros(1) for place in (0, 1))
    interval, *around = (1.96 * float(each.std()) / math.sqrt(len(first)) for each in (second - first, first, second))
    on = f"{rows:,} validation {'windows' if kind == 'next' else 'rows'}" if scores else f"{rows:,} rows"
    scored = SCORED[kind] if scores else ""
    means, both = (float(first.mean()), float(second.mean())), (around[0], around[1])
    times = tuple(timed(before, after, network, each) for each in sizes)
    memory = _memory(before, after, network, max(sizes)) if tuple(sizes) == SIZES else None
    return Beside(scored, on, *means, interval, agreement, times, both, after.runtime, memory)


def _batches(trained: TrainedRun, network: Network) -> Iterator[tuple[Arrays, Arrays]]:
    """Inputs of the model, and whole batches; without labels where only examples of the inputs are there."""
    dataset = network.dataset
    if dataset is None:
        yield from ((batch, batch) for batch in network.batches)
        return
    columns, layout = dataset.splits["validation"], dataset.batches
    stream = trained.features.kind == "stream"
    size, most = (4, WINDOWS) if stream else (64, ROWS)
    planned = list(layout.evaluation_plan(columns, batch_size=size, shards=1).batches())
    for indices, mask, length in planned[:: -(-len(planned) * size // most)]:
        batch = {name: np.asarray(values)[mask > 0] for name, values in layout.gather(columns, indices, length).items()}
        yield network.given(batch), batch


def _labels(kind: str, outputs: np.ndarray) -> np.ndarray:
    return np.asarray(outputs > 0 if kind == CLASSES else outputs.argmax(-1))


def _same(kind: str, one: np.ndarray, other: np.ndarray, batch: Arrays) -> np.ndarray:
    """Whether each prediction is the same, flat; of numbers how far each is off."""
    if kind == NUMBER:
        return np.asarray(np.abs(one - other).reshape(-1) / (np.abs(one).max(initial=0.0) or 1.0))
    found = np.asarray(_labels(kind, one) == _labels(kind, other))
    if found.ndim == 2 and "lengths" in batch and kind != CLASSES:  # padding is nobody's prediction
        return found[np.arange(found.shape[1]) < np.asarray(batch["lengths"])[:, None]]
    return found.reshape(-1)


def _score(kind: str, outputs: np.ndarray, batch: Arrays) -> np.ndarray:
    """The score of each row, float64 [rows]."""
    if kind == NUMBER:
        return np.asarray(np.abs(outputs[:, 0].astype(np.float64) - np.asarray(batch["label"], np.float64)))
    if kind == "next":
        targets = np.asarray(batch["targets"])
        known = targets >= 0
        logits = outputs - outputs.max(-1, keepdims=True)
        losses = (
            np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
        )
        return np.asarray((losses * known).sum(-1) / np.maximum(known.sum(-1), 1))
    hits = np.asarray(_labels(kind, outputs) == np.asarray(batch["label"]))
    if kind == TOKEN_CLASS:
        known = np.asarray(batch["label"]) >= 0
        return np.asarray((hits & known).sum(-1) / np.maximum(known.sum(-1), 1), np.float64)
    return np.asarray(hits.astype(np.float64).reshape(len(hits), -1).mean(-1))


def _memory(before: Copy, after: Copy, network: Network, rows: int) -> Memory | None:
    batch = _batch(network, rows)
    first, second = (copy.peak_memory(batch) for copy in (before, after))
    return None if first is None or second is None else Memory(rows, first, second)


def _batch(network: Network, rows: int) -> Arrays:
    """So many examples, the same ones again where there are fewer."""
    return {name: np.resize(values, (rows, *values.shape[1:])) for name, values in network.batches[0].items()}


def timed(before: Copy, after: Copy, network: Network, rows: int) -> Times:
    """Batches of one size in either, one of each in turn."""
    batch = _batch(network, rows)
    found: tuple[list[float], list[float]] = ([], [])
    for copy in (before, after):
        copy(batch)
    began = time.perf_counter()
    while len(found[0]) < ROUNDS and (len(found[0]) < 5 or time.perf_counter() < began + SECONDS):
        for copy, taken in zip((before, after), found, strict=True):
            begun = time.perf_counter()
            copy(batch)
            taken.append(1e3 * (time.perf_counter() - begun))
    first, second = (np.percentile(each, (50, 99)) for each in found)
    return Times(rows, len(found[0]), *(float(value) for value in (*first, *second)))
