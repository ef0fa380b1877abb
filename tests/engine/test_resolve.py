"""Promises of `bigctl.engine.resolve`: which tokenizer an experiment gets, and that a run keeps its own."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import bigctl
from bigctl.config import drift, schema
from bigctl.data import cache
from bigctl.data.text import tokenization
from bigctl.engine import experiment, resolve
from bigctl.errors import ConfigError, DataError
from bigctl.interop import sources
from bigctl.interop.pictures import STRETCH, Pixels

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


def photographs(folder: Path, shapes: list[tuple[int, int]]) -> list[str]:
    """A folder of pictures, each (height, width), in two classes; and the keys that name it."""
    for number, (height, width) in enumerate(shapes):
        file = folder / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 40 * number % 256, np.uint8)).save(file)
    return ["recipe=cnn_cls", "recipe.size=12", "data=image_folder", f"data.path={folder}"]


@pytest.mark.parametrize(
    "shapes, size",
    [([(40, 30)] * 7 + [(30, 40)] * 3, [16, 12]), ([(30, 60)] * 10, [12, 24]), ([(90, 20)] * 4, [24, 12]),
     ([(40, 30), (30, 40)] * 5, [12, 12])],
    ids=["mostly portrait", "landscape", "very tall", "mixed"],
)  # fmt: skip
def test_a_shorter_side_keeps_the_shape_that_most_pictures_have(shapes, size, tmp_path):
    config = resolve.with_architecture(bigctl.compose(photographs(tmp_path / "p", shapes)), None)
    assert (config.data.image_size, config.data.resize) == (size, "crop")


def test_what_is_said_of_pictures_is_not_decided_again(tmp_path):
    keys = photographs(tmp_path / "p", [(40, 30)] * 10)
    pixels = Pixels((20, 20), (0.5,) * 3, (0.25,) * 3)
    source = sources.Source("run", "x", tmp_path, "cnn", {}, tmp_path, None, pixels=pixels)

    def decided(*more: str, source: sources.Source | None = source) -> tuple[object, object]:
        keys_of = [*keys, *more, *(["model.init_from=x"] if source else [])]
        data = cast(Any, resolve.with_architecture(bigctl.compose(keys_of), source).data)
        return data.image_size, data.resize

    assert decided() == ([16, 12], "crop")
    assert decided("data.resize=stretch") == ([16, 12], "stretch")
    assert decided("data.image_size=[8,9]", "data.resize=stretch") == ([8, 9], "stretch")
    assert decided("data.image_size=[8,9]") == ([8, 9], "crop")
    assert decided("recipe.size=null") == ([20, 20], "crop")
    squeezed = dataclasses.replace(source, pixels=dataclasses.replace(pixels, resize=STRETCH))
    assert decided(source=squeezed) == ([16, 12], "stretch")
    assert decided("data.resize=crop", source=squeezed) == ([16, 12], "crop")
    assert decided("data.image_size=[8,9]", source=None) == ([8, 9], "auto")
    given = bigctl.compose([*keys, "model.init_from=x"])
    kept = resolve.with_architecture(given, source)
    assert {"data.image_size", "data.channels", "recipe.mean"} <= {each.key for each in drift.changes(kept, given)}
    assert all(drift.undecided(each) for each in drift.changes(kept, given)), "the same command goes on with such a run"
    built = resolve.resolve(bigctl.compose([*keys, "data.image_size=[8,9]"]))
    assert built.config.data.resize == "stretch" and built.dataset.features.shape == (8, 9, 3)


def test_auto_is_the_same_data_as_stretched(tmp_path):
    keys = [*photographs(tmp_path / "p", [(40, 30)] * 10), "recipe.size=null", "data.image_size=[8,9]"]
    first, second = (resolve.prepare_data(bigctl.compose([*keys, *more])) for more in ([], ["data.resize=stretch"]))
    assert first.path == second.path


def test_a_factor_of_biases_is_refused_for_a_model_without_any() -> None:
    config = SimpleNamespace(optimizer=schema.AdamW(bias_factor=2.0), model=schema.Gpt())
    for params, refused in (({"head": {"kernel": np.ones((2, 2))}}, True), ({"head": {"bias": np.ones(2)}}, False)):
        programs = SimpleNamespace(abstract_state=SimpleNamespace(params=params))
        with pytest.raises(ConfigError, match="model=gpt has no biases") if refused else contextlib.nullcontext():
            experiment._check_biases(cast(Any, config), cast(Any, programs))
