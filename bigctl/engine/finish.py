"""`summary.json`: what came out of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax

from bigctl.engine.experiment import Experiment
from bigctl.errors import TrainingFailed
from bigctl.files import write_json
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory
from bigctl.training import throughput
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.loop import Timings
from bigctl.training.state import Progress, TrainState
from bigctl.training.task import Task


@dataclass
class Fitted:
    """How a fit ended: the state, the host's numbers, where the time went, and what a profile named slow."""

    state: TrainState
    progress: Progress
    timings: Timings
    profile: list[str]


def write(
    run: RunDirectory, experiment: Experiment, checkpoints: Checkpoints, fitted: Fitted, *, resumed: int, seconds: float
) -> dict[str, Any]:
    """Score the test split once, with the selected weights, if `eval.test` says so; and write summary.json.

    Args:
        run: the run directory.
        experiment: what was trained.
        checkpoints: where the selected weights are.
        fitted: how training ended.
        resumed: the step this process began at.
        seconds: how long it took.

    Raises:
        TrainingFailed: if it cannot be written.
    """
    config, progress, state = experiment.config, checkpoints.without_lost_best(fitted.progress), fitted.state
    best = config.checkpoint.best and progress.best_step is not None
    if best and progress.best_step != progress.step and config.eval.test:  # else nothing is left to score
        state = checkpoints.restore(checkpoints.find("best"), experiment.programs.abstract_state)

    def score(split: str, prefix: str, task: Task) -> dict[str, Any]:
        evaluator = experiment.evaluator(split, prefix)
        return evaluator(experiment.programs.evaluation_weights(state), state.variables, task)

    selected = (
        progress.best_metrics if best else score("validation", "val", experiment.task)
    )  # those of another step would not be its own
    selected.pop("val/confusion", None)
    task = experiment.task.decided({name: selected[f"val/{name}"] for name in experiment.task.carried})
    test = score("test", "test", task) if config.eval.test else {}
    confusion = test.pop("test/confusion", None)
    metrics = {**selected, **test}
    timings = fitted.timings
    examples = timings.steps * config.train.batch_size
    summary: dict[str, Any] = {
        "schema": directory.SCHEMA,
        "run": str(run.path),
        "recipe": config.recipe.kind,
        "status": directory.COMPLETE,
        "step": progress.step,
        "epoch": progress.position / experiment.dataset.size("train"),
        "stopped": progress.stopped,
        "skipped": int(fitted.state.anomaly_state.get("skipped", 0)),
        "rewinds": progress.rewinds,
        "selected_step": progress.best_step if best else progress.step,
        "selected_by": experiment.metric,
        "metrics": metrics,
        "confusion": confusion,
        "classes": list(experiment.dataset.features.target.names),
        "parameters": count(state.params),
        "data": {
            "fingerprint": experiment.dataset.fingerprint,
            **{split: experiment.dataset.size(split) for split in experiment.dataset.splits},
        },
        "resumed_from": resumed,
        "devices": devices(experiment.programs.mesh),
        "timings": {
            "wall": round(seconds, 3),
            "train": round(timings.step, 3),
            "compile": round(timings.compile, 3),
            "data_wait": round(timings.data_wait, 3),
            "evaluate": round(timings.evaluate, 3),
            "checkpoint": round(timings.checkpoint, 3),
        },
        "examples_per_s": round(examples / timings.step, 1) if timings.step > 0 and timings.steps else None,
        "profile": fitted.profile,
    }
    rates = throughput.rates(experiment.task, state.params, experiment.programs.mesh, config.train.precision)
    if rates is not None:
        measured = rates(timed) if (timed := summary["examples_per_s"]) else {}
        summary |= {**measured, "flops_per_token": rates.flops_per_token}
    try:
        if run.writes:
            write_json(run.summary_file, summary)
    except OSError as error:
        raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(run.summary_file)) from error
    return summary


def devices(mesh: Any) -> dict[str, Any]:
    """What the mesh is made of, as JSON."""
    first = mesh.devices.flat[0]
    found = {"platform": first.platform, "kind": first.device_kind, "count": mesh.size, "mesh": dict(mesh.shape)}
    return {**found, "processes": len({device.process_index for device in mesh.devices.flat})}


def count(params: Any) -> int:
    """Number of trained scalars."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
