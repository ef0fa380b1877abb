"""A profile names what is slow, and a program that had to be compiled again does not go unnoticed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bigctl as api
from bigctl.data.layouts.layout import FixedPlan
from bigctl.data.sampler import BatchPlan
from bigctl.engine import experiment
from bigctl.training import feed as feeds
from bigctl.training.loop import Cadence, Hooks, Loop
from bigctl.training.profile import Profiler, slowest
from bigctl.training.programs import LARGEST_LOOP
from bigctl.training.signals import StopRequest
from bigctl.training.state import Progress, TrainState
from tests.conftest import Cli
from tests.training.loops import FakeEvaluator

MLP = ["recipe=mlp_cls", "data=breast_cancer"]
LINE = re.compile(r" *(\d+\.\d)% +(\d+\.\d\d) ms  (\S.*)")


@pytest.mark.parametrize("dispatch", ["null", pytest.param("1", marks=pytest.mark.slow)])
def test_a_profiled_run_writes_a_trace_and_names_slow_parts(dispatch: str, bigctl: Cli) -> None:
    overrides = [*MLP, "train.steps=100", f"train.steps_per_dispatch={dispatch}", "--name", "a"]
    summary = bigctl.json("train", *overrides, "--profile")
    traces = list((bigctl.folder / "runs/a/profile").rglob("*.trace.json.gz"))
    assert len(traces) == 1
    assert list((bigctl.folder / "runs/a/profile").rglob("*.xplane.pb"))  # what TensorBoard reads
    found = [LINE.fullmatch(line) for line in summary["profile"]]
    assert 2 <= len(found) <= 10 and all(found), summary["profile"]
    shares = [float(match[1]) for match in found if match]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5
    names = [match[3] for match in found if match]
    assert len(set(names)) == len(names)
    assert any("dot" in name or "fusion" in name for name in names), names
    shown = bigctl("train", *overrides).stdout
    assert shown.count("  slow: ") == len(found)


def test_a_run_shorter_than_the_warm_up_has_no_profile_and_no_error(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, start=20)
    assert profiler.before_dispatch(5, None) == 15
    assert profiler.close() == []


def test_the_profiler_traces_the_steps_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profiler = Profiler(tmp_path, start=20)
    assert [profiler.before_dispatch(step, None) for step in (0, 19)] == [20, 1]
    assert calls == []
    assert [profiler.before_dispatch(step, None) for step in (20, 30, 39)] == [20, 10, 1]
    assert calls == [f"start {tmp_path}"]
    for step in (40, 46, 100, 200):
        assert profiler.before_dispatch(step, None) == LARGEST_LOOP
    assert calls == [f"start {tmp_path}", "stop"]
    assert profiler.close() == []
    assert calls == [f"start {tmp_path}", "stop"]  # once only


def test_a_trace_that_is_still_open_is_ended(tmp_path: Path) -> None:
    profiler = Profiler(tmp_path, start=0)
    profiler.before_dispatch(0, None)
    jax.block_until_ready(jax.jit(lambda x: jnp.tanh(x @ x) @ x)(jnp.ones((300, 300))))
    lines = profiler.close()
    assert any("dot" in line or "fusion" in line for line in lines), lines
    jax.profiler.start_trace(str(tmp_path / "other"))  # would fail if the first were not ended
    jax.profiler.stop_trace()


def test_times_of_one_kind_of_operation_are_summed(tmp_path: Path) -> None:
    thread = {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "tf_XLAEigen/1"}}
    python = {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2, "args": {"name": "python"}}

    def event(name: str, duration: float, tid: int = 1, **arguments: Any) -> dict[str, Any]:
        return {"ph": "X", "name": name, "pid": 1, "tid": tid, "dur": duration, "args": arguments}

    events = [
        thread, python,
        event("dot.1", 3000.0, hlo_op="dot.1"), event("dot.27", 3000.0, hlo_op="dot.27"),
        event("loop_fusion", 2000.0, hlo_op="loop_fusion"),
        event("waiting", 1e6), event("dot.5", 1e6, tid=2, hlo_op="dot.5"),
    ]  # fmt: skip
    with gzip.open(tmp_path / "x.trace.json.gz", "wt") as stream:
        json.dump({"traceEvents": events}, stream)
    assert slowest(tmp_path) == ["75.0%      6.00 ms  dot", "25.0%      2.00 ms  loop_fusion"]
    assert slowest(tmp_path, most=1) == ["75.0%      6.00 ms  dot"]
    assert slowest(tmp_path / "nothing here") == []


class Irregular(feeds.ResidentFeed):
    """From the fourth step on every other batch is shorter: another shape, another program."""

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        indices, _ = self.plan.batch(position)
        step = position // len(indices)
        indices = indices[: 16 if step > 3 and step % 2 else None]
        programs = self.programs
        return programs.step_resident(state, self.arrays, indices, programs.hparams, self.layout, None), 1


@pytest.mark.parametrize("kind", [feeds.ResidentFeed, Irregular])
def test_a_recompiled_step_is_reported_once(kind: type[feeds.ResidentFeed]) -> None:
    config = api.compose([*MLP, "mesh=single", "model.hidden=[4]", "train.steps=12", "checkpoint.best=false"])
    exp = experiment.build(config)
    plan = FixedPlan(BatchPlan(exp.dataset.size("train"), 0), config.train.batch_size)
    arrays = feeds.place_columns(exp.programs.mesh, exp.dataset.splits["train"])
    feed = kind(exp.programs, exp.dataset.batches, arrays, plan)
    warnings: list[str] = []
    hooks = Hooks(write=lambda *_: None, save=lambda *_: None, flush=lambda: None, warn=warnings.append)
    loop = Loop(
        exp.programs, feed, FakeEvaluator(lambda _: {"val/accuracy": 0.5}),  # type: ignore
        Cadence(12, 2, 12, 12), config, hooks, StopRequest(), metric="val/accuracy", mode="max", examples_per_epoch=100,
    )  # fmt: skip
    loop.fit(exp.programs.initialise(), Progress())
    if kind is Irregular:
        (text,) = warnings
        assert re.search(r"compiled 2 times by step (4|6)\b", text)
    else:
        assert warnings == []
