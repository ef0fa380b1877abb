"""Examples of one split that are in another one too: the same bytes, or of pictures the same photograph, scaled,
compressed, brightened or mirrored.

A photograph is first known by a thumbnail, grey, of zero mean and unit length; of two pictures its product is their
correlation, which another size, another compression, more light and more contrast hardly change. Pairs that are alike
so are then compared in colour and more finely: signs and letters of one shape are not one photograph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding
from bigctl.errors import DataError

ALIKE = 0.99
"""Correlation of thumbnails from which on two pictures may be one."""
APART = 40.0
"""How far the cells of two pictures may be from each other that are one, once their light and contrast are made alike,
and no further than the standard deviation of one [levels of 255]."""
LEAST = 32
"""Shorter side of pictures that are compared; smaller ones, such as digits, are often alike by chance [pixels]."""
SAME, NEAR, MIRRORED = "same", "near", "mirrored"
SPLITS = {"train": "training", "validation": "validation"}
"""What the splits that others are compared with are called in sentences."""
_SIDE, _FINE = 16, 32
"""Cells a side of a thumbnail, and of what pairs are compared by."""
_GREY = 8.0
"""How far the colours of a cell are from each other at most in a picture that is grey [levels of 255]."""
_FLAT = 4.0
"""Standard deviation below which a thumbnail tells nothing [levels of 255]."""
_AT_ONCE = 256
_PIXELS = 2**21
"""Of pictures that are made smaller at once."""
_ROWS = 2**14
"""Rows of a table that are looked at at once."""

Pictures = UInt8[np.ndarray, "n height width channels"] | EncodedImages
Keys = UInt64[np.ndarray, " n"]


class Copy(NamedTuple):
    """An example that another split has too.

    Attributes:
        split, row: where it is.
        of_split, of_row: where the other is.
        how: SAME, NEAR or MIRRORED.
        alike: correlation of their thumbnails; 1 for the same bytes.
    """

    split: str
    row: int
    of_split: str
    of_row: int
    how: str
    alike: float


@dataclass(frozen=True)
class Looks:
    """What the pictures of a split are known by.

    Attributes:
        pictures: themselves.
        keys: of their bytes.
        small: thumbnails, zeros for what is not compared; None where no picture is.
        blank: which are of one colour throughout, as far as pixels were looked at.
    """

    pictures: Pictures
    keys: Keys
    small: Float[np.ndarray, "n 16 16"] | None
    blank: Bool[np.ndarray, " n"]


def looks(inputs: Mapping[str, Pictures], *, near: bool) -> dict[str, Looks]:
    """What the pictures of all splits are known by.

    Args:
        inputs: of all splits.
        near: whether the same photograph made anew is to be found, for which those in files are all decoded.

    Raises:
        DataError: for files that cannot be decoded.
    """
    found, keys = {}, picture_keys(inputs)
    for split, pictures in inputs.items():
        if isinstance(pictures, EncodedImages):
            blank = np.zeros(len(pictures), bool)
            small = _of_encoded(pictures, blank) if near else None
        else:
            blank = np.array([bool((picture == picture[0, 0]).all()) for picture in pictures], bool)
            small = thumbnails(pictures) if near and min(pictures.shape[1:3]) >= LEAST else None
        found[split] = Looks(pictures, keys[split], small, blank)
    return found


def across(splits: Mapping[str, Looks]) -> list[Copy]:
    """Pictures of validation and test that are in the training split too, and of test in that of validation; one of a
    single colour is nobody's copy."""
    found = list[Copy]()
    for split, others in (("validation", ("train",)), ("test", ("train", "validation"))):
        left = ~splits[split].blank
        for other in others:
            copies = _between(split, splits[split], other, splits[other], left)
            left[[copy.row for copy in copies]] = False
            found += copies
    return found


