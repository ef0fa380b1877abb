"""Checkpoints that earlier versions wrote are loaded and resumed. Made by scripts/make_checkpoint_fixture.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.config import compose as composing
from bigctl.runs import verify
from bigctl.runs.directory import RunDirectory
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints

FIXTURES = sorted((Path(__file__).resolve().parents[1] / "fixtures").glob("run_v*"))


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "run"))


def test_every_array_of_an_earlier_version_is_what_it_was(run: Path) -> None:
    expected = json.loads((run / "expected.json").read_text())
    store = Checkpoints(run / "checkpoints")
    assert [str(step) for step in store.steps()] == list(expected)
    for step, digests in expected.items():
        saved = store.find(int(step))
        arrays = read_arrays(saved.path, list(saved.meta["shapes"]))
        assert {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()} == digests
    assert verify.verify(RunDirectory(run)).ok


def test_a_run_of_an_earlier_version_scores_the_same_and_goes_on(run: Path) -> None:
    config = composing.from_yaml((run / "config.yaml").read_text(), where="config.yaml")
    before = json.loads((run / "summary.json").read_text())["metrics"]
    model = bigctl.load(run)
    scores = model.evaluate("test")
    assert np.isclose(scores["test/loss"], before["test/loss"], rtol=1e-4)
    config.train.steps = 30
    summary = bigctl.train(config, run, quiet=True)
    assert (summary["resumed_from"], summary["step"]) == (20, 30)
    assert verify.verify(RunDirectory(run)).ok
