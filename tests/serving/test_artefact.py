"""A folder that `bigctl export` wrote is served like the run that it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigctl.errors import RunError
from bigctl.files import sha256
from bigctl.inference import artefact
from bigctl.inference.exporters.formats import exporter
from bigctl.inference.exporters.settings_file import KEPT, SUMS
from bigctl.inference.trained import TrainedRun
from bigctl.serving.predicting import Asked, Predicting
from tests import small, topics
from tests.conftest import Cli

pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer
ROWS = [{"size": 0.4, "place": "north"}, {"size": 1.1, "place": "south"}, {"size": None, "place": "mars"}]
TEXTS = ["soup under the moon", "salt and butter", "thunder " * 30]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run on a table, with a threshold that it seldom reaches."""
    return TrainedRun.load(str(small.trained(tmp_path_factory) / "runs" / "small")).with_threshold(0.95)


@pytest.fixture(scope="module")
def exported(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "small-jax"
    exporter("jax").write(run, folder)
    return folder


def answers(model: Any, asked: list[Any]) -> Any:
    (found,) = Predicting("model", model).answer([Asked(asked)])
    return found


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Equal, but for the last digit of probabilities: another runtime adds up in another order."""
    for one, other in zip(found, expected, strict=True):
        numbers, others = one.pop("probabilities"), other.pop("probabilities")
        assert numbers == pytest.approx(others, abs=2e-6) and numbers.keys() == others.keys()
        assert one.pop("probability") == pytest.approx(other.pop("probability"), abs=2e-6)
    return found == expected


def test_records_of_a_table_are_those_of_the_run_with_its_threshold(run: TrainedRun, exported: Path) -> None:
    model, expected = artefact.labelling(exported), answers(run, ROWS)
    plain = answers(run.with_threshold(None), ROWS)
    assert [each["label"] for each in plain] != [each["label"] for each in expected]
    served = Predicting("model", model)
    served.warm_up()
    assert same(answers(model, ROWS), expected)
    assert served.describe()["columns"] == ["size", "place"] and not served.embeds
    wrong = answers(model, [{"size": 1.0, "plaice": "north"}])
    assert isinstance(wrong, Exception) and "place" in str(wrong)


def test_onnx_gives_the_records_of_the_run(run: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    exporter("onnx").write(run, tmp_path / "small")
    assert same(answers(artefact.labelling(tmp_path / "small"), ROWS), answers(run, ROWS))


@pytest.mark.slow
def test_records_of_texts_are_those_of_the_run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    trained = TrainedRun.load(str(topics.trained(tmp_path_factory).folder / "runs" / "topics"))
    exporter("onnx").write(trained, tmp_path / "topics")
    found = answers(artefact.labelling(tmp_path / "topics"), TEXTS)
    assert found[2]["cut"] and same(found, answers(trained, TEXTS))


@pytest.mark.parametrize("name", ["model.jax", "weights.npz", KEPT])
def test_an_export_that_is_cut_short_is_refused_by_name(exported: Path, tmp_path: Path, bigctl: Cli, name: str) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(exported, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    if name == "model.jax":
        said = bigctl("serve", str(folder), "--port", "0", code=2).stderr
        assert f"{name}: is damaged, cut short or missing" in said and "Traceback" not in said
    with pytest.raises(RunError, match="is damaged, cut short or missing"):
        artefact.labelling(folder)


def test_an_export_that_is_not_for_serving_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "older"
    shutil.copytree(exported, folder)
    (folder / KEPT).unlink()
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if KEPT not in line))
    with pytest.raises(RunError, match="older bigctl"):
        artefact.labelling(folder)


def test_an_export_without_its_model_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(exported, folder)
    (folder / "model.jax").unlink()
    lines = (folder / SUMS).read_text().splitlines(keepends=True)
    (folder / SUMS).write_text("".join(line for line in lines if "model.jax" not in line))
    with pytest.raises(RunError, match="holds no model"):
        artefact.labelling(folder)


def test_settings_that_were_tampered_with_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tampered"
    shutil.copytree(exported, folder)
    kept = json.loads((folder / KEPT).read_text())
    for wrong in ({**kept, "features": {"kind": "table"}}, {**kept, "config": 3}, {}):
        (folder / KEPT).write_text(json.dumps(wrong))
        digests = {line.split("  ")[1].strip(): line for line in (folder / SUMS).read_text().splitlines(keepends=True)}
        digests[KEPT] = f"{sha256(folder / KEPT)}  {KEPT}\n"
        (folder / SUMS).write_text("".join(digests.values()))
        with pytest.raises(RunError, match="is not as bigctl writes it"):
            artefact.labelling(folder)
