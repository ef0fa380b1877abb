"""`bigctl new project DIR` lays out a folder that works at once, and touches nothing that is there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import bigctl
from bigctl.cli.main import main
from tests.test_extending import run

pytestmark = pytest.mark.fewer
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_says_what_it_wrote_and_writes_nothing_else(capsys: Capture) -> None:
    assert main(["new", "project", "My-Rings 2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["files"]) == sorted(str(path) for path in Path("My-Rings 2").rglob("*") if path.is_file())
    assert {Path(file).name for file in said["files"]} >= {
        "my_rings_2.py", "my_rings_2.csv", "my_rings_2.yaml", "train.yml", "README.md", ".gitignore",
    }  # fmt: skip
    assert said["commands"][0] == "cd 'My-Rings 2'" and "experiment=my_rings_2" in said["commands"][1]


def test_its_experiment_composes_and_its_workflow_goes_on_with_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["new", "project", "circles_one"]) == 0
    monkeypatch.chdir("circles_one")
    monkeypatch.syspath_prepend(".")
    config = bigctl.compose(["experiment=circles_one"], plugins=["circles_one"], config_dirs=["presets"])
    assert (config.model.kind, config.data.kind, config.train.epochs) == ("circles_one", "csv", 30)
    assert config.data.path == "data/circles_one.csv" and len(Path(config.data.path).read_text().splitlines()) == 301
    workflow = yaml.safe_load(Path(".github/workflows/train.yml").read_text())
    assert workflow["env"]["EXPERIMENT"].startswith("experiment=circles_one --plugin circles_one --config-dir presets")
    steps = workflow["jobs"]["train"]["steps"]
    train = next(step["run"] for step in steps if step.get("name") == "Train for a slice of time")
    assert "bigctl train $EXPERIMENT" in train and "${{ matrix.slice }}" in train
    kept = [step["with"]["key"] for step in steps if "cache" in step.get("uses", "")]
    assert len(kept) == 2 and kept[0] == kept[1]


def test_a_folder_that_is_not_empty_stays_as_it_is(capsys: Capture) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    Path("file").write_text("keep me too")
    assert main(["new", "project", "mine"]) == 2 and "mine: is not empty" in capsys.readouterr().err
    assert main(["new", "project", "file"]) == 2 and "file: is a file" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"] and Path("file").read_text() == "keep me too"
    Path("empty").mkdir()
    assert main(["new", "project", "empty"]) == 0 and Path("empty/README.md").is_file()


@pytest.mark.parametrize("name", ["json", "class", "cnn", "csv", "1st", "..."])
def test_a_name_that_cannot_be_is_refused(name: str, capsys: Capture) -> None:
    assert main(["new", "project", f"new/{name}"]) == 2 and not Path("new").exists()
    assert "NAME: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_commands_of_its_readme_work(tmp_path: Path) -> None:
    assert main(["new", "project", "rings"]) == 0
    block = re.search(r"```\n(.*?)```", Path("rings/README.md").read_text(), flags=re.S)
    assert block is not None
    commands = [line for line in block[1].splitlines() if line.startswith("bigctl ")]
    assert len(commands) == 5
    said = [run(tmp_path / "rings", command).stdout for command in commands]
    assert "bigctl eval runs/first --plugin rings" in "".join(said)
    score = json.loads(Path("rings/runs/first/summary.json").read_text())["metrics"]["val/accuracy"]
    assert score >= 0.8 and len(Path("rings/predictions.csv").read_text().splitlines()) == 6
    tested = next(line for line in block[1].splitlines() if line.startswith("python -m pytest"))
    words = [sys.executable, *shlex.split(tested)[1:], "-p", "no:cacheprovider"]
    passed = subprocess.run(words, cwd="rings", capture_output=True, text=True)
    assert passed.returncode == 0, passed.stdout
