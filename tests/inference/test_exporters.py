"""Promises of `bigctl export`: an artefact computes what the run does, by itself, or is not written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError, RunError
from bigctl.inference.confidence import Confidence
from bigctl.inference.exporters import agreement, formats, network, stablehlo
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from bigctl.runs.removal import strangers
from tests import small

TEXTS = ["a fine film", "dull and long", "fine, and fine again", "a long bore of a film that nobody wants to see"]
ALONE = Path(__file__).with_name("alone.py")


def run_py(folder: Path, *arguments: str, code: int = 0) -> str:
    """What the script of an artefact prints, in a process that can import what it says it needs alone."""
    command = [sys.executable, str(ALONE), str(folder / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout if not code else done.stderr


@pytest.fixture(params=["jax", "onnx"])
def kind(request) -> str:
    """A format whose artefact runs by itself."""
    for package in formats.FORMATS[request.param].packages:
        pytest.importorskip(package)
    return request.param


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A folder with `rows.csv`, a run on it, and its export."""
    folder = tmp_path_factory.mktemp("table")
    shutil.copytree(small.trained(tmp_path_factory) / "runs" / "small", folder / "run")
    small.write(folder / "rows.csv", small.columns())
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["export", str(folder / "run"), "--format", "jax"]) == 0
    assert f"bigctl predict {folder / 'run' / 'jax'} FILE.csv" in said.getvalue()
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> TrainedRun:
    """A run on texts whose labels have a slash in them."""
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "texts.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(
            (f"{text} {i}", ("good/very", "../bad")[n % 2]) for i in range(20) for n, text in enumerate(TEXTS)
        )
    keys = ["recipe=lstm_cls", "data=csv", f"data.path={folder / 'texts.csv'}", "data.text=text", "data.label=label"]
    keys += ["model.embedding=8", "model.hidden=8", "train.steps=6", "recipe.tokenizer.max_length=40"]
    keys += [
        "recipe.tokenizer.size=80",
        "train.batch_size=16",
        "recipe.bucketing.shapes=2",
        "train.tensorboard=false",
    ]
    bigctl.train(keys, folder / "run", quiet=True)
    return bigctl.load(str(folder / "run"))


def test_a_table_model_answers_without_us_as_the_run_does(table, tmp_path, kind):
    trained = bigctl.load(str(table / "run"))
    trained = trained.with_confidence(Confidence("", trained.step, temperature=1.7))
    formats.exporter(kind).write(trained, tmp_path / "out")
    expected = [*trained.predict_files([table / "rows.csv"])]
    lines = [line.split("\t") for line in run_py(tmp_path / "out", str(table / "rows.csv")).splitlines()]
    assert [label for label, _ in lines] == [record["label"] for record in expected]
    np.testing.assert_allclose([float(p) for _, p in lines], [r["probability"] for r in expected], atol=1e-4)


def test_a_text_model_answers_without_us_whatever_its_labels_are_called(texts, tmp_path, kind):
    folder = tmp_path / "out"
    formats.exporter(kind).write(texts, folder)
    lines = [line.split("\t") for line in run_py(folder, *TEXTS).splitlines()]
    expected = texts.describe(TEXTS)
    assert {label for label, _ in lines} <= {"good/very", "../bad"} and len(lines) == len(TEXTS)
    for (label, probability), record in zip(lines, expected, strict=True):
        assert label == record["label"] and abs(float(probability) - record["probability"]) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    lay = str(texts.run.path.parent)
    assert (
        lay in texts.run.read_config()
        and "path: texts.csv" in json.loads((folder / "bigctl.json").read_text())["config"]
    )
    assert not [file.name for file in folder.iterdir() if lay.encode() in file.read_bytes()], "whoever is given it"


def test_an_artefact_takes_any_batch_and_any_length_up_to_the_longest(texts, tmp_path):
    stablehlo.write(texts, tmp_path / "out")
    network, loaded = Network.of(texts), stablehlo.Loaded(tmp_path / "out")
    assert len({batch["inputs"].shape for batch in network.batches}) >= 2
    batch = network.batches[0]
    one = {name: values[:1] for name, values in batch.items()}
    longer = {**one, "inputs": np.pad(one["inputs"], ((0, 0), (0, 40 - one["inputs"].shape[1])))}
    np.testing.assert_allclose(loaded(longer)["logits"], loaded(one)["logits"], atol=1e-5)
    with pytest.raises(ValueError):
        loaded({**one, "inputs": np.zeros((1, 41), np.int32)})


def test_the_folder_says_what_it_is_and_holds_nothing_of_others(table):
    folder = table / "run" / "jax"
    card = (folder / "README.md").read_text()
    for said in ("bigctl train", "recipe=mlp_cls", "test/accuracy", "sha256", "validation rows", "random numbers"):
        assert said in card
    assert json.loads((folder / "labels.json").read_text())["names"] == ["large", "small"]
    assert not [*strangers(table / "run")]


@pytest.mark.parametrize("name", ["model.jax", "labels.json"])
def test_an_artefact_that_is_cut_short_is_refused_in_one_line(table, tmp_path, name):
    folder = shutil.copytree(table / "run" / "jax", tmp_path / "out")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    said = run_py(folder, str(table / "rows.csv"), code=1)
    assert said.strip().splitlines() == [f"{folder / name}: is damaged, cut short or missing; copy the folder again"]


