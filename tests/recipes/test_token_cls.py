"""Promises of tagging: what is learned and scored, on any mesh, resumed or not, and what is said of wrong data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes.tagging import TagHead
from seqeval.metrics import f1_score, precision_score, recall_score

import bigctl as package
from bigctl.config import schema
from bigctl.engine import experiment, resolve
from bigctl.errors import ConfigError, DataError
from bigctl.training import feed as feeds
from tests import forked, tagging
from tests.conftest import Cli
from tests.training.test_sharding import on_eight_devices

pytestmark = pytest.mark.fewer

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
BERT = ["recipe=bert_tag", "model=bert_tiny", "model.layers=1", "model.width=16", "model.heads=2", "model.positions=32"]
BERT += ["model.intermediate=32", "recipe.tokenizer.type=bpe", "recipe.tokenizer.size=300"]
BERT += ["recipe.tokenizer.max_length=32", "recipe.bucketing.shapes=2"]
LSTM = [*tagging.RECIPE, *tagging.MODEL]
STEPS = ["train.batch_size=16", "train.steps=20", "schedule=constant", "train.log_every=5", "train.tensorboard=false"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tagging.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- The head ---------------------------------------------------------------------------------------------------------


def example(seed: int = 0) -> tuple[np.ndarray, dict[str, jax.Array]]:
    """Logits [8, 12, tags] and a batch whose last sentence only pads, with places that stand for no word."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, len(TAGS), (8, 12)).astype(np.int32)
    labels[draw.random(labels.shape) < 0.3] = -1
    logits = draw.normal(size=(8, 12, len(TAGS))) + 2 * np.eye(len(TAGS))[np.maximum(labels, 0)]
    mask = np.array([1] * 7 + [0], np.float32)
    return logits, {"label": jnp.asarray(labels), "mask": jnp.asarray(mask)}


def test_scores_are_those_of_words_and_of_seqeval():
    logits, batch = example()
    head = TagHead(TAGS, "none", None)
    found = jax.device_get(jax.jit(head.evaluate)(jnp.asarray(logits), batch))
    labels = np.asarray(batch["label"])[:7]
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, places = np.nonzero(labels >= 0)
    losses = -log_probabilities[rows, places, labels[rows, places]]
    predicted = logits.argmax(-1)[:7]
    np.testing.assert_allclose(found["loss"], [losses.sum(), len(rows)], rtol=1e-5)
    assert found["accuracy"].tolist() == [np.sum(predicted[rows, places] == labels[rows, places]), len(rows)]
    named = [
        [[TAGS[tag] for tag in row[real >= 0]] for row, real in zip(tags, labels, strict=True)]
        for tags in (labels, predicted)
    ]
    scores = head.metrics(found)
    assert scores["entity_f1"] == pytest.approx(f1_score(*named)) and 0.2 < scores["entity_f1"] < 1
    assert scores["entity_precision"] == pytest.approx(precision_score(*named))
    assert scores["entity_recall"] == pytest.approx(recall_score(*named))
    assert {"entity_f1/LOC", "entity_f1/PER"} < set(scores) and head.metric == "val/entity_f1"


def test_training_loss_is_the_mean_over_words_whatever_the_batch_is_divided_into():
    logits, batch = example()
    head, hparams = TagHead(TAGS, "none", None), {"recipe.label_smoothing": 0.0}
    loss = jax.jit(lambda logits, batch: head.loss(logits, batch, hparams))
    whole = loss(logits, batch)
    np.testing.assert_allclose(whole["loss"], jax.jit(head.evaluate)(logits, batch)["loss"], rtol=1e-6)
    parts = [
        loss(logits[part], {name: values[part] for name, values in batch.items()})["loss"]
        for part in (slice(0, 2), slice(2, 8))
    ]
    np.testing.assert_allclose(sum(parts), whole["loss"], rtol=1e-6)


