"""Promises of `bigctl baseline`: cheap answers on the splits of training, by its metrics, shown beside every score."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_info

import bigctl
from bigctl.baselines import learners
from bigctl.baselines.byte_model import ByteModel
from bigctl.cli.main import main
from bigctl.config.compose import compose
from bigctl.data.preparation.prepare import prepare
from bigctl.errors import ConfigError, DataError
from bigctl.reports.run import run_page
from bigctl.runs import baselines
from bigctl.runs.directory import RunDirectory
from tests import topics

LABELS = ["data=csv", "data.path=tags.csv", "data.text=text", "data.labels=tags"]
TAGGED = ["data=conll", "data.path=train.conll"]
PRICES = ["recipe=mlp_cls", "data=csv", "data.path=prices.csv", "data.label=price", "model.head=regression"]
TRAINED = ["recipe=mlp_cls", "data=csv", "data.path=dear.csv", "data.label=dear", "train.steps=2",
           "train.tensorboard=false"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Texts with one class and with several, sentences with tags, a table and a text; the working folder."""
    folder, draw = tmp_path_factory.mktemp("baselines"), random.Random(0)
    topics.write(folder)
    rows = [[name for name in ("sea", "war") if draw.random() < 0.5] for _ in range(120)]
    lines = [f"{' '.join(2 * [*row, 'the'])},{';'.join(row)}" for row in rows]
    (folder / "tags.csv").write_text("text,tags\n" + "\n".join(lines) + "\n")
    names = [draw.choice(["Rome", "Oslo", "Ada"]) for _ in range(90)]
    tagged = [f"we O\nmet O\n{name} {'B-PER' if name == 'Ada' else 'B-LOC'}\n" for name in names]
    (folder / "train.conll").write_text("\n".join(tagged))
    sizes = [draw.random() for _ in range(200)]
    prices = [f"{x:.3f},{draw.random():.3f},{900 + 100 * x:.4f}" for x in sizes]
    (folder / "prices.csv").write_text("size,noise,price\n" + "\n".join(prices) + "\n")
    dear = [f"{x:.3f},{draw.random():.3f},{'yes' if x > 0.5 else 'no'}" for x in sizes]
    (folder / "dear.csv").write_text("size,noise,dear\n" + "\n".join(dear) + "\n")
    (folder / "book.txt").write_text("the cat sat on the mat and the dog sat on the cat. " * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BIGCTL_CACHE_DIR", str(folder / "cache"))
        yield folder


def found(*overrides: str, **options: Any) -> dict[str, Any]:
    return dict(bigctl.baseline(compose(overrides, partial=True).config, **options))


def test_texts_are_told_apart_by_their_words() -> None:
    made = found(*topics.DATA)
    assert made["name"] == "TF-IDF of words and characters, logistic regression"
    assert made["metrics"]["test/accuracy"] > 0.8 and 0 < made["metrics"]["val/roc_auc"] <= 1
    majority = made["all"][0]
    assert majority["name"] == "most frequent class" and 0.3 < majority["metrics"]["test/accuracy"] < 0.7
    labels = prepare(compose(topics.DATA, partial=True).config.data).splits["test"]["label"]
    share = np.bincount(labels).max() / len(labels)
    assert majority["metrics"]["test/accuracy"] in (pytest.approx(share), pytest.approx(1 - share))


def test_of_two_classes_the_positive_one_is_told_whichever_a_run_names(folder: Path) -> None:
    (folder / "sold.csv").write_text((folder / "dear.csv").read_text().replace("dear", "sold"))
    table = ["data=csv", "data.path=sold.csv", "data.label=sold"]
    data = prepare(compose(table, partial=True).config.data)
    labels = data.splits["test"]["label"]
    by_default, other = found(*table), found(*table, "data.positive=no")
    assert by_default["metrics"] == found(*table, "data.positive=yes")["metrics"]
    for made, positive in ((by_default, 1), (other, 0)):
        most = np.full(len(labels), np.bincount(data.splits["train"]["label"]).argmax())
        told = made["all"][0]["metrics"]
        assert told["test/binary_recall"] == reference.recall_score(labels, most, pos_label=positive, zero_division=0)
        assert made["metrics"]["val/binary_f1"] > 0.8
    assert other["metrics"]["test/accuracy"] == by_default["metrics"]["test/accuracy"]
    with pytest.raises(ConfigError, match="none of the classes"):
        found(*table, "data.positive=maybe")


def test_small_tables_are_learnt_from_by_one_thread() -> None:
    small, large = (learners.Data(np.zeros((rows, 4), np.float32), np.zeros(rows)) for rows in (162, 10**6))
    with learners.threads(small):
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    before = threadpool_info()
    with learners.threads(large):
        assert threadpool_info() == before


def test_several_classes_are_scored_at_the_threshold_of_validation() -> None:
    metrics = found(*LABELS)["metrics"]
    assert metrics["test/f1"] == metrics["test/accuracy"] == 1
    assert metrics["test/threshold"] == metrics["val/threshold"]


def test_numbers_are_scored_in_their_unit() -> None:
    made = found(*PRICES)
    names = [each["name"] for each in made["all"]]
    assert names == ["mean", "ridge regression", "gradient boosting"] and made["name"] == "ridge regression"
    data = prepare(compose(PRICES).config.data, regression=True)
    train, test = data.splits["train"], data.splits["test"]
    fitted = [Ridge(alpha=alpha).fit(train["inputs"], train["label"]) for alpha in (10, 1, 0.1)]
    errors = [reference.mean_absolute_error(test["label"], each.predict(test["inputs"])) for each in fitted]
    assert any(made["metrics"]["test/mae"] == pytest.approx(error, rel=1e-3) for error in errors)


def test_tags_are_those_that_words_have_most_often() -> None:
    made = found(*TAGGED)
    assert made["metrics"]["test/entity_f1"] == made["metrics"]["val/accuracy"] == 1
    assert made["selected_by"] == "val/entity_f1"


def test_text_to_write_is_told_in_bits_a_byte() -> None:
    made = found("data=text", "data.path=book.txt")
    least, most = (each["metrics"]["test/bits_per_byte"] for each in reversed(made["all"]))
    assert made["selected_by"] == "val/bits_per_byte" and least < 1 < 3 < most


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_model_of_bytes_is_that_of_witten_and_bell(order: int) -> None:
    draw = random.Random(1)
    known, new = (bytes(draw.choices(b"abc ", k=size)) for size in (200, 60))

    def probability(before: bytes, byte: int, length: int) -> float:
        shorter = 1 / 256 if length == 0 else probability(before, byte, length - 1)
        context = before[len(before) - length :]
        places = range(length, len(known))
        after = Counter(known[place] for place in places if known[place - length : place] == context)
        if length > len(before) or not after:
            return shorter
        return (after[byte] + len(after) * shorter) / (after.total() + len(after))

    bits = [-math.log2(probability(new[:place], byte, order)) for place, byte in enumerate(new)]
    model = ByteModel(np.frombuffer(known, np.uint8), order)
    assert model.bits_per_byte(np.frombuffer(new, np.uint8)) == pytest.approx(sum(bits) / len(bits))


def test_what_has_nothing_to_predict_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing to predict"):
        found("data=csv", "data.path=tags.csv", "data.text=text", "data.label=null")


def test_every_summary_and_page_of_a_run_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TRAINED, "--name", "alone", "--quiet"]) == 0
    assert "baseline" not in capsys.readouterr().out
    assert "baseline" not in RunDirectory(Path("runs/alone")).summary()

    assert main(["train", *TRAINED, "--name", "beside", "--quiet", "--baseline"]) == 0
    shown = capsys.readouterr().out
    kept = RunDirectory(Path("runs/beside")).summary()["baseline"]
    value, own = (
        kept["metrics"]["test/accuracy"],
        RunDirectory(Path("runs/beside")).summary()["metrics"]["test/accuracy"],
    )
    line = f"test/accuracy {value:.4f} (this run {own:.4f}, {own - value:+.4f})"
    assert line in shown and kept["name"] in shown

    for run in ("alone", "beside"):  # of the former it is found beside the data
        assert main(["info", run]) == 0
        assert line.split(" (")[0] in capsys.readouterr().out
        page = run_page(RunDirectory(Path("runs") / run), samples=0)
        assert "baseline" in page and kept["name"] in page


