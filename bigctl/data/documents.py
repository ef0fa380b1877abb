"""Where the documents of one long text begin: after each token that ends one, or where an index of Megatron's says."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.dataset import Dataset
from bigctl.data.layouts.layout import Columns
from bigctl.data.layouts.packed import pack
from bigctl.data.sources import token_formats
from bigctl.data.text.token_shards import Part, TokenShards
from bigctl.errors import DataError
from bigctl.files import temporary_name

_KEPT = 2**24
"""Tokens of a split from which on it is kept where its documents begin, beside the prepared data."""

_BLOCK = 2**22  # tokens


@dataclass(frozen=True)
class Rule:
    """What ends a document.

    Attributes:
        end: number of the token that does; None where there is none.
        indexed: whether the indexes beside files say it, where there are any.
    """

    end: int | None
    indexed: bool


def rule_of(dataset: Dataset, end_token: int | None, format: str | None) -> Rule:
    """The rule for prepared data.

    Args:
        dataset: with a tokenizer.
        end_token: `recipe.end_token`.
        format: `data.format` of ready-made tokens; None to go by what is there.

    Raises:
        DataError: if the token is not of the vocabulary, or there is neither a token nor an index.
    """
    tokenizer = dataset.features.tokenizer or {}
    end, size = tokenizer.get("eos") if end_token is None else end_token, int(tokenizer["vocab_size"])
    if end is not None and end >= size:
        what = f"token {end:,} cannot end a document: the vocabulary has {size:,} tokens"
        raise DataError(what, where="recipe.end_token", hint=f"a number below {size}, or null for the tokenizer's own")
    indexed = end_token is None and format in (None, token_formats.MEGATRON)
    rule = Rule(end, indexed)
    if end is None and not all(_all_indexed(columns["inputs"], rule) for columns in dataset.splits.values()):
        hint = "recipe.end_token=NUMBER says which does (of GPT-2's tokens 50256); or recipe.packing=windows"
        raise DataError("the tokenizer has no token that ends a document", where="recipe.end_token", hint=hint)
    return rule


def bounds(dataset: Dataset, split: str, rule: Rule) -> np.ndarray:
    """Where the documents of a split begin, ascending from 0, and where the last one ends, int64 [D + 1] [tokens].

    Of very many tokens it is found once and then read.

    Raises:
        DataError: for tokens, or an index, that are not what they were.
    """
    tokens = dataset.splits[split]["inputs"]
    if len(tokens) < _KEPT:
        return _find(tokens, rule)
    name = hashlib.sha256(repr((split, len(tokens), rule)).encode()).hexdigest()[:16]
    file = Path(dataset.path) / f"documents-{name}.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:  # whose parts have checksums
            return np.asarray(kept["bounds"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        found = _find(tokens, rule)
    temporary = temporary_name(file)
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, bounds=found)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
    return found


def _find(tokens: np.ndarray | TokenShards, rule: Rule) -> np.ndarray:
    marks = [np.array([0, len(tokens)], np.int64)]
    if isinstance(tokens, TokenShards):
        marks += _in_shards(tokens, rule)
    elif rule.end is not None:
        for start in range(0, len(tokens), _BLOCK):
            marks.append(np.flatnonzero(tokens[start : start + _BLOCK] == rule.end) + (start + 1))
    return np.unique(np.concatenate(marks))


def _in_shards(tokens: TokenShards, rule: Rule) -> Iterator[np.ndarray]:
    place, before = 0, None
    for part in tokens.parts:
        index = _index_of(part, rule)
        if index is not None:  # a file is whole documents then
            starts = token_formats.document_starts(index)
            starts = starts[(starts >= part.start) & (starts <= part.start + part.count)]
            yield starts - part.start + place
            yield np.array([place, place + part.count], np.int64)
        else:
            if before is not None and not _follows(before, part):
                yield np.array([place], np.int64)
            assert rule.end is not None
            for start, values in tokens.blocks(part, _BLOCK):
                yield np.flatnonzero(values == rule.end) + (place + start + 1)
        place, before = place + part.count, part


def _follows(before: Part, part: Part) -> bool:
    """Whether tokens were one after the other when they were written: a document may go on in the next file."""
    if before.file == part.file:
        return before.start + before.count == part.start
    whole = (before.size - before.header) // before.width
    return before.start + before.count == whole and part.start == 0


def _all_indexed(tokens: np.ndarray | TokenShards, rule: Rule) -> bool:
    return isinstance(tokens, TokenShards) and all(_index_of(part, rule) is not None for part in tokens.parts)


def _index_of(part: Part, rule: Rule) -> Path | None:
    """The index beside a file of tokens, which was checked when the data was prepared."""
    file = Path(part.file)
    index = file.with_suffix(".idx")
    return index if rule.indexed and file.suffix == ".bin" and index.is_file() else None


# ------------------------------------------------------------------------------------------------------------- packing


def packed(dataset: Dataset, block: int, end_token: int | None, format: str | None) -> Dataset:
    """One long text with the columns of `layouts.packed.Packed` beside its tokens, and what is to be said of them in
    `info["packing"]`; arguments as for `pack` and `rule_of`.

    Raises:
        DataError: as `rule_of`, and where the training split is one document or no document has two tokens.
    """
    rule = rule_of(dataset, end_token, format)
    splits, facts = {}, {}
    for split, columns in dataset.splits.items():
        found = bounds(dataset, split, rule)
        if split == "train" and len(found) < 3:
            what = f"the training split is one document: token {rule.end:,} is not in it"
            hint = "recipe.end_token=NUMBER says which token ends a document; recipe.packing=windows needs none"
            raise DataError(what, where="recipe.packing", hint=hint)
        made = pack(found, block)
        facts[split] = _facts(found, made, block)
        if not facts[split]["windows"]:
            what = f"no document of the {split} split has two tokens, one to learn from and one to be told"
            raise DataError(what, where=f"data.{split}", hint="is recipe.end_token right? or give more text")
        splits[split] = {**columns, **made}
    return dataclasses.replace(dataset, splits=splits, info={**dataset.info, "packing": facts})


def _facts(bounds: np.ndarray, made: Columns, block: int) -> dict[str, Any]:
    """What there is to be told: documents, and those that are longer than a window or have nothing to predict; how long
    they are [tokens]; windows, and the share of their places that only pads; and where the first documents begin."""
    lengths = np.diff(bounds)
    windows = len(made["window_pieces"]) - 1
    spread = np.percentile(lengths, (0, 50, 95, 100), method="nearest").tolist()
    return {
        "documents": len(lengths),
        "cut": int((lengths > block + 1).sum()),
        "single": int((lengths < 2).sum()),
        "tokens": dict(zip(("min", "median", "p95", "max"), map(int, spread), strict=True)),
        "windows": windows,
        "first": bounds[: _SHOWN + 1].tolist(),
        "padding": round(1 - int(made["piece_length"].sum()) / max(1, windows * block), 6),
    }


def notes(info: dict[str, Any], block: int) -> list[str]:
    """What a user should hear of documents that were packed into windows of a length."""
    if "packing" not in info:
        return []
    facts, found = info["packing"]["train"], []
    count, longest = facts["documents"], facts["tokens"]["max"] - 1
    if facts["cut"] > _MANY * count:
        what = "documents are longer than recipe.block, and cut into pieces that do not see each other"
        found.append(f"{facts['cut']:,} of {count:,} {what}")
    if facts["single"] > _MANY * count:
        found.append(f"{facts['single']:,} of {count:,} documents are one token, which leaves nothing to predict")
    if longest < block:
        what = f"the longest document has {longest + 1:,} tokens: what comes later in a text is never learned"
        found.append(f"{what} (recipe.block={block:,})")
    if facts["padding"] > _MANY:
        found.append(f"{facts['padding']:.0%} of the places in windows of documents are padding")
    return found


_MANY = 0.1
"""Share from which on it is told."""
_SHOWN = 4
"""Documents that a preview shows."""
