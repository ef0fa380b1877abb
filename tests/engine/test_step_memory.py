"""Promises of `bigctl.engine.step_memory`: a step without memory is refused before it runs, for nothing but a look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import pytest

import bigctl
from bigctl import memory
from bigctl.cli.main import main
from bigctl.engine import dry_run, step_memory
from bigctl.engine import experiment as experiments
from bigctl.errors import ConfigError

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
