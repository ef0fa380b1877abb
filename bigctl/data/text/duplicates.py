"""Texts that occur more than once, within a split and across splits."""

from __future__ import annotations

import hashlib
from typing import Any

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
    train, labels = keys(splits["train"]), [target.text(label) for label in splits["train"]["label"]]
    first: dict[bytes, str] = {}
    known: dict[bytes, set[str]] = {}
    repeated = other = 0
    for key, label in zip(train, labels, strict=True):
        if key in first:
            repeated += 1
            other += label != first[key]
        first.setdefault(key, label)
        known.setdefault(key, set()).add(label)
    found: dict[str, Any] = {"train": {"repeated": repeated, "other_label": other}}
    for split, columns in splits.items():
        if split == "train":
            continue
        rows = [(row, key) for row, key in enumerate(keys(columns)) if key in first]
        strange = [(row, key) for row, key in rows if target.text(columns["label"][row]) not in known[key]]
        found[split] = {
            "in_train": len(rows),
            "other_label": len(strange),
            "examples": [_example(columns, row, first[key], target) for row, key in (strange or rows)[:_EXAMPLES]],
        }
    return found | {"notes": _notes(found)}


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
    folded = [[_folded(text) for text in columns[name]] for name in ("text", "text_pair") if name in columns]
    # A line end parts the two texts of a pair: none is left in either.
    return [hashlib.blake2b("\n".join(texts).encode(), digest_size=16).digest() for texts in zip(*folded, strict=True)]


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _example(columns: Columns, row: int, train_label: str, target: Target) -> dict[str, str]:
    texts = [str(columns[name][row]) for name in ("text", "text_pair") if name in columns]
    shown = " | ".join(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..." for text in texts)
    if not target.names:
        return {"text": shown}
    return {"text": shown, "label": target.text(columns["label"][row]), "train_label": train_label}
