"""Examples of one split that are in the training split too: the same bytes, or of pictures the same photograph, scaled,
compressed, brightened or mirrored.

A photograph is known by a thumbnail, grey, of zero mean and unit length; of two pictures its product is their
correlation, which another size, another compression, more light and more contrast hardly change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding

ALIKE = 0.99
"""Correlation from which on two pictures are taken for one."""
LEAST = 32
"""Shorter side of pictures that are compared; smaller ones, such as digits, are often alike by chance [pixels]."""
SAME, NEAR, MIRRORED = "same", "near", "mirrored"
_SIDE = 16
"""Of a thumbnail [pixels]."""
_DECODED = 64
"""Side at which pictures that stay in their files are decoded for that [pixels]."""
_FLAT = 4.0
"""Standard deviation below which a thumbnail tells nothing [levels of 255]."""
_AT_ONCE = 256
_PIXELS = 2**21
"""Of pictures that are made smaller at once."""
_ROWS = 2**14
"""Rows of a table that are looked at at once."""

Pictures = UInt8[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Copies:
    """Which examples of a split are in training too, by the number of a row, the lowest first.

    Attributes:
        rows: of the split.
        of: the row of the training split that each is a copy of.
        how: SAME, NEAR or MIRRORED.
        likeness: correlation of their thumbnails; 1 for the same bytes.
    """

    rows: Int[np.ndarray, " n"]
    of: Int[np.ndarray, " n"]
    how: list[str]
    likeness: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rows)


def same(keys: UInt64[np.ndarray, " n"], train: UInt64[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
    """The first example of training with the key of each, -1 where there is none."""
    known, first = np.unique(train, return_index=True)
    if not len(known):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, first[at], -1)


def large(pictures: Pictures) -> bool:
    """Whether pictures are large enough to be compared by their looks; of those in files the first is looked at."""
    sides, encoded = pictures.shape[1:3], cast(object, pictures)
    if isinstance(encoded, EncodedImages) and len(encoded):
        sides = (*sides, *image_decoding.header(encoded.store.read(0), encoded.store.name(0))[0])
    return min(sides) >= LEAST


def of_pictures(inputs: Mapping[str, Pictures], *, near: bool) -> dict[str, Copies]:
    """The pictures of the other splits that are in the training split too.

    Args:
        inputs: of all splits, arrays or `EncodedImages`.
        near: whether to look for the same photograph made anew, for which all of those in files are decoded.

    Raises:
        DataError: for a file that cannot be decoded.
    """
    keys = {split: picture_keys(pictures) for split, pictures in inputs.items()}
    small = {split: thumbnails(pictures) for split, pictures in inputs.items()} if near else {}
    found = {}
    for split in inputs:
        if split == "train":
            continue
        of = same(keys[split], keys["train"])
        how, likeness = np.where(of >= 0, SAME, ""), np.where(of >= 0, 1.0, 0.0)
        if near:
            for name, own in ((NEAR, small[split]), (MIRRORED, small[split][:, :, ::-1])):
                places, alike = _nearest(own, small["train"])
                better = (alike >= ALIKE) & (alike > likeness) & (how != SAME)
                of, likeness, how = (
                    np.where(better, new, old) for new, old in ((places, of), (alike, likeness), (name, how))
                )
        rows = np.flatnonzero(of >= 0)
        found[split] = Copies(rows, of[rows], how[rows].tolist(), likeness[rows])
    return found


def _nearest(
    pictures: Float[np.ndarray, "n side side"], train: Float[np.ndarray, "m side side"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The thumbnail of training that each is most like, and the correlation of both."""
    own, known = pictures.reshape(len(pictures), -1), train.reshape(len(train), -1).T
    places, alike = np.full(len(own), -1), np.zeros(len(own))
    for start in range(0, len(own) if known.size else 0, _AT_ONCE):
        products = own[start : start + _AT_ONCE] @ known
        part = slice(start, start + len(products))
        places[part] = products.argmax(1)
        alike[part] = np.minimum(products.max(1), 1)
    return places, alike


def thumbnails(pictures: Pictures) -> Float[np.ndarray, "n 16 16"]:
    """Zero mean and unit length; zeros for a picture of one colour. Raises DataError."""
    found = np.zeros((len(pictures), _SIDE, _SIDE), np.float32)
    encoded = cast(object, pictures)
    if isinstance(encoded, EncodedImages):
        pictures = cast(np.ndarray, encoded.small(_DECODED))
    rows, columns = (_edges(side) for side in pictures.shape[1:3])
    step = max(1, min(_AT_ONCE, _PIXELS // (pictures.shape[1] * pictures.shape[2])))
    with Progress("data: looking for copies", len(pictures), ("pictures", 1)) as progress:
        for start in range(0, len(pictures), step):
            grey = np.asarray(pictures[start : start + step]).mean(-1, dtype=np.float32)
            sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 1), columns[:-1], 2)
            means = sums / (np.diff(rows)[:, None] * np.diff(columns)[None, :])
            means = means - means.mean((1, 2), keepdims=True)
            spread = np.sqrt(np.square(means).sum((1, 2), keepdims=True))
            found[start : start + len(means)] = np.where(spread < _FLAT * _SIDE, 0, means / np.maximum(spread, 1e-9))
            progress.update(start + len(means))
    return found


def _edges(side: int) -> Int[np.ndarray, " 17"]:
    """Where the cells of a thumbnail begin and the last one ends, the same from either end."""
    half = side * np.arange(_SIDE // 2 + 1) // _SIDE
    return np.concatenate([half, side - half[:-1][::-1]])


# ---------------------------------------------------------------------------------------------------------- the same


def picture_keys(pictures: Pictures) -> UInt64[np.ndarray, " n"]:
    """What tells pictures apart by their bytes; of those in files without decoding them."""
    encoded = cast(object, pictures)
    return encoded.store.digests if isinstance(encoded, EncodedImages) else _digests(pictures)


def row_keys(rows: np.ndarray) -> UInt64[np.ndarray, " n"]:
    """The same of the rows of a table."""
    if rows.dtype != np.float32:
        return _digests(rows)
    blocks = [float_keys(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint64)


def _digests(examples: np.ndarray) -> UInt64[np.ndarray, " n"]:
    digests = [hashlib.blake2b(np.ascontiguousarray(each).tobytes(), digest_size=8).digest() for each in examples]
    return np.frombuffer(b"".join(digests), np.uint64)


def float_keys(rows: Float[np.ndarray, "n columns"]) -> UInt64[np.ndarray, " n"]:
    """One number a row of float32, equal for rows of equal bytes: each value is mixed with its place as splitmix64
    (Steele et al. 2014) does, and they are added up."""
    bits = np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64)
    mixed: np.ndarray = bits + np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = (mixed ^ (mixed >> np.uint64(31))).sum(1, dtype=np.uint64)
    return found
