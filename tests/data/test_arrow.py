"""Promises of `bigctl.data.sources.arrow`: Arrow files and saved data sets are read as Parquet is, with their names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.look.inspection import inspect
from bigctl.data.preparation import prepare
from bigctl.data.sources import arrow, parquet
from bigctl.errors import DataError

NAMES = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
SEVERAL = {"topics": {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "_type": "List"}}
REVIEWS: dict[str, Any] = {
    "text": [f"the film number {n} was long" for n in range(30)],
    "label": [n % 2 for n in range(30)],
    "topics": [list(range(n % 4)) for n in range(30)],
}


def described(rows: dict[str, Any], features: dict[str, Any]) -> pa.Table:
    """A table that says of its columns what `datasets` does."""
    known = json.dumps({"info": {"features": features}}).encode()
    return pa.table(rows).replace_schema_metadata({b"huggingface": known})


def save(folder: Path, rows: dict[str, Any], features: dict[str, Any], shards: int = 2) -> Path:
    """As `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    table, names = described(rows, features), []
    each = -(-table.num_rows // shards)
    for place in range(shards):
        names.append({"filename": f"data-{place:05}-of-{shards:05}.arrow"})
        with pa.ipc.new_stream(folder / names[-1]["filename"], table.schema) as stream:
            stream.write_table(table.slice(place * each, each))
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_fingerprint": "0"}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-0.arrow").write_bytes(b"not a part of it")
    return folder


def test_saved_splits_are_used_and_numbers_are_names(tmp_path: Path) -> None:
    for split in ("train", "valid", "unsupervised"):
        save(tmp_path / "saved" / split, REVIEWS, NAMES | SEVERAL)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "valid", "unsupervised"]}')
    found = arrow.decode(schema.Arrow(path=str(tmp_path / "saved"), text="text", label="label"), False)
    assert set(found.splits) == {"train", "validation"} and found.classes == ("neg", "pos")
    assert found.splits["train"]["label"].tolist() == REVIEWS["label"]
    assert found.splits["train"]["text"].tolist() == REVIEWS["text"]
    assert "unsupervised" in found.info["notes"][0]
    several = schema.Arrow(path=str(tmp_path / "saved"), text="text", label=None, labels="topics")
    sets = arrow.decode(several, False)
    assert sets.target is not None and sets.target.names == ("a", "b", "c")
    assert sets.splits["train"]["label"].sum() == sum(map(len, REVIEWS["topics"]))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_table_is_that_of_parquet(tmp_path: Path, kind: str) -> None:
    rows = {"x": [n / 3 for n in range(20)], "city": ["Rome", "Bonn", None, "Rome"] * 5, "y": ["a", "b"] * 10}
    table = pa.table(rows)
    pq.write_table(table, tmp_path / "t.parquet")
    writer = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with writer(tmp_path / "t.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    own = arrow.decode(schema.Arrow(path=str(tmp_path / "t.arrow"), label="y"), False).splits["train"]
    other = parquet.decode(schema.Parquet(path=str(tmp_path / "t.parquet"), label="y"), False).splits["train"]
    assert own.keys() == other.keys()
    for name, values in own.items():
        np.testing.assert_array_equal(values, other[name])


def test_pictures_are_decoded_and_predicted(tmp_path: Path) -> None:
    pictures = []
    for shade in range(12):
        stream = io.BytesIO()
        Image.fromarray(np.full((4, 5, 3), 20 * shade, np.uint8)).save(stream, "PNG")
        pictures.append({"bytes": stream.getvalue(), "path": None})
    save(tmp_path / "pets", {"image": pictures, "label": [0, 1] * 6}, NAMES)
    config = schema.Arrow(path=str(tmp_path / "pets"), image="image", label="label")
    decoded = arrow.decode(config, False).splits["train"]["image"]
    assert decoded.shape == (12, 4, 5, 3) and decoded[:, 0, 0, 0].tolist() == [20 * n for n in range(12)]
    features = Features("image", (4, 5, 3), ("neg", "pos"))
    read = catalog.read_for_prediction(tmp_path / "pets" / "data-00000-of-00002.arrow", config, features)
    np.testing.assert_array_equal(np.asarray(read.inputs), decoded[:6])


def test_identity_follows_content_and_keys(tmp_path: Path) -> None:
    save(tmp_path / "a", REVIEWS, NAMES)
    config = schema.Arrow(path=str(tmp_path / "a"), text="text", label="label")
    before = arrow.identity(config)
    assert arrow.identity(schema.Arrow(path=str(tmp_path / "a"), text="text", label="topics")) != before
    save(tmp_path / "b", {**REVIEWS, "label": [1] * 30}, NAMES)
    assert arrow.identity(schema.Arrow(path=str(tmp_path / "b"), text="text", label="label")) != before
    dataset = prepare.prepare(config)
    assert dataset.features.target.names == ("neg", "pos") and dataset.size("train") == 24


def test_a_saved_folder_is_known_by_a_look(tmp_path: Path) -> None:
    save(tmp_path / "saved", {"text": REVIEWS["text"], "label": REVIEWS["label"]}, NAMES)
    entry = inspect(str(tmp_path / "saved"), {})
    assert entry.kind == "arrow" and entry.keys == {"path": str(tmp_path / "saved"), "label": "label", "text": "text"}


def _state(folder: Path, content: str) -> None:
    (folder / "state.json").write_text(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: _state(f, "{"), "cannot be read as JSON"),
        (lambda f: _state(f, '{"_data_files": [{"filename": "../x.arrow"}]}'), "does not list files beside it"),
        (lambda f: _state(f, '{"_data_files": []}'), "does not list files beside it"),
        (lambda f: _state(f, '{"_data_files": [{"filename": "no.arrow"}]}'), "no such file"),
        (lambda f: _state(f, '{"_indices_files": [{"filename": "i.arrow"}]}'), "flatten_indices"),
        (lambda f: (f / "data-00001-of-00002.arrow").write_bytes(b"FEA1"), "the first version of Feather"),
        (lambda f: (f / "data-00001-of-00002.arrow").write_bytes(b""), "no Arrow file, or a damaged one"),
        (lambda f: (f / "data-00001-of-00002.arrow").write_bytes(b"\xff\xff\xff\xff\x10"), "damaged"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path: Path, spoil: Any, told: str) -> None:
    folder = save(tmp_path / "saved", REVIEWS, NAMES)
    spoil(folder)
    with pytest.raises(DataError) as raised:
        arrow.decode(schema.Arrow(path=str(folder), text="text", label="label"), False)
    assert told in str(raised.value) and "saved" in str(raised.value) and "\n" not in str(raised.value)


def test_classes_without_a_name_and_without_a_train_split(tmp_path: Path) -> None:
    save(tmp_path / "saved", {**REVIEWS, "label": [0, 1, 2] * 10}, NAMES)
    with pytest.raises(DataError, match="there is a class 2, where 2 have names"):
        arrow.decode(schema.Arrow(path=str(tmp_path / "saved"), text="text", label="label"), False)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["saved"]}')
    with pytest.raises(DataError, match="no split called train, but saved"):
        arrow.decode(schema.Arrow(path=str(tmp_path), text="text", label="label"), False)
