"""`bigctl verify` on a run that is well and on runs that are damaged in one place each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigctl.cli.main import main
from bigctl.runs import manifest
from tests.conftest import Cli

OVERRIDES = ("recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.steps=20", "checkpoint.every=10",
             "eval.every=10", "train.log_every=5", "train.tensorboard=false")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run, which the tests copy."""
    folder = tmp_path_factory.mktemp("trained")
    Cli(folder)("train", *OVERRIDES, "--name", "tiny", "--quiet")
    return folder / "runs" / "tiny"


@pytest.fixture
def tiny(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs" / "tiny"))


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command in this process; gives its exit code and its output."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["verify", *arguments])
        return code, capsys.readouterr().out

    return run


def test_a_run_as_it_was_written_is_well(tiny: Path, verify: Any) -> None:
    code, out = verify("tiny", "--deep")
    assert code == 0 and out.startswith("runs/tiny: all is well\n")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["10", "20"] and "arrays loaded" in out
    code, out = verify("tiny", str(tiny), "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and [len(run["checkpoints"]) for run in found["runs"]] == [2, 2]


def _spoil(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "run.json": lambda path: path.unlink(),
    "config.yaml": lambda path: path.write_text("recipe: [\n"),
    "metrics.jsonl": lambda path: path.write_text(path.read_text().replace('"step": 5,', '"step": NaN,')),
    "summary.json": lambda path: path.write_text('{"schema": 1'),
    "checkpoints/000000010/meta.json": _spoil,
    "checkpoints/000000020/state/_METADATA": _spoil,
    "checkpoints/000000020/manifest-0.json": lambda path: path.unlink(),
    "checkpoints/000000020/state/stranger": lambda path: path.write_text("?"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(tiny: Path, verify: Any, name: str) -> None:
    DAMAGE[name](tiny / name)
    code, out = verify("tiny")
    assert code == 1 and f"DAMAGED runs/tiny/{name}" in out and "damaged in 1 place\n" in out


def test_lines_of_metrics_out_of_order_are_damage(tiny: Path, verify: Any) -> None:
    lines = (tiny / "metrics.jsonl").read_text().splitlines()
    (tiny / "metrics.jsonl").write_text("\n".join([lines[-1], *lines[:-1]]) + "\n")
    code, out = verify("tiny")
    assert code == 1 and "metrics.jsonl line 2 is of step 5, after step 20" in out


def test_what_a_killed_run_leaves_behind_is_noted_and_no_damage(tiny: Path, verify: Any) -> None:
    record = json.loads((tiny / "run.json").read_text())
    (tiny / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (tiny / "summary.json").unlink()
    (tiny / "metrics.jsonl").write_text((tiny / "metrics.jsonl").read_text() + '{"step": 2')
    manifest.begin(tiny / "checkpoints" / "000000030")
    (tiny / "checkpoints" / "000000020" / "notes.txt").write_text("the good one")
    code, out = verify("tiny")
    assert code == 0
    for note in ("half a line", "000000030 is a save under way, or cut off", "notes.txt does not belong"):
        assert note in out


def test_verifying_needs_no_jax(tiny: Path) -> None:
    script = "import sys; from bigctl.cli.main import main; sys.exit(main(['verify', 'tiny']) or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=tiny.parents[1], capture_output=True).returncode == 0


def test_no_such_run_is_exit_code_2(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "tinyy"]) == 2 and "tiny" in capsys.readouterr().err
