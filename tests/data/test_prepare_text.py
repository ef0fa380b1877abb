"""Promises of `preparation.prepare` for texts: tokenised once, and a run keeps the tokenizer it began with."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import cache
from bigctl.data.dataset import Dataset
from bigctl.data.notes import notes_of
from bigctl.data.preparation import prepare
from bigctl.data.text import encoding, tokenization
from bigctl.errors import DataError
from bigctl.files import sha256

TOKENIZER = schema.Tokenizer(type="words", size=60, max_length=16)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tokenized(monkeypatch) -> list[str]:
    """What was done with tokenizers since: "trained", "encoded"."""
    done: list[str] = []
    for room, name, note in ((tokenization, "train", "trained"), (encoding, "encode", "encoded")):
        real = getattr(room, name)
        monkeypatch.setattr(room, name, lambda *given, _real=real, _note=note: done.append(_note) or _real(*given))
    return done


def sentence(i: int) -> str:
    return " ".join(f"w{(i * 7 + k * k) % 40}" for k in range(2 + i % 9)) + f" no{i}"


def table(folder: Path, rows: int = 120, more: list[tuple[str, ...]] = (), pairs: bool = False) -> schema.Csv:  # type: ignore[assignment]
    folder.mkdir(parents=True, exist_ok=True)
    made = [(sentence(i), *([sentence(i + 3)] if pairs else []), "uvw"[i % 3]) for i in range(rows)]
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", *(["other"] if pairs else []), "y"), *made, *more])
    return schema.Csv(path=str(folder / "t.csv"), text="text", text_pair="other" if pairs else None, label="y")


def make(config: schema.Data, tokenizer: schema.Tokenizer = TOKENIZER, **options: Any) -> Dataset:
    return prepare.prepare(config, tokenizer=tokenization.spec(tokenizer), **options)


def stored(dataset: Dataset) -> Path:
    return Path(dataset.path) / cache.TOKENIZER


def same(a: Dataset, b: Dataset) -> bool:
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(a.splits[s][c], b.splits[s][c]) for s in a.splits for c in a.splits[s]
    )


# --- What is prepared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_and_texts_are_those_of_the_file(tmp_path, pairs):
    made = make(table(tmp_path, pairs=pairs))
    tokenizer = tokenization.load_tokenizer(stored(made))
    assert made.features.kind == "text" and made.features.pairs is pairs and made.features.classes == ("u", "v", "w")
    assert made.features.shape == (16,) and sum(made.size(s) for s in made.splits) == 120
    seen = set()
    for split, columns in made.splits.items():
        assert set(columns) == {"inputs", "offsets", "segment_start", "label"}
        assert columns["offsets"][-1] == len(columns["inputs"]) and len(columns["segment_start"]) == made.size(split)
        for i in range(made.size(split)):
            own = [texts[i] for texts in made.texts[split]]
            number = int(own[0].rsplit("no", 1)[1])
            assert own == [sentence(number), *([sentence(number + 3)] if pairs else [])]
            seen.add(number)
            expected = encoding.encode(tokenizer, own[:1], own[1:] or None, 16, "head")
            ids = columns["inputs"][columns["offsets"][i] : columns["offsets"][i + 1]]
            assert ids.tolist() == expected.tokens.tolist() and columns["segment_start"][i] == expected.segment_start[0]
            assert columns["label"][i] == number % 3
    assert len(seen) == 120


def test_the_tokenizer_is_made_of_the_training_texts_alone(tmp_path):
    (tmp_path / "other.csv").write_text("text,y\n" + "zebra zebra zebra zebra,u\n" * 40)
    config = replace(table(tmp_path), validation_path=str(tmp_path / "other.csv"))
    made = make(config)
    vocabulary = tokenization.load_tokenizer(stored(made)).get_vocab()
    assert "zebra" not in vocabulary and "w1" in vocabulary
    words = "".join(made.texts["train"][0][i] + " " for i in range(made.size("train"))).split()
    assert set(vocabulary) - {name for names in tokenization.SPECIAL.values() for name in names} <= set(words)
    assert made.info["unknown_tokens"]["validation"] == pytest.approx(4 / 6, abs=1e-5)


def test_what_was_cut_and_what_is_unknown_is_told(tmp_path):
    made = make(table(tmp_path), replace(TOKENIZER, max_length=8, size=30))
    lengths = {s: [len(made.texts[s][0][i].split()) for i in range(made.size(s))] for s in made.splits}
    assert made.info["cut"] == {s: sum(n > 6 for n in found) for s, found in lengths.items()}
    for split, columns in made.splits.items():
        assert made.info["unknown_tokens"][split] == pytest.approx((columns["inputs"] == 1).mean(), abs=1e-5)
        assert np.diff(columns["offsets"]).max() == 8
    json.dumps(made.info)


def test_the_tokenizer_is_known_by_its_digest(tmp_path):
    made = make(table(tmp_path))
    known = made.features.tokenizer
    assert known is not None and known["sha256"] == hashlib.sha256(stored(made).read_bytes()).hexdigest()
    assert known["vocab_size"] == 60 and known["max_length"] == 16 and known["pad"] == 0 and known["mask"] == 4


def test_texts_without_labels_are_prepared(tmp_path):
    made = make(replace(table(tmp_path), label=None))
    assert made.features.classes is None
    assert all(not np.any(columns["label"]) for columns in made.splits.values())
    assert {s: made.size(s) for s in made.splits} == {"train": 97, "validation": 11, "test": 12}


@pytest.mark.parametrize("deduplicate", [False, True])
def test_copies_are_dropped_on_request_and_told_of_otherwise(tmp_path, deduplicate):
    copies = [(sentence(i).upper() + " ", "uvw"[i % 3]) for i in range(60)]
    made = make(replace(table(tmp_path, more=copies), deduplicate=deduplicate))
    left = [made.texts[s][0][i].lower() for s in made.splits for i in range(made.size(s))]
    assert len(left) == (120 if deduplicate else 180) and len(set(left)) == 120
    crossing = made.info["duplicates"]["validation"]["in_train"] + made.info["duplicates"]["test"]["in_train"]
    assert (crossing == 0) is deduplicate
    for again in (made, make(replace(table(tmp_path, more=copies), deduplicate=deduplicate))):  # cold and warm
        assert any("also in the training split" in note for note in notes_of(again)) is not deduplicate
    if deduplicate:
        assert made.info["copies_dropped"] == {"train": 60}


def test_a_test_text_keeps_its_place_and_leaves_training(tmp_path):
    (tmp_path / "test.csv").write_text("text,y\n" + "".join(f"{sentence(i)},u\n" for i in (3, 6, 9)))
    made = make(replace(table(tmp_path), test_path=str(tmp_path / "test.csv"), deduplicate=True))
    assert made.size("test") == 3 and made.info["copies_dropped"] == {"train": 3, "test": 0}
    others = {made.texts[s][0][i] for s in ("train", "validation") for i in range(made.size(s))}
    assert len(others) == 117 and not others & {sentence(i) for i in (3, 6, 9)}


# --- The cache --------------------------------------------------------------------------------------------------------


def test_texts_are_tokenised_once(tmp_path, tokenized):
    first = make(table(tmp_path))
    assert tokenized == ["trained", *["encoded"] * 3]
    again = make(table(tmp_path))
    assert len(tokenized) == 4 and same(first, again) and again.features == first.features
    assert [again.texts["test"][0][i] for i in range(5)] == [first.texts["test"][0][i] for i in range(5)]
    assert make(table(tmp_path), rebuild=True).fingerprint == first.fingerprint and len(tokenized) == 8


@pytest.mark.parametrize(
    "change",
    [{"size": 40}, {"max_length": 8}, {"truncate": "tail"}, {"lowercase": False}, {"type": "characters"}],
    ids=lambda change: next(iter(change)),
)
def test_another_tokenizer_has_another_cache(tmp_path, change):
    first, other = make(table(tmp_path)), make(table(tmp_path), replace(TOKENIZER, **change))
    assert first.path != other.path and first.fingerprint != other.fingerprint


@pytest.mark.parametrize("damage", ["cut", "another one", "gone"])
def test_a_damaged_tokenizer_in_the_cache_is_noticed(tmp_path, damage, tokenized, capsys):
    first = make(table(tmp_path))
    content = stored(first).read_text()
    if damage == "cut":
        stored(first).write_text(content[: len(content) // 2])
    elif damage == "another one":
        stored(first).write_text(content.replace('"w1"', '"w2000"'))
    else:
        stored(first).unlink()
    again = make(table(tmp_path))
    assert "damaged" in capsys.readouterr().err and tokenized.count("trained") == 2
    assert again.fingerprint == first.fingerprint and stored(again).read_text() == content


# --- The tokenizer of a run -------------------------------------------------------------------------------------------


def kept(dataset: Dataset, folder: Path) -> Path:
    """A run's own copy of the tokenizer."""
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(stored(dataset), folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["words", "bpe", "characters"])
def test_a_run_never_makes_its_tokenizer_again(tmp_path, cache_dir, tokenized, kind):
    config, tokenizer = table(tmp_path), replace(TOKENIZER, type=kind, size=300)
    first = make(config, tokenizer)
    own = kept(first, tmp_path / "run")
    arrays = {s: {c: np.array(v) for c, v in columns.items()} for s, columns in first.splits.items()}
    shutil.rmtree(cache_dir)
    tokenized.clear()
    again = make(config, tokenizer, stored=own)
    assert "trained" not in tokenized and again.fingerprint == first.fingerprint
    assert all(np.array_equal(again.splits[s][c], arrays[s][c]) for s in arrays for c in arrays[s])
    make(config, tokenizer, stored=own)
    assert tokenized.count("encoded") == 3  # and the cache it made serves the next start


