"""Keys of several corpora that one language model is trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema import bad_input
from bigctl.config.schema.bad_input import LeavesOut
from bigctl.config.schema.base import FREE, MISSING, STRUCTURAL, TRAJECTORY, Problem, Whole, key, kind
from bigctl.config.schema.data import VOCABULARY_CHARACTERS, Data, check_encoding

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass
class Corpus:
    """One of them: files of ready-made tokens, as `data=tokens` reads, or of text, as `data=text` does."""

    path: str = key(MISSING, "A file, a folder, or a pattern such as 'books/*.txt' or 'web_{00..99}.bin'.", drift=FREE)
    weight: float | None = key(
        None, "Its part of the windows that are drawn: weights are divided by their sum. 0 to be validated on only; "
        "null for all corpora to be drawn as often as they are long.", drift=TRAJECTORY, ge=0, le=1e9,
    )  # fmt: skip
    validation_path: str | None = key(None, "The same for its validation split.", drift=FREE)
    test_path: str | None = key(None, "The same for its test split.", drift=FREE)
    type: str | None = key(
        None, "What the files hold; null to tell it from their names: .bin is tokens.", drift=STRUCTURAL,
        choices=("text", "tokens"),
    )  # fmt: skip
    format: str | None = key(
        None, "Of tokens: how they are stored, as data.format of data=tokens.", drift=STRUCTURAL,
        choices=("raw", "llmc", "megatron"),
    )  # fmt: skip
    dtype: str | None = key(
        None, "Of tokens: what one of a raw file is; null for uint16.", drift=STRUCTURAL, choices=("uint16", "uint32")
    )
    field: str | None = key(None, "Of text: the field of each JSON object that holds it.", drift=STRUCTURAL)
    encoding: str | None = key(None, "Of text: its encoding, such as latin-1; null for UTF-8.", drift=STRUCTURAL)


@dataclass
class Mixture(LeavesOut, Data):
    """Several corpora to learn to write, drawn from in proportion to their weights, and each scored by itself too.

    Splits are made of each corpus by itself, as `data=tokens` and `data=text` make them.
    """

    implementation: ClassVar[str] = "bigctl.data.sources.mixture"
    tokenized: ClassVar[bool] = True
    kind: str = kind("mixture")
    corpora: dict[str, Corpus] = key(
        {}, "The corpora by name: {web: {path: web.bin, weight: 0.7}, books: {path: books.bin, weight: 0.3}}.",
        drift=STRUCTURAL,
    )  # fmt: skip
    boundaries: bool = key(
        True, "Put the tokenizer's end token between two files or objects of text.", drift=STRUCTURAL
    )
    on_bad: str = bad_input.on_bad("a line of JSON that cannot be read")
    bad_limit: float = bad_input.bad_limit("a corpus's lines")
    vocabulary_characters: int = key(
        VOCABULARY_CHARACTERS,
        "Of a larger training text, how much a vocabulary is made of, drawn by data.split_seed [characters].",
        drift=STRUCTURAL, ge=2**16,
    )  # fmt: skip
    workers: int | None = key(
        None, "Processes that make tokens of large texts; null for one a core.", drift=FREE, ge=1, le=256
    )
    validation_tokens: int | None = key(
        2**20, "Ready-made tokens of each corpus's validation split, and of its test split, at most: of more the "
        "first; null for all.", drift=STRUCTURAL, ge=2,
    )  # fmt: skip
    validation_fraction: float = key(
        0.05, "Share held out at the end of each corpus that has no validation split.", drift=STRUCTURAL, gt=0, lt=1
    )
    test_fraction: float = key(
        0.05, "Share held out after that; 0 to have the validation split stand for the test split.",
        drift=STRUCTURAL, ge=0, lt=1,
    )  # fmt: skip

    @property
    def shares(self) -> tuple[float, ...] | None:
        """The part of the draws that each corpus has, in order, which add up to 1; None for that of its length."""
        weights = [corpus.weight for corpus in self.corpora.values()]
        given = [weight for weight in weights if weight is not None]
        return tuple(weight / sum(given) for weight in given) if given else None

    @staticmethod
    def no_corpus() -> tuple[str, str]:
        """What is wrong where none is given, and what to do."""
        return "no corpus is given", "add data.corpora.web.path=web.bin data.corpora.books.path=books, or the like"

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        yield from self.unused(("fold", "deduplicate"), "is for examples, not for corpora")
        if not self.corpora and config.tokenizer is not None:  # of a recipe, else more may be to come
            yield "data.corpora", *self.no_corpus()
        if config.tokenizer is not None and config.block is None:
            yield "data", "data=mixture is for texts to be written", "choose recipe=gpt_lm"
        for name, corpus in self.corpora.items():
            if not _NAME.fullmatch(name):
                hint = "up to 40 letters (A to Z), digits, _ and -: metrics are called by it"
                yield "data.corpora", f"a corpus cannot be called {name[:60]!r}", hint
            if not corpus.path:
                yield (
                    f"data.corpora.{name}.path",
                    f"data.corpora.{name}.path is empty",
                    "give a file, folder or pattern",
                )
            for _, message, hint in check_encoding(corpus.encoding):
                yield f"data.corpora.{name}.encoding", message, hint
        yield from self._check_weights()

    def _check_weights(self) -> Iterator[Problem]:
        given = {name: corpus.weight for name, corpus in self.corpora.items() if corpus.weight is not None}
        lacking = next((name for name in self.corpora if name not in given), "")
        if given and lacking:
            message = f"data.corpora.{lacking} has no weight, {next(iter(given))} has one"
            hint = "give a weight to every corpus; or to none, to draw from each as often as it is long"
            yield f"data.corpora.{lacking}.weight", message, hint
        elif given and not sum(given.values()):
            name = next(iter(given))
            yield f"data.corpora.{name}.weight", "all weights are 0: nothing is drawn", "give one above 0"
