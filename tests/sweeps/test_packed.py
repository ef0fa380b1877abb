"""Packed trials: each is a run like any other, and takes the steps that it would take by itself."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bigctl.config.compose import compose
from bigctl.config.schema import Config
from bigctl.data.layouts.layout import FixedPlan
from bigctl.engine import trainer
from bigctl.engine.experiment import Experiment
from bigctl.engine.run import Options
from bigctl.errors import BigctlError, ConfigError, Diverged, Preempted
from bigctl.runs.metrics_file import read_metrics
from bigctl.sweeps.packed import compatibility, compiling, pack_width, runner
from bigctl.sweeps.packed.runner import PackedTrial
from bigctl.training import plans
from bigctl.training.evaluation import Evaluator
from bigctl.training.packed.pack import Pack, PackedEvaluator, PackedFeed
from bigctl.training.packed.scoring import Question
from bigctl.training.packed.side_by_side import Copies, side_by_side
from bigctl.training.programs import options_of_copies
from bigctl.training.signals import StopRequest
from tests import forked

pytestmark = pytest.mark.fewer

TINY = (
    "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.epochs=null", "train.steps=24",
    "train.log_every=1", "eval.every=6", "checkpoint.every=12", "eval.test=false", "train.tensorboard=false",
    "mesh=single",
)  # fmt: skip
COMPOSED = compose(TINY)
BASE = COMPOSED.config


def variation(**values: Any) -> Config:
    """The base with another seed or numbers of the optimizer, without the time that composing takes."""
    config = dataclasses.replace(BASE, seed=values.pop("seed", BASE.seed))
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **values))


def jobs(folder: Path, configs: list[Config]) -> list[PackedTrial]:
    described = [dataclasses.replace(COMPOSED, config=config) for config in configs]
    return [PackedTrial(str(number), each, folder / str(number)) for number, each in enumerate(described)]


def train(folder: Path, configs: list[Config], mode: str = "yes") -> list[runner.TrialOutcome]:
    with StopRequest() as stop:
        return runner.train(jobs(folder, configs), stop=stop, mode=mode)[0]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three learning rates, of which the last is absurd, and two seeds."""
    folder = tmp_path_factory.mktemp("pack")
    configs = [variation(lr=lr, seed=seed) for lr in (1e-3, 1e-2, 1e30) for seed in (0, 1)]
    folder.joinpath("ends.json").write_text(json.dumps([end.to_json() for end in train(folder, configs)]))
    return folder


def test_the_first_20_steps_of_a_packed_trial_are_those_of_a_single_run(pack: Path, tmp_path: Path) -> None:
    for number, config in enumerate(variation(lr=lr, seed=seed) for lr in (1e-3, 1e-2) for seed in (0, 1)):
        single = tmp_path / str(number)
        trainer.train(dataclasses.replace(COMPOSED, config=config), single, Options(quiet=True))
        here, there = losses(pack / str(number)), losses(single)
        assert list(here) == list(there) == list(range(1, 25))
        np.testing.assert_allclose([here[s] for s in range(1, 21)], [there[s] for s in range(1, 21)], rtol=1e-5)
        summaries = [json.loads((run / "summary.json").read_text()) for run in (pack / str(number), single)]
        assert summaries[0]["metrics"].keys() == summaries[1]["metrics"].keys()
        lines = [read_metrics(run / "metrics.jsonl") for run in (pack / str(number), single)]
        assert [set(line) for line in lines[0]] == [set(line) for line in lines[1]]


@pytest.fixture
def optimized() -> Iterator[None]:
    """Programs as users' are."""
    jax.config.update(forked.FEWER.lower(), False)
    yield
    jax.config.update(forked.FEWER.lower(), os.environ.get(forked.FEWER) == "1")


def test_a_seed_that_is_an_argument_initialises_the_same_weights_to_the_last_bit(optimized: None) -> None:
    from bigctl.engine import experiment

    programs = experiment.build(BASE).programs
    for seed in (0, 7, 2**31 - 1):
        config = variation(seed=seed)
        here = programs.with_config(config).initialise()
        alone = experiment.build(config).programs.initialise()
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), here, alone)))


def test_a_trial_that_diverges_fails_alone(pack: Path) -> None:
    ends = json.loads((pack / "ends.json").read_text())
    assert [end["status"] for end in ends] == ["complete"] * 4 + ["diverged"] * 2
    record = json.loads((pack / "4" / "run.json").read_text())
    assert record["status"] == "diverged" and "not finite at step" in record["message"]
    assert record["starts"][-1]["packed"] == {"trials": 6, "width": 6}
    with pytest.raises(Diverged):
        trainer.train(jobs(pack, [variation(lr=1e30)] * 5)[4].composed, pack / "4", Options(quiet=True))


