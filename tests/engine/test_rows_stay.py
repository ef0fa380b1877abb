"""Nothing of the rows of private data lies in a run unless it was asked for; what a vocabulary holds is said."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.config import schema
from bigctl.data.text import tokenization
from bigctl.errors import ConfigError, DataError

pytestmark = pytest.mark.fewer
COMMON = ["good", "film", "bad", "the", "plot"]
TEXTS = [*[f"the {word} film {number % 7}" for number, word in enumerate(COMMON * 20)], "the zebedee film zebedee"]
LSTM = ["recipe=lstm_cls", "model.embedding=8", "model.hidden=8", "recipe.tokenizer.max_length=32"]
SHORT = ["train.steps=2", "train.batch_size=16", "eval.every=2", "recipe.bucketing.shapes=1"]
SECRETS = [f"zq{number:04d}x" for number in range(120)]


def holding(folder: Path, secrets: list[str]) -> set[str]:
    """Files that have one of some words in them."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.name for file in files if any(word.encode() in file.read_bytes() for word in secrets)}


def trained(tmp_path: Path, *overrides: str) -> Path:
    """A run on texts with a word each that no other has."""
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["words", "kind"])
        writer.writerows(
            [f"the film of {word} is {'good' if n % 2 else 'bad'}", n % 2] for n, word in enumerate(SECRETS)
        )
    own = ["data=csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=kind", "data.text=words"]
    bigctl.train([*LSTM, *SHORT, *own, *overrides], tmp_path / "run", quiet=True)
    assert "rows.csv" in holding(tmp_path, SECRETS)
    return tmp_path / "run"


def test_words_that_are_too_rare_are_in_no_file(tmp_path: Path) -> None:
    assert holding(trained(tmp_path, "recipe.tokenizer.type=words", "recipe.tokenizer.min_count=3"), SECRETS) == set()


@pytest.mark.slow
def test_words_are_in_the_vocabulary_that_is_made_of_them_and_nowhere_else(tmp_path: Path) -> None:
    for name, expected in (("bytes", set()), ("words", {"tokenizer.json"})):
        (tmp_path / name).mkdir()
        assert holding(trained(tmp_path / name, f"recipe.tokenizer.type={name}"), SECRETS) == expected


def test_numbers_of_a_table_are_in_no_file(tmp_path: Path) -> None:
    values = [f"{value:.9f}" for value in np.random.default_rng(0).uniform(1, 2, 120)]
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["size", "kind"], *([value, "ab"[n % 2]] for n, value in enumerate(values))])
    own = ["data=csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=kind", "train.steps=4", "eval.every=2"]
    bigctl.train(["recipe=mlp_cls", *own], tmp_path / "run", quiet=True)
    assert holding(tmp_path / "run", values) == set()


@pytest.mark.parametrize("kind", ["words", "bpe", "characters"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_too_rare_is_in_no_vocabulary(kind: str, stream: bool) -> None:
    settings = (schema.StreamTokenizer if stream else schema.Tokenizer)(type=kind, size=1000)
    every = tokenization.train(settings, TEXTS).get_vocab()
    settings.min_count = 3
    often = tokenization.train(settings, TEXTS).get_vocab()
    assert often.keys() < every.keys()
    rare = {"words": "zebedee", "bpe": "zebedee", "characters": "z"}[kind]
    assert any(rare in word for word in every) and not any(
        rare in word for word in often if len(word) > 1 or kind != "bpe"
    )
    assert any(word.endswith({"characters": "f"}.get(kind, "film")) for word in often)


def test_what_was_prepared_before_is_found_again() -> None:
    plain = tokenization.Spec(schema.Tokenizer(type="words"))
    assert "min_count" not in plain.identity()
    assert tokenization.Spec(schema.Tokenizer(type="words", min_count=2)).identity()["min_count"] == 2


def test_a_count_that_does_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="makes none of the texts"):
        bigctl.compose(["recipe=gpt_lm", "recipe.tokenizer.type=bytes", "recipe.tokenizer.min_count=2"])


@pytest.mark.parametrize(
    "settings",
    [
        schema.Tokenizer(type="words", min_count=1000),
        schema.StreamTokenizer(type="characters", min_count=1000),
    ],
)
def test_a_count_that_leaves_no_word_is_refused(settings: schema.StreamTokenizer) -> None:
    with pytest.raises(DataError, match="nothing is in the texts 1,000 times"):
        tokenization.train(settings, TEXTS)