def _between(split: str, own: Looks, other: str, known: Looks, wanted: Bool[np.ndarray, " n"]) -> list[Copy]:
    """Those among the wanted rows of a split that another one has, the lowest rows first."""
    places = np.where(wanted, same(own.keys, known.keys), -1)
    found = {row: Copy(split, row, other, int(places[row]), SAME, 1.0) for row in np.flatnonzero(places >= 0).tolist()}
    if own.small is not None and known.small is not None:
        for how, small in ((NEAR, own.small), (MIRRORED, own.small[:, :, ::-1])):
            nearest, alike = _nearest(small, known.small)
            for row in np.flatnonzero(wanted & (alike >= ALIKE)).tolist():
                candidate = Copy(split, row, other, int(nearest[row]), how, float(alike[row]))
                before = found.get(row)
                if before is not None and (before.how == SAME or before.alike >= candidate.alike):
                    continue
                if are_one(own.pictures, row, known.pictures, candidate.of_row, mirrored=how == MIRRORED):
                    found[row] = candidate
    return [found[row] for row in sorted(found)]


def same(keys: Keys, known: Keys) -> Int[np.ndarray, " n"]:
    """The first example with the key of each, -1 where there is none."""
    values, first = np.unique(known, return_index=True)
    if not len(values):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return np.where(values[at] == keys, first[at], -1)


# ------------------------------------------------------------------------------------------------------ photographs


