"""Promises of `bigctl.inference.export`: an export is whole or not there, and holds what the run learned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data.target import Target
from bigctl.data.text import tokenization
from bigctl.errors import ConfigError, RunError
from bigctl.inference.exporters.huggingface import export_run
from bigctl.inference.trained import TrainedRun
from bigctl.interop import huggingface, loading, sources
from bigctl.runs.directory import RunDirectory
from tests.interop import builders

CLASSES = ("bad", "good")


def trained(
    folder: Path, model: schema.Model, values: dict[str, np.ndarray], kind: str = "class", **settings
) -> TrainedRun:
    """As much of a trained run as an export looks at, with its tokenizer on disk."""
    folder.mkdir(parents=True)
    tokenizer = tokenization.load_tokenizer(builders.tokenizer_json(folder))
    settings = schema.Tokenizer(type="file", max_length=12, **settings)
    features = SimpleNamespace(target=Target(kind, CLASSES), tokenizer=tokenization.describe(tokenizer, settings, "0"))
    run = RunDirectory(folder)
    nested: dict = {}
    for name, leaf in values.items():
        node = nested
        *parents, last = name.split("/")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    found = SimpleNamespace(
        run=run,
        config=SimpleNamespace(model=model, train=SimpleNamespace(quantize=None)),
        features=features,
        step=7,
        params=nested,
    )
    return found  # type: ignore[return-value]


def test_an_export_holds_the_run_and_can_be_started_from_again(tmp_path):
    model = builders.model()
    values = builders.params(model)
    folder = export_run(trained(tmp_path / "run", model, values), tmp_path / "out" / "here")
    names = ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == [*names, "tokenizer_config.json", "vocab.txt"]
    source = sources.locate_source(str(folder))
    assert source.classes == CLASSES and source.architecture == {**builders.ARCHITECTURE, "eps": 1e-12}
    taken, new, unused = loading.load_weights(source, builders.shapes(model), classes=CLASSES)
    assert not new and not unused and all(np.array_equal(taken[name], values[name]) for name in values)


@pytest.mark.parametrize(("kind", "problem"), [("class", "single_label"), ("classes", "multi_label")])
def test_an_export_says_whether_a_text_may_have_several_classes(tmp_path, kind, problem):
    model = builders.model()
    folder = export_run(trained(tmp_path / "run", model, builders.params(model), kind), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == f"{problem}_classification"
    assert list(config["id2label"].values()) == list(CLASSES)


def test_the_tokenizer_goes_along_with_its_special_tokens_and_limits(tmp_path):
    run = trained(tmp_path / "run", builders.model(), builders.params(builders.model()), truncate="tail")
    folder = export_run(run, tmp_path / "out")
    assert (folder / "vocab.txt").read_text().split() == builders.WORDS
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 12 and config["truncation_side"] == "left" and config["do_lower_case"] is True
    special = json.loads((folder / "special_tokens_map.json").read_text())
    named = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    assert special == {f"{kind}_token": word for kind, word in named.items()}
    assert special.items() <= config.items()


@pytest.mark.parametrize(
    "changes, architecture, code",
    [
        ({}, "BertForSequenceClassification", False),
        ({"pool": "mean", "pooler": False}, "BertForPooledClassification", True),
        ({"pool": "mean"}, "BertForPooledClassification", True),
        ({"pooler": False}, "BertForPooledClassification", True),
    ],
)
def test_own_code_lies_beside_the_weights_only_where_transformers_has_no_class(tmp_path, changes, architecture, code):
    model = builders.model(**changes)
    folder = export_run(trained(tmp_path / "run", model, builders.params(model)), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [architecture] and config["id2label"] == {"0": "bad", "1": "good"}
    assert config["label2id"] == {"bad": 0, "good": 1}
    assert ("auto_map" in config) is (folder / huggingface.CODE).exists() is code
    assert ("trust_remote_code=True" in huggingface.loading_lines(config, ".")[-2]) is code
    assert bool(huggingface.notes(config, {})) is code


def test_a_masked_language_model_is_named_so(tmp_path):
    values = builders.params(builders.model(), outputs=None)
    folder = export_run(trained(tmp_path / "run", builders.model(), values), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and "id2label" not in config
    taken, new, _ = loading.load_weights(
        sources.locate_source(str(folder)), builders.shapes(builders.model(), outputs=None)
    )
    assert not new and np.array_equal(taken["decoder_bias"], values["decoder_bias"])


def test_lora_is_merged(tmp_path):
    model = builders.model(lora=schema.Lora(rank=2, alpha=6.0, targets=["down"]))
    values = builders.params(model)
    folder = export_run(trained(tmp_path / "run", model, values), tmp_path / "out")
    taken, _, unused = loading.load_weights(sources.locate_source(str(folder)), builders.shapes(builders.model()))
    layer = "encoder/layers/0/down"
    expected = values[f"{layer}/kernel"] + 3 * values[f"{layer}/lora_a"] @ values[f"{layer}/lora_b"]
    np.testing.assert_allclose(taken[f"{layer}/kernel"], expected, rtol=1e-5)
    assert set(unused) == {"classifier.weight", "classifier.bias"}


def test_a_folder_that_holds_something_is_never_overwritten(tmp_path):
    run = trained(tmp_path / "run", builders.model(), builders.params(builders.model()))
    (tmp_path / "out").mkdir()
    export_run(run, tmp_path / "out")  # empty: fine
    (tmp_path / "out" / "config.json").write_text("mine")
    for taken in (tmp_path / "out", tmp_path / "out" / "config.json"):
        with pytest.raises(ConfigError, match="exists already.*--out"):
            export_run(run, taken)
    assert (tmp_path / "out" / "config.json").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", builders.model(), builders.params(builders.model()))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match="No space left on device"):
        export_run(run, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_lstm_is_refused_plainly(tmp_path):
    run = trained(tmp_path / "run", schema.Lstm(), {"head/kernel": np.ones((2, 2), np.float32)})
    with pytest.raises(ConfigError, match="no class for model=lstm"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_a_plugin_is_refused_as_what_it_is():
    @dataclasses.dataclass
    class Bottleneck(schema.Model):
        kind: str = schema.kind("bottleneck")
        inner: int = 4  # which blocks of a ResNet have, too

    with pytest.raises(ConfigError, match="transformers has no class for model=bottleneck"):
        huggingface.require_exportable(Bottleneck(), "run")
