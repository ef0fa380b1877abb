"""What a sweep searches: axes of choices and intervals, some of them zipped, and seeds to repeat each point with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One searched key.

    Attributes:
        key: an override's left side: "optimizer.lr", "model".
        values: its choices in order, each as the right side of an override, in one spelling a value ("0.001", not
            "1e-3"); empty for an interval.
        low, high: ends of an interval, both included; None for choices.
        log: search the interval by its logarithm.
        integer: whole numbers only.
    """

    key: str
    values: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Space:
    """All axes of a sweep.

    Attributes:
        axes: in the order they were given.
        zipped: keys that take their values together, the first with the first and so on; each of equal length.
        seeds: repeats of every point; empty where nothing is said of seeds.
    """

    axes: tuple[Axis, ...]
    zipped: tuple[tuple[str, ...], ...] = ()
    seeds: tuple[int, ...] = ()
