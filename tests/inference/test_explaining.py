"""Promises of `bigctl explain` for texts: attributions that add up, beside the right characters, and clear refusals."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bigctl
from bigctl.cli import explained
from bigctl.cli.main import main
from bigctl.config import schema
from bigctl.data.text import ngrams
from bigctl.inference import text_batches
from bigctl.inference.explaining import gradients, text_tokens
from bigctl.inference.explaining.texts import TextExplainer, rolled_out
from bigctl.inference.trained import TrainedRun
from bigctl.models.lstm import LstmClassifier
from bigctl.models.ngram_head import hashed_runs
from tests import topics

pytestmark = pytest.mark.fewer

TEXT = "butter and bread, with onion soup under the moon"
BERT = ["recipe=bert_cls", "model=bert_tiny", "model.layers=2", "model.width=16", "model.heads=2"]
BERT += ["model.intermediate=16", "recipe.tokenizer.max_length=24", "recipe.tokenizer.size=100"]
BERT += ["recipe.tokenizer.type=words", "recipe.bucketing.shapes=1"]
SHORT = ["train.steps=4", "train.batch_size=32", "train.tensorboard=false", "optimizer.lr=0.01"]
RUNS = {"bert": [*BERT, *SHORT], "ngram": ["recipe=ngram_cls", *SHORT]}
Command = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `bert` and `ngram`."""
    where = tmp_path_factory.mktemp("explained")
    topics.write(where)
    for name, keys in RUNS.items():
        bigctl.train([*keys, *data_of(where)], where / "runs" / name, quiet=True)
    return where


