"""Where the wall time of a fit goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timings:
    """Where the wall time of a fit went [s]. `step` is what is left: training proper, compile excluded."""

    total: float = 0.0
    compile: float = 0.0
    data_wait: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    steps: int = 0

    @property
    def step(self) -> float:
        return max(0.0, self.total - self.compile - self.data_wait - self.evaluate - self.checkpoint)

    @property
    def besides(self) -> float:
        return self.compile + self.evaluate + self.checkpoint

    @property
    def trained(self) -> float:
        return self.total - self.besides

    @property
    def parts(self) -> dict[str, float]:
        """All but the steps, as `runs.goodput` calls them."""
        return {
            "compiling": self.compile,
            "data": self.data_wait,
            "evaluation": self.evaluate,
            "saving": self.checkpoint,
        }
