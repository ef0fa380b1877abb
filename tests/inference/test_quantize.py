"""Promises of `train.quantize=int8`: a run is fine-tuned as its export computes, resumes to the bit, and leaves with
the integers that it was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.models.rounded import rounded_weights
from bigctl.training.checkpoints.arrays import flatten
from tests import small

pytestmark = pytest.mark.usefixtures("briefly")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    return Path(shutil.copytree(small.trained(tmp_path_factory) / "runs" / "small", folder / "small"))


def keys(source: Path, factory: pytest.TempPathFactory, *more: str) -> list[str]:
    rows = small.trained(factory) / "rows.csv"
    begun = [*small.KEYS, "data=csv", f"data.path={rows}", f"model.init_from={source}", "train.quantize=int8"]
    return [*begun, "optimizer.lr=0.01", "checkpoint.every=5", *more]


@pytest.fixture(scope="module")
def run(source, tmp_path_factory) -> Path:
    bigctl.train(keys(source, tmp_path_factory, "train.steps=10"), source.with_name("tuned"), quiet=True)
    return source.with_name("tuned")


def test_the_run_answers_with_rounded_weights_whoever_is_in_the_batch(run):
    trained = bigctl.load(str(run))
    plain = flatten(trained.params)
    rounded = flatten(rounded_weights(trained.params))
    assert {name for name in plain if not np.array_equal(plain[name], rounded[name])} == {
        name for name in plain if name.endswith("kernel")
    }
    inputs = np.asarray(trained.data().splits["validation"]["inputs"])
    alone = np.concatenate([trained.predict(inputs[n : n + 1]) for n in range(3)])
    assert np.array_equal(trained.predict(inputs)[:3], alone)
    other = trained.with_params(rounded_weights(trained.params))  # rounding once more changes nothing
    np.testing.assert_allclose(other.predict(inputs), trained.predict(inputs), atol=1e-6)


def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(source, run, tmp_path, tmp_path_factory):
    for steps in (5, 10):
        bigctl.train(keys(source, tmp_path_factory, f"train.steps={steps}"), tmp_path / "half", quiet=True)
    whole, found = (flatten(bigctl.load(str(each), step="last").params) for each in (run, tmp_path / "half"))
    assert all(np.array_equal(whole[name], found[name]) for name in whole)
    begun = flatten(bigctl.load(str(source)).params)
    assert all(not np.array_equal(begun[name], whole[name]) for name in whole)


def test_its_export_has_the_integers_that_it_was_trained_with(run, tmp_path, capsys, monkeypatch, caplog):
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from bigctl.inference.exporters import onnx_model

    asked = ["export", str(run), "--format", "onnx"]
    assert main([*asked, "--int8", "--out", str(tmp_path / "small"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rounded"]["trained_for"]
    assert said["products"] == 2 and said["agreement"] > 0.9 and abs(said["after_score"] - said["before_score"]) < 0.1
    assert "the integers of 2 products are those trained with" in (tmp_path / "small" / "README.md").read_text()
    assert main([*asked, "--out", str(tmp_path / "wide")]) == 0
    assert "float32, without the rounding of train.quantize" in capsys.readouterr().out
    assert "--int8 writes what it was tuned for" in caplog.text
    monkeypatch.setattr(onnx_model, "rounded_weights", lambda weights: {name: 2 * w for name, w in weights.items()})
    assert main([*asked, "--int8", "--out", str(tmp_path / "off")]) != 0
    assert "are not those that train.quantize=int8 trained with" in capsys.readouterr().err
    assert not (tmp_path / "off").exists()


def test_a_weight_halfway_between_two_integers_may_go_either_way():
    """As a few of a million do, for XLA divides otherwise than numpy."""
    pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from bigctl.inference.exporters.onnx_model import off_beyond_ties

    weights = np.array([[64, 6.4], [39.499996, 3.1], [-2.5, 0]], np.float32)
    trained = np.array([[64, 6.4], [40, 3.1], [-2, 0]], np.float32)
    for place, value, off in (((1, 0), 39, False), ((2, 0), -3, False), ((0, 0), 63, True), ((1, 1), 3.2, True)):
        written = trained.copy()
        written[place] = value
        assert (off_beyond_ties(weights, trained, written) > 1e-4) == off, place
    assert off_beyond_ties(weights, trained, trained.T) == np.inf


def test_what_cannot_be_is_refused_in_a_line(run, capsys):
    assert main(["compress", str(run), "method=int4"]) == 2
    assert "was fine-tuned for its export in int8" in capsys.readouterr().err
    for more, said in {
        ("recipe=mlp_cls",): "model.init_from names none",
        ("recipe=cnn_cls", "model.init_from=x"): "the export leaves those of model=cnn as they are",
        ("recipe=bert_cls", "model.lora.rank=4"): "model.lora adds to them",
        ("recipe=mlp_cls", "train.quantize=int4"): "int8",
    }.items():
        assert main(["train", "train.quantize=int8", *more, "--dry-run"]) == 2
        assert said in capsys.readouterr().err
