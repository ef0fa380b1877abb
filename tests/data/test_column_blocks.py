"""Promises about large Parquet and Arrow files: made by blocks, they are to the bit what small ones are."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from bigctl.config import schema
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import deduplicate, encode_by_blocks, prepare
from bigctl.data.preparation import rows as prepare_rows
from bigctl.data.sources import arrow, column_blocks, parquet
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from tests.data.outcome import outcome
from tests.data.test_rows_by_blocks import EMPTY, assert_equal, reviews

JOINED: list[Any] = []
"""What was read by blocks."""


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    for module in (column_blocks, arrow):
        monkeypatch.setattr(module, "_ROWS", 7)
    joined = column_blocks.joined
    monkeypatch.setattr(column_blocks, "joined", lambda *given, **keys: JOINED.append(given) or joined(*given, **keys))
    monkeypatch.setattr(prepare_rows, "_ROWS", 5)
    monkeypatch.setattr(encode_by_blocks, "_TEXTS", 3)
    monkeypatch.setattr(deduplicate, "_TEXTS", 3)


def both(monkeypatch, config: schema.Parquet, **options: Any) -> tuple[Dataset, Dataset] | tuple[str, str]:
    """The same data as a whole and by blocks; or the two errors."""
    found: list = []
    for size in (2**60, 0):
        monkeypatch.setattr(column_blocks, "LARGE", size)
        before = len(JOINED)
        found.append(outcome(config, options))
        assert (len(JOINED) > before) == (size == 0)
    return found[0], found[1]


def require_same(whole: Dataset | str, blocks: Dataset | str) -> None:
    if isinstance(whole, str) or isinstance(blocks, str):
        assert str(blocks).partition(" damaged one")[0] == str(whole).partition(" damaged one")[0]
    else:
        assert_equal(whole, blocks)


def rows(n: int = 60, seed: int = 0) -> dict[str, Any]:
    """A column of every type, some with missing values, some that are left out."""
    draw = np.random.default_rng(seed)
    day = datetime.datetime(2024, 1, 1)
    return {
        "id": pa.array(range(n), pa.int32()),
        "area": pa.array([None if row % 5 == 0 else float(draw.normal()) for row in range(n)], pa.float32()),
        "code": pa.array([f"c{draw.integers(90)}" for _ in range(n)]),
        "name": pa.array([f"name {row}" for row in range(n)]),
        "heating": pa.array([["gas", "oil", None][row % 3] for row in range(n)]).dictionary_encode(),
        "when": pa.array([day + datetime.timedelta(hours=5 * row) for row in range(n)], pa.timestamp("us")),
        "day": pa.array([f"2024-02-{1 + row % 28:02}" for row in range(n)]),
        "empty": pa.array([None] * n, pa.string()),
        "new": pa.array([row % 4 == 0 if row % 9 else None for row in range(n)]),
        "price": pa.array(draw.integers(0, 10**9, n), pa.int64()),
        "y": pa.array(["cat" if row % 3 else "dog" for row in range(n)]),
    }


def changed(**columns: Any) -> dict[str, Any]:
    return rows() | columns


BAD = pa.array([float("inf") if row in (20, 40) else 1.0 * row for row in range(60)])
TORN = pa.StringArray.from_buffers(60, pa.array(range(0, 61), pa.int32()).buffers()[1], pa.py_buffer(b"ab\xff" * 20))
TIMES = pa.array([2**60] * 9 + [*range(51)], pa.timestamp("ns"))  # of which Python has only the last but one
SKIP = {"on_bad": "skip"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every type": (rows(), {}),
    "a number": (changed(y=pa.array(np.arange(60) / 7)), {}),
    "whole numbers as classes": (changed(y=pa.array([row % 4 for row in range(60)])), {}),
    "columns left out": (rows(), {"drop": ["name", "when", "id"]}),
    "whole groups": (rows(), {"group": "code"}),
    "groups that are times": (changed(code=TIMES), {"group": "code"}),
    "by time": (rows(), {"time": "when"}),
    "parts": (rows(), {"train": "train[50%:]+train[:30%]", "validation": "train[30%:40%]"}),
    "a fold": (rows(), {"fold": 1}),
    "infinite values": (changed(area=BAD), {}),
    "infinite values left out": (changed(area=BAD), SKIP),
    "infinite values above the limit": (changed(area=BAD), SKIP | {"bad_limit": 0.03}),
    "strings that are torn": (changed(code=TORN), {}),
    "strings that are torn left out": (changed(code=TORN), SKIP),
    "no target": (changed(y=pa.array([None] * 30 + ["a", "b"] * 15)), {}),
    "one class": (changed(y=pa.array(["a"] * 60)), {}),
    "no such column": (rows(), {"label": "z"}),
    "a list": (changed(area=pa.array([[1]] * 60)), {}),
    "nothing left": ({"empty": rows()["empty"], "y": rows()["y"]}, {}),
    "no rows": ({name: values[:0] for name, values in rows().items()}, {}),
}  # fmt: skip


def write(path: Path, columns: dict[str, Any], kind: str) -> Path:
    """A file in many groups of rows, or batches; of Arrow once as a file, once as a stream that is compressed."""
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=11)
        return path
    options = ipc.IpcWriteOptions(compression="zstd" if kind == "stream" else None, unify_dictionaries=True)
    with (ipc.new_stream if kind == "stream" else ipc.new_file)(path, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=11)
    return path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_blocks_give_what_the_whole_gives(case: str, kind: str, tmp_path, monkeypatch) -> None:
    """The same arrays, statistics, notes and places in files; the same error where there is one."""
    columns, keys = CASES[case]
    file = write(tmp_path / f"rows.{kind}", columns, kind)
    make = schema.Parquet if kind == "parquet" else schema.Arrow
    config = make(**{"path": str(file), "label": "y"} | keys)
    require_same(*both(monkeypatch, config, regression=case == "a number"))


@pytest.mark.parametrize("kind", ["parquet", "file"])
def test_files_of_several_types_and_of_the_splits_are_read_by_blocks_too(kind: str, tmp_path, monkeypatch) -> None:
    suffix, make = ("parquet", schema.Parquet) if kind == "parquet" else ("arrow", schema.Arrow)
    (tmp_path / "many").mkdir()
    write(tmp_path / "many" / f"1.{suffix}", changed(price=pa.array(range(60), pa.int8())), kind)
    write(tmp_path / "many" / f"2.{suffix}", rows(seed=1), kind)
    write(tmp_path / f"test.{suffix}", rows(30, seed=2) | {"empty": pa.array(["x"] * 30)}, kind)
    config = make(path=str(tmp_path / "many"), label="y", test_path=str(tmp_path / f"test.{suffix}"))
    whole, blocks = both(monkeypatch, config)
    require_same(whole, blocks)
    assert not isinstance(blocks, str) and sum(map(blocks.size, SPLITS)) == 150
    for price in (pa.array(["1"] * 60), pa.array([[1]] * 60)):  # of another type in the second file, then in the test
        write(tmp_path / "many" / f"2.{suffix}", changed(price=price), kind)
        require_same(*both(monkeypatch, config))
        write(tmp_path / "many" / f"2.{suffix}", rows(seed=1), kind)
    write(tmp_path / f"test.{suffix}", changed(price=pa.array(["1"] * 60)), kind)
    whole, blocks = both(monkeypatch, config)
    assert whole == blocks and "is text, where it was a number in training" in str(blocks)


def test_bad_rows_of_one_split_are_not_those_of_another(tmp_path, monkeypatch) -> None:
    """All splits of a folder have one name; the second start finds the columns of the first."""
    folder, work = tmp_path / "rows", tmp_path / "work"
    work.mkdir()
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    for split, columns in (("train", rows(30)), ("validation", changed(area=BAD)), ("test", rows(50, seed=2))):
        (folder / split).mkdir()
        (folder / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "1.arrow"}]}))
        write(folder / split / "1.arrow", columns, "stream")
    config = schema.Arrow(path=str(folder), label="y", on_bad="skip")
    whole = arrow.decode(config, False)
    monkeypatch.setattr(column_blocks, "LARGE", 0)
    decode = arrow.by_blocks(config, False)
    assert decode is not None
    for _ in range(2):
        blocks = decode(work)
        assert {split: len(own["label"]) for split, own in blocks.splits.items()} == {
            "train": 30, "validation": 58, "test": 50
        }  # fmt: skip
        assert blocks.info["notes"] == whole.info["notes"]


@pytest.mark.parametrize("kind", ["parquet", "stream"])
def test_many_files_are_as_large_as_one(kind: str, tmp_path, monkeypatch) -> None:
    make, blocks = (schema.Parquet, column_blocks.Parquet) if kind == "parquet" else (schema.Arrow, arrow.Blocks)
    suffix = "parquet" if kind == "parquet" else "arrow"
    files = [write(tmp_path / f"{number}.{suffix}", rows(seed=number), kind) for number in range(3)]
    sizes = [blocks.look(file, None).bytes for file in files]
    source = parquet if kind == "parquet" else arrow
    for large, path in ((sum(sizes), tmp_path), (sum(sizes) + 1, tmp_path), (sizes[0] + 1, files[0])):
        monkeypatch.setattr(column_blocks, "LARGE", large)
        found = source.by_blocks(make(path=str(path), label="y"), False)
        assert (found is not None) == (large == sum(sizes))


def test_a_column_of_another_type_in_the_second_row_group_is_one_line(tmp_path, monkeypatch) -> None:
    """As a writer that is broken leaves it: what Parquet itself says of the column is another type there."""
    file = tmp_path / "rows.parquet"
    columns = {"x": pa.array(np.arange(40) / 3), "y": pa.array(["a", "b"] * 20)}
    pq.write_table(pa.table(columns), file, row_group_size=20)
    content, mark = file.read_bytes(), b"\x1c\x15\x0a\x19"  # the description of a column of DOUBLE
    second = content.rindex(mark)
    assert content.count(mark) == 2
    file.write_bytes(content[:second] + b"\x1c\x15\x04\x19" + content[second + 4 :])
    for size in (2**60, 0):
        monkeypatch.setattr(column_blocks, "LARGE", size)
        with pytest.raises(DataError, match="'x' is INT64 in row group 2, where the file says it is DOUBLE") as told:
            prepare.prepare(schema.Parquet(path=str(file), label="y"))
        assert "\n" not in str(told.value)


def test_class_labels_of_hugging_face_are_names_by_blocks_too(tmp_path, monkeypatch) -> None:
    features = {"info": {"features": {"y": {"_type": "ClassLabel", "names": ["no", "yes"]}}}}
    table = pa.table(changed(y=pa.array([row % 2 for row in range(60)])))
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    with ipc.new_stream(tmp_path / "rows.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=11)
    whole, blocks = both(monkeypatch, schema.Arrow(path=str(tmp_path / "rows.arrow"), label="y"))
    require_same(whole, blocks)
    assert not isinstance(blocks, str) and blocks.features.classes == ("no", "yes")


WORDS = schema.Tokenizer(type="words", size=12, max_length=16)
STARS, NONE = {"text": "text", "label": "stars"}, {"label": None}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "words, cut": (reviews(), STARS),
    "pairs": (reviews(), STARS | {"text_pair": "other"}),
    "no labels": (reviews(), {"text": "text", **NONE}),
    "several classes": (reviews(), {"text": "text", "labels": "topics", **NONE}),
    "an empty text": (reviews() + EMPTY, STARS),
    "each once": (reviews() + reviews(), STARS | {"deduplicate": True}),
    "each pair once": (reviews(), STARS | {"text_pair": "other", "deduplicate": True}),
    "empty texts left out": (reviews() + EMPTY * 3, STARS | SKIP),
    "no such text": (reviews(), STARS | {"text": "txt"}),
    "numbers for texts": (reviews(), STARS | {"text": "id"}),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("kind", ["parquet", "file"])
def test_blocks_of_texts_give_what_the_whole_gives(case: str, kind: str, tmp_path, monkeypatch) -> None:
    lines, keys = TEXTS[case]
    read = pa.Table.from_pylist([json.loads(line) for line in lines.splitlines()])
    file = write(tmp_path / f"rows.{kind}", {name: read.column(name) for name in read.column_names}, kind)
    config = (schema.Parquet if kind == "parquet" else schema.Arrow)(path=str(file), **keys)
    require_same(*both(monkeypatch, config, tokenizer=tokenization.spec(WORDS), batches=BatchOptions(batch_size=4)))
