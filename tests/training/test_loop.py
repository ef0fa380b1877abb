"""The loop orders events, and nothing else: after a step evaluate, log, save, and only then draw the next batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from bigctl.engine.experiment import Experiment
from bigctl.errors import TrainingFailed
from bigctl.optim import schedules
from bigctl.training import feed as feeds
from bigctl.training.evaluation import Evaluator
from bigctl.training.loop import Cadence, Diverged, Loop
from bigctl.training.state import Progress
from tests.training.loops import FakeFeed, built, fit, loop_of, names, state_of

# ------------------------------------------------------------------------------------------------------ the order


def test_after_a_step_evaluate_log_save_and_only_then_draw() -> None:
    exp = built("checkpoint.best=false")
    loop, events = loop_of(exp, Cadence(total=12, log=2, evaluate=3, save=6), itertools.repeat(0.5))
    progress = fit(exp, loop)
    assert (progress.step, progress.position) == (12, 12 * 32)
    assert [e for e in names(events) if e[0] in ("draw", "save", "evaluate")] == [
        ("draw", 0), ("draw", 64), ("evaluate", 3), ("draw", 96), ("draw", 128), ("evaluate", 6), ("save", 6),
        ("draw", 192), ("draw", 256), ("evaluate", 9), ("draw", 288), ("draw", 320), ("evaluate", 12), ("save", 12),
    ]  # fmt: skip
    # A log line is read late, so that no step waits for it, but never after the checkpoint that counts on it, and never
    # out of order with the line before.
    order = [e for e in names(events) if e[0] != "draw"]
    assert order == [
        ("log", 2), ("evaluate", 3), ("log", 4), ("evaluate", 6), ("log", 6), ("flush",), ("save", 6),
        ("log", 8), ("evaluate", 9), ("log", 10), ("evaluate", 12), ("log", 12), ("flush",), ("save", 12),
    ]  # fmt: skip


def test_the_hook_before_a_step_comes_before_its_batch_is_drawn() -> None:
    exp = built()
    loop, events = loop_of(exp, Cadence(total=4, log=2, evaluate=4, save=4), [0.5])

    def before(step: int, state: object) -> int:
        events.append(("before", step))
        return 100

    loop.hooks.before_dispatch = before
    fit(exp, loop)
    found = [e for e in names(events) if e[0] in ("before", "draw")]
    assert found == [("before", 0), ("draw", 0), ("before", 2), ("draw", 64)]


def test_everything_is_due_at_the_end() -> None:
    exp = built()
    loop, events = loop_of(exp, Cadence(total=5, log=100, evaluate=100, save=100), [0.5])
    fit(exp, loop)
    assert names(events) == [("draw", 0), ("evaluate", 5), ("log", 5), ("flush",), ("save", 5)]


def test_a_request_to_stop_saves_after_the_step_in_flight() -> None:
    exp = built()
    loop, events = loop_of(exp, Cadence(total=12, log=100, evaluate=100, save=100), [], feed=FakeFeed([], most=1))

    def ask(step: int, state: object) -> int:
        loop.stop.exit_code = 75 if step == 2 else loop.stop.exit_code
        return 100

    loop.hooks.before_dispatch = ask
    assert fit(exp, loop).step == 3
    assert names(events)[-2:] == [("flush",), ("save", 3)]


def test_a_progress_that_is_done_does_nothing() -> None:
    exp = built()
    loop, events = loop_of(exp, Cadence(total=5, log=1, evaluate=1, save=1), [])
    loop.fit(state_of(exp), Progress(step=5, position=160))
    loop.fit(state_of(exp), Progress(step=3, stopped="enough"))
    assert events == []


@pytest.mark.parametrize(("log", "evaluate", "save"), [(1, 1, 1), (2, 3, 5), (50, 7, 1000), (4, 6, 8)])
def test_the_next_event_is_the_first_step_at_which_something_is_due(log: int, evaluate: int, save: int) -> None:
    cadence = Cadence(total=30, log=log, evaluate=evaluate, save=save)
    for step in range(30):
        due = [s for s in range(step + 1, 31) if any(cadence.due(every, s) for every in (log, evaluate, save))]
        assert cadence.next_event(step) == due[0]


# ------------------------------------------------------------------------------------------------ best and stopping


def stop_of(exp: Experiment, **rules: Any) -> Experiment:
    train = dataclasses.replace(exp.config.train, early_stop=dataclasses.replace(exp.config.train.early_stop, **rules))
    return dataclasses.replace(exp, config=dataclasses.replace(exp.config, train=train))


EVERY_STEP = Cadence(total=10, log=100, evaluate=1, save=100)
NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "mode", "rules", "step", "best_step", "reason"),
    [
        ([0.1, 0.5, 0.4, 0.5, 0.3], "max", {"patience": 3}, 5, 2, "no better val/accuracy in 3 evaluations"),
        ([0.9, 0.5, 0.6, 0.7, 0.3], "min", {"patience": 2}, 4, 2, "no better"),
        ([0.1, 0.2, 0.29, 0.5, 0.55, 0.58], "max", {"patience": 2, "min_delta": 0.1}, 6, 4, "no better"),
        ([0.1, NAN, NAN], "max", {"patience": 2}, 3, 1, "no better"),
        ([NAN, NAN], "min", {"patience": 2}, 2, None, "no better"),
        ([0.1, 0.97, 0.99, 0.5], "max", {"target": 0.98}, 3, 3, "val/accuracy reached 0.98"),
        ([0.9, 0.2], "min", {"target": 0.2}, 2, 2, "reached 0.2"),
        ([0.1, 0.3, 0.2] + [0.2] * 7, "max", {}, 10, 2, ""),
    ],
)
def test_best_and_early_stopping(
    scores: list[float], mode: str, rules: dict[str, Any], step: int, best_step: int | None, reason: str
) -> None:
    exp = stop_of(built(), **rules)
    loop, events = loop_of(exp, EVERY_STEP, scores, mode=mode)
    progress = fit(exp, loop)
    assert progress.step == step
    assert reason in progress.stopped and bool(progress.stopped) == bool(reason)
    assert progress.best_step == best_step
    if best_step is not None:
        assert progress.best == scores[best_step - 1]
        assert progress.best_metrics == {"val/accuracy": scores[best_step - 1]}
    assert events[-1][:2] == ("save", step)  # where training ends is saved


def test_every_new_best_is_saved_with_what_selected_it() -> None:
    exp = built()
    loop, events = loop_of(exp, EVERY_STEP, [0.1, 0.3, 0.2, 0.5] + [0.4] * 6)
    fit(exp, loop)
    saves = [(step, progress["best_step"], progress["best"]) for kind, step, progress in
             (event for event in events if event[0] == "save")]  # fmt: skip
    assert saves == [(1, 1, 0.1), (2, 2, 0.3), (4, 4, 0.5), (10, 4, 0.5)]
    exp = built("checkpoint.best=false")
    loop, events = loop_of(exp, EVERY_STEP, [0.1, 0.3, 0.2, 0.5] + [0.4] * 6)
    fit(exp, loop)
    assert [event[1] for event in events if event[0] == "save"] == [10]


def test_staleness_goes_on_where_a_run_was_cut() -> None:
    exp = stop_of(built(), patience=3)
    loop, _ = loop_of(exp, EVERY_STEP, [0.4] * 10)
    begun = Progress.from_json(Progress(step=4, position=128, best=0.5, best_step=2, stale=2).to_json())
    _, progress = loop.fit(state_of(exp), begun)
    assert progress.step == 5 and progress.stopped


def test_an_unknown_selection_metric_is_named_with_those_there_are() -> None:
    exp = built()
    loop, _ = loop_of(exp, EVERY_STEP, lambda params: {"val/loss": 1.0, "val/f1": 0.5})
    with pytest.raises(TrainingFailed, match="val/accuracy") as error:
        fit(exp, loop)
    assert "val/f1, val/loss" in str(error.value) and error.value.where == "eval.metric"


def test_a_validation_loss_that_is_not_finite_is_told_beside_the_metric() -> None:
    found = iter([(0.5, 1.0), (0.5, math.inf), (NAN, math.inf), (NAN, NAN)] + [(0.5, 1.0)] * 6)
    exp = built()
    loop, events = loop_of(
        exp, EVERY_STEP, lambda params: dict(zip(("val/accuracy", "val/loss"), next(found), strict=True))
    )
    assert fit(exp, loop).best_step == 1
    said = [event[0] for event in events if str(event[0]).startswith("val/")]
    begins = [text.partition(":")[0] for text in said]
    assert begins == ["val/loss is inf at step 2", "val/accuracy is nan at step 3"]
    assert "answers of the model are not finite" in said[0] and "selects no checkpoint" in said[1]


# ---------------------------------------------------------------------------------------------------- what is written


def test_a_log_line_is_the_mean_since_the_last_one() -> None:
    exp = built("optimizer.lr=0.01", "schedule=cosine", "schedule.warmup=3", "train.update_norm=true")
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state, means = state_of(exp), []
    for number in range(12):
        state, _ = feed.advance(state, number * 32, 1)
        state, sums, _ = exp.programs.take_sums(state)
        means.append({name: float(value[0]) / float(value[1]) for name, value in sums.items()})
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    feed.events = []  # type: ignore[attr-defined]
    loop, events = loop_of(exp, Cadence(total=12, log=5, evaluate=4, save=12), itertools.repeat(0.5), feed=feed)
    fit(exp, loop)
    lines = {event[1]: event[2] for event in events if event[0] == "log"}
    assert list(lines) == [5, 10, 12]
    for step, begin in ((5, 0), (10, 5), (12, 10)):
        for name in ("loss", "accuracy", "grad_norm", "update_norm"):
            expected = np.mean([m[name] for m in means[begin:step]])
            assert lines[step][f"train/{name}"] == pytest.approx(expected, rel=1e-5), (step, name)
        assert lines[step]["epoch"] == pytest.approx(step * 32 / exp.dataset.size("train"), abs=1e-6)
        factor = float(schedules.factor(exp.config.schedule, step - 1, 12))
        assert lines[step]["lr"] == pytest.approx(0.01 * factor, rel=1e-5)  # that of the step's own update
        assert lines[step]["perf/examples_per_s"] > 0


def test_averaged_weights_are_what_the_loop_evaluates() -> None:
    exp = built("train.ema=0.5", "optimizer.lr=0.1")
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    feed.events = []  # type: ignore[attr-defined]
    evaluator = Evaluator(exp.programs, exp.dataset.batches, exp.dataset.splits["validation"], exp.config, prefix="val")
    loop, events = loop_of(exp, Cadence(total=4, log=4, evaluate=4, save=4), lambda params: evaluator(params, {}),
                           feed=feed)  # fmt: skip
    state, _ = loop.fit(state_of(exp), Progress())
    (found,) = [event[2] for event in events if event[0] == "evaluate"]
    assert found["val/loss"] == evaluator(state.ema, {})["val/loss"]
    assert found["val/loss"] != evaluator(state.params, {})["val/loss"]
    assert "val/confusion" not in found  # lines hold numbers only


@pytest.mark.parametrize("cadence", [Cadence(20, 5, 20, 20), Cadence(20, 20, 20, 5)], ids=["at a log", "at a save"])
def test_divergence_is_noticed_with_its_step_before_anything_is_saved(cadence: Cadence) -> None:
    exp = built("optimizer=sgd", "optimizer.lr=1e25")
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state, number = state_of(exp), 0
    while int(state.bad_step) < 0:
        state, _ = feed.advance(state, number * 32, 1)
        number += 1
    assert 1 <= number <= 5
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    feed.events = []  # type: ignore[attr-defined]
    loop, events = loop_of(exp, cadence, [0.5], feed=feed)
    with pytest.raises(Diverged, match=rf"not finite at step {number}\b"):
        fit(exp, loop)
    assert not [event for event in events if event[0] == "save"]


# -------------------------------------------------------------------------------------------------------------- time


class Clock:
    """Stands for `time` in the loop: no time passes in it but what is slept, however slow the machine."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop: Loop | None = None

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert self.loop is not None
        self.loop._clock.submit(float).result()  # its thread has read the time when the steps before were done
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("bigctl.training.loop.time", made)
    return made


