"""What a user should hear of data: what was left out or read otherwise than it looks, and what will mislead a model.

What is found when data is prepared is kept with it, so that notes are the same whether it was prepared just now or not.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np

from bigctl.data import documents
from bigctl.data.dataset import Dataset, Features
from bigctl.data.files.paths import some
from bigctl.data.near_copies import near_copies
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.text_rows import short
from bigctl.data.target import CLASS, TOKEN_CLASS, Target
from bigctl.data.text import ngrams

_UNKNOWN = 0.1
"""Share of unknown tokens above which it is told."""
_ROWS = 2**14
"""Rows of a table that are looked at at once."""
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


def on_arrays(arrays: dict[str, Columns], features: Features) -> list[str]:
    """Notes on examples as a model sees them: classes missing from a split, copies across splits, blank pictures."""
    found = _missing_classes(arrays, features.target)
    if any(isinstance(columns["inputs"], EncodedImages) for columns in arrays.values() if "inputs" in columns):
        return found + _copies({split: _contents(columns["inputs"]) for split, columns in arrays.items()}, "image")
    if features.kind in ("image", "table"):
        found += _copies({split: columns["inputs"] for split, columns in arrays.items()}, features.kind)
    if features.kind == "image":
        found += _near_copies({split: columns["inputs"] for split, columns in arrays.items()}) + _blank(arrays)
    return found


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


def _copies(inputs: dict[str, np.ndarray], kind: str) -> list[str]:
    train = _keys(inputs["train"], kind)
    what = "pictures" if kind == "image" else "rows"
    found = []
    for split in ("validation", "test"):
        copies, size = int(np.isin(_keys(inputs[split], kind), train).sum()), len(inputs[split])
        if copies > (max(2, _FEW * size) if kind == "table" else 0):
            found.append(f"{copies:,} of {size:,} {split} {what} are also in the training split")
    return found


def _near_copies(inputs: dict[str, np.ndarray]) -> list[str]:
    """What is one photograph made anew; exact copies are told of besides."""
    train, found = inputs["train"], []
    for split in ("validation", "test"):
        near = near_copies(inputs[split], train) & ~np.isin(_keys(inputs[split], "image"), _keys(train, "image"))
        if count := int(near.sum()):
            places = some([str(row) for row in np.flatnonzero(near).tolist()], 3)
            what = "is" if count == 1 else "are"
            found.append(
                f"{count:,} of {len(near):,} {split} pictures {what} nearly the same as one of the training split, "
                f"resized or compressed anew: number {places}"
            )
    return found


def _contents(images: np.ndarray) -> np.ndarray:
    """What tells files apart without decoding them: uint64 [N, 2]."""
    store = cast(EncodedImages, images).store
    return np.stack([store.sizes.astype(np.uint64), store.digests], axis=1)


def _keys(inputs: np.ndarray, kind: str) -> np.ndarray:
    """What tells examples apart by their bytes, uint64 [N]."""
    if kind == "table" and inputs.dtype == np.float32:
        blocks = [row_keys(inputs[start : start + _ROWS]) for start in range(0, len(inputs), _ROWS)]
        return np.concatenate(blocks) if blocks else np.empty(0, np.uint64)
    digests = [hashlib.blake2b(np.ascontiguousarray(each).tobytes(), digest_size=8).digest() for each in inputs]
    return np.frombuffer(b"".join(digests), np.uint64)


def row_keys(rows: np.ndarray) -> np.ndarray:
    """One number a row of float32 [n, D], uint64 [n], equal for rows of equal bytes: each value is mixed with its
    place as splitmix64 (Steele et al. 2014) does, and they are added up."""
    bits = np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64)
    mixed: np.ndarray = bits + np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = (mixed ^ (mixed >> np.uint64(31))).sum(1, dtype=np.uint64)
    return found


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
