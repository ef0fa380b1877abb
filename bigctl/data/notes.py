"""What a user should hear of data: what was left out or read otherwise than it looks, and what will mislead a model.

What is found when data is prepared is kept with it, so that notes are the same whether it was prepared just now or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bigctl.data import copies, documents
from bigctl.data.dataset import Dataset, Features
from bigctl.data.files.paths import some
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.text_rows import short
from bigctl.data.target import CLASS, TOKEN_CLASS, Target
from bigctl.data.text import ngrams

_UNKNOWN = 0.1
"""Share of unknown tokens above which it is told."""
_NAMED = 3
"""Copies that are named."""
_DECODED = 2**13
"""Pictures in files that are decoded when they are prepared, at most, to be compared."""
_PAIRS = 2 * 10**9
"""Pairs of decoded pictures that are compared then, at most."""
Named = Callable[[str, int], str]
_FEW = 0.02
"""Share of the rows of a table below which equal ones are chance."""


def notes_of(dataset: Dataset) -> list[str]:
    """All notes on prepared data, a sentence each."""
    info = dataset.info
    found = [str(note) for note in info.get("notes") or ()]
    found += [str(note) for note in (info.get("duplicates") or {}).get("notes", ())]
    if info.get("ignored_files"):
        found.append(f"{info['ignored_files']:,} files are no images by their suffix, and are left out")
    packed = documents.notes(info, dataset.features.shape[0]) if "packing" in info else []
    return [*found, *packed, *_unknown_tokens(dataset), *_cut_words(dataset)]


# ------------------------------------------------------------------------------------------------ found when preparing


def on_arrays(arrays: dict[str, Columns], features: Features, named: Named) -> list[str]:
    """Notes on examples as a model sees them: classes missing from a split, copies across splits, blank pictures.

    Args:
        named: gives the file, or the like, that a row of a split is from.
    """
    found = _missing_classes(arrays, features.target)
    if features.kind not in ("image", "table"):
        return found
    inputs = {split: columns["inputs"] for split, columns in arrays.items()}
    if features.kind == "table":
        return found + _copied_rows(inputs)
    found += _copied_pictures(inputs, named)
    return found if isinstance(inputs["train"], EncodedImages) else found + _blank(arrays)


def _missing_classes(arrays: dict[str, Columns], target: Target) -> list[str]:
    if target.kind != CLASS:
        return []
    known = target.counts(arrays["train"]["label"]) > 0
    found = []
    for split in ("validation", "test"):
        absent = np.flatnonzero(known & (target.counts(arrays[split]["label"]) == 0))
        if absent.size:
            names = some([repr(short(target.names[number])) for number in absent.tolist()], 5)
            what = (
                "has no example of the class" if absent.size == 1 else f"lacks {absent.size} of {len(known)} classes:"
            )
            found.append(f"the {split} split {what} {names}")
    return found


def _copied_rows(inputs: dict[str, np.ndarray]) -> list[str]:
    """What is said of rows of a table that are in training too; a few equal ones are chance."""
    train, found = copies.row_keys(inputs["train"]), []
    for split in ("validation", "test"):
        count, size = int((copies.same(copies.row_keys(inputs[split]), train) >= 0).sum()), len(inputs[split])
        if count > max(2, _FEW * size):
            found.append(f"{count:,} of {size:,} {split} rows are also in the training split")
    return found


def _copied_pictures(inputs: dict[str, np.ndarray], named: Named) -> list[str]:
    """What is said of pictures that are in training too, or that are a photograph of it made anew."""
    found = []
    for split, own in copies.of_pictures(inputs, near=_compared(inputs)).items():
        for exact in (True, False):
            rows = [i for i, how in enumerate(own.how) if (how == copies.SAME) is exact]
            if not rows:
                continue
            what = "also in" if exact else "nearly the same as one of"
            made = "" if exact else ", resized, compressed or mirrored"
            pairs = [f"{named(split, int(own.rows[i]))} ({named('train', int(own.of[i]))})" for i in rows]
            verb = "is" if len(rows) == 1 else "are"
            found.append(
                f"{len(rows):,} of {len(inputs[split]):,} {split} pictures {verb} {what} the training split{made}: "
                f"{some(pairs, _NAMED)}{'; `bigctl data ... --copies` lists all' if len(rows) > _NAMED else ''}"
            )
    return found


def _compared(inputs: dict[str, np.ndarray]) -> bool:
    """Whether pictures are compared by their looks while they are prepared: large ones, unless that takes long."""
    count, train = sum(map(len, inputs.values())), inputs["train"]
    few = count <= _DECODED if isinstance(train, EncodedImages) else (count - len(train)) * len(train) <= _PAIRS
    return few and copies.large(train)


def _blank(arrays: dict[str, Columns]) -> list[str]:
    blank = size = 0
    for columns in arrays.values():
        for picture in columns["inputs"]:
            blank += bool((picture == picture[0, 0]).all())
        size += len(columns["inputs"])
    if not blank:
        return []
    hint = "what is black on transparent needs data.background=white to be seen"
    return [f"{blank:,} of {size:,} pictures are of one colour throughout; {hint}"]


# ------------------------------------------------------------------------------------------------------- told by facts


def unknown_share(unknown: float, tokens: int, texts: int, pairs: bool) -> float:
    """Of tokens that are words, how many are unknown; `unknown` is the share of all, special ones among them."""
    words = tokens - texts * (3 if pairs else 2)
    return unknown * tokens / words if words > 0 else 0.0


def _unknown_tokens(dataset: Dataset) -> list[str]:
    shares: dict[str, Any] = dataset.info.get("unknown_tokens") or {}
    features, found = dataset.features, []
    if (features.tokenizer or {}).get("type") == ngrams.TYPE:
        return []  # of most new words there are known pieces
    for split, share in shares.items():
        if features.kind == "text" and "offsets" in dataset.splits[split]:
            offsets = dataset.splits[split]["offsets"]
            share = unknown_share(float(share), int(offsets[-1]), len(offsets) - 1, features.pairs)
        if share > _UNKNOWN:
            hint = "is this tokenizer, and its vocabulary, made for such texts?"
            found.append(f"{share:.0%} of the tokens of the {split} split are unknown ([UNK]) to the tokenizer; {hint}")
    return found


def _cut_words(dataset: Dataset) -> list[str]:
    info, features = dataset.info, dataset.features
    words, sentences = sum((info.get("words_cut") or {}).values()), sum((info.get("cut") or {}).values())
    if features.target.kind != TOKEN_CLASS or not words or features.tokenizer is None:
        return []
    limit = f"recipe.tokenizer.max_length={features.tokenizer['max_length']}"
    why = f"{sentences:,} sentences are longer than {limit} tokens" if sentences else "the tokenizer drops them"
    return [f"{words:,} words are neither learned nor scored: {why}"]
