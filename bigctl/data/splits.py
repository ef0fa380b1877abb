"""From the splits a source has to train, validation and test, by expression or by rule.

Of examples a rule draws some at random; one long text is cut by place, its end being held out. `text` is another name
for the training split of the source, so that `data.train=text[:90%]` reads well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import folds
from bigctl.data.dataset import SPLITS
from bigctl.data.sampler import permutation
from bigctl.data.sources.decoded import GROUP, TIME, Columns, Decoded
from bigctl.data.text.token_shards import TokenShards
from bigctl.errors import DataError

_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "text": "train"}
Span = tuple[str, int, int]
"""A part of a source split: its name, the first place, and the one after the last."""
_TERM = re.compile(r"\s*([\w.-]+)\s*(?:\[\s*(-?\d{1,18}%?)?\s*:\s*(-?\d{1,18}%?)?\s*\])?\s*")


def split_examples(decoded: Decoded, config: Data) -> dict[str, Columns]:
    """The three splits every data set has.

    Splits named in the configuration are taken as written (`train[:90%]+extra`). A split the source lacks is held out
    of the training split by `data.split_seed`, stratified by class, the test split first. With `data.fold` all rows of
    training and validation, a validation split of the source among them, are shared out anew.

    Raises:
        DataError: if a split does not exist, would be empty, or names examples of another split again; or if folds
            cannot be made.
    """
    source = {_ALIASES.get(name, name): columns for name, columns in decoded.splits.items()}
    wanted = {"train": config.train, "validation": config.validation, "test": config.test}
    owner = {name: np.full(_length(columns), "", dtype="U10") for name, columns in source.items()}
    picked: dict[str, list[tuple[str, np.ndarray]]] = {}
    for split, expression in wanted.items():
        if expression is not None:
            sizes = {name: _length(columns) for name, columns in source.items()}
            found = _select(expression, sizes, f"data.{split}")
            picked[split] = [(name, np.arange(start, stop)) for name, start, stop in found]
            _claim(owner, picked[split], split)
    if "train" not in picked:
        name = "train" if "train" in source else next(iter(source))
        picked["train"] = [(name, np.flatnonzero(owner[name] == ""))]
    for split in ("validation", "test"):
        left = np.flatnonzero(owner[split] == "") if split in source else np.arange(0)
        if split not in picked and left.size and not any(split == name for name, _ in picked["train"]):
            picked[split] = [(split, left)]
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if split == "validation" and config.fold is not None:
            pool = picked["train"] + picked.get(split, [])
            picked["train"], picked[split] = folds.take_fold(pool, source, config, decoded.target)
        elif split not in picked:
            picked["train"], picked[split] = _hold_out(
                picked["train"], source, fraction, config.split_seed, split, decoded
            )
    result = {split: _gather(source, picked[split]) for split in SPLITS}
    for split, columns in result.items():
        columns.pop(GROUP, None)
        columns.pop(TIME, None)
        if _length(columns) == 0:
            raise _empty(split, wanted[split] is None, result, config, decoded)
    return result


def _empty(split: str, by_rule: bool, made: dict[str, Columns], config: Data, decoded: Decoded) -> DataError:
    """The error for a split without examples: the part that was named, or the share of a few, is too small."""
    if not by_rule or split == "train":
        return DataError(f"the {split} split is empty", where=f"data.{split}", hint="take a larger part")
    sizes = np.unique(decoded.target.strata(made["train"]["label"]), return_counts=True)[1].tolist()
    share = getattr(config, f"{split}_fraction")
    larger = next((f for f in (0.2, 0.25, 0.34, 0.5) if f > share and any(round(f * size) for size in sizes)), None)
    few = f"{min(sizes)} to {max(sizes)}" if len(set(sizes)) > 1 else str(sizes[0])
    left = 2 if split == "test" else 1  # of a class, which the splits that come after it need
    held = f"data.{split}_fraction={larger:g} holds some out; or " if larger is not None and max(sizes) > left else ""
    each = ", three of each class at least" if decoded.target.names else ""
    of = f"{few} in each class are" if decoded.target.names else f"{few} are"
    return DataError(
        f"the {split} split is empty: it takes {share:g} of the examples, and only {of} left",
        where=f"data.{split}_fraction",
        hint=f"{held}give more{each}, or a file of its own: data.{split}_path",
    )


def _length(columns: Columns) -> int:
    return len(columns["label"])


def _select(expression: str, sizes: dict[str, int], where: str, rounded: Callable[[float], int] = round) -> list[Span]:
    parts: list[Span] = []
    for term in expression.split("+"):
        match = _TERM.fullmatch(term)
        if not match:
            raise DataError(
                f"{expression!r} is no split", where=where, hint="write train, train[:90%] or train[:500]+test"
            )
        name, low, high = _ALIASES.get(match[1], match[1]), match[2], match[3]
        if name not in sizes:
            raise DataError(f"there is no split {match[1]!r}", where=where, hint=f"the source has {', '.join(sizes)}")
        n = sizes[name]
        start, stop, _ = slice(_bound(low, n, rounded), _bound(high, n, rounded)).indices(n)
        parts.append((name, start, max(start, stop)))
    return parts


def _bound(text: str | None, n: int, rounded: Callable[[float], int]) -> int | None:
    if text is None:
        return None
    return rounded(n * int(text[:-1]) / 100) if text.endswith("%") else int(text)


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
    if any(role in source[name] for name, _ in parts for role in (GROUP, TIME)):
        return _hold_out_whole(parts, source, fraction, seed, SPLITS.index(split))
    kept, held = [], []
    purpose = SPLITS.index(split)
    for number, (name, rows) in enumerate(parts):
        strata = decoded.target.strata(source[name]["label"][rows])
        groups = [strata == stratum for stratum in np.unique(strata)]
        chosen = np.zeros(len(rows), bool)
        for c, group in enumerate(groups):
            members = np.flatnonzero(group)
            count = round(fraction * len(members)) or int(len(members) > 2)
            chosen[members[permutation(len(members), seed, purpose, number, c)[:count]]] = True
        kept.append((name, rows[~chosen]))
        held.append((name, rows[chosen]))
    return kept, held


def _hold_out_whole(
    parts: list[tuple[str, np.ndarray]], source: dict[str, Columns], fraction: float, seed: int, purpose: int
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, np.ndarray]]]:
    """The same by whole groups, drawn at random until they are enough, or by time: the latest rows, those of one
    moment together. A share that would be none, or all, is one group or moment."""
    kept, held = [], []
    for number, (name, rows) in enumerate(parts):
        columns = source[name]
        values, place = np.unique(columns[GROUP if GROUP in columns else TIME][rows], return_inverse=True)
        order = np.arange(len(values))[::-1]
        if GROUP in columns:
            order = permutation(len(values), seed, purpose, number, 0)
        sizes = np.bincount(place, minlength=len(values))
        before = np.cumsum(sizes[order]) - sizes[order]
        taken = order[(before + sizes[order] / 2 <= fraction * len(rows)) | (before == 0)]
        chosen = np.isin(place, taken[: max(0, len(values) - 1)])
        kept.append((name, rows[~chosen]))
        held.append((name, rows[chosen]))
    return kept, held


def _gather(source: dict[str, Columns], parts: list[tuple[str, np.ndarray]]) -> Columns:
    names = [name for name, _ in parts]
    columns = source[names[0]].keys()
    if len(parts) == 1:  # joining would be a second copy
        return {c: source[names[0]][c][parts[0][1]] for c in columns}
    return {c: np.concatenate([source[name][c][rows] for name, rows in parts]) for c in columns}


# ------------------------------------------------------------------------------------------------------ one long text


def split_stream(decoded: Decoded, config: Data) -> dict[str, Columns]:
    """The three splits of one long text, in places that count its characters, documents one after the other.

    Raises:
        DataError: see `spans`.
    """
    source = {_ALIASES.get(name, name): columns["document"] for name, columns in decoded.splits.items()}
    picked = spans({name: sum(map(len, documents)) for name, documents in source.items()}, config)
    return {split: _between(source, picked[split]) for split in SPLITS}


def split_tokens(decoded: Decoded, config: Data) -> dict[str, TokenShards]:
    """The three splits of ready-made tokens, in places that count them: as those of a text, but that no more than
    `decoded.most` are held out for each, or taken of a split that the source has.

    Raises:
        DataError: see `spans`.
    """
    given = {_ALIASES.get(name, name): columns["inputs"] for name, columns in decoded.splits.items()}
    source = cast("dict[str, TokenShards]", given)
    most = decoded.most
    picked = spans({name: len(tokens) for name, tokens in source.items()}, config, most)
    found = {}
    for split in SPLITS:
        whole = TokenShards.joined([source[name].between(start, stop) for name, start, stop in picked[split]])
        scored = split != "train" and most is not None and getattr(config, split) is None
        found[split] = whole.between(0, most) if scored else whole  # type: ignore[arg-type]
    return found


def spans(sizes: dict[str, int], config: Data, most: int | None = None) -> dict[str, list[Span]]:
    """Which places of a source's splits, of so many places each, are in which split.

    Splits named in the configuration are taken as written. What the source lacks is held out at the end of the training
    text: the test split last, the validation split before it, each of them a share of the text as it was, `most` places
    at most.

    Raises:
        DataError: if a split does not exist, would be empty, or has text of another split again.
    """
    if config.fold is not None:
        hint = "leave out data.fold; seed=range(3) repeats a training"
        raise DataError("one long text has no folds: its end is held out", where="data.fold", hint=hint)
    wanted = {"train": config.train, "validation": config.validation, "test": config.test}
    picked: dict[str, list[Span]] = {}
    for split, expression in wanted.items():
        if expression is not None:
            picked[split] = _select(expression, sizes, f"data.{split}", math.floor)
            _refuse_overlap(picked, split)
    if "train" not in picked:
        name = "train" if "train" in sizes else next(iter(sizes))
        picked["train"] = _left(name, sizes[name], picked)
    for split in ("validation", "test"):
        if split not in picked and split in sizes:
            picked[split] = _left(split, sizes[split], picked)
        if not picked.get(split, True):
            del picked[split]  # all of it belongs to other splits
    total = sum(stop - start for _, start, stop in picked["train"])
    for split, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if split not in picked and fraction:
            count = math.ceil(fraction * total)
            count = count if most is None else min(count, most)
            picked["train"], picked[split] = _off_the_end(picked["train"], count)
    picked.setdefault("test", picked["validation"])
    for split in SPLITS:
        if not any(start < stop for _, start, stop in picked[split]):
            hint = "give more text, or take a larger part of it"
            raise DataError(f"the {split} split is empty", where=f"data.{split}", hint=hint)
    return picked


def _refuse_overlap(picked: dict[str, list[Span]], split: str) -> None:
    for other in picked:
        for name, start, stop in picked[other] if other != split else ():
            if any(n == name and max(a, start) < min(b, stop) for n, a, b in picked[split]):
                raise DataError(
                    f"shares text of {name!r} with the {other} split",
                    where=f"data.{split}",
                    hint="choose parts that do not overlap; data.test_fraction=0 scores the validation text as test",
                )


def _left(name: str, size: int, picked: dict[str, list[Span]]) -> list[Span]:
    """What of a source split no other split has taken."""
    spans, place = [], 0
    for _, start, stop in sorted(span for taken in picked.values() for span in taken if span[0] == name):
        spans.append((name, place, start))
        place = max(place, stop)
    return [span for span in [*spans, (name, place, size)] if span[1] < span[2]]


def _off_the_end(spans: list[Span], count: int) -> tuple[list[Span], list[Span]]:
    """Spans without their last `count` places, and these."""
    kept, held = list(spans), list[Span]()
    while count and kept:
        name, start, stop = kept.pop()
        middle = max(start, stop - count)
        held.insert(0, (name, middle, stop))
        count -= stop - middle
        if start < middle:
            kept.append((name, start, middle))
    return kept, held


def _between(source: dict[str, Any], spans: list[Span]) -> Columns:
    """The documents, or parts of them, that lie in some spans."""
    found: list[str] = []
    for name, start, stop in spans:
        place = 0
        for document in source[name]:
            part = document[max(0, start - place) : max(0, stop - place)]
            found += [part] if part else []
            place += len(document)
    column = np.empty(len(found), object)
    column[:] = found
    return {"document": column}
