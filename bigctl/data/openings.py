"""How a prepared text begins, for people and for prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bigctl.data import cache
from bigctl.data.dataset import Dataset
from bigctl.data.text import tokenization


def head(dataset: Dataset, split: str, size: int) -> str:
    """The beginning of the first text of a split, about so many bytes of it; of ready-made tokens the text that they
    stand for, or without a tokenizer their numbers."""
    if dataset.texts.get(split):
        return dataset.texts[split][0].head(size)
    return reader(dataset)(dataset.splits[split]["inputs"][:size].tolist())[:size]


def reader(dataset: Dataset) -> Callable[[list[int]], str]:
    """What makes text of tokens, or without a tokenizer writes their numbers."""
    if dataset.features.tokenizer is None:
        return lambda tokens: " ".join(map(str, tokens))
    tokenizer = tokenization.load_tokenizer(Path(dataset.path) / cache.TOKENIZER, stream=True)
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
