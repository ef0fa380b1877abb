"""Promises of `prepare` for sentences with a tag a word: what is stored, shown, cut and said."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import preview
from bigctl.data.dataset import Dataset, Features
from bigctl.data.notes import notes_of
from bigctl.data.preparation.prepare import prepare
from bigctl.data.text import tokenization
from bigctl.errors import DataError
from tests import tagging


@pytest.fixture
def config(tmp_path, monkeypatch) -> schema.Conll:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    tagging.write(tmp_path)
    return schema.Conll(path=str(tmp_path / "train.conll"), test_path=str(tmp_path / "test.conll"))


def as_tokens(config: schema.Data, **options) -> Dataset:
    return prepare(config, tokenizer=tokenization.spec(schema.Tokenizer(type="bpe", size=300, **options)))


def test_labels_stand_beside_the_first_token_of_each_word_and_go_into_batches_with_it(config):
    dataset = as_tokens(config)
    columns, target = dataset.splits["test"], dataset.features.target
    assert target.kind == "token_class" and target.names == tuple(tagging.TAGS) and dataset.features.classes is None
    assert Features.from_json(dataset.features.to_json()) == dataset.features
    assert columns["label"].shape == columns["inputs"].shape and columns["label"].dtype == np.int32
    for row, sentence in enumerate(tagging.sentences(1, 40)):
        tags = preview.word_tags(dataset, "test", row)
        assert [target.names[tag] for tag in tags] == [tag for _, tag in sentence]
    batch = dataset.batches.gather(columns, np.array([3, 0]), 64)
    assert batch["label"].shape == batch["inputs"].shape == (2, 64)
    assert batch["label"][0][batch["label"][0] >= 0].tolist() == preview.word_tags(dataset, "test", 3).tolist()
    assert dataset.size("test") == 40 and dataset.size("train") + dataset.size("validation") == 160


def test_tags_are_counted_and_shown_with_and_without_a_tokenizer(config):
    plain, tokens = preview.describe(prepare(config)), preview.describe(as_tokens(config))
    words = sum(len(row) for row in tagging.sentences(1, 40))
    assert plain["splits"]["test"]["classes"] == tokens["splits"]["test"]["classes"]
    assert sum(plain["splits"]["test"]["classes"]) == words and plain["splits"]["test"]["examples"] == 40
    assert preview.first_texts(prepare(config)) == preview.first_texts(as_tokens(config))
    sentence = next(row for row in tagging.sentences(0, 9) if any(tag != "O" for _, tag in row))
    shown = " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in sentence)
    assert shown in preview.first_texts(prepare(config))[0][1]


def test_words_that_are_cut_are_counted_and_said(config):
    dataset = as_tokens(config, max_length=6)
    assert any("words are neither learned nor scored" in note for note in notes_of(dataset))
    kept, all_words = (sum(d["splits"]["test"]["classes"]) for d in map(preview.describe, (dataset, prepare(config))))
    assert dataset.info["words_cut"]["test"] == all_words - kept > 0


def test_a_tag_of_the_test_file_alone_is_refused_with_its_line(config, tmp_path):
    (tmp_path / "test.conll").write_text("it O\nrains B-SKY\n")
    with pytest.raises(DataError, match="test.conll:2: the tag 'B-SKY' of 'rains' is not among"):
        prepare(config)


def test_a_rare_tag_that_no_training_sentence_has_is_said(tmp_path, config):
    file = tmp_path / "rare.conll"
    file.write_text("a O\nb B-X\n\n" * 20 + "c B-Y\n\n")
    made = prepare(schema.Conll(path=str(file), train="train[:20]", validation="train[20:]"))
    assert "the tag 'B-Y' is in the validation split only, and is not learned" in notes_of(made)