def data_of(folder: Path) -> list[str]:
    return [f"data.path={folder / 'topics.csv'}" if key.startswith("data.path") else key for key in topics.DATA]


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command there; gives what it prints, of one that fails its stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments: str, code: int = 0) -> str:
        assert main(["explain", *arguments]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return err if code else out

    return run


def loaded(folder: Path, name: str) -> TrainedRun:
    found = TrainedRun.load(str(folder / "runs" / name))
    if name == "lstm":
        return found
    return found.with_params(jax.tree.map(lambda p: 3 * p, found.params))  # hardly trained, it would tell little


def logits(trained: TrainedRun, tokens: np.ndarray) -> np.ndarray:
    """What the model answers to tokens, without the seam that explanations go through."""
    size = np.array([len(tokens)], np.int32)
    run = nnx.jit(lambda model, tokens, size: model(tokens, size, size))
    return np.asarray(run(trained.model, jnp.asarray(tokens[None], jnp.int32), size))[0]


@pytest.mark.parametrize("name", ["bert", "ngram", pytest.param("lstm", marks=pytest.mark.slow)])
def test_integrated_gradients_add_up_to_what_the_model_says_of_text_and_baseline(folder: Path, name: str) -> None:
    if name == "lstm":
        keys = [*topics.RECIPE, *topics.MODEL, *SHORT, *data_of(folder)]
        bigctl.train(keys, folder / "runs" / "lstm", quiet=True)
    trained = loaded(folder, name)
    explainer = TextExplainer(trained)
    (found,) = explainer.explain([TEXT], wanted="sky")
    columns, _ = text_batches.encode_texts(explainer.tokenizer, [TEXT], trained.features)
    tokens = columns["inputs"].astype(np.int32)
    blank = tokens[:1] if name == "ngram" else np.where(np.isin(tokens, [2, 3]), tokens, 0)
    if name != "ngram":
        assert [explainer.tokenizer.id_to_token(n) for n in (0, 2, 3)] == ["[PAD]", "[CLS]", "[SEP]"]
    score, base = logits(trained, tokens)[1], logits(trained, blank)[1]
    if name == "ngram" and trained.model.pool != "norm":
        pytest.skip("the pool counts what is there")
    values = found.attribution.values
    assert found.attribution.score == pytest.approx(score, abs=1e-4)
    if name != "ngram":  # of n-grams what stays weighs as it did
        assert found.attribution.baseline_score == pytest.approx(base, abs=1e-4)
    total = found.attribution.score - found.attribution.baseline_score
    assert abs(total) > 0.01 and values.sum() + found.rest == pytest.approx(total, abs=1e-3)
    assert found.attribution.completeness <= 1e-3
    assert found.attribution.values[[0, -1]] == pytest.approx([0, 0]) or name == "ngram"


def test_occlusion_is_what_the_model_says_without_a_token(folder: Path) -> None:
    trained = loaded(folder, "bert")
    explainer = TextExplainer(trained)
    (found,) = explainer.explain([TEXT], "occlusion", "sky")
    tokens = text_batches.encode_texts(explainer.tokenizer, [TEXT], trained.features)[0]["inputs"].astype(np.int32)
    without = [logits(trained, np.where(np.arange(len(tokens)) == n, 0, tokens))[1] for n in range(1, len(tokens) - 1)]
    wanted = logits(trained, tokens)[1] - np.array(without)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(found.attribution.values[1:-1], wanted, atol=1e-4)


@pytest.mark.parametrize("text", [TEXT, f"  {TEXT} 面包 " + "very little rain before thunder " * 8])
def test_tokens_stand_beside_their_characters(folder: Path, text: str) -> None:
    trained = loaded(folder, "bert")
    explainer = TextExplainer(trained)
    columns, cut = text_batches.encode_texts(explainer.tokenizer, [text], trained.features)
    rule = trained.features.tokenizer["max_length"], trained.features.tokenizer["truncate"]
    numbers, pieces = text_tokens.pieces_of(explainer.tokenizer, [text], *rule)
    assert numbers == columns["inputs"].tolist() and bool(cut[0]) == (text != TEXT)
    shown = [p for p in pieces if p.part == 0 and p.token != "[UNK]"]
    assert len(shown) > 5 and all(text[p.start : p.end] == p.token.removeprefix("##") for p in shown)


def test_pairs_are_cut_as_they_are_encoded(folder: Path) -> None:
    from bigctl.data.text import encoding

    tokenizer = TextExplainer(loaded(folder, "bert")).tokenizer
    for first, second in (("bread " * 3, "moon " * 30), ("soup " * 30, "rain " * 30), ("star", "wind")):
        for rule in ("head", "tail", "head_tail"):
            encoded = encoding.encode(tokenizer, [first.strip()], [second.strip()], 24, rule)
            numbers, pieces = text_tokens.pieces_of(tokenizer, [first, second], 24, rule)
            assert numbers == encoded.tokens.tolist()
            assert {p.token for p in pieces if p.part == 1} and pieces[-1].part is None


def test_every_word_of_a_run_gets_an_equal_part() -> None:
    """Of a model that reads nothing but runs of tokens: 1/n of what each run of n tokens adds, as Shapley has it."""
    config = schema.Lstm(embedding=4, hidden=3, layers=1, ngrams=3, ngram_rows=64, ngram_share=1.0)
    model = nnx.jit(lambda: LstmClassifier(config, 30, 2, rngs=nnx.Rngs(0)))()
    table = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    model.head.ngrams = nnx.Param(jnp.asarray(table))
    tokens, lengths = jnp.array([[5, 9, 7, 11, 0, 0]]), jnp.array([4])
    end, start = jax.jit(lambda: (model.look_up(tokens)[0], model.blank(tokens, 0)[0]))()

    @jax.jit
    def along(places: jnp.ndarray, weights: jnp.ndarray) -> jnp.ndarray:
        def total(vectors: jnp.ndarray) -> jnp.ndarray:
            many = [jnp.repeat(each, len(vectors), 0) for each in (tokens, lengths)]
            return jnp.vdot(jnp.asarray(weights, jnp.float32), model(*many, many[1], vectors=vectors)[:, 1])

        line = start + jnp.asarray(places, jnp.float32)[:, None, None] * (end - start)
        return jax.grad(total)(line).sum(0)

    @jax.jit
    def all_at_once() -> tuple[jnp.ndarray, tuple[jnp.ndarray, jnp.ndarray]]:
        without = model(tokens, lengths, lengths, vectors=start[None])
        return (model(tokens, lengths, lengths) - without)[0, 1], hashed_runs(tokens, lengths, 3, 64)

    scores, hashed = all_at_once()
    difference = float(scores)
    found = gradients.integrated(along, np.asarray(start), np.asarray(end), difference)
    rows, real = (np.asarray(each)[0] for each in hashed)
    wanted, scale = np.zeros(6), config.ngram_scale / np.sqrt(real.sum())
    for place, (row, whole) in enumerate(zip(rows, real, strict=True)):
        size, first = divmod(place, 6)
        if whole:
            wanted[first : first + size + 1] += scale * table[row, 1] / (size + 1)
    np.testing.assert_allclose(found.values.sum(-1), wanted, atol=1e-4)
    assert found.complete and abs(difference) > 0.01


def test_a_function_that_is_not_smooth_is_told_to_be_incomplete() -> None:
    def along(places: np.ndarray, weights: np.ndarray) -> np.ndarray:  # of a step at 0.3, which has no gradient
        return np.array([0.0])

    found = gradients.integrated(along, np.zeros(1), np.ones(1), 1.0, most=64)
    assert not found.complete and found.error == 1.0


def test_words_get_what_their_ngrams_add() -> None:
    learnt = ngrams.learn(schema.NgramTokenizer(min_texts=1), ["bread and butter", "bread and moon", "the moon"])
    text = "bread and the moon, 面包"
    bag = learnt.encode([text], None, 1000)
    words = text_tokens.words_of([text])
    assert [w.token for w in words] == ["bread", "and", "the", "moon", ",", "面", "包"]
    values = np.random.default_rng(0).normal(size=len(bag.tokens))
    found, rest = text_tokens.shared_by_words(learnt, [text], words, bag.tokens, values)
    assert found.sum() + rest == pytest.approx(values.sum()) and rest == pytest.approx(values[bag.tokens == 0].sum())
    (bread,) = learnt.encode(["bread"], None, 1000).tokens[1:2]
    one, _ = text_tokens.shared_by_words(learnt, [text], words, bag.tokens, (bag.tokens == bread).astype(float))
    assert one.tolist() == [1.0, 0, 0, 0, 0, 0, 0]


def test_rollout_is_the_product_of_layers() -> None:
    draw = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2, 4))
    flow = np.eye(4)
    for layer in draw:
        mixed = (layer[0] + layer[1]) / 4 + np.eye(4) / 2
        flow = mixed @ flow
    np.testing.assert_allclose(rolled_out(draw, first=True), flow[0])
    assert rolled_out(draw, first=False).sum() == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------- the command


