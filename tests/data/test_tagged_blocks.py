"""Promises about large files of tagged sentences: made by blocks they are to the bit what small ones are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bigctl.config import schema
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import encode_by_blocks, prepare
from bigctl.data.sources import row_blocks, tagged_blocks, text_parts
from bigctl.data.text import tokenization
from tests import tagging
from tests.data.outcome import outcome
from tests.data.test_rows_by_blocks import assert_equal


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch) -> None:
    """Blocks so small that a short file has many of each."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(text_parts, "_BLOCK", 37)
    monkeypatch.setattr(tagged_blocks, "_SENTENCES", 7)
    monkeypatch.setattr(encode_by_blocks, "_TEXTS", 3)


def conll(seed: int, count: int = 50, mark: str = " ") -> str:
    rows = tagging.sentences(seed, count)
    return "\n\n".join("\n".join(f"{word}{mark}{tag}" for word, tag in row) for row in rows) + "\n"


def objects(seed: int, count: int = 50) -> list[str]:
    rows = tagging.sentences(seed, count)
    return [json.dumps({"tokens": [word for word, _ in row], "tags": [tag for _, tag in row]}) for row in rows]


WORDS = tokenization.spec(schema.Tokenizer(type="bpe", size=300, max_length=7))
STREAM = {"tokenizer": tokenization.spec(schema.StreamTokenizer(type="bytes")), "batches": BatchOptions(block=8)}
SKIP = {"on_bad": "skip"}
JSON = {"tokens": "tokens", "tags": "tags"}
COLUMNS = "# global.columns = ID FORM NER\n1\tRome\tB\n1-2\tof\tO\n2\tis\tO\n\n# text\n1\tit\tO\n" * 9
CASES = {
    "words as they are": ("a.conll", conll(0), {}, {}),
    "with tokens": ("a.conll", conll(0), {}, {"tokenizer": WORDS}),
    "as one text": ("a.conll", conll(0), {}, STREAM),
    "tabs, line ends of Windows": ("a.conll", conll(0, mark="\t").replace("\n", "\r\n"), {}, {}),
    "columns that have names": ("a.conllup", COLUMNS, {"tokens": "FORM", "tags": "NER"}, {}),
    "another encoding": ("a.conll", conll(0).replace("Rome", "Köln"), {"encoding": "utf-16"}, {}),
    "without copies": ("a.conll", conll(0), {"deduplicate": True}, {"tokenizer": WORDS}),
    "parts": ("a.conll", conll(0), {"train": "train[:60%]", "validation": "train[60%:]"}, {}),
    "tags that are numbers": ("a.conll", "a 10\nb 9\n\nc -1\n\n" * 20, {}, {}),
    "bad ones left out": ("a.conll", conll(0) + "\na\nb O\n\nc O x\n\n" + conll(2), SKIP, {"tokenizer": WORDS}),
    "bad ones above the limit": ("a.conll", conll(0) + "\na\n" * 9, {"bad_limit": 0.1} | SKIP, {}),
    "none but bad ones": ("a.conll", "a O\nb\n\n" * 5, SKIP, {}),
    "a bad one": ("a.conll", conll(0) + "\na\nb O\n", {}, {}),
    "an empty tag": ("a.conll", conll(0, mark="\t") + "\na\t\n", {}, {}),
    "nothing": ("a.conll", " \n" * 50, {}, {}),
    "no sentence": ("a.conll", "-DOCSTART- O\n\n" * 50, {}, {}),
    "one tag": ("a.conll", "a O\n\n" * 50, {}, {}),
    "tags that do not repeat": ("a.conll", "".join(f"a {n}\n\n" for n in range(150)), {}, {}),
    "no such column": ("a.conll", conll(0), {"tags": "3"}, {}),
    "n-grams": ("a.conll", conll(0), {}, {"tokenizer": tokenization.spec(schema.NgramTokenizer())}),
    "objects": ("a.jsonl", "\n".join(objects(0)), JSON, {"tokenizer": WORDS}),
    "a list of objects": ("a.jsonl", f"[{', '.join(objects(0))}]", JSON, {}),
    "objects, some bad": (
        "a.jsonl",
        "\n".join([*objects(0), '{"tokens": ["a"]}', '{"tokens": ["a", ""], "tags": ["O", "O"]}', "[", *objects(1)]),
        JSON | SKIP,
        {},
    ),
    "objects, bad ones up to the limit": (
        "a.jsonl",
        "\n".join([*objects(0), *["[1]"] * 10]),
        JSON | SKIP | {"bad_limit": 1 / 6},
        {},
    ),
    "objects, bad ones above the limit": (
        "a.jsonl",
        "\n".join([*objects(0), *["[1]"] * 11]),
        JSON | SKIP | {"bad_limit": 1 / 6},
        {},
    ),
    "objects, one of half a character": (
        "a.jsonl",
        "\n".join([*objects(0), '{"tokens": ["\\ud83d"], "tags": ["O"]}']),
        JSON,
        {},
    ),
}


