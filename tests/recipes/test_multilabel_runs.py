"""Promises of runs with several classes an example: trained, scored, resumed and used by the command line."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as reference

import bigctl
from bigctl.cli.main import main
from bigctl.inference.exporters import formats

WORDS = {"sea": ("wave", "ship", "salt"), "war": ("sword", "army", "shield"), "love": ("heart", "kiss", "rose")}
TEXTS = ["data=csv", "data.path=tags.csv", "data.text=text", "data.labels=tags"]
SHORT = ["train.tensorboard=false", "schedule=constant", "eval.every=8", "checkpoint.every=8", "train.log_every=4"]
LSTM = ["recipe=lstm_cls", *TEXTS, "model.hidden=8", "model.embedding=8", "recipe.bucketing.shapes=1",
        "recipe.tokenizer.max_length=24", "train.batch_size=16", "optimizer.lr=2e-2", *SHORT]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of none to three topics, and pictures whose left or upper half is bright."""
    folder, rng = tmp_path_factory.mktemp("several"), random.Random(0)
    rows = ["text,tags"]
    for number in range(200):
        tags = [name for name in WORDS if rng.random() < 0.4]
        words = [rng.choice(WORDS[tag]) for tag in tags for _ in range(3)] + ["the", "of", f"n{number}"]
        rng.shuffle(words)
        rows.append(f"{' '.join(words)},{';'.join(tags)}")
    (folder / "tags.csv").write_text("\n".join(rows) + "\n")
    (folder / "pictures").mkdir()
    lines = []
    for number in range(120):
        tags = [name for name in ("left", "top") if rng.random() < 0.5]
        pixels = np.array([[rng.randrange(60) for _ in range(8)] for _ in range(8)], np.uint8)
        pixels[:, :4] += 120 * ("left" in tags)
        pixels[:4] += 70 * ("top" in tags)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "labels": tags}))
    (folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Any]:
    """The summary of an LSTM that has learnt the topics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return bigctl.train([*LSTM, "train.steps=64"], "runs/texts", quiet=True)


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in that folder; gives its stdout, or of one that must fail its stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.err if code else told.out

    return run


def validations(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def test_texts_are_learnt_and_scored_at_the_threshold_of_validation(
    folder: Path, command: Callable[..., str], trained: dict[str, Any]
) -> None:
    found = trained["metrics"]
    assert trained["selected_by"] == "val/f1" and trained["classes"] == ["love", "sea", "war"]
    assert found["test/threshold"] == found["val/threshold"] and found["test/f1"] > 0.8 and found["test/map"] > 0.8
    scored = json.loads(command("eval", "texts", "--errors", "3", "--json"))
    assert scored["metrics"] == {name: found[name] for name in scored["metrics"]} and scored["confusion"] is None
    assert all(isinstance(error["label"], list) and error["label"] != error["predicted"] for error in scored["errors"])
    shown = command("eval", "texts", "--split", "train")
    assert "train/macro_f1" in shown and "confusion" not in shown
    command("report", "texts")
    assert "love" in (folder / "runs" / "texts" / "report.html").read_text()


def test_test_metrics_are_those_of_scikit_learn_on_the_predictions(folder: Path, trained: dict[str, Any]) -> None:
    from bigctl.engine import resolve

    run = bigctl.load(str(folder / "runs" / "texts"))
    run.config.data.path = str(folder / "tags.csv")
    dataset = resolve.prepare_data(run.config, run.run.tokenizer)
    truth = np.asarray(dataset.splits["test"]["label"])
    probability = run.predict(list(dataset.texts["test"][0]))
    predicted = probability >= trained["metrics"]["val/threshold"]
    expected = {
        "f1": reference.f1_score(truth, predicted, average="micro"),
        "macro_f1": reference.f1_score(truth, predicted, average="macro"),
        "map": reference.average_precision_score(truth, probability, average="macro"),
    }
    assert {name: trained["metrics"][f"test/{name}"] for name in expected} == pytest.approx(expected)


def test_predictions_list_all_classes_above_the_threshold(command: Callable[..., str], trained: dict[str, Any]) -> None:
    texts = ["wave ship salt the sword army shield", "the of"]
    arguments = [word for text in texts for word in ("--text", text)]
    records = [json.loads(line) for line in command("predict", "texts", *arguments).splitlines()]
    assert set(records[0]["labels"]) == {"sea", "war"} and records[1]["labels"] == []
    for record in records:
        above = {name for name, p in record["probabilities"].items() if p >= trained["metrics"]["val/threshold"]}
        assert set(record["labels"]) == above and list(record["probabilities"]) == ["love", "sea", "war"]


def test_a_resumed_run_is_bit_equal(folder: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for steps in (8, 64):
        cut = bigctl.train([*LSTM, f"train.steps={steps}"], "runs/cut", quiet=True)
    assert cut["metrics"] == trained["metrics"] and cut["resumed_from"] == 8
    assert validations(folder / "runs" / "cut") == validations(folder / "runs" / "texts")


def test_a_preview_counts_each_class_and_the_examples_without_any(folder: Path, command: Callable[..., str]) -> None:
    facts = json.loads(command("data", *TEXTS, "--json"))
    rows = [line.rsplit(",", 1)[1] for line in (folder / "tags.csv").read_text().splitlines()[1:]]
    for number, name in enumerate(["love", "sea", "war"]):
        assert sum(part["classes"][number] for part in facts["splits"].values()) == sum(name in row for row in rows)
    assert sum(part["without_class"] for part in facts["splits"].values()) == rows.count("")
    assert "(none)" in command("data", *TEXTS)


def test_images_take_their_classes_from_a_file(folder: Path, command: Callable[..., str]) -> None:
    data = ["data=image_folder", "data.path=pictures", "data.labels_file=labels.jsonl"]
    small = ["model.channels=[4]", "model.hidden=[8]", "train.batch_size=16", "optimizer.lr=1e-2", "train.ema=0"]
    plain = ["recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0"]
    balanced = "recipe.class_weights=balanced"
    keys = ["recipe=cnn_cls", *data, *small, *plain, balanced, *SHORT, "train.steps=80", "eval.every=40"]
    summary = bigctl.train(keys, "runs/images", quiet=True)
    assert summary["classes"] == ["left", "top"] and summary["metrics"]["test/f1"] > 0.8
    record = json.loads(command("predict", "images", "pictures/0.png"))
    assert set(record["labels"]) <= {"left", "top"} and record["file"] == "pictures/0.png"
    command("data", *data, "--contact-sheet", "sheet.png")
    assert (folder / "sheet.png").stat().st_size


def test_images_of_several_classes_leave_as_a_folder_for_timm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else there(name))
    data = ["data=image_folder", "data.path=pictures", "data.labels_file=labels.jsonl", "data.image_size=[32,32]"]
    model = ["recipe=resnet_cls", "model.stem=imagenet", "model.blocks=[1,1,1,1]", "model.width=64", "train.ema=0"]
    bigctl.train([*model, *data, *SHORT, "train.steps=1", "recipe.augment.crop=0"], "runs/timm", quiet=True)
    run = bigctl.load("runs/timm")
    written = formats.exporter("timm").write(run, folder / "timm")
    assert str(written.facts["read_by"]).startswith("bigctl's own reader")
    config = json.loads((folder / "timm" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 1), np.uint8)
    np.testing.assert_allclose(bigctl.load_export("timm").predict(picture), run.predict(picture), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["recipe=lstm_cls", *TEXTS, "data.label=tags"], "stands in place of data.label"),
        (
            ["recipe=mlp_cls", "data=csv", "data.path=tags.csv", "data.labels=tags"],
            "for texts and images, not tables",
        ),
        (["recipe=lstm_cls", *TEXTS, "recipe.class_weights=[1,2]"], "has 2 numbers, the data has 3 classes"),
        (["recipe=lstm_cls", *TEXTS, "eval.metric=val/threshold"], "eval.mode=max or eval.mode=min"),
        (["recipe=lstm_cls", *TEXTS, "data.labels=topics"], "no label column 'topics'"),
        (["recipe=lstm_cls", "data=csv", "data.path=tags.csv", "data.text=text"], "data.label must be given"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    folder: Path, command: Callable[..., str], given: list[str], said: str
) -> None:
    assert said in command("train", *given, "--name", "refused", code=2)
    assert not (folder / "runs" / "refused").exists()