def test_timings_add_up_to_the_total_and_what_compiles_is_no_evaluation(clock: Clock) -> None:
    exp = built()
    calls = itertools.count()

    def evaluate(params: Any) -> dict[str, Any]:
        assert clock.loop is not None
        if next(calls) == 0:
            clock.sleep(0.2)
            clock.loop.evaluator.calls.compiling += 0.2
        clock.sleep(0.05)
        return {"val/accuracy": 0.5}

    def pause(call: int) -> float:
        if call > 0:
            return 0.02
        clock.sleep(0.1)
        feed.calls.compiling += 0.1
        return 0.3  # the first batch is slow to come: that is waiting, and neither compilation nor counted twice

    feed = FakeFeed([], pause=pause, sleep=clock.sleep)
    clock.loop, _ = loop_of(exp, Cadence(total=8, log=8, evaluate=2, save=4), evaluate, feed=feed,
                            save=lambda: clock.sleep(0.04))  # fmt: skip
    fit(exp, clock.loop)
    found = clock.loop.timings
    assert found.total == pytest.approx(clock.now - 100) and found.steps == 8
    parts = (found.step, found.compile, found.data_wait, found.evaluate, found.checkpoint)
    assert math.fsum(parts) == pytest.approx(found.total)
    assert found.data_wait == pytest.approx(feed.waited) == pytest.approx(0.3 + 3 * 0.02)
    assert found.compile == pytest.approx(0.1 + 0.2)
    assert found.evaluate == pytest.approx(4 * 0.05)
    assert found.checkpoint == pytest.approx(3 * 0.04)  # first best, step 4, step 8
    assert found.step == pytest.approx(0, abs=1e-9)  # compilation is no training


