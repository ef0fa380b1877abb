"""Promises of `bigctl.engine.step_memory`: a step without memory is refused before it runs, for nothing but a look."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import bigctl
from bigctl import memory
from bigctl.cli.main import main
from bigctl.engine import device_memory, dry_run, lr_finder, step_memory
from bigctl.engine import experiment as experiments
from bigctl.errors import ConfigError
from bigctl.parallel import mesh as meshes
from bigctl.sweeps.packed import pack_width
from bigctl.training.packed.pack import PackedSteps

WIDE = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[2000]", "model.dropout=0", "train.batch_size=256",
        "train.steps=2", "optimizer=adamw", "mesh=single"]  # fmt: skip


@pytest.fixture
def three_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has memory for the model, and not for all examples of a batch at once."""
    monkeypatch.setattr(memory, "limit", lambda: 3 * 2**20)


def test_training_refuses_a_step_without_memory_and_names_what_would_fit(
    three_mib: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", *WIDE, "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert main(run) == 2
    said = capsys.readouterr().err
    told = re.search(r"batch_size: a step takes ([\d.]+) MiB on each device, which has 3\.0 MiB; largest: (.*)", said)
    assert told and float(told[1]) > 3, said
    assert re.search(r"models/\w+\.py:\d+ \(activations, ", told[2]), said
    change = re.search(r"the smallest change that fits: (train\.accumulate=\d+), ([\d.]+) MiB", said)
    assert change and float(change[2]) < 3, said
    assert main([*run, change[1]]) == 0, capsys.readouterr().err


def test_a_dry_run_refuses_it_too(three_mib: None) -> None:
    with pytest.raises(ConfigError, match=r"3\.0 MiB; largest: .*change that fits: train\.accumulate") as caught:
        dry_run.report(bigctl.compose(WIDE))
    assert caught.value.exit_code == 2


def test_without_a_change_that_fits_the_least_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiments.build(bigctl.compose([*WIDE, "train.batch_size=8"]))
    compiled = experiment.programs.step_sent.lower(
        experiment.programs.abstract_state, experiment.task.example_shapes(8), experiment.programs.hparams
    ).compile()
    step_memory.require_step(experiment, compiled)
    monkeypatch.setattr(memory, "limit", lambda: 10_000)
    with pytest.raises(ConfigError, match="the least of what was tried takes .* mesh=fsdp"):
        step_memory.require_step(experiment, compiled)


def test_an_evaluation_without_memory_is_refused_naming_its_arrays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", *WIDE, "train.batch_size=8", "train.steps=1", "--run-dir", str(tmp_path / "run"), "--quiet"]
    assert main(run) == 0
    capsys.readouterr()
    monkeypatch.setattr(memory, "limit", lambda: 2**18)
    assert main(["eval", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    told = re.search(r"eval\.batch_size: a batch of an evaluation takes .* which has 256\.0 KiB; largest: (.*)", said)
    assert told and "(parameters, " in told[1] and "a smaller eval.batch_size" in said, said


def test_packed_steps_without_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiments.build(bigctl.compose(WIDE))
    programs, columns = experiment.programs, experiment.dataset.splits["train"]
    steps = PackedSteps(
        programs, experiment.dataset.batches, columns, experiment.config, experiment.cadence, width=2,
        check=device_memory.check_of_pack(programs, 2),
    )  # fmt: skip
    monkeypatch.setattr(memory, "limit", lambda: 3 * 2**20)
    hparams = {name: np.stack([np.asarray(value)] * 2) for name, value in programs.hparams.items()}
    states = (programs.initialise(), programs.initialise())
    with pytest.raises(
        ConfigError, match="packed trials: a step of 2 trials side by side takes .*; largest: .*activations, "
    ):
        steps(states, lambda count: np.zeros((2, count, 256), np.int32), 1, hparams)
    group: Any = SimpleNamespace(steps=lambda width: steps, experiment=experiment)
    assert pack_width._cost(group, 2, 0.1) == math.inf  # so that `auto` packs fewer, or none


def test_a_search_for_a_rate_refuses_a_step_without_memory(three_mib: None) -> None:
    with pytest.raises(ConfigError, match=r"3\.0 MiB; largest: .*change that fits: train\.accumulate"):
        lr_finder.find(bigctl.compose(WIDE))


def test_on_a_cpu_remat_is_proposed_with_a_loop_alone() -> None:
    config = bigctl.compose(["recipe=gpt_lm", "data=text", "data.path=."])
    assert next(step_memory.smaller(config)) == {"model.remat": "full"}
    mesh = meshes.make_mesh(bigctl.compose(WIDE).mesh)
    assert next(step_memory.smaller(config, mesh)) == {"model.remat": "full", "model.scan": True}


@contextmanager
def compilations() -> Iterator[list[str]]:
    found: list[str] = []

    def heard(event: str, seconds: float, **about: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_an_evaluation_is_compiled_once_for_its_check() -> None:
    experiment = experiments.build(bigctl.compose(WIDE))
    state, evaluator = experiment.programs.initialise(), experiment.evaluator("validation", "val")
    with compilations() as found:
        for _ in range(2):
            evaluator(state.params, state.variables)
    assert len(found) <= 2  # the evaluation and the sum of batches


def test_the_check_compiles_nothing_twice() -> None:
    counted = []
    for checked in (False, True):
        experiment = experiments.build(bigctl.compose(WIDE))
        check = partial(step_memory.require_step, experiment) if checked else None
        feed, state = experiment.feed(check=check), experiment.programs.initialise()
        with compilations() as found:
            for number in range(2):
                state, _ = feed.advance(state, 256 * number, 1)
        counted.append(len(found))
    assert counted[0] == counted[1] >= 1
