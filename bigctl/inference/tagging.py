"""What a tagger says of sentences: spans, with their places in the text as it was given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data import preview
from bigctl.data.dataset import Dataset, Features
from bigctl.data.target import Target
from bigctl.data.text import words as wording
from bigctl.data.text.word_tokens import encode_words
from bigctl.data.text.words import of_joined
from bigctl.inference import text_batches
from bigctl.training.task import Judged, Record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Sentence = str | Sequence[str]
"""A text that is to be divided into words, or the words themselves."""


@dataclass(frozen=True)
class _Divided:
    """A sentence with the places of its words in its text [characters]; `given` says that the user has divided it."""

    text: str
    places: wording.Spans
    given: bool

    @property
    def words(self) -> list[str]:
        return [self.text[start:stop] for start, stop in self.places.tolist()]


def tag(
    tokenizer: Tokenizer,
    features: Features,
    sentences: Sequence[Sentence],
    predict: Callable[[dict[str, np.ndarray]], np.ndarray],
    describe: Callable[[np.ndarray], Record],
) -> list[Record]:
    """One record a sentence.

    Args:
        tokenizer: that of the run.
        features: of its data.
        sentences: texts, or lists of words.
        predict: columns of a batch -> probabilities [batch, length, tags].
        describe: those of a sentence's words [words, tags] -> `tags` and `spans` in places of words.

    Returns:
        `spans`, each with `label`, `start` and `end` [characters of the text], `text` and `probability`; `cut` where
        the sentence was too long for the model. Where words were given, there are besides `text`, the words joined by
        spaces, and `tags`, one a word, None for those that were cut off; and in each span `start_word` and `end_word`.
        Ends are exclusive.

    Raises:
        ValueError: for a sentence that is empty, or none.
    """
    assert features.tokenizer is not None
    divided = [_divided(given, number) for number, given in enumerate(sentences)]
    rule = features.tokenizer["max_length"], features.tokenizer["truncate"]
    found = encode_words(tokenizer, [sentence.words for sentence in divided], *rule)
    encoded = found.encoded
    columns = {"inputs": encoded.tokens, "offsets": encoded.offsets, "segment_start": encoded.segment_start}
    records: list[Record] = [{} for _ in divided]
    for rows, batch in text_batches.text_batches(columns, np.arange(len(divided)), rule[0]):
        values = np.asarray(predict(batch))
        for row, value in zip(rows.tolist(), values, strict=False):
            first = found.words[encoded.offsets[row] : encoded.offsets[row + 1]]
            known = np.flatnonzero(first >= 0)
            record = _placed(describe(value[known]), first[known], divided[row])
            records[row] = {**record, **({"cut": True} if encoded.cut[row] else {})}
    return records


def add_tags(
    records: list[Record], dataset: Dataset, split: str, tag: Callable[[Sequence[Sentence]], list[Record]]
) -> None:
    """To records of examples of a split: `words`, and their tags as `label` and `predicted`, None for those cut off."""
    names = dataset.features.target.names
    sentences = [of_joined(dataset.texts[split][0][record["row"]]) for record in records]
    for record, words, found in zip(records, sentences, tag(sentences) if records else [], strict=True):
        true = iter(preview.word_tags(dataset, split, record["row"]).tolist())
        record["words"] = words
        record["label"] = [None if tag is None else names[next(true)] for tag in found["tags"]]
        record["predicted"] = found["tags"]


def judge(records: Sequence[Record], labels: Sequence[np.ndarray], target: Target) -> list[Judged]:
    """What was said of given words beside their true tags [words], those cut off left out, ranked by wrong words."""
    judged = []
    for record, true in zip(records, labels, strict=True):
        words = [word for word, tag in zip(of_joined(record["text"]), record["tags"], strict=True) if tag is not None]
        said, names = [tag for tag in record["tags"] if tag is not None], [target.names[tag] for tag in true]
        wrong = sum(one != other for one, other in zip(names, said, strict=True))
        judged.append(Judged(_shown(words, names), _shown(words, said), wrong=wrong > 0, loss=float(wrong)))
    return judged


def _divided(given: Sentence, number: int) -> _Divided:
    if not isinstance(given, str) and not all(isinstance(word, str) for word in given):
        raise ValueError(f"the sentence at {number} is neither a text nor a list of words")
    text_batches.checked_parts(given if isinstance(given, str) else " ".join(given), number, pairs=False)
    if isinstance(given, str):
        return _Divided(given, wording.split(given), given=False)
    if not all(word.strip() for word in given):
        raise ValueError(f"a word of the sentence at {number} is empty")
    return _Divided(*wording.join([word.strip() for word in given]), given=True)


def _placed(described: Record, numbers: np.ndarray, sentence: _Divided) -> Record:
    """The record of a sentence, with places in its text, of one with places among the words that the model saw."""
    spans = []
    for span in described["spans"]:
        first, last = int(numbers[span["start"]]), int(numbers[span["stop"] - 1])
        start, end = int(sentence.places[first, 0]), int(sentence.places[last, 1])
        placed = {"label": span["label"], "start": start, "end": end, "text": sentence.text[start:end]}
        if sentence.given:
            placed |= {"start_word": first, "end_word": last + 1}
        spans.append({**placed, "probability": span["probability"]})
    if not sentence.given:
        return {"spans": spans}
    tags: list[str | None] = [None] * len(sentence.places)
    for number, tag in zip(numbers.tolist(), described["tags"], strict=True):
        tags[number] = tag
    return {"text": sentence.text, "tags": tags, "spans": spans}


def _shown(words: list[str], tags: list[str]) -> str:
    return " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True) if tag != "O") or "(none)"
