"""A tagger says where names are, in the text as it was given."""

from __future__ import annotations

import json

import pytest

import bigctl as package
from bigctl.data.sources.conll import read_conll
from bigctl.errors import DataError
from bigctl.inference.trained import TrainedRun
from tests import tagging
from tests.conftest import Cli


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return tagging.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def trained(cli: Cli) -> TrainedRun:
    return package.load(cli.folder / "runs" / "names")


def test_spans_are_places_in_the_raw_text(trained):
    text = "  Ada  lives in New York."
    spans = trained.predict([text, "it rains"])[0]
    assert [(span["label"], span["text"]) for span in spans] == [("PER", "Ada"), ("LOC", "New York")]
    assert all(text[span["start"] : span["end"]] == span["text"] and 0.2 < span["probability"] <= 1 for span in spans)
    assert trained.predict(["it rains"]) == [[]] and trained.predict([]) == []


def test_words_that_are_given_have_their_numbers_too(trained):
    words = ["Euler", "Leonhard", "lives", "in", "Rome", "."]
    (record,) = trained.label_texts([words])
    assert record["text"] == " ".join(words) and record["tags"] == ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
    first = record["spans"][0]
    assert (first["start"], first["end"], first["start_word"], first["end_word"]) == (0, 14, 0, 2)


def test_neither_order_nor_company_changes_a_prediction(trained):
    rows = [[word for word, _ in row] for row in tagging.sentences(5, 70)]
    together = [record["tags"] for record in trained.label_texts(rows)]
    assert [record["tags"] for record in trained.label_texts(rows[::-1])][::-1] == together
    assert trained.label_texts(rows[3:4])[0]["tags"] == together[3]


def test_a_sentence_that_is_too_long_is_called_cut_and_has_no_tags_at_its_end(trained):
    (record,) = trained.label_texts([["Ada"] + ["rains"] * 30])
    assert record["cut"] and len(record["tags"]) == 31 and record["tags"][-1] is None and record["tags"][0] == "B-PER"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (3, "list of texts"),
        (["fine", " "], "the text at 1 is empty"),
        ([["a", " "]], "a word of the sentence at 0 is empty"),
        ([[]], "the text at 0 is empty"),
        ([["a", 3]], "neither a text nor a list of words"),
    ],
)
def test_what_is_no_sentence_is_refused(trained, given, what):
    with pytest.raises(ValueError, match=what):
        trained.predict(given)


def test_files_of_every_kind_are_tagged(cli, trained, monkeypatch):
    monkeypatch.chdir(cli.folder)
    rows = read_conll(cli.folder / "test.conll")
    lines = "\n".join(json.dumps({"tokens": words}) for words in rows.words)
    (cli.folder / "words.jsonl").write_text(lines)
    (cli.folder / "words.conll").write_text("\n\n".join("\n".join(words) for words in rows.words))
    (cli.folder / "lines.txt").write_text("\n".join(" ".join(words) for words in rows.words))
    found = {name: list(trained.predict_files([name])) for name in ("words.jsonl", "words.conll", "lines.txt")}
    assert [r["tags"] for r in found["words.jsonl"]] == [r["tags"] for r in found["words.conll"]]
    assert [[s["text"] for s in r["spans"]] for r in found["lines.txt"]] == [
        [s["text"] for s in r["spans"]] for r in found["words.conll"]
    ]
    right = sum(r["tags"] == tags for r, tags in zip(found["words.conll"], rows.tags, strict=True))
    assert right > 0.9 * len(rows.tags)
    with pytest.raises(DataError, match="tells no format"):
        list(trained.predict_files(["lines.xyz"], strict=True))


def test_predict_writes_a_line_a_text(cli):
    done = cli("predict", "names", "--text", "Boole lives in Lima .")
    record = json.loads(done.stdout)
    assert record["text"] == "Boole lives in Lima ." and [s["label"] for s in record["spans"]] == ["PER", "LOC"]


def test_eval_lists_the_sentences_with_wrong_words(cli):
    swapped = tagging.conll(tagging.sentences(3, 30)).replace("Rome B-LOC", "Rome B-PER")
    overrides = [*tagging.RECIPE, *tagging.MODEL, "train.steps=40", "train.batch_size=16", "train.tensorboard=false"]
    (cli.folder / "wrong.conll").write_text(swapped)
    cli("train", *overrides, "data=conll", "data.path=train.conll", "data.test_path=wrong.conll", "--name", "wrong")
    report = json.loads(cli("eval", "wrong", "--errors", "2", "--json").stdout)
    for error in report["errors"]:
        differing = [n for n, tag in enumerate(error["label"]) if tag != error["predicted"][n]]
        assert len(differing) == error["wrong"] and " ".join(error["words"]) == error["text"]
    assert len(report["errors"]) == 2 and report["metrics"]["test/entity_f1"] < 1
    assert "Rome: B-PER -> B-LOC" in cli("eval", "wrong").stdout