def test_its_script_says_in_a_line_what_is_wrong_with_a_file(table, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    gone = tmp_path / "gone.csv"
    said = [run_py(table / "run" / "jax", str(file), code=1) for file in (tmp_path / "other.csv", gone)]
    assert said[0].strip().splitlines()[-1] == f"{tmp_path / 'other.csv'}: there is no column size, place"
    assert said[1].strip().splitlines()[-1] == f"run.py: [Errno 2] No such file or directory: '{gone}'"
    wrong, none = tmp_path / "wrong.csv", "size: {!r} is no finite number"
    for rows, what in (
        ("1.5,north\n\nfar,south\n", f"{wrong}:4: {none.format('far')}"),
        ("1e400,north\n", f"{wrong}:2: {none.format('1e400')}"),
        ("1_0,north\n", f"{wrong}:2: {none.format('1_0')}"),
        ("1.5\n", f"{wrong}:2: has not as many fields as the header"),
        ("1.5,north,more\n", f"{wrong}:2: has not as many fields as the header"),
        ("", f"{wrong}: there are no rows"),
    ):
        wrong.write_text(f"size,place\n{rows}")
        assert run_py(table / "run" / "jax", str(wrong), code=1).strip().splitlines()[-1] == what


def test_nothing_is_written_that_does_not_agree(table, tmp_path, monkeypatch):
    trained, honest = bigctl.load(str(table / "run")), stablehlo.Loaded.__call__

    def wrong(self, inputs):
        found = honest(self, inputs)
        return {**found, "logits": found["logits"] + 2e-3 * np.abs(found["logits"]).max()}

    monkeypatch.setattr(stablehlo.Loaded, "__call__", wrong)
    with pytest.raises(RunError, match=r"logits is off by 0\.002 of the largest.*nothing was written"):
        stablehlo.write(trained, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_agreement_is_a_matter_of_the_largest_value_and_of_clear_labels():
    logits = np.array([[10.0, -10.0], [0.5, 0.5001]])
    assert agreement.difference(logits, logits + 1e-3) == pytest.approx(1e-4)
    assert agreement.difference(logits, logits[:1]) == agreement.difference(logits, logits * np.nan) == np.inf
    assert not agreement.other_labels(logits, logits[:, ::-1] * [[-1, -1], [1, 1]])  # a tie may go either way
    assert agreement.other_labels(logits, logits[:, ::-1])


def test_without_the_runs_data_random_inputs_are_compared_and_it_is_said(table, tmp_path, caplog, monkeypatch):
    trained = bigctl.load(str(table / "run"))

    def gone(self):
        raise RunError("the data is not what the run was trained on")

    monkeypatch.setattr(TrainedRun, "data", gone)
    exported = stablehlo.write(trained, tmp_path / "out")
    assert (
        "random inputs" in exported.facts["checked"] and "random inputs" in (tmp_path / "out" / "README.md").read_text()
    )
    assert "the data is not what" in caplog.text


def test_what_cannot_be_exported_is_refused_in_one_line(table, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["export", str(table / "run"), "--format", "jax", "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(table / "run"), "--format", "jax", "--step", "7"]) == 2
    assert "there is no checkpoint 7" in capsys.readouterr().err  # though there is an export to give up for it
    assert main(["export", str(table / "run"), "--format", "tflite"]) == 2
    assert "tflite" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"'tflite' is no format \(one of: hf, jax"):
        formats.exporter("tflite")
    lacking = {**formats.FORMATS, "odd": formats.Format("nowhere", "", ("no_such_package",))}
    monkeypatch.setattr(formats, "FORMATS", lacking)
    with pytest.raises(ConfigError, match=r'no_such_package, which is not installed \(pip install "bigctl\[odd\]"\)'):
        formats.exporter("odd")


def test_a_difference_is_an_error_that_names_the_operation_where_it_begins(table, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from bigctl.inference.exporters import onnx_model
    from bigctl.interop.onnx import convert, elementwise

    monkeypatch.setitem(convert.TABLE, "max", elementwise.plain("Min"))
    said = r"model\.onnx: does not compute.*it begins at `max` in bigctl/models/mlp\.py:\d+.*nothing was written"
    with pytest.raises(RunError, match=said):
        onnx_model.write(bigctl.load(str(table / "run")), tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_a_model_for_batches_of_one_size_is_refused_by_its_line():
    inputs = network._symbolic(
        {"inputs": jax.ShapeDtypeStruct((32, 2, 3), np.float32)}, Features("image", (2, 3), None)
    )

    def flat(weights, inputs):
        return {"logits": inputs["inputs"].reshape(len(inputs["inputs"]), -1)}

    with pytest.raises(
        ConfigError, match=r"test_exporters\.py, line \d+: the size of a batch is no number here"
    ) as told:
        network._require_any_size(flat, {}, inputs)
    assert "x.shape[0] in place of len(x)" in str(told.value.hint)
    network._require_any_size(
        lambda _, given: {"logits": given["inputs"].reshape(given["inputs"].shape[0], -1)}, {}, inputs
    )


@pytest.mark.parametrize(("length", "rows"), [(16, 32), (64, 21), (8192, 1)])
def test_long_texts_over_many_tokens_are_compared_in_fewer_rows(length, rows):
    longest = {"inputs": jax.ShapeDtypeStruct((32, length), np.int32)}

    def logits(weights, inputs):
        return {"logits": jax.numpy.zeros((*inputs["inputs"].shape, 49152))}

    assert network._rows(logits, {}, longest) == rows
