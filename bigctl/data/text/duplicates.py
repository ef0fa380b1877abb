"""Texts that occur more than once, within a split and across splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bigctl.data.sources.decoded import Columns
from bigctl.data.target import Target

_EXAMPLES = 2
_SHOWN = 80  # characters of an example


def report(splits: dict[str, Columns], target: Target) -> dict[str, Any]:
    """Which texts are there twice; two texts are the same if they differ in case and blanks at most.

    Args:
        splits: "train", "validation", "test" -> columns `text`, `text_pair` where there is one, and `label`.
        target: what their labels are.

    Returns:
        JSON-serialisable. "train": {"repeated": examples that repeat an earlier one, "other_label": those of them with
        another label than the first}. For each other split {"in_train": its examples that are also in training,
        "other_label": those of them whose label no such training example has, "examples": the first two of these, or
        else of those: {"text", "label", "train_label"}}. "notes": one sentence where texts cross splits, else none.
    """
    found = {split: as_numbers(keys(columns)) for split, columns in splits.items()}
    labels = {split: columns["label"] for split, columns in splits.items()}
    return report_keys(found, labels, target, lambda split, row: _of_row(splits[split], row))


def report_keys(
    found: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    target: Target,
    texts: Callable[[str, int], Sequence[str]],
) -> dict[str, Any]:
    """The same of texts that are known by their keys.

    Args:
        found: what `as_numbers` gives, by split.
        labels: [N, ...] by split.
        target: what they are.
        texts: the text of a row of a split, of a pair both.
    """
    numbers = _numbered(found)
    classes = _classes(labels, target)
    train, own = numbers["train"], classes["train"]
    known, first, place = np.unique(train, return_index=True, return_inverse=True)
    repeats = np.ones(len(train), bool)
    repeats[first] = False
    other = repeats & (own != own[first[place]])
    said: dict[str, Any] = {"train": {"repeated": int(repeats.sum()), "other_label": int(other.sum())}}
    most = 1 + max((int(each.max(initial=0)) for each in classes.values()), default=0)
    pairs = np.unique(train * most + own)
    for split in found:
        if split == "train":
            continue
        copies = np.isin(numbers[split], known)
        strange = copies & ~np.isin(numbers[split] * most + classes[split], pairs)
        rows = np.flatnonzero(strange if strange.any() else copies)[:_EXAMPLES].tolist()
        places = [int(first[np.searchsorted(known, numbers[split][row])]) for row in rows]
        said[split] = {
            "in_train": int(copies.sum()),
            "other_label": int(strange.sum()),
            "examples": [
                _example(texts(split, row), target.text(labels[split][row]), target.text(labels["train"][at]), target)
                for row, at in zip(rows, places, strict=True)
            ],
        }
    return said | {"notes": _notes(said)}


def as_numbers(found: Sequence[bytes]) -> np.ndarray:
    """Half of each key as a number, uint64 [N]."""
    return np.frombuffer(b"".join(found), "<u8")[::2]


def _numbered(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whole numbers in place of keys, equal for equal ones, int64 [N] by split."""
    _, numbers = np.unique(np.concatenate([*found.values()]), return_inverse=True)
    parts = np.split(numbers.reshape(-1), np.cumsum([len(each) for each in found.values()])[:-1])
    return dict(zip(found, parts, strict=True))


def _classes(labels: Mapping[str, np.ndarray], target: Target) -> dict[str, np.ndarray]:
    """Whole numbers in place of labels, equal for those that read alike, int64 [N] by split."""
    if all(each.ndim == 1 and each.dtype.kind in "iu" for each in labels.values()) and target.names:
        return {split: each.astype(np.int64) for split, each in labels.items()}
    known: dict[str, int] = {}
    return {
        split: np.array([known.setdefault(target.text(label), len(known)) for label in each], np.int64)
        for split, each in labels.items()
    }


def _of_row(columns: Columns, row: int) -> list[str]:
    return [str(columns[name][row]) for name in ("text", "text_pair") if name in columns]


def _notes(found: dict[str, Any]) -> list[str]:
    crossing = {split: facts for split, facts in found.items() if facts.get("in_train")}
    if not crossing:
        return []
    counts = " and ".join(f"{facts['in_train']} {split}" for split, facts in crossing.items())
    other = sum(facts["other_label"] for facts in crossing.values())
    example = next(iter(crossing.values()))["examples"][0]["text"]
    labels = f", {other} of them with another label" if other else ""
    return [f"{counts} texts are also in the training split{labels}; the first: {example!r}"]


def surplus(columns: Columns) -> int:
    """How many examples repeat an earlier one."""
    found = keys(columns)
    return len(found) - len(set(found))


def keys(columns: Columns) -> list[bytes]:
    """One short key an example, equal for equal texts (case and blanks apart) and different for different ones."""
    return keys_of([columns[name] for name in ("text", "text_pair") if name in columns])


def keys_of(texts: Sequence[Iterable[str]]) -> list[bytes]:
    """The same of columns of texts."""
    folded = [[_folded(text) for text in column] for column in texts]
    # A line end parts the two texts of a pair: none is left in either.
    return [hashlib.blake2b("\n".join(each).encode(), digest_size=16).digest() for each in zip(*folded, strict=True)]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _example(found: Sequence[str], label: str, train_label: str, target: Target) -> dict[str, str]:
    shown = " | ".join(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..." for text in found)
    if not target.names:
        return {"text": shown}
    return {"text": shown, "label": label, "train_label": train_label}
