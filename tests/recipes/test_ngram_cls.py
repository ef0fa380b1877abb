"""Promises of `recipe=ngram_cls`: texts of any language told apart in seconds, used and resumed as any run is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax
import numpy as np
import pytest
from bigctl.recipes.ngram_cls import NgramCls
from flax import nnx

import bigctl
from bigctl.cli.main import main
from bigctl.config import schema
from bigctl.engine import experiment
from bigctl.models.bag import BagClassifier
from tests import topics

SHORT = ["train.batch_size=32", "schedule=constant", "recipe.tokenizer.size=500",
         "recipe.bucketing.shapes=1", "eval.every=20", "checkpoint.every=20", "train.tensorboard=false"]  # fmt: skip


def train(name: str, steps: int) -> dict[str, float | None]:
    config = bigctl.compose(["recipe=ngram_cls", *topics.DATA, *SHORT, f"train.steps={steps}"])
    return bigctl.train(config, Path("runs") / name, quiet=True)["metrics"]


@pytest.fixture(scope="module", autouse=True)
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float | None]]:
    """What the run `bag` reached, in the working folder."""
    folder = tmp_path_factory.mktemp("bags")
    topics.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield train("bag", 60)


def test_two_topics_are_told_apart(metrics: dict[str, float | None]) -> None:
    accuracy = metrics["test/accuracy"]
    assert accuracy is not None and accuracy > 0.75  # every tenth text has the wrong topic


def test_new_words_are_known_by_their_pieces_in_any_language() -> None:
    model = bigctl.load("bag")
    found = model.predict(["butterbread", "thunderstorms", "好面包", "小月亮"]).argmax(1)
    assert [model.features.target.names[n] for n in found] == ["kitchen", "sky", "kitchen", "sky"]


def test_texts_and_files_are_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "bag", "--text", "bread and salt"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["label"] == "kitchen"
    Path("new.txt").write_text("bread and salt\nmoon\n")
    assert main(["predict", "bag", "new.txt"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in lines] == ["kitchen", "sky"]
    assert lines[0]["probability"] == pytest.approx(said["probability"], abs=1e-5)


def test_a_run_in_two_parts_is_that_in_one(metrics: dict[str, float | None]) -> None:
    train("parts", 20)
    assert train("parts", 60) == metrics


def test_a_run_without_its_ngrams_says_so() -> None:
    file = Path("runs/parts/tokenizer.json")
    content = file.read_text()
    file.write_text(content.replace('"words": 2', '"words": 1'))
    assert main(["predict", "parts", "--text", "moon"]) == 2
    file.write_text(content)


@pytest.mark.parametrize("pool", ["mean", "root"])
def test_a_bag_is_the_mean_of_its_embeddings_whatever_pads_it(pool: str) -> None:
    model = BagClassifier(schema.Bag(width=3, pool=pool), 9, 2, rngs=nnx.Rngs(0))
    table, head = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), model.head
    model.embedding.embedding[...] = jax.numpy.asarray(table)
    tokens, lengths = np.array([[1, 5, 7, 4, 4], [2, 4, 4, 4, 4]]), np.array([3, 1])
    divisor = lengths ** (1 if pool == "mean" else 0.5)
    pooled = np.stack([table[[1, 5, 7]].sum(0), table[2]]) / divisor[:, None]
    expected = pooled @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    found = jax.jit(lambda tokens: model(tokens, lengths, lengths))(tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_words_and_pieces_are_each_as_tf_idf_has_them() -> None:
    groups = ((3, False, 2.0), (4, False, 3.0), (6, True, 1.0))  # of 1 and 2, 3, and the pieces 4 and 5
    model = BagClassifier(schema.Bag(width=0, pool="norm", dropout=0), 6, 2, groups=groups, rngs=nnx.Rngs(0))
    table = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    model.embedding.embedding[...] = jax.numpy.asarray(table)
    model.head.bias[...] = jax.numpy.asarray([1.0, -1.0])
    tokens, lengths = np.array([[0, 1, 3, 4, 4, 0], [0, 0, 0, 0, 0, 0]]), np.array([5, 1])
    words = (2 * table[1] + 3 * table[3]) / 13**0.5
    expected = np.stack([words + 2 * table[4] / 2**0.5, np.zeros(2)]) + [1, -1]
    found = jax.jit(lambda tokens: model(tokens, lengths, lengths))(tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "power", "factor"), [(1.0, 1.0, 1), (2.5, 0.5, 2.5), (None, 1.0, 3), (None, 0.5, 3**0.5), (None, 0.0, 1)]
)
def test_scores_are_scaled_by_the_number_of_classes_where_nothing_is_said(
    scale: float | None, power: float, factor: float
) -> None:
    model = BagClassifier(schema.Bag(width=0, scale=scale, scale_power=power, dropout=0), 4, 8, rngs=nnx.Rngs(0))
    model.embedding.embedding[...] = jax.numpy.ones((4, 8))
    tokens, lengths = np.array([[1, 2]]), np.array([2])
    np.testing.assert_allclose(model(tokens, lengths, lengths), np.full((1, 8), factor), rtol=1e-6)


def test_dropout_leaves_out_whole_ngrams() -> None:
    model = BagClassifier(schema.Bag(width=3, dropout=0.5), 9, 2, rngs=nnx.Rngs(0))
    model.embedding.embedding[...] = jax.numpy.ones((9, 3))
    tokens, lengths = np.full((400, 1), 3), np.ones(400, int)
    found = np.asarray(jax.jit(lambda key: model(tokens, lengths, lengths, key=key))(jax.random.key(0)))
    assert {float(row) for row in found[:, 0].round(4)} == {0.0, float(found[:, 0][found[:, 0] != 0][0].round(4))}
    assert 150 < np.count_nonzero(found[:, 0]) < 250


def test_each_of_three_classes_is_held_against_all_others_and_of_two_they_against_each_other() -> None:
    with open("three.csv", "w", encoding="utf-8") as stream:
        stream.write("words,topic\n" + "".join(f"{word} of {word},{word}\n" for word in ("sea", "sky", "land") * 20))
    data = ["data=csv", "data.text=words", "data.label=topic", *SHORT]
    for path, others in (("three.csv", 3), ("topics.csv", 2)):
        built = [
            experiment.build(bigctl.compose(["recipe=ngram_cls", f"data.path={path}", f"recipe.loss={loss}", *data]))
            for loss in ("one_vs_rest", "cross_entropy")
        ]
        heads = [cast(NgramCls, each.programs.task).head for each in built]
        logits, label = jax.numpy.linspace(-1, 2, others)[None], jax.numpy.zeros(1, int)
        batch = {"label": label, "mask": jax.numpy.ones(1)}
        sums = [head.loss(logits, batch, {"recipe.label_smoothing": 0.0})["loss"] for head in heads]
        truth = (np.arange(others) == 0) * 2.0 - 1
        apart = np.logaddexp(0, -truth * np.asarray(logits[0])).sum()
        together = float(jax.nn.logsumexp(logits) - logits[0, 0])
        expected = [apart if others > 2 else together, together]
        np.testing.assert_allclose([float(each[0]) for each in sums], expected, rtol=1e-5)
        for head in heads:  # what is said is the softmax, whatever was asked in training
            np.testing.assert_allclose(head.predict(logits), jax.nn.softmax(logits), rtol=1e-6)


def test_a_run_from_before_there_was_a_loss_to_choose_has_cross_entropy() -> None:
    assert schema.NgramCls().loss == "cross_entropy"
    assert bigctl.compose(["recipe=ngram_cls"]).recipe.loss == "one_vs_rest"
