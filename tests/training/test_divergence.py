"""Steps that go wrong stop the run, leave no trace, or send it back; and however it is cut, it is the same run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.config import compose
from bigctl.config.schema import Divergence
from bigctl.engine import trainer
from bigctl.engine.run import Options
from bigctl.errors import Diverged, Preempted, TrainingFailed
from bigctl.runs import manifest
from bigctl.training import divergence
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import flatten, read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.feed import ResidentFeed
from tests.training.steps import MLP, assert_same_bits, batch_of, built, start, step

# ------------------------------------------------------------------------------------------------- on the devices


def test_a_skipped_step_leaves_no_trace_but_its_count() -> None:
    """With batch statistics, averaged weights, accumulation and bfloat16."""
    exp = built(
        *MLP, "model.norm=batch", "train.ema=0.9", "train.accumulate=2", "train.precision=bfloat16",
        "train.divergence.policy=skip", "train.divergence.limit=2",
    )  # fmt: skip
    good = batch_of(exp, np.arange(32))
    bad = {**good, "inputs": good["inputs"].at[3, 0].set(jnp.inf)}
    before = step(exp, start(exp), good)
    after = step(exp, before, bad)
    for part in ("params", "opt_state", "variables", "ema", "sums"):
        assert_same_bits(getattr(before, part), getattr(after, part))
    assert int(after.step) == 2
    assert {name: int(value) for name, value in after.anomaly_state.items()} == {"skipped": 1, "in_a_row": 1}
    seen, state = [], after
    for batch in (good, bad, bad, bad, good):
        state = step(exp, state, batch)
        seen.append((int(state.anomaly_state["skipped"]), int(state.anomaly_state["in_a_row"]), int(state.bad_step)))
    assert seen == [(1, 0, -1), (2, 1, -1), (3, 2, -1), (4, 3, 6), (4, 0, 6)]
    assert all(np.isfinite(leaf).all() for leaf in flatten(state.params).values())


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_weights_that_a_finite_gradient_makes_infinite_are_bad_at_that_step(policy: str) -> None:
    exp = built(
        *MLP, "optimizer=sgd", "optimizer.lr=1e38", "optimizer.momentum=0", "optimizer.clip=100", "schedule=constant",
        f"train.divergence.policy={policy}", "train.divergence.limit=1",
    )  # fmt: skip
    batch = batch_of(exp, np.arange(32))
    first = step(exp, before := start(exp), {**batch, "inputs": 100 * batch["inputs"]})
    if policy == "stop":
        assert 10 < float(first.sums["grad_norm"][0]) < math.inf
        assert int(first.bad_step) == 1 and not all(np.isfinite(x).all() for x in flatten(first.params).values())
    else:
        assert int(first.anomaly_state["skipped"]) == 1
        assert_same_bits(before.params, first.params)


def one_step(rule: Divergence) -> Any:
    """(guard, loss, gradient norm) -> (whether the step is good, the guard after it)."""

    def one(guard: Any, loss: Any, norm: Any) -> Any:
        good = divergence.judge(rule, guard, loss, norm, jnp.isfinite(loss))
        return good, divergence.remember(guard, good, loss, norm)

    return jax.jit(one)


def test_a_spike_stands_out_of_the_good_steps_before() -> None:
    """Compared with the definition, written down with numpy; the window is filled, overwritten, and free of spikes."""
    rule = Divergence(deviations=4.0, window=6)
    generator = np.random.default_rng(0)
    losses, norms = generator.normal(2, 0.1, 40), generator.normal(1, 0.1, 40)
    losses[[1, 10, 11, 38]] += 2
    norms[20] += 2
    losses[25] = math.nan
    losses[28] -= 1.5  # below is no spike

    one, guard, kept, found, expected = one_step(rule), divergence.new_anomaly_state(rule), [], [], []
    for loss, norm in zip(losses.astype(np.float32), norms.astype(np.float32), strict=True):
        window = np.array(kept[-6:], np.float64).reshape(-1, 2)
        spike = len(kept) >= 3 and bool((np.array([loss, norm]) > window.mean(0) + 4 * window.std(0)).any())
        expected.append(math.isfinite(loss) and not spike)
        if expected[-1]:
            kept.append((loss, norm))
        good, guard = one(guard, loss, norm)
        found.append(bool(good))
    assert found == expected
    assert found[1] and not any(found[i] for i in (10, 11, 20, 25, 38))  # the first while nothing was known yet
    assert found[28]


def test_equal_losses_are_no_spikes() -> None:
    rule = Divergence(deviations=1.0, window=7)
    one, guard, value = one_step(rule), divergence.new_anomaly_state(rule), np.float32(0.1)
    for _ in range(20):
        good, guard = one(guard, value, value)
        assert good


def test_by_default_nothing_is_remembered() -> None:
    # So that checkpoints load that are older than the anomaly state.
    assert built(*MLP).programs.abstract_state.anomaly_state == {}


def test_skipping_in_one_dispatch_is_skipping_in_many() -> None:
    policy = ["train.divergence.policy=skip", "train.divergence.deviations=8", "train.divergence.window=8"]
    exp, states = built(*MLP, *policy), []
    columns = {name: np.array(values) for name, values in exp.dataset.splits["train"].items()}
    columns["inputs"][[40, 300], 0] = math.nan
    for steps in (1, 12):
        config = dataclasses.replace(exp.config, train=dataclasses.replace(exp.config.train, steps_per_dispatch=steps))
        feed = feeds.make_feed(exp.programs, exp.dataset.batches, columns, config)
        state, done = start(exp), 0
        while done < 36:
            state, count = feed.advance(state, done * 32, 36 - done)
            done += count
        states.append(jax.device_get(state))
    assert_same_bits(*states)
    counts = {name: int(states[0].anomaly_state[name]) for name in ("skipped", "good")}
    assert counts["skipped"] >= 2 and sum(counts.values()) == 36


# ------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression whose targets are wrong by far in two rows of the training split."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(400, 3))
    target = inputs @ [1, -2, 0.5] + 0.1 * generator.normal(size=400)
    target[[37, 151]] = 1e6
    rows = [",".join(f"{v:.6g}" for v in [*x, y]) for x, y in zip(inputs, target, strict=True)]
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("\n".join(["a,b,c,y", *rows]) + "\n")
    return path


SPIKES = ["train.divergence.deviations=6", "train.divergence.window=8"]
REWIND = [*SPIKES, "train.divergence.policy=rewind"]


def overrides(table: Path, *more: str) -> list[str]:
    return [
        "recipe=mlp_cls", "model.head=regression", "model.hidden=[8]", "model.dropout=0.1", "mesh=single", "data=csv",
        f"data.path={table}", "data.label=y", "train.batch_size=16", "train.steps=40", "train.steps_per_dispatch=1",
        "train.log_every=5", "eval.every=10", "checkpoint.every=10", "checkpoint.keep=1", "optimizer.lr=0.003", *more,
    ]  # fmt: skip


def train(changed: Sequence[str], run: Path, allow: Sequence[str] = ()) -> dict[str, Any]:
    return trainer.train(compose.compose(list(changed)), run, Options(quiet=True, allow_drift=allow))


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in found]


def last(run: Path) -> tuple[Any, dict[str, Any]]:
    """The arrays of a run's last checkpoint, as they were saved, and its progress."""
    saved = Checkpoints(run / "checkpoints").find("last")
    return read_arrays(saved.path, list(saved.meta["shapes"]), None), saved.meta["progress"]