def test_a_run_keeps_its_tokenizer_where_the_cache_holds_another(tmp_path, tokenized):
    """As after an update of the library that trains another one from the same texts."""
    config = table(tmp_path)
    usual = make(config)
    folder = tmp_path / "run"
    folder.mkdir()
    own = folder / "tokenizer.json"
    vocabulary = tokenization.train(TOKENIZER, [f"w{i} " * (100 - i) for i in range(40)])
    own.write_text(vocabulary.to_str(pretty=True), encoding="utf-8")
    tokenized.clear()
    made = make(config, stored=own)
    assert "trained" not in tokenized and made.path != usual.path
    assert made.features.tokenizer["sha256"] == sha256(own) != usual.features.tokenizer["sha256"]  # type: ignore[index]
    again = make(config, stored=own)
    assert same(made, again) and tokenized.count("encoded") == 3
    assert same(usual, make(config)) and tokenized.count("encoded") == 3  # both stay


def test_a_run_whose_tokenizer_is_damaged_is_refused_by_name(tmp_path):
    config = table(tmp_path)
    own = kept(make(config), tmp_path / "run")
    own.write_text(own.read_text()[:200])
    with pytest.raises(DataError, match="is no tokenizer.json") as caught:
        make(config, stored=own)
    assert caught.value.where == str(own)