def both(monkeypatch, config: schema.Data, options: dict) -> list:
    """The same data as a whole and by blocks; or the two errors."""
    found = []
    for size in (2**40, 0):
        monkeypatch.setattr(tagged_blocks, "LARGE", size)
        found.append(outcome(config, options))
    return found


def of(file: Path, options: dict) -> schema.Data:
    return (schema.Jsonl if file.name.startswith("a.jsonl") else schema.Conll)(path=str(file), **options)


@pytest.mark.parametrize("case", CASES)
def test_sentences_by_blocks_are_those_as_a_whole(case: str, tmp_path, monkeypatch) -> None:
    name, content, keys, options = CASES[case]
    file = tmp_path / name
    file.write_text(content, encoding=keys.get("encoding", "utf-8"), newline="")
    whole, blocks = both(monkeypatch, of(file, keys), options)
    if isinstance(whole, str):
        assert blocks == whole
    else:
        assert_equal(whole, blocks)


@pytest.mark.parametrize("other", [conll(1), conll(1) + "\nrain B-SKY\n"])
def test_a_file_of_its_own_for_the_test_is_held_to_the_tags_of_training(other: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress(conll(0).encode()))
    (tmp_path / "test.conll").write_text(other)
    config = schema.Conll(path=str(tmp_path / "a.conll.gz"), test_path=str(tmp_path / "test.conll"))
    whole, blocks = both(monkeypatch, config, {"tokenizer": WORDS})
    if "SKY" in other:
        assert blocks == whole and "the tag 'B-SKY' of 'rain' is not among" in whole
    else:
        assert_equal(whole, blocks)


@pytest.mark.parametrize("name", ["a.conll", "a.jsonl", "a.jsonl as a list"])
def test_a_start_that_is_cut_off_is_gone_on_with(name: str, tmp_path, monkeypatch) -> None:
    """At each block in turn: the words that are written by then are not read again."""
    file = tmp_path / name.split()[0]
    content = {"a.conll": conll(0), "a.jsonl": "\n".join(objects(0))}.get(name, f"[{', '.join(objects(0))}]")
    file.write_text(content)
    config = of(file, {} if name == "a.conll" else JSON)
    monkeypatch.setattr(tagged_blocks, "LARGE", 2**40)
    whole = prepare.prepare(config, tokenizer=WORDS)
    monkeypatch.setattr(tagged_blocks, "LARGE", 0)
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "blocks"))
    monkeypatch.setattr("bigctl.data.journal._EVERY", -1.0)
    append, blocks, starts = tagged_blocks.TextColumns.append, [0], 0

    class Killed(BaseException):
        pass

    def cut_off(self, *given):
        append(self, *given)
        blocks[0] += 1
        raise Killed

    monkeypatch.setattr(tagged_blocks.TextColumns, "append", cut_off)
    while True:
        try:
            found = prepare.prepare(config, tokenizer=WORDS)
            break
        except Killed:
            starts += 1
    assert starts == blocks[0] == 8  # seven of seven sentences, and the last one
    assert found.fingerprint == whole.fingerprint and found.info == whole.info
    assert row_blocks.are_large([file], 0)
