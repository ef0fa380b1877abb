"""Promises about one long text as tokens: however it is divided, they are those that the tokenizer gives the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bigctl.config import schema
from bigctl.data.text import cutting, stream_encoding, tokenization
from bigctl.data.text.stream_encoding import StreamEncoder

ENGLISH = """\
It's  a\n\n\ttest,  isn't it?   \n"Fie!"\n\nquoth he (in 1623): 3,141 men...\n 

And so_they _went_ -- home;  \n"""
CHINESE = "床前明月光,疑是地上霜。\n舉頭望明月,低頭思故鄉。\u3000\u3000不見\n"
ODD = "e\u0301 \U0001f600\U0001f3fd \ufeff\x07 a\x1c b!\x1cc\u00a0 \u00a0  d\u2028  x\x85 \x00\x0b y  \r\r\n"
CONTENT = (ENGLISH + CHINESE + ODD + ENGLISH.replace("\n", "\r\n")) * 12

# The pre-tokenization of Llama 3 and of OpenAI's cl100k: a mark takes the line ends after it along.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def made(type: str, **settings: object) -> Tokenizer:
    return tokenization.train(schema.StreamTokenizer(type=type, size=500, **settings), [CONTENT])  # type: ignore[arg-type]


def like_llama_3() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(CL100K), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([CONTENT], trainer)
    return tokenizer


def of_sentences() -> Tokenizer:
    """One that knows no words: merges go over blanks."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.train_from_iterator([ENGLISH] * 3, trainers.BpeTrainer(vocab_size=90, special_tokens=["?"]))
    return tokenizer


def marked(token: AddedToken) -> Tokenizer:
    tokenizer = made("bpe")
    tokenizer.add_special_tokens([token])
    return tokenizer


TOKENIZERS = {
    "bpe": (lambda: made("bpe"), cutting.WORDS),
    "bpe, lower case": (lambda: made("bpe", lowercase=True), cutting.WORDS),
    "words": (lambda: made("words"), cutting.WORDS),
    "characters": (lambda: made("characters"), cutting.ANYWHERE),
    "characters, lower case": (lambda: made("characters", lowercase=True), cutting.WORDS),
    "bytes": (lambda: made("bytes"), cutting.ANYWHERE),
    "like Llama 3": (like_llama_3, cutting.BLANKS),
    "no words": (of_sentences, None),
    "a token takes blanks along": (lambda: marked(AddedToken("quoth", rstrip=True)), None),
    "a token with a blank": (lambda: marked(AddedToken("so_they _went_")), None),
    "a token takes blanks before it": (lambda: marked(AddedToken("quoth", lstrip=True)), cutting.WORDS),
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_whole_text(name, tokenizers):
    make, rule = TOKENIZERS[name]
    tokenizer = tokenizers.setdefault(name, make())
    encoder = StreamEncoder(tokenizer)
    assert encoder.cutter.rule == rule
    for content in (CONTENT, CONTENT.replace("quoth", "<|endoftext|>"), CONTENT[7:] + "  \n ", "x", " \n"):
        whole = tokenizer.encode(content, add_special_tokens=False).ids
        assert encoder.encode(content).tolist() == whole
        assert encoder.encode(content).tolist() == whole, "again, from what is known"
        pieces = list(encoder.cutter.pieces(content, 40))
        assert "".join(pieces) == content and (len(pieces) == 1) == (rule is None or len(content) < 40)
        assert [n for piece in pieces for n in encoder.encode(piece).tolist()] == whole


def test_words_are_forgotten_where_they_would_fill_the_memory(monkeypatch):
    tokenizer = made("bpe")
    whole = tokenizer.encode(CONTENT, add_special_tokens=False).ids
    for most, characters in ((5, 10**6), (10**6, 20)):
        monkeypatch.setattr(stream_encoding, "_KNOWN", most)
        monkeypatch.setattr(stream_encoding, "_KNOWN_CHARACTERS", characters)
        encoder = StreamEncoder(tokenizer)
        assert [n for line in CONTENT.splitlines(True) for n in encoder.encode(line)] == [
            n for line in CONTENT.splitlines(True) for n in tokenizer.encode(line, add_special_tokens=False).ids
        ]
        assert encoder.encode(CONTENT).tolist() == whole


def test_a_line_without_blanks_is_cut_where_it_can_be():
    letters = "".join(random.Random(0).choices("abcdefgh", k=5000))
    bpe, characters = StreamEncoder(made("bpe")), StreamEncoder(made("characters"))
    assert len(list(bpe.cutter.pieces(letters, 100))) == 1
    assert max(map(len, bpe.cutter.pieces(CHINESE.replace("\n", "") * 50, 100))) < 130
    assert max(map(len, characters.cutter.pieces(letters, 100))) == 100


def test_a_vocabulary_of_characters_is_that_of_the_library():
    from tokenizers import decoders

    special = ["<|endoftext|>", "[UNK]"]
    for content, size in ((CONTENT, 10000), (CONTENT + "<|endoftext|>[UNK]", 30), ("bbaacd", 4), ("bbaacd", 6)):
        library = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        library.normalizer = normalizers.Sequence([])
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
        library.train_from_iterator([content], trainer)
        settings = schema.StreamTokenizer(type="characters", size=size)
        for texts in ([content], list(content)):
            assert tokenization.train(settings, texts).to_str() == library.to_str()


def test_real_text_has_the_tokens_of_the_whole():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    tokenizer = tokenization.train(schema.StreamTokenizer(type="bpe", size=400), [text[:20000]])
    for content in (text, text.replace("\n", "\r\n"), text.replace(" ", "")):
        assert StreamEncoder(tokenizer).encode(content).tolist() == tokenizer.encode(content).ids
