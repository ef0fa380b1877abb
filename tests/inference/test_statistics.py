"""Promises of a soup of models with batch normalisation: its statistics are those of its own weights, on the whole
training split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import RunError
from bigctl.inference.compression import soup
from bigctl.inference.compression.method import Method
from bigctl.inference.compression.statistics import Statistics
from bigctl.training.checkpoints.arrays import flatten
from tests import small

pytestmark = [pytest.mark.usefixtures("briefly"), pytest.mark.fewer]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("statistics") / "run"
    rows = small.trained(tmp_path_factory) / "rows.csv"
    more = ["model.norm=batch", "model.dropout=0.3", "checkpoint.every=10", "checkpoint.keep=3"]
    bigctl.train([*small.KEYS, "data=csv", f"data.path={rows}", *more], folder, quiet=True)
    return folder


@pytest.mark.parametrize("how", ["uniform", "greedy"])
def test_statistics_of_a_soup_are_those_of_its_own_weights(run, how, capsys):
    made = run.with_name(how)
    assert main(["compress", str(run), "method=soup", f"soup={how}", "--run-dir", str(made), "--json"]) == 0
    said, mixed = json.loads(capsys.readouterr().out), bigctl.load(str(made))
    assert len(said["ingredients"]) + len(said["left_out"]) == 3
    params, variables = flatten(mixed.params), flatten(mixed.variables)
    inputs = np.asarray(mixed.data().splits["train"]["inputs"])
    hidden = inputs @ params["layers/0/kernel"] + params["layers/0/bias"]
    (mean,) = [values for name, values in variables.items() if name.endswith("mean")]
    np.testing.assert_allclose(mean, hidden.mean(0), atol=1e-4)
    (var,) = [values for name, values in variables.items() if name.endswith("var")]
    np.testing.assert_allclose(var, hidden.var(0), rtol=0.1)  # the mean of those of batches
    assert said["after_score"] == pytest.approx(mixed.evaluate("validation")["val/accuracy"])
    whole = json.loads((made / "summary.json").read_text())["metrics"]
    assert whole["val/accuracy"] == pytest.approx(said["after_score"])


def test_a_recipe_without_outputs_and_runs_with_another_whitening_are_refused(run, monkeypatch, tmp_path):
    trained = bigctl.load(str(run))
    with monkeypatch.context() as patched:
        patched.setattr(type(trained), "task", object())
        with pytest.raises(RunError, match="does not say how its model is trained"):
            Statistics(trained)
    seen = iter([{"whitening/kernel": np.zeros(2)}, {"whitening/kernel": np.ones(2)}])
    monkeypatch.setattr(soup.statistics, "others", lambda trained: next(seen))
    other = shutil.copytree(run, tmp_path / "other")
    with pytest.raises(RunError, match="keeps another whitening/kernel, for which its weights are"):
        soup.stirred(trained, Method.parse(["method=soup", f"from=[{other}]"]))


@pytest.mark.slow
def test_of_a_deep_network_they_are_near_those_that_training_kept(tmp_path):
    keys = ["recipe=resnet_cls", "model=resnet20", "data=digits", "train.steps=60", "train.batch_size=64"]
    bigctl.train([*keys, "train.tensorboard=false"], tmp_path / "run", quiet=True)
    trained = bigctl.load(str(tmp_path / "run"), step="last")
    found = trained.with_params(trained.params, Statistics(trained).of(trained.params))
    assert found.evaluate("validation")["val/accuracy"] >= trained.evaluate("validation")["val/accuracy"] - 0.05
    blank = jax.tree.map(jax.numpy.zeros_like, trained.variables)  # which they do not depend on
    again = Statistics(trained.with_params(trained.params, blank)).of(trained.params)
    for name, values in flatten(again).items():
        np.testing.assert_allclose(values, flatten(found.variables)[name], rtol=1e-2, atol=1e-4)