def test_json_has_tokens_offsets_and_attributions(folder: Path, command: Command) -> None:
    before = sorted(p.name for p in (folder / "runs" / "bert").rglob("*"))
    found = json.loads(command("bert", "--text", TEXT, "--json", "--html", "why.html"))
    assert len(found["tokens"]) == len(found["attributions"]) == len(found["offsets"]) and found["offsets"][0] is None
    assert found["completeness"] <= 1e-3 and found["class"] == found["label"] and "[PAD]" in found["baseline"]
    assert found["explanations"][0]["tokens"] == found["tokens"]
    page = html.unescape((folder / "why.html").read_text(encoding="utf-8"))
    assert not re.search(r"<(link|script|img|iframe)[^>]* (src|href)=\W(?!data:)", page)
    assert "default-src 'none'" in page and "connect-src 'none'" in page
    shown = re.sub(r"<[^>]+>", "", page[page.index("<blockquote") : page.index("</blockquote>")])
    assert shown == TEXT
    assert sorted(p.name for p in (folder / "runs" / "bert").rglob("*")) == before


def test_examples_of_a_split_have_their_labels(command: Command) -> None:
    found = json.loads(command("ngram", "--split", "test", "--count", "2", "--method", "gradient_x_input", "--json"))
    assert [(e["split"], e["row"]) for e in found["explanations"]] == [("test", 0), ("test", 1)]
    assert all(e["true"] in topics.WORDS for e in found["explanations"])


def test_numbers_alone_without_a_terminal(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    out = command("ngram", "--text", TEXT)
    assert "\x1b" not in out and re.search(r"^  soup +[+-]\d\.\d{4}$", out, re.MULTILINE)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not explained.colours()
    monkeypatch.delenv("NO_COLOR")
    assert explained.colours() and explained._painted("soup", 0.9).startswith("\x1b[97;48;5;27m")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bert"], "nothing to explain is given"),
        (["bert", "--text", "  "], "the text is empty"),
        (["bert", "--text", "soup", "--class", "kitchn"], "there is no class 'kitchn' (did you mean kitchen?)"),
        (["bert", "--text", "soup", "--method", "ocluson"], "did you mean occlusion?"),
        (["ngram", "--text", "soup", "--method", "attention_rollout"], "one of: integrated_gradients"),
        (["ngram", "--text", "soup", "--count", "2"], "--count: is of --split"),
        (["bert", "--text", "soup", "--split", "test"], "give one of them"),
        (["bert", "none.csv"], "there is no such file"),
        (["bert", "--text", "soup", "--html", "no/page.html"], "there is no such folder"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_line(command: Command, arguments: list[str], said: str) -> None:
    error = command(*arguments, code=2)
    text = " ".join(error.replace("bigctl:", "").split())
    assert said in text or said in text.replace(" did", " (did") + ")", error
    assert error.count("\n") <= 2


def test_a_cut_text_is_told(command: Command) -> None:
    assert "longer than the model takes, 24 tokens" in command("bert", "--text", "rain and wind " * 30)
