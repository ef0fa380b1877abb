"""Promises of `bigctl.data.text.words`: the first token of a word carries its tag, whatever the tokenizer."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data.text import tokenization, words
from bigctl.data.text.word_tokens import encode_words

TEXTS = ["The Unbelievable Merkel visited Reykjavik", "an ostrich , a café 北京 !", "x" * 30 + " y"]


def made(kind: str, **options) -> object:
    return tokenization.train(schema.Tokenizer(type=kind, size=400, **options), TEXTS)


def wordpiece(folder) -> object:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##believ", "##able", "merkel", "visited", ","]
    (folder / "vocab.txt").write_text("\n".join([*pieces, "re", "##ykja", "##vik", "an"]))
    return tokenization.load_tokenizer(folder / "vocab.txt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Angela Merkel visited the U.N. in 2026.", "Angela|Merkel|visited|the|U.N|.|in|2026|."),
        ("didn't,really?! 10:30 a@b.org 1,000.50", "didn't|,|really|?|!|10:30|a@b.org|1,000.50"),
        ("北京 liegt—in 中国。", "北|京|liegt|—|in|中|国|。"),
        ("  (नमस्ते)  cafe\u0301 ", "(|नमस्ते|)|cafe\u0301"),
        (" \t", ""),
    ],
)
def test_raw_text_is_divided_into_words(text, expected):
    assert "|".join(text[a:b] for a, b in words.split(text)) == expected


def test_joined_words_can_be_told_apart_again():
    given = ["New\tYork", "is", "a", "b c"]
    text, spans = words.join(given)
    assert [text[a:b] for a, b in spans] == words.of_joined(text)
    assert words.of_joined(text) == ["New\u00a0York", "is", "a", "b\u00a0c"]


@pytest.mark.parametrize("kind", ["words", "bpe", "characters", "bytes", "wordpiece"])
def test_every_word_has_one_first_token_whatever_the_tokenizer(kind, tmp_path):
    tokenizer = wordpiece(tmp_path) if kind == "wordpiece" else made(kind)
    rows = [[text[a:b] for a, b in words.split(text)] for text in TEXTS]
    found = encode_words(tokenizer, rows, 512, "head")
    for number, row in enumerate(rows):
        start, stop = found.encoded.offsets[number : number + 2]
        first = found.words[start:stop]
        assert first[first >= 0].tolist() == list(range(len(row)))
        assert first[0] == first[-1] == -1
    assert not found.lost.any() and not found.encoded.cut.any()
    assert found.encoded.segment_start.tolist() == np.diff(found.encoded.offsets).tolist()


def test_tokens_are_those_that_transformers_gives_to_a_list_of_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    mine = wordpiece(tmp_path)
    (tmp_path / "t.json").write_text(mine.to_str())
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "t.json"))
    rows = [["The", "Unbelievable", "Merkel"], ["visited", "Reykjavik", ",", "un-able"]]
    found = encode_words(mine, rows, 64, "head")
    reference = theirs(rows, is_split_into_words=True)
    for number in range(2):
        start, stop = found.encoded.offsets[number : number + 2]
        ids, owners = reference["input_ids"][number], reference.word_ids(number)
        first = [-1 if w is None or w in owners[:place] else w for place, w in enumerate(owners)]
        assert found.encoded.tokens[start:stop].tolist() == ids and found.words[start:stop].tolist() == first


@pytest.mark.parametrize(("rule", "kept"), [("head", [0, 1, 2]), ("tail", [2, 3, 4]), ("head_tail", [2, 3, 4])])
def test_what_is_cut_is_counted_and_the_rest_keeps_its_tags(rule, kept):
    sentence = ["The", "Unbelievable", "Merkel", "visited", "Reykjavik"]
    found = encode_words(made("words"), [sentence], 5, rule)
    assert found.encoded.cut.tolist() == [True] and found.words[found.words >= 0].tolist() == kept
    assert found.lost.tolist() == [5 - len(kept)]
    labels = found.labels([np.array([5, 6, 7, 8, 9], np.int32)])
    assert labels.dtype == np.int32 and labels[labels >= 0].tolist() == [5 + n for n in kept]
    assert np.array_equal(labels < 0, found.words < 0)


def test_a_word_that_a_tokenizer_drops_is_counted_as_lost(tmp_path):
    found = encode_words(wordpiece(tmp_path), [["the", "\x01", "merkel"]], 16, "head")
    assert found.words.tolist() == [-1, 0, 2, -1] and found.lost.tolist() == [1]


def test_tags_of_several_sentences_stay_with_their_words():
    rows = [["a", "b"], ["c"], ["d", "e", "f"]]
    found = encode_words(made("characters"), rows, 64, "head")
    labels = found.labels([np.array([1, 2]), np.array([3]), np.array([4, 5, 6])])
    assert labels[labels >= 0].tolist() == [1, 2, 3, 4, 5, 6]
