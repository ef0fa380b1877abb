"""From the splits a source has to train, validation and test, by expression or by rule."""

from __future__ import annotations

import re

import numpy as np

from bigctl.config.schema import Data
from bigctl.data.dataset import SPLITS
from bigctl.data.sampler import permutation
from bigctl.data.source import Columns, Decoded
from bigctl.errors import DataError

_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
_TERM = re.compile(r"\s*([\w.-]+)\s*(?:\[\s*(-?\d+%?)?\s*:\s*(-?\d+%?)?\s*\])?\s*")


def make(decoded: Decoded, config: Data) -> dict[str, Columns]:
    """The three splits every data set has.

    Splits named in the configuration are taken as written (`train[:90%]+extra`). A split the source lacks is held out
    of the training split by `data.split_seed`, stratified by class, the test split first.

    Raises:
        DataError: if a split does not exist, would be empty, or names examples of another split again.
    """
    source = {_ALIASES.get(name, name): columns for name, columns in decoded.splits.items()}
    wanted = {"train": config.train, "validation": config.validation, "test": config.test}
    owner = {name: np.full(_length(columns), "", dtype="U10") for name, columns in source.items()}
    picked: dict[str, list[tuple[str, np.ndarray]]] = {}
    for split, expression in wanted.items():
        if expression is not None:
            picked[split] = _select(expression, source, f"data.{split}")
            _claim(owner, picked[split], split)
    if "train" not in picked:
        name = "train" if "train" in source else next(iter(source))
        picked["train"] = [(name, np.flatnonzero(owner[name] == ""))]
    for split in ("validation", "test"):
        left = np.flatnonzero(owner[split] == "") if split in source else np.arange(0)
        if split not in picked and left.size and not any(split == name for name, _ in picked["train"]):
            picked[split] = [(split, left)]
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if split not in picked:
            picked["train"], picked[split] = _hold_out(
                picked["train"], source, fraction, config.split_seed, split, decoded
            )
    result = {split: _gather(source, picked[split]) for split in SPLITS}
    for split, columns in result.items():
        if _length(columns) == 0:
            raise DataError(f"the {split} split is empty", where=f"data.{split}", hint="take a larger part")
    return result


def _length(columns: Columns) -> int:
    return len(columns["label"])


def _select(expression: str, source: dict[str, Columns], where: str) -> list[tuple[str, np.ndarray]]:
    parts = []
    for term in expression.split("+"):
        match = _TERM.fullmatch(term)
        if not match:
            raise DataError(
                f"{expression!r} is no split", where=where, hint="write train, train[:90%] or train[:500]+test"
            )
        name, low, high = _ALIASES.get(match[1], match[1]), match[2], match[3]
        if name not in source:
            raise DataError(f"there is no split {match[1]!r}", where=where, hint=f"the source has {', '.join(source)}")
        n = _length(source[name])
        start, stop, _ = slice(_bound(low, n), _bound(high, n)).indices(n)
        parts.append((name, np.arange(start, max(start, stop))))
    return parts


def _bound(text: str | None, n: int) -> int | None:
    if text is None:
        return None
    return round(n * int(text[:-1]) / 100) if text.endswith("%") else int(text)


def _claim(owner: dict[str, np.ndarray], parts: list[tuple[str, np.ndarray]], split: str) -> None:
    for name, rows in parts:
        others = set(owner[name][rows].tolist()) - {""}
        if others:
            raise DataError(
                f"shares examples of {name!r} with the {sorted(others)[0]} split",
                where=f"data.{split}",
                hint="choose parts that do not overlap",
            )
        owner[name][rows] = split


def _hold_out(
    parts: list[tuple[str, np.ndarray]],
    source: dict[str, Columns],
    fraction: float,
    seed: int,
    split: str,
    decoded: Decoded,
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, np.ndarray]]]:
    """Move a stratified share of `parts` into a split of its own; rows keep their order."""
    kept, held = [], []
    purpose = SPLITS.index(split)
    for number, (name, rows) in enumerate(parts):
        labels = source[name]["label"][rows]
        groups = [labels == c for c in np.unique(labels)] if decoded.classes else [np.ones(len(rows), bool)]
        chosen = np.zeros(len(rows), bool)
        for c, group in enumerate(groups):
            members = np.flatnonzero(group)
            count = round(fraction * len(members)) or int(len(members) > 2)
            chosen[members[permutation(len(members), seed, purpose, number, c)[:count]]] = True
        kept.append((name, rows[~chosen]))
        held.append((name, rows[chosen]))
    return kept, held


def _gather(source: dict[str, Columns], parts: list[tuple[str, np.ndarray]]) -> Columns:
    names = [name for name, _ in parts]
    columns = source[names[0]].keys()
    return {c: np.concatenate([source[name][c][rows] for name, rows in parts]) for c in columns}
