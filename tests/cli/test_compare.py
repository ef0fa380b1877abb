"""`bigctl compare` on real runs: what the table shows, and how it ends in CI."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from bigctl.cli import main

TINY = (
    "recipe=mlp_cls", "data=breast_cancer", "train.steps=20", "train.log_every=5", "eval.every=10",
    "train.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, the same again, and one of another learning rate."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder), contextlib.redirect_stdout(None):
        for name, more in (("one", []), ("two", []), ("fast", ["optimizer.lr=0.003"])):
            assert main.main(["train", *TINY, *more, "--name", name, "--quiet"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def compare(*arguments: str, code: int = 0) -> None:
    assert main.main(["compare", *arguments]) == code


def test_the_same_command_twice_is_equal_to_the_bit(capsys: pytest.CaptureFixture[str]) -> None:
    compare("one", "two", "--assert-equal")
    out, err = capsys.readouterr()
    assert "two equals one" in out and "configuration: no difference" in out and err == ""


def test_another_learning_rate_is_the_one_key_and_its_first_differences_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    compare("one", "runs/fast", "--assert-equal", code=1)
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["optimizer.lr"] == ["0.001", "0.003"] and "optimizer.weight_decay" not in rows
    one, fast = (json.loads(Path(f"runs/{name}/summary.json").read_text())["metrics"] for name in ("one", "fast"))
    assert rows["val/loss"][:2] == [f"{one['val/loss']:.4f}", f"{fast['val/loss']:.4f}"]
    assert rows["val/loss"][2] == f"({fast['val/loss'] - one['val/loss']:+.2g})" and rows["status"] == ["complete"] * 2
    assert "runs/fast differs from runs/one" in err and "train/loss at step 5: " in err and "more; --json" in err


def test_tolerance_decides_and_can_be_that_of_one_metric() -> None:
    compare("one", "fast", "--tolerance", "1e-5", code=1)
    compare("one", "fast", "--tolerance", "1", "--metrics", "train/loss")
    compare("one", "fast", "--tolerance", "val/loss=1e-3", "--tolerance", "2", "--metrics", "*/loss", code=1)


def test_json_is_one_object_with_values_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    compare("one", "two", "fast", "--json")
    plain = json.loads(capsys.readouterr().out)
    assert plain["equal"] is None and plain["config"] == {"optimizer.lr": [0.001, 0.001, 0.003]}
    assert [run["final"] for run in plain["runs"]] == [True] * 3 and len(plain["metrics"]["test/accuracy"]) == 3
    compare("one", "two", "fast", "--assert-equal", "--json", code=1)
    judged = json.loads(capsys.readouterr().out)
    verdicts = {path: all(each["equal"] for each in found) for path, found in judged["comparisons"].items()}
    assert verdicts == {"runs/two": True, "runs/fast": False} and judged["equal"] is False


def test_all_shows_equal_keys_too_and_unfinished_runs_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = Path(shutil.copytree("runs/two", tmp_path / "killed"))
    record = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (killed / "summary.json").unlink()
    with (killed / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3')
    compare("one", str(killed), "--all", "--metrics", "val/*")
    out = capsys.readouterr().out
    assert "train.steps" in out and "train/loss" not in out and " * (=)" in out
    assert "* killed is partial, evaluated last at step 20" in out and "damaged lines left out" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one"], "takes two runs or more"),
        (["one", "runs/one"], "is named twice"),
        (["one", "tow"], "did you mean two"),
        (["one", "two", "--metrics", "val/acuracy"], "did you mean val/accuracy"),
        (["one", "two", "--tolerance", "test/los=1"], "did you mean test/loss"),
        (["one", "two", "--tolerance", "low"], "is no tolerance"),
    ],
)
def test_bad_input_ends_with_a_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(*arguments, code=2)
    assert said in capsys.readouterr().err


def test_a_sweeps_folder_is_told_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ledger.jsonl").touch()
    compare("one", str(tmp_path), code=2)
    assert "is a sweep, not a run" in capsys.readouterr().err


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs", tmp_path / "runs")
    with contextlib.chdir(tmp_path):
        Path("runs/two/config.yaml").write_text("x: [")
        compare("one", "two", "fast")
        out = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
        assert rows["optimizer.lr"] == ["0.001", "unreadable", "0.003"] and "note: runs/two/config.yaml" in out
        compare("one", "two")
        assert "configuration: not compared, that of two cannot be read" in capsys.readouterr().out
        Path("runs/two/run.json").write_text("{")
        compare("one", "two", "fast")
        out = capsys.readouterr().out
        assert "complete  unreadable  complete" in out and "note: runs/two/run.json: cannot be read" in out
        compare("one", "two", code=2)
        compare("one", "two", "fast", "--assert-equal", code=2)