def test_what_others_compile_meanwhile_is_no_more_than_the_time_that_went_by(clock: Clock) -> None:
    """As where trials of a pack score a split by the same calls."""
    exp = built()

    def evaluate(params: Any) -> dict[str, Any]:
        assert clock.loop is not None
        clock.sleep(0.2)
        clock.loop.evaluator.calls.compiling += 0.8
        return {"val/accuracy": 0.5}

    clock.loop, _ = loop_of(exp, Cadence(total=2, log=2, evaluate=2, save=2), evaluate, feed=FakeFeed([]))
    fit(exp, clock.loop)
    found = clock.loop.timings
    assert found.compile == pytest.approx(0.2) and found.evaluate == pytest.approx(0, abs=1e-9)


def test_waiting_for_the_first_batch_is_not_compilation(clock: Clock) -> None:
    exp = built()
    feed = FakeFeed([], pause=lambda call: 0.5, sleep=clock.sleep)
    clock.loop, _ = loop_of(exp, Cadence(total=2, log=2, evaluate=2, save=2), [0.5], feed=feed)
    fit(exp, clock.loop)
    assert clock.loop.timings.data_wait == pytest.approx(0.5) == pytest.approx(clock.loop.timings.total)
    assert clock.loop.timings.compile == pytest.approx(0, abs=1e-9)