def test_it_is_kept_until_the_data_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", *topics.DATA, "--json"]) == 0
    once = json.loads(capsys.readouterr().out)
    assert found(*topics.DATA) == once == found("recipe=lstm_cls", *topics.DATA)
    other = found(*topics.DATA, "data.split_seed=1")
    assert other["metrics"] != once["metrics"]
    assert main(["baseline", *topics.DATA]) == 0
    shown = capsys.readouterr().out
    assert once["name"] in shown and "most frequent class" in shown and "test/f1" in shown


@pytest.mark.parametrize("content", ["", "{}", '{"name": 1}', "[" * 999, '{"name": "x", "metrics": {"a": "b"}}'])
def test_a_damaged_one_counts_as_none(content: str, folder: Path) -> None:
    name = "x-0123456789abcdef"
    file = baselines.place(name, stream=False)
    assert file is not None and file == baselines.place(f"{name}-01234567", stream=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    assert baselines.read(name, stream=False) is None
    assert baselines.place("../../etc-0123456789abcdef", stream=False) is None


def test_no_data_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline"]) == 2
    assert "bigctl baseline NAME" in capsys.readouterr().err


def test_scores_are_shown_by_what_the_baseline_was_chosen_by_first() -> None:
    scores = {"val/accuracy": 0.9, "test/accuracy": 0.8, "val/loss": 1.5, "test/loss": 1.6}
    found: Any = {"name": "cheap", "metrics": scores, "selected_by": "val/accuracy"}
    own = {"val/accuracy": 0.95, "val/loss": 0.5}
    shown = [("val/accuracy", 0.9, 0.95), ("test/accuracy", 0.8, None)]
    assert baselines.beside(found, own, "val/accuracy") == shown
    assert baselines.beside(found, own, "val/loss") == [*shown, ("val/loss", 1.5, 0.5), ("test/loss", 1.6, None)]