def test_what_cannot_be_packed_is_refused_by_name() -> None:
    wider = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, hidden=[16]))  # type: ignore[call-arg]
    said = compatibility.refusal([BASE, wider, variation(lr=1.0, seed=3)]) or ""
    assert said.startswith("model.hidden differs: [8], [16]: trials of one pack may differ in ")
    assert "optimizer.lr" in said and said.endswith("and seed only") and "train.steps" not in said
    assert compatibility.refusal([BASE, variation(lr=1.0, seed=3, weight_decay=0.5)]) is None
    assert "optimizer.clip differs" in (compatibility.refusal([BASE, variation(clip=1.0)]) or "")
    without = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dropout=0.0))  # type: ignore[call-arg]
    some = dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dropout=0.5))  # type: ignore[call-arg]
    assert "model.dropout differs: 0.0, which is off, and others" in (compatibility.refusal([without, some]) or "")
    texts = compose(["recipe=lstm_cls"]).config
    assert "several lengths cannot be packed (recipe=lstm_cls)" in (compatibility.refusal([texts, texts]) or "")
    groups = compatibility.groups([BASE, wider, variation(lr=1.0)], lambda config: config)
    assert [len(group) for group in groups] == [2, 1]
    with pytest.raises(ConfigError, match="model.hidden differs"):
        train(Path("nowhere"), [BASE, wider])


def test_a_packed_run_is_like_any_other_to_the_commands(pack: Path, bigctl: Any) -> None:
    run = str(pack / "1")
    assert bigctl("verify", run).returncode == 0
    assert "val/accuracy" in bigctl.json("eval", run, "--split", "validation")["metrics"]
    assert bigctl.json("resume", run)["already_complete"]


