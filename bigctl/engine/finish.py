"""Stage 6, finish: the test split is scored once, with the selected weights, and `summary.json` is written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bigctl.engine import fairness, privacy
from bigctl.engine.experiment import Experiment
from bigctl.engine.restore import Start
from bigctl.engine.run import Run
from bigctl.errors import TrainingFailed
from bigctl.files import write_json
from bigctl.runs import baselines, directory, goodput
from bigctl.runs.metrics_file import read_metrics
from bigctl.runs.summary import FollowedUp, Overfit, Summary, Times, Waited
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.evaluation import Scores
from bigctl.training.state import Progress, TrainState
from bigctl.training.task import Task
from bigctl.training.timings import Timings
from bigctl.training.waiting import Verdict

MISTAKES = 24
"""The worst ones on the test split that summary.json names."""


@dataclass(frozen=True)
class Fitted:
    """How a fit ended: the state, the host's side of it, where the time went, what a profile named slow, and
    what training waited for."""

    state: TrainState
    progress: Progress
    timings: Timings
    profile: list[str]
    waits_for: Verdict | None = None


def finish(run: Run, experiment: Experiment, checkpoints: Checkpoints, start: Start, fitted: Fitted) -> Summary:
    """Score the test split if `eval.test` says so, and write summary.json.

    Raises:
        TrainingFailed: if it cannot be written.
    """
    config, dataset, programs, state = experiment.config, experiment.dataset, experiment.programs, fitted.state
    progress = checkpoints.without_lost_best(fitted.progress)
    best = config.checkpoint.best and progress.best_step is not None
    if best and progress.best_step != progress.step and config.eval.test:  # else nothing is left to score
        state = programs.carried(checkpoints.restore(checkpoints.find("best"), programs.abstract_state))

    def score(split: str, prefix: str, task: Task) -> Scores:
        evaluator = experiment.evaluator(split, prefix)
        return evaluator.score(programs.evaluation_weights(state), state.variables, task)

    # the scores of another step would not be those of the selected weights
    selected = dict(progress.best_metrics if best else score("validation", "val", experiment.task).metrics)
    selected.pop("val/confusion", None)
    task = experiment.task.decided({name: selected[f"val/{name}"] for name in experiment.task.carried})
    tested = score("test", "test", task) if config.eval.test else Scores({}, {})
    test = dict(tested.metrics)
    confusion = test.pop("test/confusion", None)
    followed = _followed_up(task, tested, dataset.splits["test"].get("label"))
    timings, spent = fitted.timings, privacy.spent(config, dataset, progress.step)
    rate = (
        round(timings.steps * config.train.batch_size / timings.step, 1) if timings.step > 0 and timings.steps else None
    )
    summary: Summary = {
        "schema": directory.SCHEMA,
        "run": str(run.directory.path),
        "recipe": config.recipe.kind,
        "status": directory.COMPLETE,
        "step": progress.step,
        "epoch": progress.position / dataset.size("train"),
        "stopped": progress.stopped,
        "skipped": int(fitted.state.anomaly_state.get("skipped", 0)),
        "rewinds": progress.rewinds,
        "selected_step": progress.best_step if best else progress.step,
        "selected_by": experiment.metric,
        "metrics": {**selected, **test, **({privacy.EPSILON: spent["epsilon"]} if spent else {})},
        "confusion": confusion,
        "positive": task.positive,
        "curves": followed["curves"],
        "mistakes": followed["mistakes"],
        "classes": list(dataset.features.target.names),
        "parameters": experiment.parameter_count,
        "data": {"fingerprint": dataset.fingerprint, **{split: dataset.size(split) for split in dataset.splits}},
        "resumed_from": start.step,
        "devices": experiment.devices,
        "timings": _times(timings, time.monotonic() - run.clock),
        "examples_per_s": rate,
        "profile": fitted.profile,
    }
    clients = fairness.of_clients(config, dataset, task, tested.examples)
    summary = cast(Summary, {**summary, **_besides(run, experiment, rate, privacy=spent, federated=clients)})
    if fitted.waits_for is not None:
        summary["waiting"] = cast(Waited, fitted.waits_for.to_json())
    _write(run, summary)
    return summary


def _besides(
    run: Run, experiment: Experiment, rate: float | None, **told: Mapping[str, object] | None
) -> dict[str, Any]:
    """The baseline of the data, rates of a task of tokens, what training on one batch came to, and what else is told,
    as far as there is such."""
    told["baseline"] = baselines.of_run(run.directory.record(), {}, experiment.task.positive)
    found: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if (rates := experiment.rates) is not None:
        found |= {**(rates(rate) if rate else {}), "flops_per_token": rates.flops_per_token}
    if experiment.config.train.overfit_one_batch and run.directory.writes:
        verdict = overfit(read_metrics(run.directory.metrics))
        found |= {} if verdict is None else {"overfit": verdict}
    return found


def _followed_up(task: Task, tested: Scores, labels: np.ndarray | None) -> FollowedUp:
    """Curves of the test split, and its worst mistakes; nothing where it was not scored, or has no labels."""
    if not tested.examples or labels is None or len(labels) != len(next(iter(tested.examples.values()))):
        return {"curves": {}, "mistakes": []}
    labels = np.asarray(labels)
    return {"curves": task.curves(tested.examples, labels), "mistakes": task.errors(tested.examples, labels, MISTAKES)}


LEARNED = 0.1
"""Of the first loss that was logged: a model that can learn at all brings that of one batch below."""


def overfit(lines: Iterable[Mapping[str, Any]]) -> Overfit | None:
    """What training on one batch came to, by what was logged; None where nothing was."""
    trained = [line for line in lines if isinstance(line.get("train/loss"), float)]
    if not trained:
        return None
    first, last = trained[0]["train/loss"], trained[-1]["train/loss"]
    accuracy = trained[-1].get("train/accuracy")
    learned = last <= LEARNED * first if accuracy is None else accuracy >= 0.99
    return {"first_loss": first, "last_loss": last, "accuracy": accuracy, "learned": learned}


def _times(timings: Timings, wall: float) -> Times:
    return {
        "wall": round(wall, 3),
        "train": round(timings.step, 3),
        "compile": round(timings.compile, 3),
        "data_wait": round(timings.data_wait, 3),
        "evaluate": round(timings.evaluate, 3),
        "checkpoint": round(timings.checkpoint, 3),
    }


def _write(run: Run, summary: Summary) -> None:
    if not run.directory.writes:
        return
    file = run.directory.summary_file
    try:
        write_json(file, summary)
    except OSError as error:
        raise TrainingFailed(f"cannot be written: {error.strerror}", where=str(file)) from error
    goodput.finished(run.directory, run.began)
