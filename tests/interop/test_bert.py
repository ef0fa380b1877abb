"""Promises of `bigctl.interop.bert`: every tensor of a BERT has one name there and one here."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.errors import DataError
from bigctl.interop import bert
from tests.interop import builders

# the names in a state_dict of transformers 5.23, BertForSequenceClassification and BertForMaskedLM, one layer
EMBEDDINGS = [f"bert.embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")]
LINEAR = [f"attention.self.{n}" for n in ("query", "key", "value")]
LINEAR += ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense"]
LINEAR += ["output.LayerNorm"]
LAYER = [f"bert.encoder.layer.0.{n}.{leaf}" for n in LINEAR for leaf in ("weight", "bias")]
NORM = ["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]
CLASSIFIER = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
MASKED = [f"cls.predictions.transform.{n}.{leaf}" for n in ("dense", "LayerNorm") for leaf in ("weight", "bias")]
MASKED += ["cls.predictions.bias"]


@pytest.mark.parametrize("outputs, head", [(2, CLASSIFIER), (None, MASKED)])
def test_every_parameter_gets_the_name_that_transformers_gives_it(outputs, head):
    names = [bert.tensor_name(p) for p in builders.shapes(builders.model(layers=1), outputs)]
    assert sorted(names) == sorted([*EMBEDDINGS, *NORM, *LAYER, *head])


@pytest.mark.parametrize("outputs", [2, None])
def test_names_lead_back_to_the_parameter(outputs):
    for parameter in builders.shapes(builders.model(layers=12), outputs):
        assert bert.parameter_name(bert.tensor_name(parameter)) == parameter


def test_files_without_prefix_and_with_the_old_names_of_norms_are_understood():
    assert bert.parameter_name("encoder.layer.3.output.LayerNorm.gamma") == "encoder/layers/3/output_norm/scale"
    assert bert.parameter_name("bert.embeddings.LayerNorm.beta") == "encoder/embeddings/norm/bias"
    assert bert.parameter_name("pooler.dense.weight") == "pooler/kernel"


@pytest.mark.parametrize("name", ["cls.seq_relationship.weight", "embeddings.position_ids", "encoder.layer.0.x.weight"])
def test_tensors_of_other_parts_have_no_name_here(name):
    assert bert.parameter_name(name) is None


def test_kernels_are_transposed_and_tables_are_not():
    values = builders.params(builders.model())
    tensors = bert.to_tensors(values)
    assert np.array_equal(
        tensors["bert.encoder.layer.1.intermediate.dense.weight"], values["encoder/layers/1/up/kernel"].T
    )
    table = tensors["bert.embeddings.position_embeddings.weight"]
    assert np.array_equal(table, values["encoder/embeddings/position/embedding"])


def test_merged_lora_computes_what_the_layer_with_lora_computes():
    from flax import nnx

    from bigctl.models.bert import AdaptedDense

    layer = AdaptedDense(6, 4, rank=3, alpha=12.0, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    layer.lora_b[...] = rng.normal(size=(3, 4)).astype(np.float32)
    x = rng.normal(size=(5, 6)).astype(np.float32)
    values = {n: np.asarray(getattr(layer, n)[...]) for n in ("kernel", "bias", "lora_a", "lora_b")}
    merged = bert.merge_lora({f"l/{n}": v for n, v in values.items()}, scale=12.0 / 3)
    assert set(merged) == {"l/kernel", "l/bias"}
    np.testing.assert_allclose(x @ merged["l/kernel"] + merged["l/bias"], layer(x), rtol=1e-4, atol=1e-5)
    assert not np.allclose(x @ values["kernel"] + values["bias"], layer(x))


def test_a_config_that_was_written_is_read_back():
    config = bert.to_config(builders.architecture(eps=1e-6, vocab=99), pad=3)
    wanted = {**builders.ARCHITECTURE, "vocab": 99, "eps": 1e-6}
    assert bert.read_architecture(config, "x").decided() == wanted and config["pad_token_id"] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_size": None}, "hidden_size cannot be None"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers cannot be '12'"),
        ({"vocab_size": True}, "vocab_size cannot be True"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
    ],
)
def test_a_config_of_another_model_is_refused_by_its_key(change, message):
    config = {**bert.to_config(builders.architecture(), pad=0), **change}
    with pytest.raises(DataError, match="config.json") as caught:
        bert.read_architecture(config, "config.json")
    assert message in str(caught.value)


def test_labels_are_known_only_where_they_were_named():
    assert bert.class_names({"id2label": {"0": "neg", "1": "pos"}}) == ("neg", "pos")
    assert bert.class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    assert bert.class_names({"id2label": {"0": "neg", "5": "pos"}}) is None
    assert bert.class_names({}) is None


def test_the_schema_decides_exactly_what_a_config_says():
    open_keys = {f for f in builders.ARCHITECTURE if getattr(schema.Bert(), f) is None}
    assert open_keys == set(builders.ARCHITECTURE)
