"""Keys of tokens that were made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.base import FREE, MISSING, STRUCTURAL, Problem, Whole, key, kind
from bigctl.config.schema.data import Data


@dataclass
class Tokens(Data):
    """Ready-made tokens to learn to write, read where they lie: those of nanoGPT, llm.c and Megatron.

    Splits are those that the files' names say; else they are made by place, as those of a text.
    """

    implementation: ClassVar[str] = "bigctl.data.sources.tokens"
    tokenized: ClassVar[bool] = True
    kind: str = kind("tokens")
    path: str = key(
        MISSING, "A file, a folder of .bin files, or a pattern such as 'shards/*.bin' or 'web_{00..99}.bin'; names "
        "with train, val or test in them say the split.", drift=FREE,
    )  # fmt: skip
    validation_path: str | None = key(None, "The same for the validation split.", drift=FREE)
    test_path: str | None = key(None, "The same for the test split.", drift=FREE)
    format: str | None = key(
        None, "How tokens are stored: one after the other (raw, of nanoGPT), behind a header (llmc), or with an index "
        "beside them (megatron); null to tell it from the files.", drift=STRUCTURAL,
        choices=("raw", "llmc", "megatron"),
    )  # fmt: skip
    dtype: str | None = key(
        None, "What a token of a raw file is; null for uint16.", drift=STRUCTURAL, choices=("uint16", "uint32")
    )
    validation_tokens: int | None = key(
        2**20, "Tokens of the validation split, and of the test split, at most: of more the first; null for all.",
        drift=STRUCTURAL, ge=2,
    )  # fmt: skip
    validation_fraction: float = key(
        0.05, "Share held out at the end of the tokens where there is no validation split.", drift=STRUCTURAL,
        gt=0, lt=1,
    )  # fmt: skip
    test_fraction: float = key(
        0.05, "Share held out after that; 0 to have the validation tokens stand for the test split.",
        drift=STRUCTURAL, ge=0, lt=1,
    )  # fmt: skip

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.format in ("llmc", "megatron"):
            yield from self.unused(("dtype",), f"is for raw files; those of data.format={self.format} say their own")
        yield from self.unused(("deduplicate",), "is for texts")
        made = config.tokenizer is not None and config.block is not None and config.tokenizer.type
        if made in ("characters", "words", "bpe"):
            yield (
                "recipe.tokenizer.type",
                f"recipe.tokenizer.type={made} is made of text, and data=tokens holds ready-made tokens",
                "say which tokenizer made them: gpt2, bytes, pretrained (with model.init_from), file with "
                "recipe.tokenizer.path; or ids with recipe.tokenizer.size=N, whose text is the tokens' numbers",
            )
