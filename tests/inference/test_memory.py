"""Promise of the tables of `bigctl compress` and of rounded exports: memory is that of a process, and of the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.inference.exporters import beside, peak_memory
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from tests import small

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
WIDE = [2048, 2048]
WEIGHTS = 4 * 2048 * 2048


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 16 MiB."""
    folder = tmp_path_factory.mktemp("memory")
    small.write(folder / "rows.csv", small.columns())
    keys = ["recipe=mlp_cls", "data=csv", f"data.path={folder / 'rows.csv'}", "data.label=kind", "train.steps=2"]
    bigctl.train([*keys, f"model.hidden={WIDE}"], folder / "wide", quiet=True)
    return folder / "wide"


def test_memory_is_that_of_weights_and_of_what_is_computed(run: Path) -> None:
    network = Network.of(TrainedRun.load(str(run)))
    copy = network.copy(network.weights)
    one, many = (copy.peak_memory(beside._batch(network, rows)) for rows in (1, 4096))
    assert one is not None and many is not None
    assert WEIGHTS < one < 4 * WEIGHTS
    assert many > one + 4 * 4096 * 2048, "4,096 rows of 2,048 numbers more"


def test_integers_take_less_of_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    assert main(["export", str(run), "--format", "onnx", "--int8", "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rounded"]
    assert said["memory"]["batch"] == 64 and said["runtime"].startswith("onnxruntime")
    assert said["memory"]["after"] < said["memory"]["before"] - WEIGHTS / 2
    assert "of memory at most" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_same_program_is_measured_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network.of(TrainedRun.load(str(run)))
    first = network.copy(network.weights).peak_memory(beside._batch(network, 4))
    monkeypatch.setattr(peak_memory, "measured", lambda *_: pytest.fail("again"))
    halved = {name: np.asarray(values / 2) for name, values in network.weights.items()}
    assert network.copy(halved).peak_memory(beside._batch(network, 4)) == first is not None


def test_a_process_that_fails_and_a_full_disk_are_no_number() -> None:
    def write(folder: Path) -> None:
        (folder / peak_memory.ONNX).write_bytes(b"no model")

    def full(folder: Path) -> None:
        Path("/dev/full").write_bytes(bytes(1))

    assert peak_memory.measured(write, {"inputs": np.zeros(1)}) is None
    assert peak_memory.measured(full, {"inputs": np.zeros(1)}) is None
