"""Text to tokens here and in transformers: the same ids, the same segments, cut in the same places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigctl.data.text import encoding, tokenization

pytestmark = pytest.mark.optimized

transformers = pytest.importorskip("transformers")

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *"abcdefghijklmnopqrstuvwxyz0123456789.,!?'-$",
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    "the", "cat", "film", "good", "##ness", "##s", "天", "气", "好", "cafe", "café", "The",
]  # fmt: skip
TEXTS = [
    "The cats' goodness!", "Café CAFÉ cafe", "天气好, the film", "a\u0300b \u200d zero\u00a0width\ttab", "€5 ☃ 😀",
    "don't-stop $3.50", "", "   ", "[CLS] the [SEP] film [UNK]", "x" * 150, "na\u00efve \uff21\uff22",
    "\x00\ufffd\x07 control", "the\u3000cat\u2009film",
]  # fmt: skip


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(WORDS)) + "\n", encoding="utf-8")
    return tmp_path / "vocab.txt"


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_gives_the_ids_of_bert_tokenizer(vocabulary: Path, lowercase: bool) -> None:
    theirs = transformers.BertTokenizer(str(vocabulary), do_lower_case=lowercase)
    ours = tokenization.load_tokenizer(vocabulary, lowercase=lowercase)
    assert len(theirs) == ours.get_vocab_size() == len(set(WORDS))
    together = encoding.encode(ours, TEXTS, None, 512, "head")
    for number, document in enumerate(TEXTS):
        ids = together.tokens[together.offsets[number] : together.offsets[number + 1]].tolist()
        assert ids == theirs(document)["input_ids"], document


def test_a_tokenizer_that_transformers_saved_gives_its_ids(vocabulary: Path, tmp_path: Path) -> None:
    theirs = transformers.BertTokenizer(str(vocabulary), do_lower_case=True)
    theirs.save_pretrained(tmp_path / "saved")
    ours = tokenization.load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    for document in TEXTS:
        assert encoding.encode(ours, [document], None, 512, "head").tokens.tolist() == theirs(document)["input_ids"]


def test_pairs_are_cut_and_parted_as_by_longest_first(vocabulary: Path) -> None:
    theirs = transformers.BertTokenizer(str(vocabulary), do_lower_case=True)
    ours = tokenization.load_tokenizer(vocabulary)
    for first in range(1, 12):
        for other in range(1, 12):
            for length in (4, 5, 8, 9, 12, 30):
                pair = " ".join("abcdefghijk"[:first]), " ".join("nopqrstuvwx"[:other])
                made = encoding.encode(ours, [pair[0]], [pair[1]], length, "head")
                expected = theirs(*pair, truncation="longest_first", max_length=length)
                assert made.tokens.tolist() == expected["input_ids"], (first, other, length)
                segments = (np.arange(len(made.tokens)) >= made.segment_start[0]).astype(int)
                assert segments.tolist() == expected["token_type_ids"]
