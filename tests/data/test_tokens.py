"""Promises of `data=tokens`: ready-made tokens are read where they lie, as if their text had been tokenised here."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.config import compose, schema
from bigctl.data import preview
from bigctl.data.dataset import Dataset
from bigctl.data.files import paths
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.sources import tokens as source
from bigctl.data.text import token_shards, tokenization
from bigctl.data.text.token_shards import TokenShards
from bigctl.engine import samples
from bigctl.errors import BigctlError, DataError

STORY = "".join(f"{i} bottles of beer, {i * 7 % 10} of them café.\n" for i in range(200))
TOKENS = np.frombuffer(STORY.encode(), np.uint8).astype(np.int64)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def raw(file: Path, tokens: np.ndarray = TOKENS, dtype: str = "<u2") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    tokens.astype(dtype).tofile(file)
    return file


def llmc(
    file: Path, tokens: np.ndarray = TOKENS, magic: int = 20240520, version: int = 1, count: int | None = None
) -> Path:
    header = struct.pack("<3i", magic, version, len(tokens) if count is None else count).ljust(1024, b"\0")
    file.write_bytes(header + tokens.astype("<u4" if magic == 20240801 else "<u2").tobytes())
    return file


def megatron(file: Path, tokens: np.ndarray = TOKENS, cuts: tuple[int, ...] = (100, 101, 700), **given: Any) -> Path:
    """A .bin with its .idx; a sequence and a document between two cuts."""
    code, version = given.get("code", 8), given.get("version", 1)
    kind = {1: "|u1", 4: "<i4", 5: "<i8", 8: "<u2"}.get(code, "<u2")
    tokens.astype(kind).tofile(file)
    sizes = np.diff([0, *cuts, len(tokens)])
    begins = given.get("begins", (np.cumsum(sizes) - sizes) * np.dtype(kind).itemsize)
    documents = given.get("documents", np.arange(len(sizes) + 1))
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", version, code, len(sizes), len(documents))
    body = np.asarray(sizes, "<i4").tobytes() + np.asarray(begins, "<i8").tobytes()
    content = head + body + np.asarray(documents, "<i8").tobytes()
    file.with_suffix(".idx").write_bytes(content[: given.get("cut")])
    return file


def make(path: Path | str, type: str = "bytes", block: int = 8, size: int = 10000, **keys: Any) -> Dataset:
    spec = tokenization.spec(schema.StreamTokenizer(type=type, size=size))
    return prepare.prepare(schema.Tokens(path=str(path), **keys), tokenizer=spec, batches=BatchOptions(block=block))


def everything(dataset: Dataset) -> list[int]:
    return np.concatenate([dataset.splits[split]["inputs"][:] for split in ("train", "validation", "test")]).tolist()


# --- Formats ----------------------------------------------------------------------------------------------------------


def test_each_format_holds_the_same_tokens(tmp_path):
    llmc(tmp_path / "llmc.bin"), llmc(tmp_path / "llama.bin", magic=20240801, version=7)
    raw(tmp_path / "raw.bin"), raw(tmp_path / "wide.bin", dtype="<u4")
    for code in (1, 4, 5, 8):
        megatron(tmp_path / f"megatron{code}.bin", code=code)
    found = {file.stem: make(file, dtype="uint32" if file.stem == "wide" else None) for file in tmp_path.glob("*.bin")}
    assert len(found) == 8
    for dataset in found.values():
        assert everything(dataset) == TOKENS.tolist()
    assert found["llmc"].info["format"] == ["llmc, uint16"] and found["raw"].info["format"] == ["raw, uint16"]
    assert found["megatron4"].info["format"] == ["megatron, int32, 4 documents"]
    assert found["raw"].path and not list(Path(found["raw"].path).glob("*inputs*"))  # nothing of it was copied


def test_batches_are_those_of_the_text_bit_for_bit(tmp_path):
    (tmp_path / "a.txt").write_text(STORY, encoding="utf-8")
    spec = tokenization.spec(schema.StreamTokenizer(type="bytes"))
    options: dict[str, Any] = {"validation_fraction": 0.125, "test_fraction": 0.125}
    ascii_only = STORY.replace("é", "e")  # splits of a text count its characters, those of tokens these
    (tmp_path / "a.txt").write_text(ascii_only)
    raw(tmp_path / "whole.bin", np.frombuffer(ascii_only.encode(), np.uint8))
    for number, part in enumerate(np.array_split(np.frombuffer(ascii_only.encode(), np.uint8), 7)):
        raw(tmp_path / "parts" / f"{number}.bin", part)
    text = schema.TextFiles(path=str(tmp_path / "a.txt"), **options)
    expected = prepare.prepare(text, tokenizer=spec, batches=BatchOptions(block=8))
    for path in ("whole.bin", "parts"):
        found = make(tmp_path / path, **options)
        layout, columns = found.batches, found.splits["train"]
        plans = [each.batches.training_plan(each.splits["train"], batch_size=5, seed=3) for each in (expected, found)]
        for position in (0, 5, 4000):
            (starts, length), (also, _) = (plan.batch(position) for plan in plans)
            assert np.array_equal(starts, also)
            batch = layout.gather(columns, starts, length)
            for name, values in expected.batches.gather(expected.splits["train"], starts, length).items():
                assert np.array_equal(batch[name], values) and batch[name].dtype == values.dtype
        for split in ("validation", "test"):
            assert found.splits[split]["bytes"] == expected.splits[split]["bytes"]
            assert np.array_equal(np.asarray(found.splits[split]["inputs"]), expected.splits[split]["inputs"])


# --- Files and splits -------------------------------------------------------------------------------------------------


def test_names_say_the_split(tmp_path):
    for name in ("web_train_000001", "web_train_000000", "web_val_000000", "test/a", "validated"):
        raw(tmp_path / f"{name}.bin")
    (tmp_path / "meta.pkl").write_bytes(b"not opened")
    found = source.shards(schema.Tokens(path=str(tmp_path)))
    names = {split: [shard.file.name for shard in each] for split, each in found.items()}
    assert names == {
        "train": ["validated.bin", "web_train_000000.bin", "web_train_000001.bin"],
        "validation": ["web_val_000000.bin"],
        "test": ["a.bin"],
    }
    one = source.shards(schema.Tokens(path=str(tmp_path / "web_val_000000.bin"), test_path=f"{tmp_path}/test/*.bin"))
    assert {split: len(each) for split, each in one.items()} == {"train": 1, "test": 1}
    with pytest.raises(DataError, match="validation split too"):
        source.shards(schema.Tokens(path=str(tmp_path), validation_path=str(tmp_path / "validated.bin")))
    with pytest.raises(DataError, match="in the train split and in the test split"):
        one_file = str(tmp_path / "validated.bin")
        source.shards(schema.Tokens(path=one_file, test_path=one_file))


def test_braces_stand_for_names(tmp_path):
    assert paths.braces("a_{08..11}.{bin,idx}") == [
        f"a_{n}.{e}" for n in ("08", "09", "10", "11") for e in ("bin", "idx")
    ]
    assert paths.braces("a_{2..0}") == ["a_2", "a_1", "a_0"] and paths.braces("a{b}c") == ["a{b}c"]
    with pytest.raises(DataError, match="more than 1,000,000"):
        paths.braces("{0..1000000000}")
    for number in (0, 1, 3):
        raw(tmp_path / f"w_{number:02d}.bin")
    given = schema.Tokens(path=f"{tmp_path}/w_{{00..01}}.bin")
    assert [shard.file.name for shard in source.shards(given)["train"]] == ["w_00.bin", "w_01.bin"]
    with pytest.raises(DataError, match=r"w_02\.bin: no such file"):
        source.shards(schema.Tokens(path=f"{tmp_path}/w_{{00..03}}.bin"))


def test_no_more_is_scored_than_was_asked_for(tmp_path):
    raw(tmp_path / "train.bin"), raw(tmp_path / "val.bin")
    few = make(tmp_path, validation_tokens=50)
    sizes = {split: len(columns["inputs"]) for split, columns in few.splits.items()}
    assert sizes == {"train": len(TOKENS) - 50, "validation": 50, "test": 50}
    assert few.splits["validation"]["inputs"][:].tolist() == TOKENS[:50].tolist()
    written = make(tmp_path, validation_tokens=50, validation="validation[100:300]")
    assert written.splits["validation"]["inputs"][:].tolist() == TOKENS[100:300].tolist()


# --- Size -------------------------------------------------------------------------------------------------------------


def test_nine_billion_tokens_are_drawn_from_without_reading_them(tmp_path):
    file = tmp_path / "big.bin"
    with file.open("wb") as stream:
        stream.truncate(18 * 2**30)
        stream.seek(2 * 8_000_000_000)
        stream.write(np.arange(64, dtype="<u2").tobytes())
    dataset = make(file)
    columns, layout = dataset.splits["train"], dataset.batches
    plan = layout.training_plan(columns, batch_size=4, seed=0)
    starts, length = plan.batch(10**9)
    assert starts.dtype == np.int64 and len({start // 2**31 for start in starts.tolist()}) > 1
    assert layout.gather(columns, starts, length)["inputs"].shape == (4, 8)
    assert layout.gather(columns, np.array([8_000_000_003]), 8)["targets"].tolist() == [[*range(4, 12)]]
    assert dataset.size("train") == (len(columns["inputs"]) - 8) // 8 and dataset.size("validation") == 2**17
    assert sum(len(shards._maps) for shards in (columns["inputs"],)) == 1


def test_no_more_files_are_open_than_a_few(tmp_path, monkeypatch):
    monkeypatch.setattr(token_shards, "_MAPPED", 2)
    monkeypatch.setattr(token_shards, "_RESIDENT", 1)
    for number, part in enumerate(np.array_split(TOKENS, 5)):
        raw(tmp_path / "parts" / f"{number}.bin", part)
    shards = make(tmp_path / "parts").splits["train"]["inputs"]
    places = np.arange(len(shards)).reshape(2, -1)[:, ::-1] if len(shards) % 2 == 0 else np.arange(len(shards))
    assert np.array_equal(shards[places], TOKENS[places])
    assert isinstance(shards, TokenShards) and len(shards._maps) == 2


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f.write_bytes(b"abc"), "3 bytes are no whole number of tokens of 2 bytes"),
        (lambda f: f.write_bytes(b""), "the file is empty"),
        (lambda f: f.write_bytes(struct.pack("<i", 20240520)), "the header is cut off: it has 1,024 bytes, the file 4"),
        (lambda f: llmc(f, count=3), "the header tells of 3 tokens"),
        (lambda f: llmc(f, count=-1), "the header tells of 4,294,967,295 tokens"),
        (lambda f: llmc(f, version=2), "version 2 of the format is not known, 1 is"),
        (lambda f: raw(f, TOKENS + 300 * (np.arange(len(TOKENS)) % 2 == 0), "<u4"), "as in a file of uint32"),
        (lambda f: raw(f, np.where(np.arange(len(TOKENS)) == 77, 300, TOKENS)), "token 300 at place 77 is not in the"),
        (lambda f: megatron(f, cut=30), "the header is cut off"),
        (lambda f: megatron(f, cut=60), "it tells of 4 sequences and 5 documents, 122 bytes, and has 60"),
        (lambda f: megatron(f, code=6), "tokens of type 6 are no whole numbers"),
        (lambda f: megatron(f, version=2), "version 2 of the index"),
        (lambda f: megatron(f, begins=[0, 2, 3, 4]), "sequences do not lie one after the other"),
        (lambda f: megatron(f, documents=[0, 3, 2]), "the documents in it are out of order"),
        (lambda f: megatron(f, documents=[0, 9]), "the documents in it are out of order"),
        (lambda f: (megatron(f), raw(f, TOKENS[:-1])), "the index tells of"),
        (lambda f: (raw(f), f.with_suffix(".idx").write_bytes(b"TNTIDX\0\0")), "this is no index of Megatron's"),
        (lambda f: megatron(f, np.where(TOKENS == 32, -1, TOKENS), code=4), "token -1 at place"),
    ],
)
def test_a_file_that_lies_is_named_with_what_is_wrong(tmp_path, write, message):
    write(tmp_path / "a.bin")
    with pytest.raises(DataError) as caught:
        make(tmp_path)
    assert message in str(caught.value) and str(caught.value.where).rsplit(".", 1)[0] == str(tmp_path / "a")
    assert "\n" not in str(caught.value).split("\n        ")[0]


def test_a_token_that_the_sample_missed_is_found_when_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(token_shards, "MANY", 0)
    monkeypatch.setattr(token_shards, "_BLOCK", 8)
    many = np.zeros(10**6, np.int64)
    many[123_457] = 9999
    dataset = make(raw(tmp_path / "a.bin", many))
    columns, layout = dataset.splits["train"], dataset.batches
    layout.gather(columns, np.array([5]), 8)
    with pytest.raises(DataError, match=r"a\.bin: token 9,999 at place 123,457 is not in the vocabulary of 257"):
        layout.gather(columns, np.array([5, 123_450]), 8)
    with pytest.raises(DataError, match="place 123,457"):
        np.asarray(columns["inputs"])


def test_what_changes_under_a_run_is_told_and_does_not_kill_it(tmp_path):
    file = raw(tmp_path / "a.bin", np.resize(TOKENS, 2**20))
    dataset = make(file)
    columns, layout = dataset.splits["train"], dataset.batches
    layout.gather(columns, np.array([5]), 8)
    os.truncate(file, 2 * 100)  # its map has no pages behind it any more
    with pytest.raises(DataError, match=r"a\.bin: the file has changed since it was prepared"):
        layout.gather(columns, np.array([900_000]), 8)
    file.unlink()
    with pytest.raises(DataError, match=r"a\.bin: the file is not there any more"):
        layout.gather(columns, np.array([5]), 8)


@pytest.mark.parametrize("whole", [2**28, 0])
def test_data_is_another_where_a_file_changed_or_is_missing(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(source, "_WHOLE", whole)
    for number, part in enumerate(np.array_split(TOKENS, 3)):
        raw(tmp_path / "parts" / f"{number}.bin", part)
    first = make(tmp_path / "parts").fingerprint
    assert make(tmp_path / "parts").fingerprint == first
    (tmp_path / "parts").rename(tmp_path / "moved")
    assert make(tmp_path / "moved").fingerprint == first  # where files lie is no part of it
    other = tmp_path / "moved" / "1.bin"
    before, content = other.stat(), other.read_bytes()
    other.write_bytes(content[:-2] + b"A\0")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    changed = make(tmp_path / "moved").fingerprint
    other.unlink()
    assert len({first, changed, make(tmp_path / "moved").fingerprint}) == 3


# --- Tokenizers -------------------------------------------------------------------------------------------------------


def test_tokens_without_a_tokenizer_are_written_as_their_numbers(tmp_path):
    raw(tmp_path / "a.bin")
    dataset = make(tmp_path, "ids", size=300)
    assert dataset.features.tokenizer is not None and dataset.features.tokenizer["vocab_size"] == 300
    tokenizer = tokenization.load_tokenizer(Path(dataset.path) / "tokenizer.json", stream=True)
    assert tokenizer.encode("299 0 17", add_special_tokens=False).ids == [299, 0, 17]
    assert tokenizer.decode([299, 0, 17]) == "299 0 17"
    assert preview.opening(dataset)[0].startswith("48 32 98 111")
    assert samples.opening(dataset, tokenizer).split()[0].isdigit()
    assert "bytes" not in dataset.splits["validation"] and not dataset.batches.extra_sums(dataset.splits["validation"])
    plain = prepare.prepare(schema.Tokens(path=str(tmp_path)))  # as `bigctl data` shows it without a recipe
    assert plain.size("train") == plain.info["tokens"]["train"] and preview.opening(plain)[0].startswith("48 32")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=tokens"], "recipe.tokenizer.type=characters is made of text, and data=tokens holds ready-made tokens"),
        (["data=text", "recipe.tokenizer.type=ids"], "recipe.tokenizer.type=ids is for tokens that are ready-made"),
        (
            ["data=tokens", "recipe.tokenizer.type=gpt2", "data.format=llmc", "data.dtype=uint16"],
            "data.dtype is for raw",
        ),
    ],
)
def test_tokenizer_and_tokens_must_fit(overrides, message):
    with pytest.raises(BigctlError, match=message):
        compose.compose(["recipe=gpt_lm", "data.path=a.bin", *overrides])
