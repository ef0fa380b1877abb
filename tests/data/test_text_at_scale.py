"""Promises about large texts: made by blocks in several processes, over several starts, they are as small ones."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import cache, partial, prepare, prepare_stream
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.sources import text_files, text_parts
from bigctl.data.text import token_pool, token_process, token_writer, tokenization
from bigctl.errors import DataError
from tests.data.test_stream_encoding import CONTENT

WINDOWS = BatchOptions(block=8)


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch) -> None:
    """Blocks, shards and parts of files so small that a short text has many of each."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(text_parts, "_BLOCK", 997)
    monkeypatch.setattr(text_parts, "_MARK", 3000)
    monkeypatch.setattr(prepare_stream, "_BLOCK", 700)
    monkeypatch.setattr(prepare_stream, "_BEYOND", 40)
    monkeypatch.setattr(prepare_stream, "_WORTH", 1000)
    monkeypatch.setattr(token_writer, "SHARD", 2500)


def make(config: schema.TextFiles, type: str | None = "bpe", *, large: bool, rebuild: bool = True) -> Dataset:
    """A set, made by blocks or as a whole."""
    spec = None if type is None else tokenization.spec(schema.StreamTokenizer(type=type, size=400))
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(text_files, "SMALL", 0)
        return prepare.prepare(config, tokenizer=spec, rebuild=rebuild, batches=WINDOWS if spec else prepare.NO_OPTIONS)


def require_equal(config: schema.TextFiles, type: str | None = "bpe") -> Dataset:
    """Both ways, each of which must have been gone, give the same set."""
    whole = make(config, type, large=False)
    arrays = {split: {name: np.array(v) for name, v in whole.splits[split].items()} for split in SPLITS}
    texts = {split: [whole.texts[split][0][n] for n in range(len(whole.texts[split][0]))] for split in SPLITS}
    for place in Path(whole.path).iterdir():
        place.unlink()
    Path(whole.path).rmdir()
    parts = make(dataclasses.replace(config, workers=1), type, large=True)
    shards = json.loads((Path(parts.path) / "meta.json").read_text())["shards"]
    assert (type is None) == (not shards) and parts.path == whole.path
    assert parts.fingerprint == whole.fingerprint and parts.features == whole.features and parts.info == whole.info
    for split in SPLITS:
        assert parts.splits[split].keys() == arrays[split].keys()
        for name, values in arrays[split].items():
            found = np.array(parts.splits[split][name])
            assert found.dtype == values.dtype and np.array_equal(found, values)
        assert [parts.texts[split][0][n] for n in range(len(parts.texts[split][0]))] == texts[split]
    return parts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


# --- The same as of small texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["bpe", "words", "characters", "bytes", None])
def test_a_text_by_blocks_is_the_text_as_a_whole(type, tmp_path):
    file = write(tmp_path, "a.txt", "\ufeff" + (CONTENT + "x" * 3000 + CONTENT * 4).replace("\x00", ""))
    parts = require_equal(schema.TextFiles(path=str(file)), type)
    assert type is None or len(list(Path(parts.path).glob("train.tokens.*.bin"))) > 5, "there are many shards"
    assert {file.suffix for file in Path(parts.path).iterdir()} <= {".npy", ".bin", ".json"}, "nothing else is left"


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"test_fraction": 0.0},
        {"train": "text[50%:]+text[:30%]", "validation": "text[30%:40%]", "test": "text[40%:50%]"},
        {"validation_path": "v.txt"},
    ],
    ids=["usual", "no test", "expressions", "files"],
)
def test_documents_and_splits_are_those_of_the_whole(rule, boundaries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    text = CONTENT.replace("\x00", "")
    for number, end in enumerate((1000, 1700, 5, 4000)):
        write(tmp_path / "texts", f"{number}.txt", text[:end])
    write(tmp_path / "texts", "empty.txt", "")
    write(tmp_path, "v.txt", text[:300])
    require_equal(schema.TextFiles(path="texts", boundaries=boundaries, **rule))


@pytest.mark.parametrize("form", ["lines", "list", "packed", "utf-16"])
def test_texts_of_json_are_those_of_the_whole(form, tmp_path):
    text = CONTENT.replace("\x00", "")
    rows = [{"text": text[n * 50 : n * 61]} for n in range(1, 60)]
    rows += [{"text": None, "n": {"m": 1}}, {"text": 3.5}, {"text": " \n"}]
    content = json.dumps(rows) if form == "list" else "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    data = content.encode("utf-16" if form == "utf-16" else "utf-8")
    file = write(
        tmp_path, "a.jsonl.gz" if form == "packed" else "a.jsonl", gzip.compress(data) if form == "packed" else data
    )
    require_equal(schema.TextFiles(path=str(file), field="text", encoding="utf-16" if form == "utf-16" else None))


@pytest.mark.parametrize("codec", ["latin-1", "utf-16", "gb18030", "utf-8"])
def test_a_text_in_another_encoding_is_that_of_the_whole(codec, tmp_path):
    text = CONTENT.replace("\x00", "").encode(codec, "replace")
    require_equal(schema.TextFiles(path=str(write(tmp_path, "a.txt", text)), encoding=codec))


def test_several_processes_make_the_tokens_of_one(tmp_path):
    file = write(tmp_path, "a.txt", CONTENT.replace("\x00", ""))
    one = make(schema.TextFiles(path=str(file), workers=1), large=True)
    tokens = {split: np.array(one.splits[split]["inputs"]) for split in SPLITS}
    two = make(schema.TextFiles(path=str(file), workers=2), large=True)
    assert two.fingerprint == one.fingerprint and two.path == one.path
    assert all(np.array_equal(two.splits[split]["inputs"], tokens[split]) for split in SPLITS)