def _nearest(
    pictures: Float[np.ndarray, "n side side"], others: Float[np.ndarray, "m side side"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The other thumbnail that each is most like, and the correlation of both."""
    own, known = pictures.reshape(-1, _SIDE * _SIDE), others.reshape(-1, _SIDE * _SIDE).T
    places, alike = np.full(len(own), -1), np.zeros(len(own))
    for start in range(0, len(own) if known.size else 0, _AT_ONCE):
        products = own[start : start + _AT_ONCE] @ known
        part = slice(start, start + len(products))
        places[part] = products.argmax(1)
        alike[part] = np.minimum(products.max(1), 1)
    return places, alike


def are_one(pictures: Pictures, row: int, others: Pictures, other: int, *, mirrored: bool) -> bool:
    """Whether two pictures are one photograph, by the colours of 32 x 32 cells.

    Light and contrast of the second are fitted to those of the first by least squares, the same for all colours; the
    largest difference that is left decides, as what tells a sign from another is small. Where one is grey, so is the
    other for this.
    """
    first, second = _cells(pictures, row), _cells(others, other)
    first = first[:, ::-1] if mirrored else first
    if any(float(np.ptp(cells, axis=-1).max()) <= _GREY for cells in (first, second)):
        first, second = first.mean(-1), second.mean(-1)
    x, y = second.reshape(-1), first.reshape(-1)
    gain = ((x - x.mean()) * (y - y.mean())).sum() / max(float(np.square(x - x.mean()).sum()), 1e-9)
    most = min(APART, float(y.std()))  # of a faint picture, details are faint
    return bool(np.abs(y - y.mean() - gain * (x - x.mean())).max() <= most)


def _cells(pictures: Pictures, row: int) -> Float[np.ndarray, "32 32 3"]:
    """A picture in so many cells, in colour, smoothed: an edge of another size is half a pixel away."""
    if isinstance(pictures, EncodedImages):
        pictures = pictures.small(2 * _FINE)
    picture = np.asarray(pictures[row], np.float32)
    found = reduced(picture[None], _FINE)[0]
    for axis in (0, 1):
        found = (np.roll(found, 1, axis) + 2 * found + np.roll(found, -1, axis)) / 4
    return np.broadcast_to(found, (_FINE, _FINE, 3))


def _of_encoded(pictures: EncodedImages, blank: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n 16 16"]:
    """Thumbnails of pictures in files, zeros for small ones; takes note of which are blank. Raises DataError."""
    found, store, wrong = np.zeros((len(pictures), _SIDE, _SIDE), np.float32), pictures.store, dict[int, DataError]()
    small = pictures.small(4 * _SIDE)

    def look(row: int) -> None:
        picture = small[row]
        blank[row] = (picture == picture[0, 0]).all()
        if min(image_decoding.header(store.read(row), store.name(row))[0]) >= LEAST:
            found[row] = _normalised(reduced(picture[None].mean(-1, dtype=np.float32, keepdims=True), _SIDE)[..., 0])[0]
        progress.update(row)

    with Progress("data: looking for copies", len(pictures), ("pictures", 1)) as progress:
        image_decoding.each(range(len(pictures)), look, wrong)
    image_decoding.refuse(wrong, None, len(pictures))
    return found


def thumbnails(pictures: UInt8[np.ndarray, "n height width channels"]) -> Float[np.ndarray, "n 16 16"]:
    """Zero mean and unit length; zeros for a picture of hardly any contrast."""
    found = np.zeros((len(pictures), _SIDE, _SIDE), np.float32)
    step = max(1, min(_AT_ONCE, _PIXELS // (pictures.shape[1] * pictures.shape[2])))
    with Progress("data: looking for copies", len(pictures), ("pictures", 1)) as progress:
        for start in range(0, len(pictures), step):
            grey = np.asarray(pictures[start : start + step]).mean(-1, dtype=np.float32, keepdims=True)
            found[start : start + len(grey)] = _normalised(reduced(grey, _SIDE)[..., 0])
            progress.update(start + len(grey))
    return found


def _normalised(means: Float[np.ndarray, "n side side"]) -> Float[np.ndarray, "n side side"]:
    means = means - means.mean((1, 2), keepdims=True)
    length = np.sqrt(np.square(means).sum((1, 2), keepdims=True))
    normalised: np.ndarray = np.where(length < _FLAT * _SIDE, 0, means / np.maximum(length, 1e-9))
    return normalised


def reduced(
    pictures: Float[np.ndarray, "n height width channels"], side: int
) -> Float[np.ndarray, "n side side channels"]:
    """The means of so many cells a side, which begin and end at the same pixels from either end."""
    rows, columns = (_edges(length, side) for length in pictures.shape[1:3])
    sums = np.add.reduceat(np.add.reduceat(pictures, rows[:-1], 1), columns[:-1], 2)
    means: np.ndarray = sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])
    return means


def _edges(length: int, side: int) -> Int[np.ndarray, " edges"]:
    half = length * np.arange(side // 2 + 1) // side
    return np.concatenate([half, length - half[:-1][::-1]])


# ---------------------------------------------------------------------------------------------------------- the same


def picture_keys(inputs: Mapping[str, Pictures]) -> dict[str, Keys]:
    """What tells the pictures of all splits apart by their bytes. Of those in files samples are known already: where
    these are alike, all is read. Raises DataError."""
    keys = {
        split: pictures.store.digests.copy() if isinstance(pictures, EncodedImages) else _digests(pictures)
        for split, pictures in inputs.items()
    }
    values, counts = np.unique(np.concatenate([*keys.values()]), return_counts=True)
    doubtful = values[counts > 1]
    for split, pictures in inputs.items():
        if isinstance(pictures, EncodedImages):
            for row in np.flatnonzero(np.isin(keys[split], doubtful)).tolist():
                keys[split][row] = _digest(pictures.store.read(row))
    return keys


def row_keys(rows: np.ndarray) -> Keys:
    """The same of the rows of a table."""
    if rows.dtype != np.float32:
        return _digests(rows)
    blocks = [_float_keys(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint64)


def _digests(examples: np.ndarray) -> Keys:
    return np.array([_digest(np.ascontiguousarray(each).tobytes()) for each in examples], np.uint64)


def _digest(content: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint64)[0]


def _float_keys(rows: Float[np.ndarray, "n columns"]) -> Keys:
    """One number a row of float32, equal for rows of equal bytes: each value is mixed with its place as splitmix64
    (Steele et al. 2014) does, and they are added up."""
    bits = np.ascontiguousarray(rows).view(np.uint32).astype(np.uint64)
    mixed: np.ndarray = bits + np.arange(1, bits.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = (mixed ^ (mixed >> np.uint64(31))).sum(1, dtype=np.uint64)
    return found
