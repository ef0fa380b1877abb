"""The cheap answer to tagging: the tag that a word has most often."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from bigctl.data.dataset import Dataset
from bigctl.data.layouts.ragged import NO_LABEL
from bigctl.data.text import words

NAME = "most frequent tag of each word"

Sentences = list[list[str]]


def sentences(dataset: Dataset, split: str) -> tuple[Sentences, np.ndarray]:
    """The words of each sentence, and their tags, int32 [sentences, words], NO_LABEL beyond the end of a sentence.

    Args:
        dataset: prepared without a tokenizer: one label a word.
        split: its name.
    """
    texts = dataset.texts[split][0]
    found = [words.of_joined(texts[number]) for number in range(len(texts))]
    sizes = np.array([len(sentence) for sentence in found])
    tags = np.full((len(found), int(sizes.max(initial=1))), NO_LABEL, np.int32)
    tags[np.arange(tags.shape[1]) < sizes[:, None]] = dataset.splits[split]["label"]
    return found, tags


def learn(known: Sentences, tags: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """How often each word has each tag, [tags]; under "" that of all words, of which a word that is new has them."""
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(count))
    flat = tags[tags != NO_LABEL]
    for word, tag in zip((word for sentence in known for word in sentence), flat.tolist(), strict=True):
        counts[word][tag] += 1
    counts[""] = np.bincount(flat, minlength=count).astype(np.float64)
    return dict(counts)


def predict(counts: dict[str, np.ndarray], given: Sentences, length: int) -> np.ndarray:
    """The share of each tag, [sentences, length, tags]; what a word was never seen with has that of all, lightly."""
    every = (counts[""] + 1e-6) / (counts[""] + 1e-6).sum()
    values = np.tile(every.astype(np.float32), (len(given), length, 1))
    for row, sentence in enumerate(given):
        for place, word in enumerate(sentence):
            if (seen := counts.get(word)) is not None and word:
                values[row, place] = (seen + 0.01 * every) / (seen.sum() + 0.01)
    return values
