"""How a prepared text begins, for people and for prompts."""

from __future__ import annotations

from pathlib import Path

from bigctl.data import cache
from bigctl.data.dataset import Dataset
from bigctl.data.text import tokenization


def head(dataset: Dataset, split: str, size: int) -> str:
    """The beginning of the first text of a split, about so many bytes of it; of ready-made tokens the text that they
    stand for, or without a tokenizer their numbers."""
    if dataset.texts.get(split):
        return dataset.texts[split][0].head(size)
    tokens = dataset.splits[split]["inputs"][:size].tolist()
    if dataset.features.tokenizer is None:
        return " ".join(map(str, tokens))[:size]
    tokenizer = tokenization.load_tokenizer(Path(dataset.path) / cache.TOKENIZER, stream=True)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))[:size]