def assert_same_run(a: Path, b: Path) -> None:
    (state_a, progress_a), (state_b, progress_b) = last(a), last(b)
    assert_same_bits(state_a, state_b)
    assert progress_a == progress_b
    assert lines(a) == lines(b)
    scores = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    assert all(scores[0][key] == scores[1][key] for key in ("metrics", "rewinds", "epoch", "selected_step"))


@pytest.fixture(scope="module")
def rewound(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rewound") / "run"
    train(overrides(table, *REWIND), run)
    return run


def test_a_rewound_run_trains_its_length_on_later_batches(rewound: Path) -> None:
    summary, (state, progress) = json.loads((rewound / "summary.json").read_text()), last(rewound)
    assert summary["step"] == int(state["step"]) == 40 and summary["rewinds"] == progress["rewinds"] >= 2
    extra = progress["position"] // 16 - 40
    assert extra >= 5 * progress["rewinds"] and extra % 5 == 0  # from the checkpoint to an event, each time
    written = lines(rewound)
    steps = [line["step"] for line in written if "train/loss" in line]
    assert steps == list(range(5, 41, 5))  # as if what was gone back over had not been
    assert [line["train/rewinds"] for line in written if "train/loss" in line][-1] == progress["rewinds"]
    assert "back to step" in (rewound / "log.txt").read_text()


class Killed(BaseException):
    """Ends a run on the spot, with nothing saved."""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something after a dispatch: `at(lambda state, moved: ..., act)` with how many steps the position is ahead."""
    original = ResidentFeed.advance

    def plan(when: Callable[[Any, int], bool], act: Callable[[], None]) -> None:
        def advance(self: Any, state: Any, position: int, limit: int) -> Any:
            moved = position // 16 - int(state.step)
            state, count = original(self, state, position, limit)
            if when(state, moved):
                monkeypatch.setattr(ResidentFeed, "advance", original)
                act()
            return state, count

        monkeypatch.setattr(ResidentFeed, "advance", advance)

    return plan


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_cut_around_its_rewinds_is_the_one_that_was_not(
    table: Path, rewound: Path, at: Callable[..., None], tmp_path: Path
) -> None:
    run, resumed = tmp_path / "run", []
    cuts = [
        (lambda state, moved: int(state.step) == 3, terminate),  # a checkpoint that must never be rewound to
        (lambda state, moved: int(state.bad_step) >= 0, terminate),  # the bad step is done, its event is to come
        (lambda state, moved: moved > 0, kill),  # right after the rewind: nothing on the disk knows of it
        (lambda state, moved: moved > 0 and int(state.step) % 5 == 2, terminate),  # saved between rewind and event
        (lambda state, moved: int(state.bad_step) >= 0, kill),
        (lambda state, moved: int(state.step) == 33, terminate),
    ]
    for when, act in cuts:
        at(when, act)
        with pytest.raises((Preempted, Killed)):
            train(overrides(table, *REWIND), run)
        resumed.append(Checkpoints(run / "checkpoints").steps()[-1])
    summary = train(overrides(table, *REWIND), run)
    assert resumed[0] == 3 and summary["resumed_from"] == 33
    assert_same_run(rewound, run)


_KILLED = """
import os, signal, sys
from tests.training.test_divergence import REWIND, Path, ResidentFeed, overrides, train
original, moves = ResidentFeed.advance, []
def advance(self, state, position, limit):
    if position // 16 != int(state.step):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, state, position, limit)
ResidentFeed.advance = advance
train(overrides(Path(sys.argv[1]), *REWIND), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_process_killed_right_after_a_rewind_loses_nothing(table: Path, rewound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(table), str(run)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    train(overrides(table, *REWIND), run)
    assert_same_run(rewound, run)


def test_a_diverged_run_goes_on_once_it_may_skip(table: Path, tmp_path: Path) -> None:
    stop, run = overrides(table, *SPIKES, "checkpoint.every=2"), tmp_path / "run"
    with pytest.raises(Diverged, match="6 standard deviations above the latest ones, at step"):
        train(stop, run)
    assert json.loads((run / "run.json").read_text())["status"] == "diverged"
    with pytest.raises(TrainingFailed, match="the run diverged"):
        train(stop, run)
    changed = ["train.divergence.policy=skip", "train.divergence.window=6"]  # another guard: it begins anew
    summary = train([*stop, *changed], run, ["train.divergence.policy", "train.divergence.window"])
    assert summary["step"] == 40 and summary["resumed_from"] > 0 and summary["skipped"] >= 1
    logged = [line for line in lines(run) if "train/loss" in line]
    assert logged[-1]["train/skipped"] == summary["skipped"]
    assert all(math.isfinite(line["train/loss"]) for line in logged)


def test_a_run_that_diverges_between_two_checkpoints_leaves_its_best(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Diverged):
        train(overrides(table, *SPIKES, "checkpoint.every=40", "eval.every=1"), run)
    (best,) = manifest.steps(run / "checkpoints")
    scored = {line["step"]: line["val/loss"] for line in lines(run) if "val/loss" in line}
    meta = manifest.verify_checkpoint(run / "checkpoints" / f"{best:09d}")
    assert meta["progress"]["best_step"] == best and meta["progress"]["best_metrics"]["val/loss"] == scored[best]
    assert len(scored) > 1


def test_a_run_that_diverges_wherever_it_begins_gives_up(tmp_path: Path) -> None:
    hopeless = [
        *MLP, "mesh=single", "optimizer=sgd", "optimizer.lr=1e25", "train.steps=30", "train.log_every=5",
        "train.divergence.policy=rewind", "train.divergence.limit=2", "train.tensorboard=false",
    ]  # fmt: skip
    with pytest.raises(Diverged, match="not finite at step [1-5], after 2 rewinds to step 0") as caught:
        train(hopeless, tmp_path / "run")
    assert caught.value.exit_code == 1 and "optimizer.lr" in str(caught.value.hint)
    with pytest.raises(TrainingFailed, match="the run diverged"):
        train(hopeless, tmp_path / "run")
    summary = bigctl.train(bigctl.compose([*hopeless, "optimizer.lr=0.01"]), tmp_path / "other", quiet=True)
    assert summary["rewinds"] == 0
    assert train([*hopeless, "optimizer.lr=0.01"], tmp_path / "run", ["optimizer.lr"])["step"] == 30
    assert_same_run(tmp_path / "run", tmp_path / "other")  # the initial state was kept
