"""Promises of `bigctl.engine.resolve`: which tokenizer an experiment gets, and that a run keeps its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import bigctl
from bigctl.config import schema
from bigctl.data import cache
from bigctl.data.text import tokenization
from bigctl.engine import experiment, resolve
from bigctl.errors import ConfigError, DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "Good", "一"]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def given(tmp_path) -> list[str]:
    """An experiment with a vocabulary of its own."""
    rows = [f"{'Good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,y", *rows]) + "\n")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return [
        "recipe=bert_cls", "model=bert_tiny", "data=csv", f"data.path={tmp_path / 't.csv'}", "data.text=text",
        "data.label=y", "recipe.tokenizer.type=file", f"recipe.tokenizer.path={tmp_path / 'vocab.txt'}",
    ]  # fmt: skip


def first_tokens(dataset, split: str = "train") -> set[int]:
    columns = dataset.splits[split]
    return set(columns["inputs"][columns["offsets"][:-1] + 1].tolist())


def test_case_is_folded_as_configured(given):
    assert first_tokens(resolve.prepare_data(bigctl.compose(given))) == {5, 6}
    cased = bigctl.compose([*given, "recipe.tokenizer.lowercase=false"])
    assert first_tokens(resolve.prepare_data(cased)) == {8, 6}


def test_a_run_needs_its_vocabulary_file_no_more(given, tmp_path, cache_dir):
    config = bigctl.compose([*given, "recipe.tokenizer.lowercase=false"])
    first = resolve.prepare_data(config)
    own = Path(shutil.copy(Path(first.path) / cache.TOKENIZER, tmp_path / "tokenizer.json"))
    assert resolve.prepare_data(config, own).path == first.path  # found in the cache
    shutil.rmtree(cache_dir)
    (tmp_path / "vocab.txt").unlink()
    assert resolve.prepare_data(config, own).fingerprint == first.fingerprint
    with pytest.raises(DataError, match="there is no file"):
        resolve.prepare_data(config)


def test_a_vocabulary_that_changed_since_changes_no_run(given, tmp_path):
    config = bigctl.compose(given)
    first = resolve.prepare_data(config)
    own = Path(shutil.copy(Path(first.path) / cache.TOKENIZER, tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:5], "film", "bad", "good"]) + "\n")
    assert resolve.prepare_data(config, own).fingerprint == first.fingerprint
    assert resolve.prepare_data(config).fingerprint != first.fingerprint


def test_a_run_whose_copy_is_gone_takes_what_the_configuration_says(given, tmp_path):
    config = bigctl.compose(given)
    assert resolve.prepare_data(config, tmp_path / "gone.json").fingerprint == resolve.prepare_data(config).fingerprint


def test_a_recipe_without_texts_has_no_tokenizer():
    assert resolve.tokenizer_spec(bigctl.compose(["recipe=mlp_cls"])) is None


def test_made_tokenizers_are_asked_for_by_what_is_configured(given):
    config = bigctl.compose([*given[:-2], "recipe.tokenizer.type=bpe", "recipe.tokenizer.size=300"])
    spec = resolve.tokenizer_spec(config)
    assert spec is not None and spec.file is None and spec == tokenization.spec(config.recipe.tokenizer)  # type: ignore[attr-defined]


def test_layer_decay_is_refused_for_a_model_whose_layers_are_not_known() -> None:
    def checked(**params: Any) -> None:
        config = SimpleNamespace(optimizer=schema.AdamW(layer_decay=0.5), model=schema.Model(kind="strange"))
        programs = SimpleNamespace(abstract_state=SimpleNamespace(params=params))
        experiment._check_layer_decay(cast(Any, config), cast(Any, programs))

    leaf, top = {"kernel": np.ones(1)}, {"head": {"kernel": np.ones(1)}}
    checked(embedding=leaf, layers={"0": leaf, "1": leaf}, **top)
    with pytest.raises(ConfigError, match="strange does not tell which layers are below which: convs/kernel may"):
        checked(convs=leaf, layers={"0": leaf}, **top)
    with pytest.raises(ConfigError, match="strange does not tell"):
        checked(**top)
