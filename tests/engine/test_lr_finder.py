"""Promises of `bigctl train --find-lr`: it suggests where the loss falls fastest, in one program, and leaves no run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.cli.main import main
from bigctl.engine import lr_finder
from bigctl.errors import TrainingFailed
from tests import small

RATES = np.geomspace(lr_finder.LOW, lr_finder.HIGH, lr_finder.STEPS)
TRAIN = ["train", *small.KEYS, "data=csv", "data.path=rows.csv", "--quiet"]


# ---------------------------------------------------------------------------------------------------------- judgement


def curve(steepest: float, scatter: float = 0.01) -> list[float]:
    """A loss that falls from 2.3 to 0.3, fastest at one rate, and rises two powers of ten above."""
    away = np.log10(RATES / steepest)
    falls, rises = 2 / (1 + np.exp(4 * away)), np.exp(6 * (away - 2))
    return (0.3 + falls + rises + np.random.default_rng(0).normal(0, scatter, len(RATES))).tolist()


def until_it_diverges(losses: list[float]) -> lr_finder.Found:
    end = next((n for n in range(1, len(losses) + 1) if lr_finder.diverges(losses[:n])), None)
    return lr_finder.judge(RATES[: end or len(losses)].tolist(), losses[:end], end is not None)


@pytest.mark.parametrize("steepest", [1e-5, 1e-3, 3e-2])
@pytest.mark.parametrize("scatter", [0.0, 0.01, 0.1])
def test_the_rate_at_which_the_loss_falls_fastest_is_suggested(steepest: float, scatter: float) -> None:
    found = until_it_diverges(curve(steepest, scatter))
    assert found.suggestion == pytest.approx(steepest, rel=0.7)
    assert found.suggestion < found.lowest < (found.diverged or 0)
    assert found.diverged is not None and len(found.smoothed) == len(found.losses)


@pytest.mark.parametrize("losses", [[2.0] * 100, np.random.default_rng(1).normal(2, 0.1, 100).tolist()])
def test_a_loss_that_does_not_fall_gives_no_suggestion(losses: list[float]) -> None:
    assert until_it_diverges(losses).suggestion is None


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([math.nan], "not finite at the first step"),
        ([2.0, 2.0, math.inf], "diverges at a learning rate of 1.5e-07 already"),
    ],
)
def test_what_diverges_before_anything_can_be_told_is_an_error(losses: list[float], said: str) -> None:
    with pytest.raises(TrainingFailed, match=said):
        until_it_diverges(losses)


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("find-lr")
    small.write(folder / "rows.csv", small.columns())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_all_rates_are_tried_by_one_program_and_no_run_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Any] = []
    tried = lr_finder._tried
    monkeypatch.setattr(lr_finder, "_tried", lambda *given: built.append(given[0]) or tried(*given))
    assert main([*TRAIN, "schedule=cosine", "schedule.warmup=0.5", "--find-lr", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    programs = built[0].programs
    steps = (programs.step_sent, programs.step_resident, programs.steps_resident)
    assert sum(step._cache_size() for step in steps) == 1
    assert answer["override"] == f"optimizer.lr={answer['suggestion']:g}" and 1e-4 < answer["suggestion"] < 1
    assert answer["losses"][0] == pytest.approx(answer["losses"][3], rel=0.5) and min(answer["losses"]) < 0.5
    assert json.loads(Path(answer["folder"], "lr.json").read_text())["rates"] == answer["rates"]
    assert Path(answer["picture"]).read_bytes().startswith(b"\x89PNG")
    assert not Path("runs").exists() and {p.name for p in Path(answer["folder"]).iterdir()} == {"lr.json", "lr.png"}


def test_the_answer_is_a_line_with_the_override_and_the_command_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = until_it_diverges(curve(1e-3))
    monkeypatch.setattr(lr_finder, "find", lambda config: found)
    monkeypatch.setattr("bigctl.reports.png.missing", lambda: object())
    assert main([*TRAIN, "--find-lr", "--name", "mine"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"optimizer.lr={found.suggestion:g}: ") and "diverges at" in said[0]
    assert "pip install 'bigctl[report]'" in said[2] and "lr_finder/mine/lr.json" in said[2]
    assert said[-1].count("optimizer.lr=") == 1 and f"optimizer.lr={found.suggestion:g} --name mine" in said[-1]


def test_what_no_rate_improves_fails_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lr_finder, "find", lambda config: until_it_diverges([2.0] * 100))
    assert main([*TRAIN, "--find-lr"]) == 1
    assert "no learning rate from 1e-07 to 10 lowers the loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "must"], "--resume"),
        (["--dry-run"], "--dry-run"),
        (["--require", "val/accuracy>=0.5"], "--require"),
        (["train.overfit_one_batch=true"], "needs other batches than one"),
        (["--run-dir", "held"], "holds a run"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "held").mkdir(exist_ok=True)
    (folder / "held" / "run.json").write_text("{}")
    assert main([*TRAIN, "--find-lr", *words]) in (1, 2)
    assert said in capsys.readouterr().err
