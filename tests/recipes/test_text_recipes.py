"""Promises of the recipes for texts: what is asked of a masked language model, and what a classifier is scored by."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigctl.recipes import classification
from bigctl.recipes.bert_mlm import BertMlm
from bigctl.recipes.text_cls import TextCls
from flax import nnx
from sklearn import metrics as sk

import bigctl
from bigctl import randomness
from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.errors import ConfigError
from bigctl.training.evaluation import Evaluator

PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = 1000
TINY = {"layers": 1, "width": 8, "heads": 2, "intermediate": 8, "positions": 64}
KNOWN = {"vocab_size": VOCABULARY, "pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}
FEATURES = Features("text", (64,), ("a", "b"), tokenizer=KNOWN)


def config(recipe: schema.Recipe, model: schema.Model, **train: Any) -> schema.Config:
    return schema.Config(
        recipe=recipe, model=model, optimizer=schema.AdamW(), schedule=schema.Constant(), mesh=schema.Mesh(),
        data=schema.Csv(path="x"), train=schema.Train(steps=1, **train),
    )  # fmt: skip


def guessing(rate: float = 0.15, features: Features = FEATURES) -> BertMlm:
    return BertMlm(config(schema.BertMlm(mask_rate=rate), schema.Bert(**TINY)), features)


def texts(lengths: Any, padded: int, seed: int = 0) -> dict[str, jax.Array]:
    """A batch as a model sees it, of random tokens between marks."""
    lengths = np.asarray(lengths)
    rows = np.random.default_rng(seed).integers(5, VOCABULARY, (len(lengths), padded))
    place = np.arange(padded)
    rows[:, 0] = CLS
    rows[np.arange(len(lengths)), lengths - 1] = SEP
    rows = np.where(place < lengths[:, None], rows, PAD)
    n = len(lengths)
    return {
        "inputs": jnp.asarray(rows, jnp.int32),
        "lengths": jnp.asarray(lengths, jnp.int32),
        "segment_start": jnp.asarray(lengths, jnp.int32),
        "label": jnp.zeros(n, jnp.int32),
        "mask": jnp.ones(n, jnp.float32),
        "number": jnp.arange(n, dtype=jnp.int32),
    }


def keys(n: int, step: int = 0) -> jax.Array:
    return randomness.per_example(randomness.key(0, randomness.AUGMENTATION, step), jnp.arange(n))


@functools.cache
def _masked_weights() -> Any:
    with jax.ensure_compile_time_eval():  # it is asked for while functions are traced
        return nnx.split(guessing().build(nnx.Rngs(params=jax.random.key(0))))


def masked_model() -> Any:
    return nnx.merge(*_masked_weights())


# --- Masked language modelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_the_share_that_is_guessed_and_what_is_seen_in_its_place(rate):
    batch = texts([64] * 1000, 64)
    seen, chosen = (np.asarray(v) for v in jax.jit(guessing(rate).hide)(batch["inputs"], batch["lengths"], keys(1000)))
    tokens = np.asarray(batch["inputs"])
    assert set(chosen.sum(1)) == {round(rate * 62)}
    assert np.array_equal(seen[~chosen], tokens[~chosen])
    total = chosen.sum()
    masked, kept = (seen[chosen] == MASK).mean(), (seen[chosen] == tokens[chosen]).mean()
    deviation = 4 * np.sqrt(0.8 * 0.2 / total)
    assert abs(masked - 0.8) < deviation and abs(kept - 0.1) < deviation
    other = seen[chosen & (seen != MASK) & (seen != tokens)]
    assert abs(len(other) / total - 0.1) < deviation
    assert len(np.unique(other)) > 0.3 * VOCABULARY and abs(other.mean() - VOCABULARY / 2) < 40  # any token at all
    where = chosen.mean(0)[1:63]
    assert abs(where - rate).max() < 6 * np.sqrt(rate * (1 - rate) / 1000)  # any place as likely as another


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.9])
def test_marks_and_padding_are_never_guessed_and_every_text_has_a_guess(rate):
    lengths = np.arange(200) % 30 + 3
    batch = texts(lengths, 40)
    inputs = batch["inputs"].at[::10, 1].set(MASK)  # as a text may have it in plain words
    seen, chosen = (np.asarray(v) for v in jax.jit(guessing(rate).hide)(inputs, batch["lengths"], keys(200)))
    tokens = np.asarray(inputs)
    for number in (PAD, CLS, SEP, MASK):
        assert not chosen[tokens == number].any()
        assert np.array_equal(seen[tokens == number], tokens[tokens == number])
    ordinary = ((tokens != MASK) & (tokens > SEP)).sum(1).astype(np.float32)
    expected = np.where(ordinary > 0, np.maximum(1, np.round(np.float32(rate) * ordinary)), 0)
    assert np.array_equal(chosen.sum(1), expected) and 0 < (expected == 0).sum() < 200
    assert not chosen[np.arange(40) >= lengths[:, None]].any()


def test_masks_are_a_function_of_seed_step_and_place():
    batch = texts([40] * 8, 48)
    hide = jax.jit(guessing().hide)
    first = np.asarray(hide(batch["inputs"], batch["lengths"], keys(8, step=5))[0])
    assert np.array_equal(first, hide(batch["inputs"], batch["lengths"], keys(8, step=5))[0])
    assert not np.array_equal(first, hide(batch["inputs"], batch["lengths"], keys(8, step=6))[0])
    same_text = jnp.tile(batch["inputs"][:1], (8, 1))
    rows = np.asarray(hide(same_text, batch["lengths"], keys(8))[1])
    assert len({row.tobytes() for row in rows}) == 8
    wider = jnp.pad(batch["inputs"], ((0, 0), (0, 16)))
    assert np.array_equal(first, hide(wider, batch["lengths"], keys(8, step=5))[0][:, :48])


def reference_sums(task: BertMlm, model: Any, batch: dict[str, jax.Array], example_keys: jax.Array) -> tuple:
    """Loss and hits from the logits of every token of every text."""
    seen, chosen = task.hide(batch["inputs"], batch["lengths"], example_keys)
    logits = model.logits(model(seen, batch["lengths"], batch["segment_start"])).astype(jnp.float32)
    weights = chosen * batch["mask"][:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["inputs"])
    hits = logits.argmax(-1) == batch["inputs"]
    return (losses * weights).sum(), (hits * weights).sum(), weights.sum()


@pytest.mark.parametrize(
    ("lengths", "padded", "rate"),
    [
        (np.arange(32) % 20 + 3, 24, 0.15),
        ([3] * 128, 3, 0.15),
        ([3] * 128, 8, 0.01),
        ([4, 3] * 40, 4, 0.05),
        ([64] * 8, 64, 0.9),
        ([2, 2, 3], 8, 0.15),
    ],
    ids=["ragged", "one word", "low rate", "short", "high rate", "no word"],
)
def test_the_loss_is_that_of_all_tokens_and_none_is_left_out(lengths, padded, rate):
    task = guessing(rate)
    batch = texts(lengths, padded)
    batch["mask"] = batch["mask"].at[-1].set(0.0)
    augment = randomness.key(0, randomness.AUGMENTATION, 3)

    @jax.jit
    def both(batch: dict[str, jax.Array]) -> Any:
        own = task.loss(masked_model(), batch, None, augment, {})  # type: ignore[arg-type]  # no dropout
        return own, reference_sums(task, masked_model(), batch, randomness.per_example(augment, batch["number"]))

    found, (loss, hits, count) = both(batch)
    np.testing.assert_allclose(found["loss"], [loss, count], rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], [hits, count])
    kept = np.asarray(batch["lengths"]).sum()
    np.testing.assert_allclose(found["padding"], [len(lengths) * padded - kept, len(lengths) * padded])


def test_evaluation_asks_the_same_of_a_text_in_any_batch_and_padding():
    batch = texts([20, 9, 33, 12], 40)
    evaluate = jax.jit(lambda batch: guessing().evaluate(masked_model(), batch))
    whole = evaluate(batch)
    assert whole["loss"][1] == 3 + 1 + 5 + 2
    parts = []
    for row, padded in ((2, 33), (0, 33), (3, 12), (1, 12)):
        one = {name: values[row : row + 1] for name, values in batch.items()}
        one["inputs"] = jnp.pad(one["inputs"], ((0, 0), (0, 24)))[:, :padded]
        one["number"] = jnp.zeros(1, jnp.int32)
        parts.append(evaluate(one))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(sum(part[name] for part in parts), whole[name], rtol=1e-5)


def test_perplexity_is_the_exponential_of_the_loss():
    found = guessing().metrics({"loss": np.array([6.0, 4.0]), "accuracy": np.array([1.0, 4.0])})
    assert found == {"perplexity": pytest.approx(np.exp(1.5))}
    assert np.isfinite(guessing().metrics({"loss": np.array([1e9, 1.0])})["perplexity"])


def test_without_a_mask_token_nothing_can_be_masked():
    known = {name: number for name, number in KNOWN.items() if name != "mask"}
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        guessing(features=Features("text", (64,), None, tokenizer=known))


# --- Classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [schema.BertCls(), schema.LstmCls()], ids=lambda recipe: recipe.kind)
def test_other_data_and_texts_without_classes_are_refused(recipe):
    made = config(recipe, schema.Lstm())
    with pytest.raises(ConfigError, match="needs texts, the data holds images with classes .*recipe=cnn_cls"):
        TextCls(made, Features("image", (8, 8, 1), ("a", "b")))
    with pytest.raises(ConfigError, match="needs texts with classes") as caught:
        TextCls(made, Features("text", (64,), None, tokenizer=KNOWN))
    assert "data.label" in str(caught.value.hint)


def test_class_weights_are_those_of_torch():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 3, 12)
    weights, mask = np.array([0.5, 2.0, 4.0], np.float32), (np.arange(12) < 10).astype(np.float32)
    sums = classification.training_sums(
        jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask), class_weights=jnp.asarray(weights)
    )
    own = weights[labels[:10]]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -(own * np.log(p[np.arange(10), labels[:10]])).sum() / own.sum()  # CrossEntropyLoss(weight=...)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(expected, rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [70, 20, 10])
    found = classification.resolve_class_weights("balanced", np.bincount(labels))
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_scores_of_two_classes_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n = 200
    logits = rng.normal(size=(n, 2)).round(1 if seed % 2 else 6)  # with many ties, and without
    labels = (rng.random(n) < (0.3, 0.05)[seed % 2]).astype(int)
    sums = classification.evaluation_sums(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), jnp.ones(n))
    found = classification.classification_metrics({name: np.asarray(value) for name, value in sums.items()})
    chosen = logits.argmax(1)
    score = np.float32(logits[:, 1]) - np.float32(logits[:, 0])
    for name, function in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert found[f"binary_{name}"] == pytest.approx(function(labels, chosen, zero_division=0))
        assert found[name] == pytest.approx(function(labels, chosen, average="macro", zero_division=0))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, score))
    assert found["confusion"] == sk.confusion_matrix(labels, chosen).tolist()


def test_the_area_under_the_curve_of_ties_alone_is_a_half_and_of_one_class_no_number():
    assert classification.roc_auc(np.zeros(7), np.array([0, 1, 1, 0, 1, 0, 0])) == 0.5
    assert classification.roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])) == 0.75
    assert np.isnan(classification.roc_auc(np.arange(3), np.ones(3, int)))
    assert np.isnan(classification.roc_auc(np.arange(3), np.zeros(3, int)))


# --- On data ----------------------------------------------------------------------------------------------------------


def write(folder: Path, rows: int = 120, kinds: int = 2, name: str = "t.csv", one_class: bool = False) -> list[str]:
    draw = random.Random(0)
    lines = [
        " ".join(draw.choices([f"w{k}" for k in range(30)], k=draw.randint(1, 14)))
        + f",{0 if one_class else i % kinds}"
        for i in range(rows)
    ]
    (folder / name).write_text("\n".join(["text,y", *lines]) + "\n")
    return ["data=csv", f"data.path={folder / name}", "data.text=text", "data.label=y"]


SMALL = [
    "recipe=bert_cls", "model=bert_tiny", "model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=16",
    "recipe.tokenizer.type=words", "recipe.tokenizer.size=40", "recipe.tokenizer.max_length=24", "train.steps=1",
    "train.batch_size=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Experiment:
    return experiment.build(bigctl.compose([*SMALL, *write(tmp_path_factory.mktemp("texts"), rows=203)]))


@pytest.mark.parametrize("size", [7, 33])
def test_evaluation_counts_every_text_once_in_the_splits_order(built, size):
    columns = built.dataset.splits["train"]
    state = built.programs.initialise()
    made = built.config.__class__(**{**built.config.__dict__, "eval": schema.Eval(batch_size=size)})
    layout = dataclasses.replace(built.dataset.layout, edges=(8,))  # texts of up to 16 tokens
    found = Evaluator(built.programs, layout, columns, made, prefix="val").score(state.params, state.variables)
    examples, found = found.examples, found.metrics
    assert np.sum(found["val/confusion"]) == len(columns["label"])
    model = built.programs.merge(state.params, state.variables, built.programs.hparams)
    predict = jax.jit(lambda batch: built.task.predict(model, batch))
    for i in range(0, len(columns["label"]), 60):
        start, end = columns["offsets"][i : i + 2]
        one = {
            "inputs": jnp.asarray(columns["inputs"][None, start:end].astype(np.int32)),
            "lengths": jnp.asarray([end - start], jnp.int32),
            "segment_start": jnp.asarray(columns["segment_start"][i : i + 1]),
        }
        p = np.asarray(predict(one))[0]
        assert examples["predicted"][i] == p.argmax() and examples["label"][i] == columns["label"][i]
        assert examples["loss"][i] == pytest.approx(-np.log(p[columns["label"][i]]), rel=1e-4)
        assert examples["score"][i] == pytest.approx(np.log(p[1] / p[0]), rel=1e-3, abs=1e-5)


def test_a_validation_split_of_one_class_has_no_area_under_the_curve(tmp_path):
    overrides = write(tmp_path)
    write(tmp_path, rows=20, name="v.csv", one_class=True)
    made = experiment.build(bigctl.compose([*SMALL, *overrides, f"data.validation_path={tmp_path / 'v.csv'}"]))
    state = made.programs.initialise()
    found = Evaluator(
        made.programs, made.dataset.batches, made.dataset.splits["validation"], made.config, prefix="val"
    )(state.params, state.variables)
    assert np.isnan(found["val/roc_auc"]) and np.isfinite(found["val/loss"]) and np.isfinite(found["val/f1"])
    from bigctl.formatting import plain

    assert json.loads(json.dumps(plain(found), allow_nan=False))["val/roc_auc"] is None


def test_more_classes_have_no_binary_scores(tmp_path):
    made = experiment.build(bigctl.compose([*SMALL, *write(tmp_path, kinds=3)]))
    names = made.programs.metric_names("val")
    assert {"val/f1", "val/roc_auc"} <= set(names) and not any("binary" in name for name in names)


def test_two_classes_can_be_selected_by_the_area_under_the_curve(built):
    assert {"val/roc_auc", "val/binary_f1", "val/accuracy", "val/loss"} <= set(built.programs.metric_names("val"))
    assert schema.require_direction(built.config.recipe, "val/roc_auc", "eval.mode") == "max"
