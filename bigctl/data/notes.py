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
_STREAMED = 2**13
"""Pictures in files that are decoded when they are prepared, at most, to be compared."""
_PAIRS = 2 * 10**9
"""Pairs of decoded pictures that are compared then, at most."""
Named = Callable[[str, int], str]
"""Gives the file, or the like, that a row of a split is from."""
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
    """Notes on examples as a model sees them: classes missing from a split, copies across splits, blank pictures."""
    found = _missing_classes(arrays, features.target)
    if features.kind not in ("image", "table"):
        return found
    inputs = {split: columns["inputs"] for split, columns in arrays.items()}
    if features.kind == "table":
        return found + _copied_rows(inputs)
    return found + _of_pictures(inputs, named)


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


def _of_pictures(inputs: dict[str, np.ndarray], named: Named) -> list[str]:
    """What is said of pictures: those of one colour, and those that are in another split, too, or a photograph of it
    made anew."""
    count, train = sum(map(len, inputs.values())), inputs["train"]
    streamed = isinstance(train, EncodedImages)
    few = count <= _STREAMED if streamed else (count - len(train)) * len(train) <= _PAIRS
    splits = copies.looks(inputs, near=few)
    found = _copied(copies.across(splits), {split: len(own) for split, own in inputs.items()}, named)
    if not few:
        what = "files" if streamed else "pixels"
        found.append(
            f"of {count:,} pictures only {what} are compared; `bigctl data ... --copies` finds photographs, too"
        )
    if blank := sum(int(own.blank.sum()) for own in splits.values()):
        hint = "what is black on transparent needs data.background=white to be seen"
        found.append(f"{blank:,} of {count:,} pictures are of one colour throughout; {hint}")
    return found


def _copied(found: list[copies.Copy], sizes: dict[str, int], named: Named) -> list[str]:
    """A sentence on the copies that a split has of another one, those of the same bytes and others apart."""
    kinds: dict[tuple[str, str, bool], list[copies.Copy]] = {}
    for copy in found:
        kinds.setdefault((copy.split, copy.of_split, copy.how == copies.SAME), []).append(copy)
    said = []
    for (split, other, exact), own in kinds.items():
        what = "also in" if exact else "nearly the same as one of"
        made = "" if exact else ", resized, compressed or mirrored"
        pairs = [f"{named(split, copy.row)} ({named(other, copy.of_row)})" for copy in own]
        verb, more = "is" if len(own) == 1 else "are", "; `bigctl data ... --copies` lists them"
        said.append(
            f"{len(own):,} of {sizes[split]:,} {split} pictures {verb} {what} the {copies.SPLITS[other]} split{made}: "
            f"{some(pairs, _NAMED)}{more if len(own) > _NAMED else ''}"
        )
    return said


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