def test_the_worst_sentences_are_those_with_wrong_words_by_their_loss():
    examples = {"loss": np.array([5.0, 1.0, 3.0, 9.0]), "wrong": np.array([2, 1, 0, 3])}
    found = TagHead(TAGS, "none", None).errors(examples, np.zeros(0), 2)
    assert [(record["row"], record["wrong"]) for record in found] == [(3, 3), (0, 2)]


def test_spans_are_entities_or_of_plain_tags_single_words():
    probabilities = np.full((4, 5), 0.1)
    probabilities[np.arange(4), [1, 2, 0, 4]] = [0.6, 0.8, 0.9, 0.7]
    spans = TagHead(TAGS, "none", None).describe(probabilities)["spans"]
    assert spans[0] == {"label": "PER", "start": 0, "stop": 2, "probability": pytest.approx(0.7)}
    assert [(s["label"], s["start"], s["stop"]) for s in spans[1:]] == [("LOC", 3, 4)]
    plain = TagHead(("NOUN", "VERB"), "none", None)
    assert plain.metric == "val/accuracy" and plain.metrics({}) == {}
    described = plain.describe(np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert described["tags"] == ["NOUN", "VERB"]
    assert [(s["label"], s["start"], s["stop"]) for s in described["spans"]] == [("NOUN", 0, 1), ("VERB", 1, 2)]


def test_metrics_carry_their_direction():
    for name in ("val/entity_f1", "val/entity_recall", "test/entity_f1/PER", "val/accuracy"):
        assert schema.LstmTag.direction(name) == "max"
    assert schema.BertTag.direction("val/loss") == "min" and schema.BertTag.direction("val/entity_x") is None


# --- Training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return tagging.trained(tmp_path_factory)


def test_names_are_learned_and_the_best_checkpoint_is_that_of_entity_f1(cli):
    summary = json.loads((cli.folder / "runs" / "names" / "summary.json").read_text())
    assert summary["metrics"]["test/entity_f1"] > 0.9 and "test/entity_f1/PER" in summary["metrics"]
    assert "by val/entity_f1" in (cli.folder / "names.out").read_text()


def losses(exp: experiment.Experiment, steps: int) -> tuple[Any, list[float]]:
    """The state after some steps, and their training sums."""
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state, sums = exp.programs.initialise(), []
    try:
        for number in range(steps):
            state, _ = feed.advance(state, number * exp.config.train.batch_size, 1)
            sums.append(np.asarray(jax.device_get(state.sums["loss"])).tolist())
    finally:
        feed.close()
    return state, sums


@pytest.mark.parametrize("recipe", [LSTM, pytest.param(BERT, marks=pytest.mark.slow)], ids=["lstm", "bert"])
def test_batches_that_are_sent_and_resident_ones_train_alike_to_the_last_bit(recipe, folder, monkeypatch):
    monkeypatch.setattr(forked, "LEAVING_OUT", False)
    overrides = [*recipe, *tagging.DATA, *STEPS]
    resident, sent = (experiment.build(package.compose([*overrides, *more])) for more in ([], ["data.resident_mib=0"]))
    assert losses(resident, 4)[1] == losses(sent, 4)[1]


def test_a_resumed_run_is_bit_equal(cli, monkeypatch):
    monkeypatch.chdir(cli.folder)
    run = [*tagging.RECIPE, *tagging.DATA, *tagging.MODEL, *tagging.LENGTH]
    for steps in (30, 60):  # and at once in the run `names`
        package.train([*run, f"train.steps={steps}"], "runs/parts", quiet=True)
    last = [
        json.loads((cli.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("names", "parts")
    ]
    last = [{k: v for k, v in row.items() if not k.startswith(("perf/", "time"))} for row in last]
    assert last[0] == last[1] and last[0]["step"] == 60


_ON_MESHES = """
import json, sys
import bigctl
from tests.recipes.test_token_cls import losses
from bigctl.engine import experiment
result = []
for mesh in (["mesh=single"], ["mesh=data"]):
    exp = experiment.build(bigctl.compose([*sys.argv[1:], *mesh]))
    state, sums = losses(exp, 5)
    found = exp.evaluator("test", "test").score(exp.programs.evaluation_weights(state), state.variables)
    result.append([sums, found.metrics])
print(json.dumps(result))
"""


def test_eight_devices_train_and_score_as_one_does(folder):
    (one, scores), (eight, other) = on_eight_devices(
        _ON_MESHES, *LSTM, "recipe.bucketing.shapes=1", *tagging.DATA, *STEPS
    )
    np.testing.assert_allclose(one, eight, rtol=1e-4)
    assert scores.keys() == other.keys() and "test/entity_f1" in scores
    for name in scores:
        assert scores[name] == pytest.approx(other[name], abs=1e-3), name


def test_a_tagger_starts_from_a_masked_language_model(folder):
    bert = [text for text in BERT if not text.startswith("recipe")]
    texts = [" ".join(word for word, _ in row) for row in tagging.sentences(0, 60)]
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    length = ["recipe.tokenizer.max_length=32", "recipe.bucketing.shapes=1", "optimizer=sgd", *STEPS, "train.steps=1"]
    words = ["recipe.tokenizer.type=words", "recipe.tokenizer.size=100"]
    data = ["data=jsonl", "data.path=texts.jsonl", "data.text=text", "data.label=null"]
    package.train(["recipe=bert_mlm", *bert, *words, *data, *length], "runs/mlm", quiet=True)
    tagger = ["recipe=bert_tag", "model=bert", "model.init_from=runs/mlm", *tagging.DATA, *length]
    package.train(tagger, "runs/from_mlm", quiet=True)
    log = (folder / "runs" / "from_mlm" / "log.txt").read_text(encoding="utf-8")
    assert "newly initialised: head/bias, head/kernel" in log


# --- What is refused, and what is said --------------------------------------------------------------------------------


def refused(match: str, *overrides: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        experiment.build(package.compose([*overrides, *STEPS]))


def test_recipe_and_data_must_fit(folder):
    (folder / "t.jsonl").write_text('{"text": "a", "y": "1"}\n{"text": "b", "y": "2"}\n' * 20)
    texts = ["data=jsonl", "data.path=t.jsonl", "data.text=text", "data.label=y"]
    refused("needs sentences with a tag a word", *LSTM, *texts)
    refused("recipe=.*_tag", *[t.replace("lstm_tag", "lstm_cls") for t in LSTM], *tagging.DATA)
    refused("data.tags", *LSTM, "data=jsonl", "data.path=train.jsonl", "data.tokens=tokens")


def test_what_is_cut_is_said(cli):
    done = cli("train", *LSTM, *tagging.DATA, *STEPS, "recipe.tokenizer.max_length=6", "--dry-run")
    assert "words are neither learned nor scored" in done.stdout + done.stderr


def test_json_lines_train_as_conll_files_do(folder):
    """All rows of all splits are the same."""
    names = f"data.tag_names=[{','.join(tagging.TAGS)}]"
    fields = ["data.path=train.jsonl", "data.test_path=test.jsonl", "data.tokens=tokens", "data.tags=ner_tags", names]
    conll, lines = (
        resolve.resolve(package.compose([*LSTM, *data, *STEPS])).dataset
        for data in (tagging.DATA, ["data=jsonl", *fields])
    )
    assert conll.features.classes == lines.features.classes and set(conll.splits) == set(lines.splits) > {"test"}
    for split, columns in conll.splits.items():
        for name, values in columns.items():
            np.testing.assert_array_equal(values, lines.splits[split][name], err_msg=f"{split} {name}")


def test_plain_tags_are_scored_by_word(folder):
    (folder / "pos.conll").write_text("the DET\ncat NOUN\n\nsee VERB\nthe DET\ndog NOUN\n\n" * 20)
    exp = experiment.build(package.compose([*LSTM, "data=conll", "data.path=pos.conll", *STEPS]))
    assert exp.metric == "val/accuracy" and exp.mode == "max" and "val/entity_f1" not in exp.metric_names("val")
