"""Promises of `bigctl.data.text.ngrams`: the n-grams of a text are those that a plain loop finds, in any language."""

from __future__ import annotations

import base64
import dataclasses
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.data.preparation.prepare import prepare
from bigctl.data.text import encoding, ngrams, tokenization
from bigctl.errors import ConfigError, DataError

TEXTS = [
    "A good film, don't miss it!",
    "bad bad film",
    "这部电影很好看",
    "यह फिल्म अच्छी है",
    "สวัสดีครับ",
    "",
    "x",
    "ﬁlm №5",
]
UNSPACED = "这部电影很好看สวัสดีครับ"


def learnt(texts: list[str] = TEXTS, **options: Any) -> ngrams.Ngrams:
    return ngrams.learn(schema.NgramTokenizer(**{"size": 4000, **options}), texts)


def plainly(text: str, words: int = 2, characters: tuple[int, int] | None = (3, 5)) -> set[tuple[str, ...]]:
    """The n-grams of a text, found character by character."""
    text = unicodedata.normalize("NFKC", text).lower()
    found, word, inside = list[str](), "", ""
    for c in f"{text} ":
        letter = (c.isalnum() or unicodedata.category(c)[0] == "M") and c not in UNSPACED
        if word and not letter:
            found.append(word)
        word = word + c if letter else ""
        found += [c] if not letter and not c.isspace() else []
        inside += c if letter or c in UNSPACED else " "
    runs = {tuple(found[i : i + n]) for n in range(1, words + 1) for i in range(len(found) - n + 1)}
    framed = [f" {part} " for part in inside.split()]
    shortest, longest = characters or (1, 0)
    sizes = range(shortest, longest + 1)
    return runs | {("", part[i : i + n]) for part in framed for n in sizes for i in range(len(part) - n + 1)}


@pytest.mark.parametrize("words", [0, 1, 2, 3])
@pytest.mark.parametrize("characters", [None, (3, 5), (2, 2)])
def test_a_text_has_the_ngrams_that_a_plain_loop_finds(words: int, characters: tuple[int, int] | None) -> None:
    if not words and not characters:
        return
    made = learnt(words=words, characters=list(characters or ()))
    bags = dataclasses.replace(made, groups=None).encode(TEXTS, None, 1000)  # each once
    expected = [plainly(text, words, characters) for text in TEXTS]
    assert np.diff(bags.offsets).tolist() == [1 + len(each) for each in expected]
    assert made.size == 1 + len(set().union(*expected)) and bags.unknown == 0
    sets = [set(bags.tokens[a:b].tolist()) for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)]
    for one, a in enumerate(sets):
        for other, b in enumerate(sets):
            assert len(a & b) == 1 + len(expected[one] & expected[other])  # equal ones have equal numbers


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, bags = learnt(), learnt().encode(TEXTS, None, 12)
    monkeypatch.setattr(ngrams, "_BLOCK", 10)
    monkeypatch.setattr(ngrams, "_PENDING", 5)
    assert (learnt().kept == whole.kept).all()
    again = whole.encode(TEXTS, None, 12)
    assert (again.tokens == bags.tokens).all() and (again.cut == bags.cut).all()


def test_the_ngrams_of_most_texts_are_kept() -> None:
    texts = [f"common {'often' if n % 2 else ''} word{n}" for n in range(40)]
    made = learnt(texts, size=4, characters=[], words=1)
    counts = Counter(made.encode(texts, None, 100).tokens.tolist())
    assert counts[ngrams.ANY] == 40 and sorted(counts.values())[-3:] == [20, 40, 40] and made.size == 4


def test_ngrams_of_too_few_texts_are_not_known() -> None:
    texts = [f"common {'often' if n % 2 else ''} word{n}" for n in range(40)]
    made = learnt(texts, characters=[], words=1, min_texts=2)
    assert made.size == 3 and made.groups is not None and made.groups[-1][0] == 3
    assert learnt(texts, characters=[], words=1, min_texts=41).size == 43  # rather than none
    assert learnt(["", " "]).size == 1
    assert learnt(texts, min_texts=2).size < learnt(texts).size


def test_long_texts_have_no_pieces_and_it_is_said() -> None:
    mean = (sum(map(len, TEXTS)) - 1) // len(TEXTS)  # less than it is
    whole, short = learnt(pieces_up_to=mean + 1), learnt(pieces_up_to=mean)
    assert (whole.kept == learnt().kept).all() and whole.characters == (3, 5)
    assert (short.kept == learnt(characters=[]).kept).all() and short.characters == ()
    assert learnt(pieces_up_to=0, words=0).characters == (3, 5)  # or there would be nothing
    settings = schema.NgramTokenizer(pieces_up_to=mean)
    assert ngrams.notes(whole, settings) == ngrams.notes(short, schema.NgramTokenizer(characters=[])) == []
    assert f"pieces_up_to={mean}" in ngrams.notes(short, settings)[0]


def test_what_occurs_more_often_is_there_more_often() -> None:
    text = " ".join(["one", *["four"] * 4, *["many"] * 20])
    made = learnt([text], words=1, characters=[])
    times = Counter(made.encode([text], None, 99).tokens.tolist())
    assert sorted(times.values()) == [1, 1, 2, 4]  # what every text has; 1, 4 and 20 of one
    assert not made.encode([text], None, 5).offsets[-1] > 5


