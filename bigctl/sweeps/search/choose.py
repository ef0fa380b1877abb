"""The sampler and the pruner that the settings of a sweep name."""

from __future__ import annotations

from bigctl.config.schema import Sweep
from bigctl.sweeps.search import model_based
from bigctl.sweeps.search.pruners import Asha, Hyperband, Median, Pruner
from bigctl.sweeps.search.samplers import Grid, Random, Sampler
from bigctl.sweeps.search.space import Plan


def make_sampler(plan: Plan, mode: str | None = None) -> Sampler:
    """The sampler that a plan names.

    Args:
        plan: the sweep.
        mode: whether scores should be "max" or "min"; None for what the plan says.

    Raises:
        ConfigError: if it cannot search this space, or its package is missing.
    """
    sweep = plan.sweep
    if sweep.sampler == "grid":
        return Grid(plan)
    if sweep.sampler == "random":
        return Random(plan)
    modes = [mode or sweep.mode or "max"]  # the first trial says it where neither does; until then there is no score
    if sweep.pareto_mode is not None and sweep.sampler == "nsga2":
        modes.append(sweep.pareto_mode)
    if sweep.sampler == "cmaes":
        return model_based.CmaEs(plan, modes[0])
    return model_based.Optuna(plan, modes)


def make_pruner(sweep: Sweep, mode: str) -> Pruner:
    """The pruner that the settings name, for a metric that should be "max" or "min"."""
    if sweep.pruner == "median":
        return Median(mode, sweep.warmup_trials, sweep.warmup_evaluations)
    if sweep.pruner == "asha":
        return Asha(mode, sweep.min_resource, sweep.reduction)
    if sweep.pruner == "hyperband":
        return Hyperband(mode, sweep.min_resource, sweep.reduction, sweep.brackets)
    return Pruner(mode)