def test_the_rate_leaves_out_compilation_evaluation_and_saving(clock: Clock) -> None:
    """And it is that of the steps of its own line, although the line is written at the next event."""
    exp = built()

    def evaluate(params: Any) -> dict[str, Any]:
        clock.sleep(0.3)
        return {"val/accuracy": 0.5}

    feed = FakeFeed([], most=1, pause=lambda call: 0.01, sleep=clock.sleep)
    clock.loop, events = loop_of(exp, Cadence(total=20, log=10, evaluate=5, save=20), evaluate, feed=feed,
                                 save=lambda: clock.sleep(0.04))  # fmt: skip
    fit(exp, clock.loop)
    lines = [event[2] for event in events if event[0] == "log"]
    assert [line["perf/examples_per_s"] for line in lines] == pytest.approx([3200, 3200])  # 10 steps of 32 in 0.1 s


def test_a_line_whose_time_all_was_compilation_has_no_rate_and_the_next_one_counts_its_steps(clock: Clock) -> None:
    """What a program took to compile while the device still computed is more than what passed."""
    exp = built()

    def pause(call: int) -> float:
        assert clock.loop is not None
        clock.loop.timings.compile += 0.15 if call == 13 else 0.0
        return 0.01

    feed = FakeFeed([], most=1, pause=pause, sleep=clock.sleep)
    clock.loop, events = loop_of(exp, Cadence(total=30, log=10, evaluate=30, save=30), [0.5], feed=feed)
    fit(exp, clock.loop)
    rates = [event[2].get("perf/examples_per_s") for event in events if event[0] == "log"]
    assert rates == [pytest.approx(3200), None, pytest.approx(640 / 0.05)]
