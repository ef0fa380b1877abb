"""`predict --out` writes tables that keep ids, order and types; `--top-k` and `--embeddings` say more or less."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.inference.prediction_file import columns, write_predictions
from tests import small

IDS = ["0071", "12", "3", "0004", "12"]
BAD = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = small.trained(tmp_path_factory)
    rows = small.columns(5, seed=9)
    small.write(folder / "new.csv", rows, id=IDS)
    small.write(folder / "numbered.csv", rows, customer=[9, 7, 8, 5, 6])
    rows["size"] = [*map(str, rows["size"])]
    rows["size"][BAD] = "?!"
    small.write(folder / "bad.csv", rows, id=IDS)
    pq.write_table(pa.table({"id": [5, 4, 3, 2, 1], **small.columns(5, seed=9)}), folder / "new.parquet")
    return folder


@pytest.fixture
def predict(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(made)

    def run(*arguments: str, code: int = 0) -> Any:
        assert main(["predict", "small", *arguments]) == code
        return capsys.readouterr()

    return run


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return [*csv.DictReader(stream)]


def test_a_csv_keeps_ids_and_order_as_they_were(predict: Any) -> None:
    predict("new.csv", "--out", "preds.csv")
    spoken = [json.loads(line) for line in predict("new.csv").out.splitlines()]
    found = table("preds.csv")
    assert [row["id"] for row in found] == IDS
    assert [(row["label"], float(row["probability"])) for row in found] == [
        (record["label"], record["probability"]) for record in spoken
    ]
    assert [*found[0]] == ["id", "file", "row", "label", "probability", "probability_large", "probability_small"]


def test_parquet_keeps_the_types_of_ids(predict: Any) -> None:
    predict("new.csv", "--out", "text.parquet")
    predict("numbered.csv", "--out", "numbered.parquet", "--id", "customer")
    predict("new.parquet", "--out", "whole.parquet")
    text, numbered, whole = (pq.read_table(f"{name}.parquet") for name in ("text", "numbered", "whole"))
    assert text["id"].to_pylist() == IDS
    assert numbered["customer"].to_pylist() == [9, 7, 8, 5, 6] and whole["id"].to_pylist() == [5, 4, 3, 2, 1]
    assert text["label"].to_pylist() == whole["label"].to_pylist() == numbered["label"].to_pylist()
    assert pa.types.is_floating(text.schema.field("probability").type)
    assert pa.types.is_integer(text.schema.field("row").type)


def test_predictions_make_the_round_trip_through_pandas(predict: Any) -> None:
    pandas = pytest.importorskip("pandas")
    for source in ("numbered.csv", "new.csv"):
        before = pandas.read_csv(source)
        name = before.columns[0]
        for out, read in (("p.csv", pandas.read_csv), ("p.parquet", pandas.read_parquet)):
            predict(source, "--out", out, "--id", name)
            after = read(out)
            if source == "numbered.csv" or out == "p.csv":
                pandas.testing.assert_series_equal(after[name], before[name])
            assert len(after) == 5 and after["probability"].dtype == "float64"


def test_a_row_that_cannot_be_read_keeps_its_place(predict: Any) -> None:
    done = predict("bad.csv", "--out", "bad_out.csv")
    found = table("bad_out.csv")
    assert [row["id"] for row in found] == IDS
    assert [bool(row["error"]) for row in found] == [number == BAD for number in range(5)]
    assert found[BAD]["label"] == "" and "1 of 5 could not be predicted; the first: " in done.err
    assert "4 predictions, 1 with an error" in done.out


def test_the_likeliest_classes_come_in_order(predict: Any) -> None:
    record = json.loads(predict("new.csv", "--top-k", "1").out.splitlines()[0])
    assert record["probabilities"] == {record["label"]: record["probability"]}
    predict("new.csv", "--top-k", "5", "--out", "top.csv")
    for row in table("top.csv"):
        assert {row["label"], row["label_2"]} == {"large", "small"}
        assert float(row["probability"]) >= float(row["probability_2"])


def test_embeddings_are_what_the_head_reads(predict: Any, made: Path) -> None:
    predict("new.csv", "--embeddings", "--out", "vectors.parquet")
    predict("new.csv", "--embeddings", "--out", "vectors.csv")
    found = pq.read_table("vectors.parquet")
    vectors = np.array(found["embedding"].to_pylist())
    assert vectors.shape == (5, 8)
    np.testing.assert_allclose([[float(row[f"e{n}"]) for n in range(8)] for row in table("vectors.csv")], vectors)
    trained = bigctl.load(made / "runs" / "small")
    kernel, bias = (np.asarray(trained.params["head"][name]) for name in ("kernel", "bias"))
    odds = vectors @ kernel[:, 0] + bias[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), found["probability_small"].to_numpy(), atol=2e-6)
    assert trained.embed({"size": 1.0, "place": "north"}).shape == (8,)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["new.csv", "--top-k", 5000 * "9"], f"'{60 * '9'}' is no number of classes; give 1 or more"),
        (["new.csv", "--top-k", "0"], "'0' is no number of classes; give 1 or more"),
        (["new.csv", "--out", "preds.xlsx"], r"use \.csv"),
        (["new.csv", "--out", "new.csv"], "is one of the files to predict"),
        (["new.csv", "--out", "nowhere/preds.csv"], "there is no such folder"),
        (["new.csv", "--out", "p.csv", "--id", "customer"], "there is no column 'customer'"),
    ],
)
def test_what_cannot_be_meant_is_refused(predict: Any, arguments: list[str], what: str) -> None:
    assert re.search(what, predict(*arguments, code=2).err)


def test_records_of_any_kind_become_columns(tmp_path: Path) -> None:
    records = [
        {"file": "a", "labels": ["x", "y"], "probabilities": {"x": 0.9, "y": 0.6}},
        {"file": "b", "error": "gone"},
        {"file": "c", "value": 1.5, "embedding": [1.0, 2.0]},
    ]
    found = columns(records, flat=True)
    assert [*found] == ["file", "labels", "probability_x", "probability_y", "value", "e0", "e1", "error"]
    assert found["e1"] == [None, None, 2.0]
    write_predictions(tmp_path / "t.parquet", records)
    assert pq.read_table(tmp_path / "t.parquet")["labels"].to_pylist() == [["x", "y"], None, None]
    write_predictions(tmp_path / "t.jsonl", records)
    assert [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()] == records
    write_predictions(tmp_path / "n.parquet", [{"label": "10"}, {"label": "-2"}])
    assert pq.read_table(tmp_path / "n.parquet")["label"].to_pylist() == [10, -2]


def test_no_class_is_named_twice_where_a_threshold_decides(tmp_path: Path) -> None:
    record = {"label": "left", "probability": 0.4, "probabilities": {"stays": 0.6, "left": 0.4}}
    assert columns([record], ranked=True) == {
        "label": ["left"], "probability": [0.4], "label_2": ["stays"], "probability_2": [0.6],
    }  # fmt: skip
    assert [*columns([{**record, "probabilities": {"stays": 0.6}}], ranked=True)] == ["label", "probability"]


def test_a_run_among_the_files_is_put_first(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.chdir(made):
        assert main(["predict", "new.csv", "small", "bad.csv"]) == 2
    said = capsys.readouterr().err
    assert "new.csv: is no run" in said and "bigctl predict small new.csv bad.csv" in said


def test_a_folder_without_files_is_said_with_what_the_run_takes(made: Path, tmp_path: Path, predict: Any) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    said = predict(str(tmp_path), code=2).err
    assert "the folder holds no files" in said and ".csv" in said.partition(" takes ")[2]
    (tmp_path / "one" / "notes.txt").write_text("no rows")
    assert "its one file cannot be predicted" in predict(str(tmp_path), code=2).err


def test_data_of_another_folder_is_said_to_be_there(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(made / "runs" / "small", tmp_path / "moved"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(made / "rows.csv"), "rows.csv"))
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "moved"]) == 2
    began = json.loads((run / "run.json").read_text())["starts"][0]["folder"]
    assert f"data.path is relative to the folder in which training began, {began}" in capsys.readouterr().err
