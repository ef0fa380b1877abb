"""Weights that another run was trained to are attached to what they stand for: by the names of columns and labels."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bigctl.cli.main import main
from bigctl.config import schema
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.data.target import CLASS, CLASSES, NUMBER, TOKEN_CLASS, Target
from bigctl.errors import DataError
from bigctl.interop import columns, heads, sources, transfer
from bigctl.interop.heads import Head

NAN = float("nan")

# --- columns ----------------------------------------------------------------------------------------------------------

THEIRS = TableEncoder(
    [
        Categorical("colour", ("blue", "green", "red"), other=False, missing=True),
        Numeric("x", 2.0, 0.5, missing=True),
        Numeric("gone", 1.0, 1.0, missing=False),
        Categorical("town", ("a", "b"), other=True, missing=False),
        Numeric("y", 0.0, 3.0, missing=False),
    ]
)
OURS = TableEncoder(
    [
        Numeric("y", 5.0, 1.0, missing=True),
        Categorical("town", ("b", "c"), other=True, missing=True),
        Numeric("new", 0.0, 1.0, missing=False),
        Categorical("colour", ("amber", "blue", "green"), other=False, missing=True),
        Numeric("x", -1.0, 4.0, missing=True),
    ]
)
ROWS = {
    "colour": np.array(["amber", "blue", "green", None, "blue"], object),
    "x": np.array([1.0, NAN, 3.0, -2.5, 0.0]),
    "y": np.array([NAN, 1.0, -7.0, 0.5, 2.0]),
    "town": np.array(["b", "c", "b", None, "c"], object),
    "new": np.array([9.0, -9.0, 1.0, 2.0, 3.0]),
    "gone": np.full(5, 1.0),
}


def test_a_row_is_to_the_matched_features_what_it_is_to_the_model_that_was_trained() -> None:
    found = columns.match(OURS, THEIRS, "run")
    known = {**ROWS, "town": np.array(["b", "c", "b", "c", "c"], object)}  # a missing town is no other town
    np.testing.assert_allclose(OURS.encode(known) @ found.matrix + found.shift, THEIRS.encode(known), atol=1e-5)
    assert set(found.new) == {"new", "colour=amber", "town=missing"}
    assert set(found.dropped) == {"colour=red", "gone", "town=a"}


def test_columns_in_another_order_are_the_same_columns_bit_for_bit() -> None:
    ours = TableEncoder([Numeric("b", 0.3, 0.7, False), Numeric("a", 0.1, 0.9, False)])
    found = columns.match(ours, TableEncoder(tuple(reversed(ours.columns))), "run")
    assert np.array_equal(found.matrix, [[0, 1], [1, 0]]) and not found.shift.any() and not found.is_identity
    assert columns.match(ours, ours, "run").is_identity


def test_other_columns_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="run: was trained on other columns: .*colour.*; here are .*z"):
        columns.match(TableEncoder([Numeric("z", 0.0, 1.0, False)]), THEIRS, "run")


# --- heads ------------------------------------------------------------------------------------------------------------

KERNEL = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


def converted(ours: Target, theirs: Target, kernel: np.ndarray, outputs: int) -> tuple[list[list[float]], str]:
    found, said = heads.converted(Head(ours), Head(theirs), {"head/kernel": kernel}, outputs)
    return found["head/kernel"].tolist(), said


def labels(*names: str, kind: str = CLASS) -> Target:
    return Target(kind, names)


def test_outputs_are_put_in_order_by_the_names_of_their_labels() -> None:
    assert converted(labels("a", "b", "c"), labels("a", "b", "c"), KERNEL, 3) == (KERNEL.tolist(), "")
    found, said = converted(labels("a", "b", "c"), labels("c", "a", "b"), KERNEL, 3)
    assert found == [[2, 3, 1], [5, 6, 4]] and "by the names" in said
    found, said = converted(labels("a", "x"), labels("c", "a", "b"), KERNEL, 2)
    assert found == [[2, 0], [5, 0]] and "new: x" in said and "dropped: c, b" in said


def test_one_output_of_two_classes_is_the_log_odds_of_the_second() -> None:
    odds = np.array([[1.5], [-2.0]], np.float32)
    assert converted(labels("no", "yes"), labels("yes", "no"), odds, 1)[0] == [[-1.5], [2.0]]
    assert converted(labels("maybe", "no", "yes"), labels("no", "yes"), odds, 3)[0] == [[0, 0, 1.5], [0, 0, -2]]
    assert converted(labels("a", "b"), labels("b", "a"), KERNEL[:, :2], 1)[0] == [[-1], [-1]]


def test_a_number_keeps_its_unit() -> None:
    ours, theirs = Target(NUMBER, (), 10.0, 2.0), Target(NUMBER, (), 300.0, 50.0)
    arrays = {"head/kernel": np.array([[0.5]], np.float32), "head/bias": np.array([0.25], np.float32)}
    found, _ = heads.converted(Head(ours), Head(theirs), arrays, 1)
    for x in (0.0, 1.0, -3.0):
        here = (x * found["head/kernel"][0, 0] + found["head/bias"][0]) * 2.0 + 10.0
        assert here == pytest.approx((x * 0.5 + 0.25) * 50.0 + 300.0)
    assert heads.converted(Head(theirs), Head(theirs), arrays, 1) == (arrays, "")


TEXT, POOLED = (schema.Bert(pooler=pooler).head_input(per_token=False) for pooler in (False, True))


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (Head(labels("a", "b"), POOLED), Head(labels("b", "a"), POOLED), ""),
        (Head(labels("a", "b"), TEXT), Head(labels("b", "a"), POOLED), "behind the pooler"),
        (Head(labels("a", "b")), Head(labels("c")), "other labels"),
        (Head(labels("a", "b")), Head(labels()), "no names"),
        (Head(labels("a", kind=CLASSES)), Head(labels("a")), "one class an example"),
        (Head(labels("a")), Head(labels("a", kind=TOKEN_CLASS)), "a class a token"),
        (Head(Target(NUMBER), column="price"), Head(Target(NUMBER), column="price"), ""),
        (Head(Target(NUMBER), column="price"), Head(Target(NUMBER), column="size"), "'size', and here it is 'price'"),
    ],
)
def test_a_head_is_taken_over_where_it_stands_for_the_same(ours: Head, theirs: Head, said: str) -> None:
    why_not = heads.difference(ours, theirs)
    assert (said in why_not) if said else why_not == ""


def test_what_the_head_of_a_hugging_face_classifier_stands_on_is_known() -> None:
    read = lambda **config: sources._bert_head(config)  # noqa: E731
    classifier = read(architectures=["BertForSequenceClassification"], id2label={"0": "pos", "1": "neg"})
    assert classifier == Head(labels("pos", "neg"), POOLED)
    own = read(architectures=["BertMeanClassifier"], bigctl_pool="mean", bigctl_pooler=False, id2label={"0": "a"})
    assert own == Head(labels("a"), schema.Bert(pool="mean").head_input(per_token=False))
    tagger = read(architectures=["BertForTokenClassification"], id2label={"0": "O"})
    assert tagger is not None and tagger.target.kind == TOKEN_CLASS
    assert read(architectures=["BertModel"]) is None


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_another_numbering_of_the_tokens_is_refused(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.txt", tmp_path / "theirs.txt"
    ours.write_text("[PAD]\ngood\nbad\n")
    config = SimpleNamespace(tokenizer=schema.Tokenizer(type="words"))
    start = cast(Any, SimpleNamespace(config=config, tokenizer=ours))
    source = cast(Any, SimpleNamespace(name="run", tokenizer=theirs))
    theirs.write_text("[PAD]\ngood\nbad\nfilm\n")
    transfer._check_tokens(source, start)
    theirs.write_text("[PAD]\nbad\ngood\n")
    with pytest.raises(DataError, match="run: has another tokenizer: 2 of 3 .* as 1, which is 'good' here and 'bad'"):
        transfer._check_tokens(source, start)


# --- runs -------------------------------------------------------------------------------------------------------------

Train = Callable[..., tuple[dict[str, Any], str]]
SMALL = ["recipe=mlp_cls", "model.dropout=0", "model.hidden=[8]", "schedule=constant"]
NOTHING = ["train.steps=1", "optimizer.lr=1e-30"]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Train in a folder; gives the metrics, and what is said on the console."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *overrides: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        code = main(["train", *SMALL, *overrides, "train.tensorboard=false", "--name", name, "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)["metrics"], err

    return run


def write(file: str, names: list[str], rows: list[list[object]]) -> None:
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([names, *rows])


def test_a_table_model_goes_on_with_columns_in_another_order(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    rows: list[list[object]] = []
    for _ in range(200):
        a, c = draw.gauss(5, 2), draw.gauss(0, 1)
        rows.append([a, draw.choice("uvw"), c, "yes" if a + c > 5 else "no"])
    write("one.csv", ["a", "b", "c", "y"], rows)
    write("two.csv", ["c", "y", "a", "b"], [[row[i] for i in (2, 3, 0, 1)] for row in rows])
    data = ["data=csv", "data.label=y"]
    before, _ = train("s", *data, "data.path=one.csv", "train.steps=60", "optimizer.lr=0.02")
    after, said = train("t", *data, "data.path=two.csv", "model.init_from=s", *NOTHING)
    assert before["val/accuracy"] > 0.8
    assert after["val/loss"] == pytest.approx(before["val/loss"], rel=1e-4)
    told = ["model.init_from: 4 of 4 parameters from s", "model.init_from: columns are matched by name"]
    assert [line for line in said.splitlines() if line.startswith("model.init_from: ")] == told
    # a dry run tells the same before, and a quiet run keeps it
    again = ["train", *SMALL, *data, "data.path=two.csv", "model.init_from=s", *NOTHING, "train.tensorboard=false"]
    assert main([*again, "--dry-run"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("model.init_from")] == told
    assert main([*again, "--dry-run", "--json"]) == 0 and json.loads(capsys.readouterr().out)["init_from"] == told
    assert main([*again, "--quiet", "--name", "q"]) == 0 and "init_from" not in capsys.readouterr().err
    assert main(["info", "q"]) == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines() if "model.init_from: " in line] == told
    assert json.loads(Path("runs/q/run.json").read_text())["starts"][0]["notes"] == told


def test_a_regression_goes_on_where_it_was_in_its_own_unit(train: Train) -> None:
    draw = random.Random(1)
    rows: list[list[object]] = [[a := draw.gauss(0, 1), 1000 * a + 300] for _ in range(160)]
    write("one.csv", ["a", "price"], rows)
    write("half.csv", ["a", "price"], [row for row in rows if cast(float, row[0]) > -0.5])
    data = ["data=csv", "data.label=price", "model.head=regression"]
    before, _ = train("s", *data, "data.path=one.csv", "train.steps=150", "optimizer.lr=0.02")
    same, said = train("t", *data, "data.path=one.csv", "model.init_from=s", *NOTHING)
    assert same["val/loss"] == pytest.approx(before["val/loss"], rel=1e-5) and "newly initialised" not in said
    part, said = train("p", *data, "data.path=half.csv", "model.init_from=s", *NOTHING)
    assert part["val/rmse"] < 3 * before["val/rmse"] < 600 and "put into the unit" in said


def test_batch_statistics_are_taken_over(train: Train) -> None:
    before, _ = train("s", "model.norm=batch", "train.steps=80", "optimizer.lr=0.02")
    after, said = train("t", "model.norm=batch", "model.init_from=s", *NOTHING)
    assert before["val/accuracy"] > 0.8 and "2 of 2 statistics" in said
    assert after["val/accuracy"] >= before["val/accuracy"] - 0.04  # one batch has moved them a little
