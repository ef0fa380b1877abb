"""Promises of `bigctl.data.text.encoding`: tokenizers made the same way twice, and texts as tokens, none too long."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data.text import encoding, tokenization
from bigctl.data.text.encoding import Texts
from bigctl.errors import DataError

DOCUMENTS = [
    "The cat sat on the mat.", "A dog, a cat and a mouse!", "今天天气很好", "好天气", "naïve café", "😀 fine",
    "the the the the cat",
]  # fmt: skip
KINDS = ("bpe", "words", "characters")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = [*SPECIAL, "the", "cat", "sat", "##s", ".", "今", "天", "好", "cafe", "un", "##believ", "##able"]


def settings(kind: str = "words", **options: Any) -> schema.Tokenizer:
    return schema.Tokenizer(type=kind, **{"size": 400, **options})


def made(kind: str, texts: list[str] = DOCUMENTS, **options: Any) -> Any:
    return tokenization.train(settings(kind, **options), texts)


def wordpiece(folder: Path, words: list[str] = VOCABULARY, **options: Any) -> Any:
    file = folder / "vocab.txt"
    file.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return tokenization.load_tokenizer(file, **options)


def numbered(count: int = 60) -> Any:
    """A tokenizer of the words w0, w1, ...; the number of w0 is 5."""
    return made("words", [" ".join([f"w{i}"] * (count - i)) for i in range(count)])


def words(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def tokens(tokenizer: Any, first: str, other: str | None = None, length: int = 32, truncate: str = "head") -> list[int]:
    return encoding.encode(tokenizer, [first], None if other is None else [other], length, truncate).tokens.tolist()


# --- Tokenizers made here ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_bytes(kind, tmp_path):
    many = [f"{DOCUMENTS[i % 7]} number {i * i} {'xyz'[i % 3] * (i % 5)}" for i in range(3000)]
    stored = made(kind, many, size=600).to_str(pretty=True)
    assert stored == made(kind, many, size=600).to_str(pretty=True)
    assert stored != made(kind, many[:-1] + ["zebra " * 50], size=600).to_str(pretty=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(stored, encoding="utf-8")
    again = tokenization.load_tokenizer(file)
    assert again.to_str(pretty=True) == stored  # read for a resumed run, it is the one that was stored
    sentence = "The mouse, 好天 zebra 😀!"
    assert tokens(again, sentence) == tokens(made(kind, many, size=600), sentence)


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_characters_of_the_training_texts_are_known(kind):
    tokenizer = made(kind)
    assert UNK not in tokens(tokenizer, "天气好 很好 今天")
    if kind != "bpe":  # no blanks are needed to tell them apart
        assert len(tokens(tokenizer, "气天好今")) == 4 + 2


def test_chinese_characters_of_a_vocabulary_are_known(tmp_path):
    tokenizer = wordpiece(tmp_path)
    assert tokens(tokenizer, "天好今the") == [CLS, 11, 12, 10, 5, SEP]
    assert tokens(tokenizer, "天气") == [CLS, 11, UNK, SEP]


@pytest.mark.parametrize("kind", ["bpe", "characters"])
@pytest.mark.parametrize(
    "document", [*DOCUMENTS, "  two  blanks\tand\nlines  ", "e\u0301 \u00a0 \x00 \ufeff \U0010ffff"]
)
def test_texts_come_back_from_their_tokens(kind, document):
    import unicodedata

    tokenizer = made(kind, [*DOCUMENTS, document], lowercase=False)
    ids = tokens(tokenizer, document, length=200)
    back = "".join(tokenizer.id_to_token(i) for i in ids[1:-1]) if kind == "characters" else tokenizer.decode(ids)
    assert back == unicodedata.normalize("NFC", document)


def test_bytes_spell_what_training_never_saw():
    tokenizer = made("bpe", ["only plain words"])
    ids = tokens(tokenizer, "Привет, 世界 🚀", length=200)
    assert UNK not in ids and tokenizer.decode(ids) == "привет, 世界 🚀"


def test_the_most_frequent_words_are_kept_and_others_unknown():
    frequent = [f"w{i}" for i in range(100) for _ in range(100 - i)]
    tokenizer = made("words", [" ".join(frequent)], size=5 + 20)
    assert tokenizer.get_vocab_size() == 25
    assert set(tokenizer.get_vocab()) == {*SPECIAL, *(f"w{i}" for i in range(20))}
    assert tokens(tokenizer, "w19 w20 w0") == [CLS, tokenizer.token_to_id("w19"), UNK, tokenizer.token_to_id("w0"), SEP]
    assert encoding.encode(tokenizer, ["w19 w20 w0"], None, 8, "head").unknown == pytest.approx(1 / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_case_is_folded_only_on_request(kind):
    folded, kept = made(kind), made(kind, lowercase=False)
    assert tokens(folded, "THE cat") == tokens(folded, "the CAT")
    assert tokens(kept, "The cat") != tokens(kept, "the cat")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_the_same_numbers_everywhere(kind):
    assert tokenization.special(made(kind)) == {"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK}


@pytest.mark.parametrize(("kind", "smallest"), [("bpe", 5 + 256), ("words", 5 + 1), ("characters", 5 + 1)])
def test_a_size_without_room_is_refused_and_the_hint_is_one_that_works(kind, smallest):
    with pytest.raises(DataError, match=f"{smallest - 1} is too small") as caught:
        made(kind, size=smallest - 1)
    assert caught.value.hint == f"at least {smallest}" and caught.value.where == "recipe.tokenizer.size"
    assert made(kind, size=smallest).get_vocab_size() == smallest


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["a", "word ", "字", " ", "😀"])
def test_a_megabyte_in_one_text_takes_seconds_to_learn_and_to_cut(kind, unit):
    long = unit * (10**6 // len(unit.encode()))
    start = time.process_time()
    tokenizer = made(kind, [long, *DOCUMENTS], size=300)
    encoded = encoding.encode(tokenizer, [long, "the cat"], None, 128, "head_tail")
    assert time.process_time() - start < 60  # what grows with the square takes hours
    assert not encoded.cut[1] and encoded.offsets[1] <= 128


def test_long_runs_change_nothing_for_other_texts():
    plain = [" ".join(DOCUMENTS) * 60, *DOCUMENTS]
    assert list(tokenization._without_long_runs(plain)) == plain
    run = "x" * 2500 + " end"
    assert "".join(tokenization._without_long_runs([run])) == run
    assert max(map(len, tokenization._without_long_runs([run]))) == 1000


# --- Tokenizers that are given ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_vocabulary_numbers_its_lines(tmp_path, end):
    file = tmp_path / "vocab.txt"
    file.write_bytes(end.join([*VOCABULARY, ""]).encode())
    tokenizer = tokenization.load_tokenizer(file)
    assert tokenizer.get_vocab_size() == len(VOCABULARY)
    ids = tokens(tokenizer, "The cats, unbelievable CAFÉ.")
    assert ids == [CLS, 5, 6, 8, UNK, 14, 15, 16, 13, 9, SEP]
    file.write_bytes(b"\xef\xbb\xbf" + end.join(VOCABULARY).encode())  # as some editors save it
    assert tokens(tokenization.load_tokenizer(file), "The cats, unbelievable CAFÉ.") == ids


def test_a_vocabulary_with_case_tells_it_apart(tmp_path):
    assert tokens(wordpiece(tmp_path, lowercase=False), "the The") == [CLS, 5, UNK, SEP]


def test_a_tokenizer_file_gives_the_tokens_of_its_vocabulary(tmp_path):
    direct = wordpiece(tmp_path)
    direct.enable_truncation(3)
    direct.enable_padding(length=16)
    (tmp_path / "tokenizer.json").write_text(direct.to_str(), encoding="utf-8")
    direct.no_truncation()
    direct.no_padding()
    stored = tokenization.load_tokenizer(tmp_path / "tokenizer.json")
    for document in (*DOCUMENTS, "unbelievable cats"):
        assert tokens(stored, document) == tokens(direct, document)
        assert tokens(stored, document) == stored.encode(document).ids  # as another library frames it
    pair = stored.encode("the cat", "sat.")
    assert tokens(stored, "the cat", "sat.") == pair.ids and pair.type_ids == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("vocab.txt", b"", r"lacks \[PAD\], \[CLS\], \[SEP\], \[UNK\]"),
        ("vocab.txt", "\n".join([*VOCABULARY, "cat"]).encode(), "listed twice"),
        ("vocab.txt", "\n".join(w for w in VOCABULARY if w != "[CLS]").encode(), r"lacks \[CLS\]"),
        ("vocab.txt", "\n".join(w for w in VOCABULARY if w != "[UNK]").encode(), r"lacks \[UNK\]"),
        ("vocab.txt", "[PAD]\ncafé".encode("latin-1"), "cannot be read"),
        ("tokenizer.json", b'{"version": "1.0", "model"', "is no tokenizer.json"),
        ("tokenizer.json", b"{}", "is no tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe\x00", "cannot be read"),
    ],
    ids=["empty", "token twice", "no CLS", "no UNK", "not UTF-8", "cut JSON", "other JSON", "binary"],
)  # fmt: skip
def test_a_file_that_cannot_serve_is_refused_by_name(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        tokenization.load_tokenizer(tmp_path / name)
    assert name in str(caught.value.where) and caught.value.hint and "\n" not in str(caught.value)


def test_a_tokenizer_file_whose_unknown_words_have_no_token_is_refused(tmp_path):
    content = json.loads(made("words").to_str())
    content["model"]["unk_token"] = "<other>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="lacks <other>"):
        tokenization.load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("chosen", "where"),
    [
        (schema.Tokenizer(type="file"), "recipe.tokenizer.path"),
        (schema.Tokenizer(type="file", path="/nowhere/vocab.txt"), "recipe.tokenizer.path"),
        (schema.Tokenizer(type="pretrained"), "recipe.tokenizer.type"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_refused_by_its_key(chosen, where):
    with pytest.raises(DataError) as caught:
        tokenization.spec(chosen)
    assert caught.value.where == where and caught.value.hint


def test_what_tokens_depend_on_is_in_the_identity(tmp_path):
    first = settings().__class__
    options: list[dict[str, Any]] = [
        {}, {"size": 300}, {"lowercase": False}, {"max_length": 64}, {"truncate": "tail"}, {"type": "bpe"},
    ]  # fmt: skip
    found = [tokenization.spec(first(**{"size": 400, "type": "words", **o})).identity() for o in options]
    assert len({json.dumps(identity) for identity in found}) == len(options)
    wordpiece(tmp_path)
    file = schema.Tokenizer(type="file", path=str(tmp_path / "vocab.txt"))
    here = tokenization.spec(file).identity()
    cased = schema.Tokenizer(type="file", path=file.path, lowercase=False)
    assert tokenization.spec(cased).identity() != here
    wordpiece(tmp_path, [*VOCABULARY, "more"])
    assert tokenization.spec(file).identity() != here


def test_a_runs_own_copy_of_a_tokenizer_has_the_identity_of_its_origin(tmp_path):
    tokenizer = wordpiece(tmp_path, lowercase=False)
    stored = tmp_path / "tokenizer.json"
    stored.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    file = schema.Tokenizer(type="file", path=str(tmp_path / "vocab.txt"), lowercase=False)
    assert tokenization.Spec(file, stored).identity() == tokenization.spec(file).identity()


# --- Texts as tokens --------------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_long_text():
    tokenizer = numbered()
    kept = {
        "head": list(range(5, 15)),
        "tail": list(range(35, 45)),
        "head_tail": [5, 6, *range(37, 45)],
    }
    for truncate, expected in kept.items():
        assert tokens(tokenizer, words(0, 40), length=12, truncate=truncate) == [CLS, *expected, SEP]
        assert tokens(tokenizer, words(0, 10), length=12, truncate=truncate) == [CLS, *range(5, 15), SEP]
        encoded = encoding.encode(tokenizer, [words(0, 40), words(0, 10), "w0"], None, 12, truncate)
        assert encoded.cut.tolist() == [True, False, False] and np.diff(encoded.offsets).tolist() == [12, 12, 3]


def test_the_second_text_begins_after_the_first_mark_of_an_end():
    tokenizer = numbered()
    encoded = encoding.encode(tokenizer, [words(0, 3), "w0"], [words(10, 2), words(10, 4)], 32, "head")
    assert encoded.tokens.tolist() == [CLS, 5, 6, 7, SEP, 15, 16, SEP, CLS, 5, SEP, 15, 16, 17, 18, SEP]
    assert encoded.segment_start.tolist() == [5, 3] and encoded.offsets.tolist() == [0, 8, 16]
    alone = encoding.encode(tokenizer, [words(0, 3), "w0"], None, 32, "head")
    assert alone.segment_start.tolist() == np.diff(alone.offsets).tolist() == [5, 3]


@pytest.mark.parametrize("truncate", schema.TRUNCATIONS)
@pytest.mark.parametrize("length", [4, 5, 6, 7, 12])
def test_no_example_is_longer_than_allowed(length, truncate):
    tokenizer = numbered()
    counts = [1, 2, 3, 4, 5, 8, 9, 20]
    firsts = [words(0, a) for a in counts for _ in counts]
    others = [words(30, b) for _ in counts for b in counts]
    for pairs in (None, others):
        encoded = encoding.encode(tokenizer, firsts, pairs, length, truncate)
        sizes = np.diff(encoded.offsets)
        assert sizes.max() == length and sizes.min() >= 3
        marks = 2 if pairs is None else 3
        whole = [a + (0 if pairs is None else b) + marks for a in counts for b in counts]
        assert encoded.cut.tolist() == [size > length for size in whole]
        assert sizes.tolist() == [min(size, length) for size in whole]  # and none is cut more than it must be
        for number, start in enumerate(encoded.offsets[:-1]):
            example = encoded.tokens[start : start + sizes[number]]
            ends = np.flatnonzero(example == SEP)
            assert example[0] == CLS and len(ends) == marks - 1 and ends[-1] == len(example) - 1
            assert encoded.segment_start[number] == ends[0] + 1


def test_of_a_pair_the_longer_text_is_cut_first():
    tokenizer = numbered()
    share = {(3, 20): (3, 6), (20, 3): (6, 3), (20, 20): (4, 5), (20, 19): (5, 4), (5, 20): (4, 5), (6, 4): (5, 4)}
    for (first, other), (left, right) in share.items():
        example = tokens(tokenizer, words(0, first), words(30, other), length=12)
        assert example == [CLS, *range(5, 5 + left), SEP, *range(35, 35 + right), SEP], (first, other)


def test_a_large_vocabulary_needs_wide_tokens(tmp_path):
    large = wordpiece(tmp_path, [*SPECIAL, *(f"t{i}" for i in range(70_000))])
    encoded = encoding.encode(large, ["t69999"], None, 8, "head")
    assert encoded.tokens.dtype == np.int32 and encoded.tokens.tolist() == [CLS, 70_004, SEP]
    assert encoding.encode(numbered(), ["w0"], None, 8, "head").tokens.dtype == np.uint16


def test_many_texts_are_those_texts_one_by_one():
    tokenizer = numbered()
    texts = [words(i % 7, 1 + i % 30) for i in range(2500)]  # more than are encoded at once
    other = [words(i % 11, 1 + i % 13) for i in range(2500)]
    together = encoding.encode(tokenizer, texts, other, 20, "head")
    for i in (0, 999, 1000, 1001, 2000, 2499):
        example = together.tokens[together.offsets[i] : together.offsets[i + 1]]
        assert example.tolist() == tokens(tokenizer, texts[i], other[i], length=20)


def test_no_texts_are_no_tokens():
    encoded = encoding.encode(numbered(), [], None, 8, "head")
    assert encoded.tokens.size == 0 and encoded.offsets.tolist() == [0] and encoded.unknown == 0


def test_texts_are_read_back_as_they_were():
    documents = [*DOCUMENTS, "", "x" * 10_000, "tab\t\r\n", "\U0010ffff"]
    stored = Texts.of(documents)
    assert len(stored) == len(documents) and [stored[i] for i in range(len(stored))] == documents
    assert Texts.of(["half \ud800 of it"])[0] == "half ? of it"
