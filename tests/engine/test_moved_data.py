"""Data that lies elsewhere than when a run began: it goes on there if it is the same, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bigctl.cli.main import main
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints

KEYS = ["train", "recipe=mlp_cls", "model.hidden=[4]", "data=csv", "data.label=y", "train.batch_size=8", "--quiet"]
KEYS += ["train.steps=4", "train.tensorboard=false", "schedule=constant"]
LONGER = ["train.steps=8", "--allow-drift", "train.steps", "--quiet"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/own of four steps on rows.csv, named by a relative path."""
    folder = tmp_path_factory.mktemp("begun")
    drawn = np.random.default_rng(0).random((60, 2))
    rows = [f"{a:.4f},{b:.4f},{'up' if a > b else 'down'}" for a, b in drawn]
    (folder / "rows.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*KEYS, "data.path=rows.csv", "--name", "own"]) == 0
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = Path(shutil.copytree(begun, tmp_path / "copy"))
    monkeypatch.chdir(found)
    return found


def state(run: str) -> dict[str, np.ndarray]:
    saved = Checkpoints(Path("runs", run, "checkpoints")).find(8)
    return read_arrays(saved.path, list(saved.meta["shapes"]))


def test_a_run_goes_on_where_its_data_is_now(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/own", "runs/stays")
    assert main(["resume", "runs/stays", *LONGER]) == 0
    Path("elsewhere").mkdir()
    Path("rows.csv").rename("elsewhere/moved.csv")
    before = Path("runs/own/config.yaml").read_text()
    assert main(["resume", "runs/own", *LONGER]) == 2
    said = capsys.readouterr().err
    assert "rows.csv: no such file" in said and "bigctl resume runs/own data.path=..." in said
    assert Path("runs/own/config.yaml").read_text() == before
    assert main(["resume", "runs/own", *LONGER, "data.path=elsewhere/moved.csv"]) == 0
    moved, stayed = state("own"), state("stays")
    assert moved.keys() == stayed.keys() and all((moved[name] == stayed[name]).all() for name in moved)


def test_a_complete_run_is_told_where_its_data_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder / "moved.csv"
    Path("rows.csv").rename(place)
    assert main(["eval", "own"]) == 2
    capsys.readouterr()
    assert main(["resume", "own", f"data.path={place}"]) == 0
    assert f"found there from now on (data.path: rows.csv -> {place})" in capsys.readouterr().err
    assert main(["eval", "own"]) == 0
    place.rename("again.csv")
    capsys.readouterr()
    assert main(["eval", "own"]) == 2  # an absolute path
    assert "bigctl resume runs/own data.path=..." in capsys.readouterr().err


def test_a_complete_run_keeps_what_it_was_trained_with(folder: Path) -> None:
    before = Path("runs/own/config.yaml").read_text()
    shutil.copy("rows.csv", "same.csv")
    changed = ["data.path=same.csv", "optimizer.lr=0.5", "--allow-drift", "optimizer.lr"]
    assert main(["resume", "own", *changed]) == 0
    assert Path("runs/own/config.yaml").read_text() == before


@pytest.mark.parametrize("more", [[], LONGER])
def test_other_data_is_refused(folder: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.csv").write_text(Path("rows.csv").read_text().replace("up", "above"))
    before = Path("runs/own/config.yaml").read_text()
    assert main(["resume", "own", "data.path=other.csv", *more]) == 2
    assert "the data is not what the run was started on" in capsys.readouterr().err
    assert Path("runs/own/config.yaml").read_text() == before