class StopAt(StopRequest):
    """Asks everyone to stop after so many steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps

    def reached(self, steps: int) -> bool:
        if steps >= self.steps:
            self.exit_code, self.reason = 75, "a test"
        return super().reached(steps)


def test_a_stopped_trial_goes_on_by_itself_and_a_single_one_in_a_pack(pack: Path, tmp_path: Path) -> None:
    configs = [variation(lr=1e-3, seed=seed) for seed in (0, 1)]
    with StopAt(12) as stop:
        ends, _ = runner.train(jobs(tmp_path, configs), stop=stop, mode="yes")
    assert [end.to_json()["status"] for end in ends] == ["preempted"] * 2
    assert "stopped by a test at step 12 of 24; the checkpoint is saved" in ends[0].to_json()["message"]
    first, second = jobs(tmp_path, configs)
    summary = trainer.train(first.composed, first.path, Options(quiet=True))
    assert summary["resumed_from"] == 12 and summary["step"] == 24
    other = PackedTrial("other", dataclasses.replace(COMPOSED, config=variation(lr=1e-2, seed=1)), tmp_path / "other")
    with pytest.raises(Preempted), StopAt(7) as stop:
        trainer.train(other.composed, other.path, Options(quiet=True, stop=stop))
    with StopRequest() as stop:
        ends, verdict = runner.train([second, other], stop=stop)
    assert (verdict.width, verdict.sentence) == (2, "2 trials packed by 2, as they began")
    assert [end.summary and end.summary["resumed_from"] for end in ends] == [12, 7]
    for here, there in (("0", "0"), ("1", "1"), ("other", "3")):
        found, undisturbed = losses(tmp_path / here), losses(pack / there)
        assert list(found) == list(range(1, 25))
        np.testing.assert_allclose(list(found.values()), list(undisturbed.values()), rtol=1e-4)


def test_each_trial_of_a_pack_stops_early_by_itself(tmp_path: Path) -> None:
    early = dataclasses.replace(BASE.train.early_stop, target=0.6)
    configs = [variation(lr=lr) for lr in (1e-9, 3e-2)]
    configs = [dataclasses.replace(c, train=dataclasses.replace(c.train, early_stop=early)) for c in configs]
    slow, quick = train(tmp_path, configs)
    assert slow.summary and slow.summary["step"] == 24 and not slow.summary["stopped"]
    assert quick.summary and quick.summary["step"] < 24 and "reached 0.6" in quick.summary["stopped"]


JOB = [(lr, seed) for lr in ("0.001", "0.01") for seed in (0, 1)]


def write_job(folder: Path) -> Path:
    changed = ("train.steps=", "train.log_every=", "eval.every=", "checkpoint.every=")
    overrides = [each for each in TINY if not each.startswith(changed)]
    overrides += ["train.steps=2000", "train.log_every=20", "eval.every=40", "checkpoint.every=20"]
    trials = [
        {
            "id": f"{lr}-{seed}",
            "overrides": [*overrides, f"optimizer.lr={lr}", f"seed={seed}"],
            "run": str(folder / f"{lr}-{seed}"),
        }
        for lr, seed in JOB
    ]
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"trials": trials, "mode": "yes", "quiet": True}))
    return folder / "job.json"


def results(folder: Path) -> list[Any]:
    ignored = ("perf/", "epoch")
    return [
        [
            {name: value for name, value in line.items() if not name.startswith(ignored)}
            for line in read_metrics(folder / f"{lr}-{seed}" / "metrics.jsonl")
        ]
        for lr, seed in JOB
    ]


@pytest.mark.parametrize(("hidden", "expected"), [((8, 8), [True]), ((8, 8, 4, 4), [])], ids=["alike", "two groups"])
def test_a_process_that_has_trained_all_it_was_given_compiles_for_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: tuple[int, ...], expected: list[bool]
) -> None:
    """After it has written how its trials ended; not where the winner may be of several groups."""
    job = tmp_path / "job.json"
    trials = [
        {"id": str(n), "overrides": [*TINY, f"model.hidden=[{width}]", f"seed={n}"], "run": str(tmp_path / str(n))}
        for n, width in enumerate(hidden)
    ]
    job.write_text(json.dumps({"trials": trials, "mode": "yes", "quiet": True}))
    compiled: list[bool] = []
    known = compiling._compiled

    def told(name: str, *given: Any) -> bool:
        if name == "test":
            compiled.append(job.with_suffix(".ends.json").exists())
        return known(name, *given)

    monkeypatch.setattr(compiling, "_compiled", told)
    with compiling.among_others(tmp_path):
        assert runner.main([str(job)]) == 0
    assert compiled == expected


@pytest.mark.slow
def test_a_killed_pack_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole, cut = write_job(tmp_path / "whole"), write_job(tmp_path / "cut")
    assert runner.main([str(whole)]) == 0
    command = [sys.executable, "-m", "bigctl.sweeps.packed.runner", str(cut)]
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, start_new_session=True)
    while process.poll() is None and not list(cut.parent.glob("*/checkpoints/*/manifest-0.json")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list(cut.parent.glob("*/summary.json"))) < len(JOB)
    at_its_end = {file.parents[2].name for file in cut.parent.glob("*/checkpoints/*2000/manifest-0.json")}
    assert len(at_its_end) < len(JOB)
    cut_off = next(trial for lr, seed in JOB if (trial := f"{lr}-{seed}") not in at_its_end)
    (cut.parent / cut_off / "prune").write_text("behind the others")
    assert runner.main([str(cut)]) == 0
    ends = json.loads(cut.with_suffix(".ends.json").read_text())["trials"]
    assert ends[cut_off]["status"] == "preempted" and "behind the others" in ends[cut_off]["message"]
    (cut.parent / cut_off / "prune").unlink()
    assert runner.main([str(cut)]) == 0
    assert results(cut.parent) == results(whole.parent)


def test_the_scores_of_a_pack_are_those_of_each_trial_by_itself() -> None:
    """Also where fewer ask than it has room for, and of one that has left it."""
    configs = [variation(lr=1e-3, seed=seed) for seed in range(3)]
    shared = runner.TrialGroup([PackedTrial("0", dataclasses.replace(COMPOSED, config=configs[0]), Path("nowhere"))])
    built = shared.experiment
    programs = [built.programs.with_config(config) for config in configs]
    states = [each.initialise() for each in programs]
    pack = Pack(shared.steps(4), shared.scoring(4), len(configs))
    columns = built.dataset.splits["validation"]
    for lane, each in enumerate(programs):
        PackedFeed(pack, lane, each.hparams, plan_of(built))
    evaluators = [
        PackedEvaluator(pack, lane, each, columns, config)
        for lane, (each, config) in enumerate(zip(programs, configs, strict=True))
    ]
    with ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(one, state.params, state.variables) for one, state in zip(evaluators, states, strict=True)
        ]
        together = [each.result(60) for each in asked]
    alone = built.evaluator("validation", "val")
    pack.leave(0)
    for number, state in enumerate(states):
        expected = alone(state.params, state.variables)
        found = [together[number]] + ([evaluators[0](state.params, state.variables)] if number == 0 else [])
        for each in found:
            assert each.keys() == expected.keys()
            for name in expected:
                np.testing.assert_allclose(each[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert len({each["val/loss"] for each in together}) == 3


def test_what_goes_wrong_while_a_pack_is_scored_reaches_each_of_its_trials() -> None:
    shared = runner.TrialGroup([PackedTrial("0", dataclasses.replace(COMPOSED, config=BASE), Path("nowhere"))])
    programs, scoring = shared.experiment.programs, shared.scoring(2)
    state = programs.initialise()
    questions = [Question((state.params, state.variables)), Question(({"other": np.zeros(3)}, state.variables))]
    scoring.answer(questions, lambda: side_by_side([programs.hparams], 2))
    for question in questions:
        with pytest.raises(ValueError, match="structure"):
            question.answer.result(0)


def test_trials_whose_scores_cannot_be_computed_in_one_call_are_scored_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(*_: Any) -> Any:
        raise NotImplementedError("a callback that knows nothing of vmap")

    monkeypatch.setattr("bigctl.training.packed.scoring.PackedScoring._triples", alone)
    ends = train(tmp_path, [variation(seed=seed) for seed in (0, 1)])
    assert [end.error for end in ends] == [None, None]
    assert all(any("val/loss" in line for line in read_metrics(end.job.path / "metrics.jsonl")) for end in ends)


def test_nothing_is_compiled_for_a_pack_that_is_asked_to_stop(tmp_path: Path) -> None:
    done: list[str] = []
    parts = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    compiling.compile_all(parts, tmp_path, stopped=lambda: len(done) == 1)
    assert done == ["a"]


def test_what_the_winner_is_scored_by_is_compiled_while_others_still_train(tmp_path: Path) -> None:
    shared = runner.TrialGroup([PackedTrial("0", dataclasses.replace(COMPOSED, config=BASE), Path("nowhere"))])
    asked: list[str] = []

    class Asked(Experiment):
        def evaluator(self, split: str, prefix: str) -> Evaluator:
            asked.append(split)
            return super().evaluator(split, prefix)

    fields = {f.name: getattr(shared.experiment, f.name) for f in dataclasses.fields(shared.experiment)}
    experiment = Asked(**fields)
    compiling.compile_test(experiment, tmp_path)
    assert asked == [], "nobody would be kept waiting by the winner's own process"
    with compiling.among_others(tmp_path):
        compiling.compile_test(experiment, tmp_path)
    assert asked == ["test"]
    test = experiment.dataset.splits["test"]
    assert experiment.programs.evaluation(experiment.dataset.batches.size(test, training=False)).resident._cache_size()


@pytest.mark.parametrize("size", [1, 2**30])
def test_states_come_side_by_side_and_apart_again(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By either kind of compiled copy, whose options depend on the size."""
    monkeypatch.setattr(
        "bigctl.training.packed.side_by_side.options_of_copies", lambda step, _: options_of_copies(step, size)
    )
    shared = runner.TrialGroup([PackedTrial("0", dataclasses.replace(COMPOSED, config=BASE), Path("nowhere"))])
    programs = shared.experiment.programs
    copies, states = Copies(programs, 3), [programs.initialise(), programs.blank()]
    for _ in range(2):  # the second time into the memory of the first
        known = jax.tree.map(np.array, states)
        together = copies.joined(states)
        for leaf in jax.tree.map(np.array, jax.tree.leaves(together)):
            np.testing.assert_array_equal(leaf[2], leaf[0])
        assert any(np.any(leaf[0] != leaf[1]) for leaf in jax.tree.map(np.array, jax.tree.leaves(together)))
        states = copies.parted(together, 2)
        jax.tree.map(np.testing.assert_array_equal, known, states)


def plan_of(built: Experiment) -> FixedPlan:
    plan = plans.training_plan(built.dataset.batches, built.dataset.splits["train"], built.config)
    assert isinstance(plan, FixedPlan)
    return plan


def test_bad_jobs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text("{}")
    assert runner.main([str(tmp_path / "job.json")]) == 2
    assert "is no job of packed trials" in capsys.readouterr().err


def test_measuring_chooses_and_says_why() -> None:
    shared = runner.TrialGroup([PackedTrial("0", dataclasses.replace(COMPOSED, config=BASE), Path("nowhere"))])
    verdict = pack_width.measure(shared, 4, seconds=0.02)
    assert verdict.costs.keys() == {1, 4}
    assert verdict.width == (4 if verdict.costs[4] < 0.9 * verdict.costs[1] else 1)
    assert ("packed by 4: a step of one takes" if verdict.width == 4 else "one after another") in verdict.sentence


def test_the_error_of_a_trial_reaches_its_end() -> None:
    end = runner.TrialOutcome(
        PackedTrial("0", dataclasses.replace(COMPOSED, config=BASE), Path("nowhere")), error=BigctlError("no")
    )
    assert end.to_json() == {"status": "failed", "message": "no", "exit_code": 1}
