"""Promises of `compress method=int8 ranges=`: convolutions compute in integers with calibrated ranges, every layer is
counted, and the export is the file that was scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference.compression.method import Method
from bigctl.runs.removal import strangers

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = [pytest.mark.usefixtures("briefly"), pytest.mark.fewer]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    keys = ["recipe=cnn_cls", "data=digits", "model.channels=[8,8]", "model.hidden=[16]", "train.steps=40"]
    keys += ["train.batch_size=64", "optimizer.lr=0.01", "train.tensorboard=false", "recipe.augment.flip=none"]
    folder = tmp_path_factory.mktemp("static") / "cnn"
    bigctl.train(keys, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def made(run) -> Path:
    asked = ["method=int8", "ranges=percentile", "calibration=64"]
    assert main(["compress", str(run), *asked, "--run-dir", str(run.with_name("made")), "--json"]) == 0
    return run.with_name("made")


def test_every_layer_computes_in_integers_and_the_table_is_of_onnxruntime(run, made):
    table = json.loads((made / "summary.json").read_text())["compression"]
    assert table["static"]["layers"] == {"Conv": 2, "Gemm": 2} and table["ranges"] == "percentile"
    assert table["runtime"].startswith("onnxruntime") and {each["batch"] for each in table["times"]} == {1, 64}
    assert table["before_score"] > 0.5 and abs(table["after_score"] - table["before_score"]) < 0.05
    model = onnx.load(made / "int8.onnx")
    integers = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.INT8]
    big = [each for each in integers if np.prod(each.dims) > 16]
    assert len(big) == 4
    assert max(np.abs(onnx.numpy_helper.to_array(each)).max() for each in big) <= 64
    floats = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(each.dims, initial=1) for each in floats) <= 16  # scales and the like
    assert not [*strangers(made)] and bigctl.load(str(made)).evaluate("validation")["val/accuracy"] > 0.5


def test_the_export_is_the_file_that_was_scored_and_a_changed_one_is_refused(made, tmp_path, capsys):
    asked = ["export", str(made), "--format", "onnx", "--int8", "--out"]
    assert main([*asked, str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rounded"]
    assert said["layers"] == {"Conv": 2, "Gemm": 2} and said["agreement"] > 0.95
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (made / "int8.onnx").read_bytes()
    whole = (made / "int8.onnx").read_bytes()
    (made / "int8.onnx").write_bytes(whole[:-100])
    assert main([*asked, str(tmp_path / "cut")]) != 0
    (made / "int8.onnx").write_bytes(whole)
    assert "int8.onnx: is not what was written here" in capsys.readouterr().err
    assert not (tmp_path / "cut").exists()


def test_rows_of_a_file_are_taken_and_others_refused_by_their_shape(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    wrong = {
        "shape.npy": rng.integers(0, 256, (9, 7, 8, 1), np.uint8), "type.npy": rng.normal(size=(9, 8, 8, 1)),
        "none.npy": np.zeros((0, 8, 8, 1), np.uint8),
    }  # fmt: skip
    said = {"cut.npy": "is no .npy file of numbers", "gone.npy": "cannot be read: No such file"}
    said |= {
        "shape.npy": "holds uint8 [9, 7, 8, 1], the model takes uint8 [rows, 8, 8, 1]",
        "none.npy": "holds no rows",
    }
    for name, values in wrong.items():
        np.save(tmp_path / name, values)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "shape.npy").read_bytes()[:60])
    asked = ["compress", str(run), "method=int8", "ranges=minmax", "--run-dir", str(tmp_path / "new")]
    for name in (*wrong, "cut.npy", "gone.npy"):
        assert main([*asked, f"data={tmp_path / name}"]) == 2
        text = capsys.readouterr().err
        assert name in text and said.get(name, "") in text and "Traceback" not in text
    assert not (tmp_path / "new").exists()
    np.save(tmp_path / "right.npy", rng.integers(0, 256, (9, 8, 8, 1), np.uint8))
    assert main([*asked, f"data={tmp_path / 'right.npy'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 9


def test_ranges_are_of_int8_and_of_one_run():
    for settings, said in {
        ("method=int8", "ranges=widest"): "there is no ranges 'widest'",
        ("method=int8", "calibration=64"): "no ranges= is given",
        ("method=int4", "ranges=minmax"): "is no key of method=int4",
    }.items():
        with pytest.raises(ConfigError, match=said):
            Method.parse(settings)
    with pytest.raises(ConfigError, match="no key of --pareto"):
        Method.several(["method=int8", "ranges=minmax"])
