"""Keys of `bigctl sweep`: what proposes points, what stops hopeless trials, and how trials are ranked.

They are no part of an experiment: `bigctl train` does not have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigctl.config.schema.base import key

SAMPLERS = ("grid", "random", "tpe", "cmaes", "gp", "nsga2")
PRUNERS = ("none", "median", "asha", "hyperband")


@dataclass
class Sweep:
    """How a space is searched."""

    sampler: str = key(
        "grid",
        "What proposes the points: all of a grid, random ones, or what Optuna learns from those that are done: tpe, "
        "cmaes (intervals only), gp, nsga2.",
        choices=SAMPLERS,
    )
    trials: int | None = key(
        None, "How many points to try in all, those done before included, each with every seed; null for a grid."
    )
    metric: str | None = key(
        None, "Validation metric that ranks, such as val/accuracy; null for what selects the best checkpoint."
    )
    mode: str | None = key(
        None, "Whether that metric should be max or min; null for what its recipe says.", choices=("max", "min")
    )
    pareto: str | None = key(
        None, "A second metric: the leaderboard shows which points no other beats in both, nsga2 searches for them."
    )
    pareto_mode: str | None = key(
        None, "Whether the second metric should be max or min; null for what its recipe says.", choices=("max", "min")
    )
    pruner: str = key(
        "none",
        "What stops hopeless trials: median, those worse than half of the others; asha, all but the best of each rung; "
        "hyperband, asha from several first rungs.",
        choices=PRUNERS,
    )
    warmup_trials: int = key(5, "The median is taken of so many others or more; nothing is stopped before.")
    warmup_evaluations: int = key(1, "So many evaluations of a trial are not judged by the median.")
    min_resource: int = key(1, "Where the first rung of asha and hyperband is [evaluations].")
    reduction: int = key(3, "One of so many goes on from a rung to the next, which is so many times as far.")
    brackets: int = key(3, "How many first rungs hyperband tries: each is `reduction` times as far as the one before.")
    seed: int = key(0, "Seed of what is random in the search; trials have seeds of their own.")
    space: dict[str, str] = key(
        {}, "Keys to search and their values, as on the command line: 'optimizer.lr: 1e-3,1e-2'; that one wins."
    )
    zip: list[list[str]] = key(
        [], "Keys that take their values together, the first with the first: [[model.width,model.heads]]."
    )
