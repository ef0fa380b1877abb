"""Promises about large texts: made by blocks in several processes, over several starts, they are as small ones."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import cache
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.files import file_index
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.preparation import stream as prepare_stream
from bigctl.data.sources import text_files, text_parts
from bigctl.data.text import token_pool, token_writer, tokenization
from bigctl.data.text.stream_encoding import StreamEncoder
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
    rows += [{"text": None, "n": {"m": 1}}, {"text": 3.5}, {"text": " \n"}, {"text": "half of \ud83d a face"}]
    content = json.dumps(rows) if form == "list" else "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    content = content.replace("\ud83d", "\\ud83d")  # as the escape that it is in files
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


# --- Starts that end early --------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path) -> schema.TextFiles:
    text = CONTENT.replace("\x00", "") * 5
    return schema.TextFiles(path=str(write(tmp_path, "a.txt", text)), workers=1)


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """How many characters each block had that became tokens."""
    counted: list[int] = []
    real = StreamEncoder.encode_pieces

    def counting(self, pieces):
        counted.append(sum(len(text) for _, text in pieces))
        return real(self, pieces)

    monkeypatch.setattr(StreamEncoder, "encode_pieces", counting)
    return counted


class Killed(BaseException):
    """The end of a process, which cleans nothing up."""


@pytest.mark.parametrize("shard", [0, 1, 3])
def test_after_a_kill_at_most_a_shard_is_made_again(shard, config, made, monkeypatch, capsys):
    expected = make(config, large=True)
    tokens = {split: np.array(expected.splits[split]["inputs"]) for split in SPLITS}
    total = sum(made)
    made.clear()
    real = token_writer.SplitWriter.write

    def killed(self, block, found):
        real(self, block, found)
        if len(self.written.shards) == shard and sum(made) > (shard + 0.7) * token_writer.SHARD:
            raise Killed

    cache.clean_all()
    with monkeypatch.context() as patch:
        patch.setattr(token_writer.SplitWriter, "write", killed)
        patch.setattr(token_writer.SplitWriter, "close", lambda self: None)
        with pytest.raises(Killed):
            make(config, large=True)
    first = sum(made)
    made.clear()
    again = make(config, large=True, rebuild=False)
    assert first + sum(made) - total <= token_writer.SHARD + prepare_stream._BLOCK
    assert ("going on behind" in capsys.readouterr().err) == (shard > 0)
    assert again.fingerprint == expected.fingerprint
    assert all(np.array_equal(again.splits[split]["inputs"], tokens[split]) for split in SPLITS)


def test_a_full_disk_is_told_in_a_line_and_what_was_made_is_kept(config, made, monkeypatch):
    expected = make(config, large=True).fingerprint
    cache.clean_all()
    total, real = sum(made), token_writer.SplitWriter._write_tokens
    made.clear()

    def full(self, tokens):
        if len(self.written.shards) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(token_writer.SplitWriter, "_write_tokens", full)
        with pytest.raises(DataError, match="No space left on device.*what was prepared is kept") as caught:
            make(config, large=True)
    assert "\n" not in str(caught.value)
    left = [file.name for file in (Path(os.environ["BIGCTL_CACHE_DIR"]) / "data").glob(".*.partial/*.bin")]
    assert len(left) == 3, "the one that was begun makes room"
    made.clear()
    assert (
        make(config, large=True, rebuild=False).fingerprint == expected and sum(made) < total - 2 * token_writer.SHARD
    )


def test_two_processes_that_prepare_at_once_make_it_once(config, made, capsys):
    expected, total = make(config, large=True).fingerprint, sum(made)
    cache.clean_all()
    made.clear()
    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "SMALL", 0)
        spec = tokenization.spec(schema.StreamTokenizer(type="bpe", size=400))
        both = [pool.submit(prepare.prepare, config, tokenizer=spec, batches=WINDOWS) for _ in range(2)]
        assert [each.result().fingerprint for each in both] == [expected] * 2
    assert sum(made) == total
    assert not list((Path(os.environ["BIGCTL_CACHE_DIR"]) / "data").glob(".*.partial"))


@pytest.mark.parametrize("when", ["look", "between"])
def test_a_file_that_changes_while_it_is_read_is_refused(when, config, monkeypatch):
    real = getattr(text_parts.Texts, when)

    def growing(self, *span):
        with Path(config.path).open("a") as stream:
            stream.write("more\n")
        return real(self, *span)

    monkeypatch.setattr(text_parts.Texts, when, growing)
    with pytest.raises(DataError, match="a file has changed while it was read"):
        make(config, large=True)
    assert not list((Path(os.environ["BIGCTL_CACHE_DIR"]) / "data").glob(".*.partial"))


def test_a_process_that_ends_is_told(config, tmp_path):
    encoder = StreamEncoder(tokenization.train(schema.StreamTokenizer(type="bytes"), []))
    blocks = [token_writer.Block("train", [(False, "text")], [True])]
    with pytest.raises(DataError, match="a process that makes tokens has ended with 1"):
        list(token_pool.encode_blocks(encoder, tmp_path / "none.json", blocks, 2))


# --- What is no text, and what is no secret ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"good\n" * 700 + b"\xff bad\n" + b"good\n" * 300),
        ("a.txt", b"good\r" * 700 + b"cut off: \xe4\xb8"),
        ("a.txt", b"good\n" * 700 + b"n\0l\n"),
        ("a.txt", b" \n" * 900),
        ("a.jsonl", b'{"text": "good"}\n' * 90 + b'{"txt": "b"}\n'),
        ("a.jsonl", b'{"txt": "b"}\n' * 90),
        ("a.jsonl", b'{"text": "good"}\n' * 90 + b'{"text": ["b"]}\n'),
        ("a.jsonl", b'{"text": "good"}\n' * 90 + b'{"text": "b\n'),
        ("a.jsonl", b'{"text": ""}\n' * 90),
        ("a.txt.gz", gzip.compress(b"good\n" * 700, mtime=0)[:-9]),
    ],
)
def test_what_is_no_text_is_told_as_of_small_ones(name, content, tmp_path):
    config = schema.TextFiles(path=str(write(tmp_path, name, content)), field="text" if "jsonl" in name else None)
    told = []
    for large in (False, True):
        with pytest.raises(DataError) as caught:
            make(config, large=large)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_a_word_without_an_end_is_cut_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_stream, "_LONGEST", 2000)
    made = make(schema.TextFiles(path=str(write(tmp_path, "a.txt", "ab" * 3000)), workers=1), large=True)
    assert any("cut where the tokenizer sees a word" in note for note in made.info["notes"])
    assert sum(int(made.splits[split]["bytes"][0]) for split in SPLITS) == 6000


def test_a_vocabulary_of_a_large_text_is_made_of_a_sample(config, monkeypatch):
    monkeypatch.setattr(prepare_stream, "_UNIT", 100)
    seen: list[str] = []
    real = tokenization.build_tokenizer

    def spied(spec, texts):
        seen.append("".join(given := list(texts)))
        return real(spec, given)

    monkeypatch.setattr(tokenization, "build_tokenizer", spied)
    for sample, seed in ((2000, 0), (2000, 1), (2000, 0), (10**6, 0)):
        one = dataclasses.replace(config, vocabulary_characters=sample, split_seed=seed)
        assert ("vocabulary" in make(one, large=True).info) == (sample == 2000)
    assert seen[0] == seen[2] != seen[1] and 1000 < len(seen[0]) <= 2000
    whole = Path(config.path).read_bytes().decode()
    assert whole.startswith(seen[3]) and len(seen[3]) >= int(0.9 * len(whole))


# --- A second start ---------------------------------------------------------------------------------------------------


def test_a_large_set_opens_without_being_read(config, monkeypatch):
    monkeypatch.setattr(file_index, "LARGE", 0)
    monkeypatch.setattr(file_index, "_SETTLED", 0)
    monkeypatch.setattr(cache, "_LARGE", 0)
    expected = make(config, large=True)
    read: list[str] = []
    for module in (file_index, cache):
        real = module.sha256
        monkeypatch.setattr(module, "sha256", lambda file, real=real: read.append(file.name) or real(file))
    real_whole = file_index._read_whole
    monkeypatch.setattr(file_index, "_read_whole", lambda *a: read.append(a[0].name) or real_whole(*a))
    assert make(config, large=True, rebuild=False).fingerprint == expected.fingerprint
    assert read == ["tokenizer.json"]
    with file_index.distrust():
        make(config, large=True, rebuild=False)
    assert {"a.txt", "train.tokens.00000.bin", "train.text0.npy"} <= set(read)


def test_what_changed_in_a_prepared_set_is_noticed(config, monkeypatch, capsys):
    monkeypatch.setattr(cache, "_LARGE", 0)
    expected = make(config, large=True)
    shard = Path(expected.path) / "train.tokens.00001.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    assert make(config, large=True, rebuild=False).fingerprint == expected.fingerprint
    assert "is damaged; making it again" in capsys.readouterr().err
    times = [(file, file.stat().st_mtime_ns) for file in Path(expected.path).iterdir()]
    for file, time in times:  # as a copy has them
        os.utime(file, ns=(time + 10**9, time + 10**9))
    assert make(config, large=True, rebuild=False).splits["train"]["inputs"][:5].shape == (5,)
    assert not capsys.readouterr().err


def test_bad_lines_of_json_are_left_out_up_to_a_limit_and_named(tmp_path):
    lines = [json.dumps({"text": f"document {number} of some words " * 3}) for number in range(40)]
    good = schema.TextFiles(path=str(write(tmp_path, "good.jsonl", "\n".join(lines))), field="text")
    expected = make(good, "bytes", large=True)
    bad = list(lines)
    for place, line in ((0, '{"text": '), (7, '{"other": 1}'), (41, '["x"]'), (42, '{"text": {"a": 1}}')):
        bad.insert(place, line)
    config = dataclasses.replace(good, path=str(write(tmp_path, "bad.jsonl", "\n".join(bad))))
    for large in (False, True):
        with pytest.raises(DataError, match="bad.jsonl:1"):
            make(config, "bytes", large=large)
    skipping = dataclasses.replace(config, on_bad="skip", workers=1)
    assert text_files.identity(skipping) != text_files.identity(config) and "on_bad" not in text_files.identity(config)
    found = make(skipping, "bytes", large=False)
    for split in SPLITS:
        np.testing.assert_array_equal(found.splits[split]["inputs"][:], expected.splits[split]["inputs"][:])
    note = next(note for note in found.info["notes"] if "left out" in note)
    assert note.startswith(f"4 lines are left out, the first with this: {config.path}:1: ")
    assert note.count("bad.jsonl:") == 4 and f"{config.path}:8, " in note
    assert not any("empty" in note for note in found.info["notes"])
    with pytest.raises(DataError, match="4 of 44 lines cannot be read, more than data.bad_limit=0.05") as caught:
        make(dataclasses.replace(skipping, bad_limit=0.05), "bytes", large=False)
    assert "\n" not in str(caught.value)