def test_groups_tell_how_rare_ngrams_are_and_which_are_pieces() -> None:
    texts = [f"common {'often' if n % 2 else ''} word{n}" for n in range(40)]
    made = learnt(texts, words=1, characters=[3, 3])
    groups = made.groups or ()
    ends = [1, *(end for end, _, _ in groups)]
    assert ends[-1] == made.size and [pieces for _, pieces, _ in groups] == sorted(pieces for _, pieces, _ in groups)
    for start, end, (_, pieces, weight) in zip(ends, ends[1:], groups, strict=False):
        assert {code >> 30 == 3 for code in made.kept[start - 1 : end - 1].tolist()} == {pieces}
        counts = np.bincount(made.encode(texts, None, 99).tokens, minlength=made.size)[start:end]
        assert weight == pytest.approx(np.log(41 / (1 + counts.mean())) + 1, abs=1e-3)
    rarity = [1 + np.log(41 / (1 + count)) for count in (40, 20, 1)]
    assert [weight for _, _, weight in groups][:3] == pytest.approx(rarity, abs=1e-4)


def test_pieces_take_a_third_of_the_room_or_what_words_leave() -> None:
    kinds = [made.kept >> 30 == 3 for made in (learnt(size=13), learnt(size=13, characters=[]), learnt(size=4000))]
    assert kinds[0].sum() == 4 and len(kinds[1]) == 12 and not kinds[1].any()
    assert kinds[2].sum() > (~kinds[2]).sum()


def test_of_older_versions_a_text_has_each_ngram_once_in_the_order_of_bits(tmp_path: Path) -> None:
    made = learnt(["a a a b"], characters=[])
    old = {name: value for name, value in json.loads(made.to_str()).items() if name != "groups"}
    old["kept"] = base64.b64encode(np.sort(made.kept).astype("<u4").tobytes()).decode()
    (tmp_path / "t.json").write_text(json.dumps(old))
    again = ngrams.load(tmp_path / "t.json")
    assert again.encode(["a a a b"], None, 99).tokens.tolist() == list(range(again.size))
    assert again.to_str() == json.dumps(old) and "groups" not in ngrams.describe(again, 99, "")


def test_of_a_long_text_words_are_kept_before_pieces() -> None:
    text = "alpha beta gamma delta"
    made = learnt([text])
    bags = made.encode([text], None, 9)
    kinds = made.kept[bags.tokens[1:].astype(int) - 1] >> 30
    assert len(bags.tokens) <= 9 and bags.cut.tolist() == [True]
    assert kinds.tolist()[:7] == [0, 0, 0, 0, 1, 1, 1]
    assert not made.encode([text], None, 1000).cut.any()


def test_a_pair_is_as_one_text() -> None:
    made = learnt()
    pair, one = made.encode(["A good"], ["film"], 99), made.encode(["A good\nfilm"], None, 99)
    assert pair.tokens.tolist() == one.tokens.tolist()


def test_what_is_stored_reads_as_it_was(tmp_path: Path) -> None:
    file, made = tmp_path / "tokenizer.json", learnt()
    file.write_text(made.to_str(pretty=True))
    again = ngrams.load(file)
    assert again.to_str(pretty=True) == made.to_str(pretty=True)
    assert (again.encode(TEXTS, None, 50).tokens == made.encode(TEXTS, None, 50).tokens).all()
    assert tokenization.Spec(schema.NgramTokenizer(), file).load(file).to_str() == made.to_str()


@pytest.mark.parametrize("broken", ["", "{}", '{"kept": "!"}', "order", "bounds", "groups"])
def test_a_damaged_file_is_refused_by_name(broken: str, tmp_path: Path) -> None:
    values = json.loads(learnt().to_str())
    if broken == "order":
        broken = json.dumps(values | {"kept": base64.b64encode(np.array([2, 1], "<u4").tobytes()).decode()})
    elif broken == "groups":
        broken = json.dumps(values | {"groups": [[1, False, 1.0]]})
    elif broken == "bounds":
        broken = json.dumps(values | {"characters": [0, 10**9]})
    (tmp_path / "t.json").write_text(broken)
    with pytest.raises(DataError, match=r"t.json: holds no n-grams"):
        ngrams.load(tmp_path / "t.json")
    with pytest.raises(DataError, match="is no tokenizer.json"):
        tokenization.load_tokenizer(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.tokenizer.characters=[5,3]", r"characters cannot be \[5, 3\]"),
        ("recipe.tokenizer.characters=[3]", r"characters cannot be \[3\]"),
        ("recipe.tokenizer.words=4", "words"),
        ("model=lstm", "model=lstm reads no n-grams"),
    ],
)
def test_what_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["recipe=ngram_cls", override])
    with pytest.raises(ConfigError, match="model=bag reads nothing but n-grams"):
        compose(["recipe=lstm_cls", "model=bag"])


def test_tagged_sentences_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.conll").write_text("".join(f"w{n} O\nv B-PER\n\n" for n in range(20)))
    config = schema.Conll(path=str(tmp_path / "t.conll"))
    with pytest.raises(DataError, match="a tag a word"):
        prepare(config, tokenizer=tokenization.spec(schema.NgramTokenizer()))


def test_a_lone_surrogate_is_no_end() -> None:
    assert len(learnt().encode(["a \ud800 film"], None, 99).tokens) > 1


def test_examples_are_as_those_of_other_tokenizers() -> None:
    made = learnt()
    found, bags = encoding.encode(made, TEXTS, None, 99, "head"), made.encode(TEXTS, None, 99)
    assert found.segment_start.tolist() == np.diff(bags.offsets).tolist() and (found.tokens == bags.tokens).all()
