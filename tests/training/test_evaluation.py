"""Every example counts exactly once, and the metrics are those of scikit-learn."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import classification
from sklearn import metrics as sk

import bigctl
from bigctl.engine import experiment
from bigctl.engine.experiment import Experiment
from bigctl.inference.forward import Forward
from bigctl.training.evaluation import Evaluator
from bigctl.training.metrics import means
from bigctl.training.programs import Programs
from bigctl.training.state import TrainState, Weights

DIGITS = (
    "recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[]", "model.dropout=0", "train.steps=1",
    "eval.batch_size=32",
)  # fmt: skip


@functools.cache
def built(*overrides: str) -> Experiment:
    return experiment.build(bigctl.compose(list(overrides)))


@functools.cache
def started(programs: Programs) -> TrainState:
    return programs.initialise()


def state_of(exp: Experiment) -> TrainState:
    return started(exp.programs)


def score(exp: Experiment, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    state = state_of(exp)
    return Evaluator(exp.programs, exp.dataset.batches, columns, exp.config, prefix="val")(
        state.params, state.variables
    )


def first(columns: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(values[:n]) for name, values in columns.items()}


def predictions(exp: Experiment, inputs: np.ndarray) -> np.ndarray:
    """All at once, without batches or masks."""
    state = state_of(exp)
    model = exp.programs.merge(state.params, state.variables, exp.programs.hparams)
    return np.asarray(exp.task.predict(model, {"inputs": jnp.asarray(inputs)}))


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "sent"])
@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
def test_every_example_counts_exactly_once(size: int, resident: bool) -> None:
    exp = built(*DIGITS, *([] if resident else ["data.resident_mib=0"]))
    columns = first(exp.dataset.splits["train"], size)
    found = score(exp, columns)
    confusion = np.array(found["val/confusion"])
    assert confusion.sum() == size
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(columns["label"], minlength=10))
    chosen = predictions(exp, columns["inputs"]).argmax(1)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(columns["label"], chosen, labels=range(10)))


def test_no_convolution_of_a_program_that_asks_a_model_is_left_to_one_core() -> None:
    """On a CPU, XLA hands those of small kernels one by one to a library whose code runs them on one."""
    exp = built("recipe=resnet_cls", "data=digits", "model.blocks=[2,1]", "model.width=64", "train.steps=1")
    state, columns, programs = state_of(exp), first(exp.dataset.splits["validation"], 64), exp.programs
    shapes = {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in columns.items()}
    mask = jax.ShapeDtypeStruct((64,), np.float32)
    given = (state.params, state.variables, {"inputs": shapes["inputs"]})
    asked = Forward(programs, Weights(state.params, state.variables), exp.dataset.features)
    assert len(asked.predict(columns)) == 64
    (predict,) = asked._jitted.values()
    sent = programs.evaluations[0].sent.lower(state.params, state.variables, shapes, mask, programs.hparams)
    for compiled in (sent.compile(), predict.lower(*given).compile()):
        text = compiled.as_text()
        assert " convolution(" in text
        handed = set(re.findall(r"fusion\(.*calls=(%[^, ]+).*ynn_fusion", text))
        bodies = dict(re.findall(r"^(%[\w.]+) \([^\n]*\{$(.*?)^\}", text, re.MULTILINE | re.DOTALL))
        assert handed <= set(bodies)
        assert not [body for name in handed if " convolution(" in (body := bodies[name]) and " dot(" not in body]


def test_metrics_are_those_of_scikit_learn() -> None:
    exp = built(*DIGITS)
    columns = exp.dataset.splits["validation"]
    labels, p = np.asarray(columns["label"]), predictions(exp, columns["inputs"])
    assert len(labels) % 32  # the last batch is padded
    chosen, options = p.argmax(1), {"average": "macro", "zero_division": 0}
    found = score(exp, columns)
    expected = {
        "loss": sk.log_loss(labels, p.astype(np.float64), labels=range(10)),
        "accuracy": sk.accuracy_score(labels, chosen),
        "precision": sk.precision_score(labels, chosen, **options),
        "recall": sk.recall_score(labels, chosen, **options),
        "f1": sk.f1_score(labels, chosen, **options),
        "roc_auc": sk.roc_auc_score(np.eye(10)[labels], p, average="macro"),
        "average_precision": sk.average_precision_score(np.eye(10)[labels], p, average="macro"),
    }
    for name, value in expected.items():
        assert found.pop(f"val/{name}") == pytest.approx(value, rel=1e-5), name
    assert set(found) == {"val/confusion"}


@pytest.mark.parametrize("seed", range(20))
def test_macro_metrics_agree_also_where_classes_are_missing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 12)), 6
    labels, chosen = rng.integers(0, classes, n), rng.integers(0, classes, n)
    confusion = sk.confusion_matrix(labels, chosen, labels=range(classes))
    found = classification.classification_metrics({"confusion": confusion})
    for name, function in {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}.items():
        expected = function(labels, chosen, average="macro", zero_division=0)
        assert found[name] == pytest.approx(expected), name
    assert found["confusion"] == confusion.tolist()


def test_one_output_is_the_log_odds_of_the_second_of_two_classes() -> None:
    exp = built(
        "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[]", "model.dropout=0", "train.steps=1",
        "eval.batch_size=16",
    )  # fmt: skip
    columns = exp.dataset.splits["validation"]
    kernel, bias = (np.asarray(state_of(exp).params["head"][name], np.float64) for name in ("kernel", "bias"))
    assert kernel.shape == (30, 1)
    p = 1 / (1 + np.exp(-(np.asarray(columns["inputs"], np.float64) @ kernel + bias)[:, 0]))
    found, labels = score(exp, columns), np.asarray(columns["label"])
    assert found["val/loss"] == pytest.approx(sk.log_loss(labels, p), rel=1e-5)
    assert found["val/f1"] == pytest.approx(sk.f1_score(labels, p > 0.5, average="macro"))
    np.testing.assert_allclose(predictions(exp, columns["inputs"])[:, 1], p, rtol=1e-4, atol=1e-6)


def test_regression_is_scored_in_the_unit_of_its_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(203, 3))
    y = 1000 + 50 * x[:, 0] - 20 * x[:, 1] + rng.normal(size=203)
    rows = ["a,b,c,price", *(",".join(f"{v:.6f}" for v in (*row, value)) for row, value in zip(x, y, strict=True))]
    (tmp_path / "houses.csv").write_text("\n".join(rows) + "\n")
    exp = experiment.build(
        bigctl.compose(
            [
                "recipe=mlp_cls", "data=csv", f"data.path={tmp_path / 'houses.csv'}", "data.label=price",
                "model.head=regression", "model.hidden=[4]", "model.dropout=0", "train.steps=1", "eval.batch_size=8",
            ]
        )
    )  # fmt: skip
    assert exp.metric == "val/loss" and exp.mode == "min"
    columns = exp.dataset.splits["test"]
    targets, predicted = np.asarray(columns["label"], np.float64), predictions(exp, columns["inputs"])[:, 0]
    assert len(targets) % 8
    np.testing.assert_allclose(targets, 1000, atol=300)  # as in the file, not standardised
    std = np.asarray(exp.dataset.splits["train"]["label"], np.float64).std()
    found = score(exp, columns)
    expected = {
        "mse": sk.mean_squared_error(targets, predicted),
        "rmse": sk.root_mean_squared_error(targets, predicted),
        "mae": sk.mean_absolute_error(targets, predicted),
        "loss": sk.mean_squared_error(targets, predicted) / std**2,
    }
    assert set(found) == {f"val/{name}" for name in expected}
    for name, value in expected.items():
        assert found[f"val/{name}"] == pytest.approx(value, rel=1e-3), name


def test_sums_become_means_and_empty_ones_no_number() -> None:
    found = means({"loss": jnp.array([6.0, 4.0]), "empty": np.zeros(2), "confusion": np.eye(2)}, "train")
    assert found.pop("train/loss") == 1.5
    assert np.isnan(found.pop("train/empty"))
    assert not found


def test_scoring_again_gives_the_same_numbers_and_compiles_nothing_new() -> None:
    exp = built(*DIGITS)
    state = state_of(exp)
    evaluator = Evaluator(
        exp.programs, exp.dataset.batches, first(exp.dataset.splits["test"], 50), exp.config, prefix="test"
    )
    once = evaluator(state.params, state.variables)
    compiled = exp.programs.evaluations[0].resident._cache_size()
    assert evaluator(state.params, state.variables) == once
    assert exp.programs.evaluations[0].resident._cache_size() == compiled
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    assert evaluator(zeros, state.variables)["test/loss"] == pytest.approx(np.log(10), rel=1e-6)
