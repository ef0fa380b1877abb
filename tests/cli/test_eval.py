"""`bigctl eval` scores a split and lists what the model got most wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests import topics
from tests.conftest import Cli


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return topics.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def report(command: Cli) -> dict[str, Any]:
    return command.json("eval", "topics", "--errors", "100")


def test_score_is_that_of_the_run(command: Cli, report: dict[str, Any]) -> None:
    found = report["metrics"]
    out = (command.folder / "topics.out").read_text(encoding="utf-8")
    for name in ("accuracy", "loss", "roc_auc", "binary_precision"):
        assert f"{found[f'test/{name}']:.4f}" in next(line for line in out.splitlines() if f"test/{name} " in line)


def test_worst_errors_are_wrong_ones_by_loss(command: Cli, report: dict[str, Any]) -> None:
    errors, confusion = report["errors"], report["confusion"]
    assert len(errors) == confusion[0][1] + confusion[1][0] > 1
    losses = [error["loss"] for error in errors]
    assert losses == sorted(losses, reverse=True)
    truth = dict(topics.rows())
    for error in errors:
        assert truth[error["text"]] == error["label"] != error["predicted"]
        # of two classes, the one that the loss is the negative logarithm of has the rest
        assert error["probability"] == pytest.approx(1 - math.exp(-error["loss"]), abs=1e-3)
    assert command.json("eval", "topics", "--errors", "1")["errors"] == errors[:1]


def test_errors_fit_the_terminal(command: Cli, report: dict[str, Any]) -> None:
    worst = report["errors"][0]
    out = command("eval", "topics", env={"COLUMNS": "70"}).stdout
    lines = out.split("worst errors")[1].splitlines()[1:]
    assert f"{worst['label']} -> {worst['predicted']}" in lines[0] and worst["text"][:12] in lines[0]
    assert all(len(line) <= 70 for line in lines)
    assert "worst errors" not in command("eval", "topics", "--errors", "0").stdout


def test_metrics_stand_below_each_other(command: Cli) -> None:
    for out in (command("eval", "topics").stdout, (command.folder / "topics.out").read_text(encoding="utf-8")):
        lines = [line for line in out.splitlines() if line.startswith(("  test/", "  val/"))]
        assert any("binary_precision" in line for line in lines)
        assert len({line.rindex(" ") for line in lines}) == 1


def test_trained_run_says_how_to_label_texts(command: Cli) -> None:
    out = (command.folder / "topics.out").read_text(encoding="utf-8")
    assert 'bigctl predict runs/topics --text "..."' in out.split("next:")[1]
    again = command("train", *topics.RECIPE, *topics.DATA, *topics.MODEL, *topics.LENGTH, "--name", "topics").stdout
    assert "is complete" in again and 'bigctl predict runs/topics --text "..."' in again


def test_errors_of_images_are_rows(bigctl: Cli) -> None:
    short = ["train.steps=3", "train.tensorboard=false", "model.channels=[4]", "--name", "c"]
    bigctl("train", "recipe=cnn_cls", "data=digits", *short)
    report = bigctl.json("eval", "c", "--errors", "3")
    assert len(report["errors"]) == 3 and all("text" not in error for error in report["errors"])
    assert f"row {report['errors'][0]['row']}" in bigctl("eval", "c").stdout
    assert "is no count" in bigctl("eval", "c", "--errors", "-1", code=2).stderr
