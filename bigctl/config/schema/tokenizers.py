"""Keys that say how text becomes numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.base import STRUCTURAL, Checked, Problem, Whole, key

TOKENIZERS = ("pretrained", "file", "bpe", "bytes", "words", "characters")
STREAM_TOKENIZERS = (*TOKENIZERS, "gpt2", "ids")
TRUNCATIONS = ("head", "tail", "head_tail")


@dataclass
class StreamTokenizer(Checked):
    """How one long text becomes numbers. What is made here is made of the training split, once, and stored with the
    run."""

    stream: ClassVar[bool] = True
    """Whether it is for one long text, not for examples."""
    type: str = key(
        "characters",
        "The one that comes with model.init_from (pretrained), that of tokenizer.path (file), that of GPT-2 (gpt2), "
        "the 256 bytes, or one made of the training split: byte-level bpe, words, or characters. Of ready-made tokens "
        "whose tokenizer is not at hand: their numbers (ids).",
        drift=STRUCTURAL,
        choices=STREAM_TOKENIZERS,
    )
    path: str | None = key(None, "A vocab.txt (WordPiece) or a tokenizer.json.", drift=STRUCTURAL)
    size: int = key(
        10000, "Largest vocabulary of a tokenizer made here, and that of ids [tokens].", drift=STRUCTURAL, ge=6
    )
    lowercase: bool = key(False, "Fold case, in a tokenizer made here or from a vocab.txt.", drift=STRUCTURAL)
    min_count: int = key(
        1, "How often a word, a character, or a pair that bpe joins must occur in the training split to be in a "
        "vocabulary made here; what is rarer may be private.", drift=STRUCTURAL, ge=1,
    )  # fmt: skip

    def check(self, config: Whole) -> Iterator[Problem]:
        model, this = config.model, f"recipe.tokenizer.type={self.type}"
        if self.type == "pretrained" and model.init_from is None:
            yield (
                "recipe.tokenizer.type",
                f"{this} needs pretrained weights, model={model.kind} has none",
                "give model.init_from; or recipe.tokenizer.type=words, bpe, characters, or file with its path",
            )
        if self.type not in ("pretrained", "file") and model.init_from is not None:
            yield (
                "recipe.tokenizer.type",
                f"{this} makes a vocabulary of its own, which the weights do not know",
                "recipe.tokenizer.type=pretrained takes the one that comes with model.init_from",
            )
        if self.type == "ids" and not config.data.tokenized:
            message = f"{this} is for tokens that are ready-made, data={config.data.kind} holds none"
            yield "recipe.tokenizer.type", message, "leave it out, or give data=tokens data.path=FILES"
        if self.type == "file" and not self.path:
            yield "recipe.tokenizer.path", "recipe.tokenizer.path is not given", "give a vocab.txt or a tokenizer.json"
        if self.min_count > 1 and self.type not in ("bpe", "words", "characters"):
            what = f"recipe.tokenizer.min_count is for a vocabulary made here, {this} makes none of the texts"
            yield "recipe.tokenizer.min_count", what, "leave it out, or give recipe.tokenizer.type=words"
        if self.path and self.type != "file":
            yield (
                "recipe.tokenizer.path",
                f"recipe.tokenizer.path is not used by {this}",
                "add recipe.tokenizer.type=file",
            )


@dataclass
class Tokenizer(StreamTokenizer):
    """How texts, each an example of its own, become numbers."""

    stream: ClassVar[bool] = False
    type: str = key(
        "words",
        "The one that comes with model.init_from (pretrained), that of tokenizer.path (file), the 256 bytes, or one "
        "made of the training split: byte-level bpe, the most frequent words, or characters.",
        drift=STRUCTURAL,
        choices=TOKENIZERS,
    )
    lowercase: bool = key(True, "Fold case, in a tokenizer made here or from a vocab.txt.", drift=STRUCTURAL)
    max_length: int = key(
        128, "What is longer is cut, marks of beginning and end included [tokens].", drift=STRUCTURAL, ge=4
    )
    truncate: str = key(
        "head",
        "What is kept of a long text: its beginning, its end, or both (a quarter and three quarters).",
        drift=STRUCTURAL,
        choices=TRUNCATIONS,
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        positions = getattr(config.model, "positions", None)
        if positions and self.max_length > positions:
            message = (
                f"recipe.tokenizer.max_length={self.max_length} is more than the model has positions ({positions})"
            )
            yield "recipe.tokenizer.max_length", message, f"recipe.tokenizer.max_length={positions} or less"


@dataclass
class NgramTokenizer(Checked):
    """How texts become bags of hashed n-grams: words, runs of words, and pieces of words."""

    stream: ClassVar[bool] = False
    type: str = key(
        "ngrams", "N-grams of the training split (ngrams), or those that the run of model.init_from knows "
        "(pretrained), whatever is said below.", drift=STRUCTURAL, choices=("ngrams", "pretrained"),
    )  # fmt: skip
    words: int = key(
        2, "Longest runs of words; 0 for none. In Chinese, Japanese and Thai each character is a word.",
        drift=STRUCTURAL, ge=0, le=3,
    )  # fmt: skip
    characters: list[int] = key(
        [3, 5], "Shortest and longest pieces of words, the blank on either side included [characters]; [] for none.",
        drift=STRUCTURAL, ge=1, le=8,
    )  # fmt: skip
    size: int = key(
        196608, "How many n-grams are known: those in most texts of the training split, twice as many words and runs "
        "of words as pieces where there are so many.", drift=STRUCTURAL, ge=2, le=2**22,
    )  # fmt: skip
    min_texts: int = key(
        1, "Training texts that an n-gram must be in to be known; where none is in so many, all are.",
        drift=STRUCTURAL, ge=1,
    )  # fmt: skip
    pieces_up_to: int | None = key(
        None, "Mean length of the first training texts, a million characters of them, up to which pieces of words are "
        "looked at too: of longer texts the words say enough, and pieces take most of the time. null for any length "
        "[characters].", drift=STRUCTURAL, ge=0,
    )  # fmt: skip
    lowercase: bool = key(True, "Fold case.", drift=STRUCTURAL)
    max_length: int = key(
        1024, "N-grams of a text: words come before runs of words before pieces, and what is beyond is left out.",
        drift=STRUCTURAL, ge=4, le=2**16,
    )  # fmt: skip

    def check(self, config: Whole) -> Iterator[Problem]:
        if (self.type == "pretrained") != (config.model.init_from is not None):
            message = f"recipe.tokenizer.type={self.type} does not go with model.init_from={config.model.init_from}"
            yield "recipe.tokenizer.type", message, "pretrained goes with a run in model.init_from, ngrams without"
        given = list(self.characters)
        if given and (len(given) != 2 or given[0] > given[1]):
            message = f"recipe.tokenizer.characters cannot be {given}"
            yield "recipe.tokenizer.characters", message, "the shortest and the longest, such as [3,5]; or []"
        if not given and not self.words:
            message = "recipe.tokenizer has neither words nor characters"
            yield "recipe.tokenizer.words", message, "recipe.tokenizer.words=1 or more"
