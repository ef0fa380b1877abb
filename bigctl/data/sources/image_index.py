"""Pictures looked at, and not decoded: what is kept of each so that it can be read while training."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.encoded_images import EncodedImages, Form
from bigctl.data.pictures.stores import Files, Header, Names, Ranges
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding
from bigctl.data.sources.bad_rows import LEFT_OUT, BadRows, require_few
from bigctl.data.sources.decoded import Columns, Origins
from bigctl.errors import DataError

FEW = 2**29
"""Bytes of decoded pictures up to which they are decoded once, into the array cache."""


@dataclass(frozen=True)
class Wanted:
    """How the pictures of a source are to be read.

    Attributes:
        size: (height, width) to resize to; None demands that all have one size.
        channels: 1 or 3; None means 1 if every file is stored as grey, else 3.
        background: "black" or "white", below what is transparent.
        resize: "stretch" or "crop", what becomes of another shape.
        skip_bad: leave out files that cannot be used, with a note.
        bad_limit: share of the files that is left out at most.
        streamed: leave them encoded, to be decoded while training.
        listing: the file with what was found in the folders.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    background: str = "black"
    resize: str = "stretch"
    skip_bad: bool = False
    bad_limit: float = 1.0
    streamed: bool = False
    listing: str = ""


USUAL = Wanted()


def read(
    files: Sequence[Path], roots: Sequence[Path], wanted: Wanted, bad: dict[int, DataError]
) -> tuple[np.ndarray, EncodedImages | None]:
    """The pictures of some files.

    Args:
        files: one a picture.
        roots: folders that files are below.
        wanted: how.
        bad: files that cannot be used are named here by their place, where they are to be left out.

    Returns:
        Decoded pictures, uint8 [N, H, W, C], and None; or their places in an index, int64 [N], and that.

    Raises:
        DataError: for a file that cannot be used, where it is not to be left out; or if none can.
    """
    given = bad if wanted.skip_bad else None
    image_decoding.check_shape(wanted.size, wanted.channels)
    index: EncodedImages | None = None
    images: np.ndarray
    if wanted.streamed:
        index = _index(files, roots, wanted, given)
        images = np.arange(len(index))
    else:
        images = image_decoding.decode_all(files, wanted.size, wanted.channels, bad=given, **_look(wanted))
    refuse_many(bad, len(files), wanted.bad_limit)
    return images, index


def read_ranges(ranges: Ranges, wanted: Wanted, bad: dict[int, DataError]) -> tuple[np.ndarray, EncodedImages | None]:
    """The pictures that are parts of a few files, as `read` gives those of files of their own. Pictures that are named
    in `bad` already are not looked at. Raises DataError likewise."""
    given = bad if wanted.skip_bad else None
    count = len(ranges.sizes)
    image_decoding.check_shape(wanted.size, wanted.channels)
    rows = np.array([row for row in range(count) if row not in bad], np.int64)
    if not len(rows):
        raise bad[min(bad)]
    wrong: dict[int, DataError] | None = None if given is None else {}
    index: EncodedImages | None = None
    images: np.ndarray
    own = ranges.take(rows) if len(rows) < count else ranges
    if wanted.streamed:
        index = _index_ranges(own, wanted, wrong)
        images = np.arange(len(index))
    else:
        names = [own.name(row) for row in range(len(rows))]
        images = image_decoding.decode_all(
            _Contents(own), wanted.size, wanted.channels, names, bad=wrong, **_look(wanted)
        )
    bad |= {int(rows[place]): error for place, error in (wrong or {}).items()}
    refuse_many(bad, count, wanted.bad_limit)
    return images, index


class _Contents(Sequence[bytes]):
    """The pictures of a store, read as they are asked for."""

    def __init__(self, store: Ranges):
        self._store = store

    def __len__(self) -> int:
        return len(self._store.sizes)

    def __getitem__(self, row: int) -> bytes:  # type: ignore[override]
        return self._store.read(row)


def _look(wanted: Wanted) -> dict[str, str]:
    return {"background": wanted.background, "resize": wanted.resize}


def refuse_many(bad: Mapping[int, DataError], count: int, most: float) -> None:
    """Raises DataError for more pictures that cannot be used than may be left out, `most` being a share."""
    require_few(_bad(bad).facts(count), most)


def left_out(bad: Mapping[int, DataError], count: int, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of a data set on pictures that cannot be used, of so many, with `notes` of its own."""
    facts = _bad(bad).facts(count)
    return {"notes": [*notes, *_bad(bad).note()]} | ({LEFT_OUT: facts} if facts else {})


def _bad(bad: Mapping[int, DataError]) -> BadRows:
    return BadRows.of(bad, "file", "used")


def by_split(images: np.ndarray, labels: Mapping[str, np.ndarray], bad: Mapping[int, DataError]) -> dict[str, Columns]:
    """The splits of images that were decoded one after the other; `labels` are of all files, `images` lack the bad."""
    splits: dict[str, Columns] = {}
    start = row = 0
    for split, own in labels.items():
        good = np.array([start + number not in bad for number in range(len(own))], bool)
        start, end = start + len(own), row + int(good.sum())
        splits[split] = {"image": images[row:end], "label": own[good]}
        row = end
    return splits


def origins(names: Mapping[str, Sequence[str]], bad: Mapping[int, DataError]) -> Origins:
    """The files of each split that were not bad, counted over all splits as by `by_split`."""
    places: dict[str, np.ndarray] = {}
    start = 0
    for split, own in names.items():
        good = [number for number in range(start, start + len(own)) if number not in bad]
        places[split] = np.array(good, np.int64) << Origins.BITS
        start += len(own)
    return Origins([name for own in names.values() for name in own], places)


def _index(
    files: Sequence[Path], roots: Sequence[Path], wanted: Wanted, bad: dict[int, DataError] | None
) -> EncodedImages:
    """What is kept of each file. Headers are read; where bad files are to be left out, all of each, to know them."""
    count = len(files)
    kept = {name: np.zeros(count, kind) for name, kind in (("sizes", int), ("times", int), ("digests", np.uint64))}

    def look(i: int) -> Header:
        found = image_decoding.header(files[i], str(files[i]))
        with files[i].open("rb") as stream:
            status = os.fstat(stream.fileno())
            kept["sizes"][i], kept["times"][i] = status.st_size, status.st_mtime_ns
            kept["digests"][i] = picture_stores.digest(stream.fileno(), status.st_size)
        if bad is not None:
            image_decoding.read_image(files[i])
        return found

    form, good = _looked_at(count, look, lambda i: str(files[i]), wanted, bad)
    folders, names = _named([files[i] for i in good.tolist()], roots)
    columns = {name: values[good] for name, values in kept.items()}
    above = (*(str(root.absolute()) for root in roots), os.sep)
    return EncodedImages(form, Files(above, Names.of(names), folders, **columns, listing=wanted.listing))


def _index_ranges(ranges: Ranges, wanted: Wanted, bad: dict[int, DataError] | None) -> EncodedImages:
    """The same of pictures that are parts of a few files."""
    digests = np.zeros(len(ranges.sizes), np.uint64)

    def look(i: int) -> Header:
        digests[i], found = ranges.look(i)
        if bad is not None:
            image_decoding.read_part(ranges.read(i), ranges.name(i), None, 3, wanted.background, None)
        return found

    form, good = _looked_at(len(digests), look, ranges.name, wanted, bad)
    return EncodedImages(form, replace(ranges, digests=digests).take(good))


def _looked_at(
    count: int,
    look: Callable[[int], Header],
    name: Callable[[int], str],
    wanted: Wanted,
    bad: dict[int, DataError] | None,
) -> tuple[Form, np.ndarray]:
    """What is made of so many pictures, and which of them can be used, int64 [n]; `look` gives the header of one.
    Raises DataError."""
    shapes, grey, wrong = np.zeros((count, 2), np.int32), np.zeros(count, bool), dict[int, DataError]()
    looked_at = itertools.count(1)

    def each(i: int) -> None:
        shapes[i], grey[i] = look(i)
        progress.update(next(looked_at))

    with Progress("data: indexing", count, ("pictures", 1)) as progress:
        good = np.array([*image_decoding.each(range(count), each, wrong)], np.int64)
    image_decoding.refuse(wrong, bad, count)
    height, width = wanted.size or (int(shapes[good[0], 0]), int(shapes[good[0], 1]))
    if wanted.size is None:
        for i in good[(shapes[good] != (height, width)).any(1)][:1].tolist():
            raise image_decoding.differs(name(i), shapes[i].tolist(), name(int(good[0])), (height, width))
    channels = wanted.channels or (1 if grey[good].all() else 3)
    resize = image_decoding.STRETCH if wanted.resize in image_decoding.AS_EVER else wanted.resize
    form = Form(height, width, channels, wanted.background, resize, sized=wanted.size is not None)
    return form, good


def _named(files: Sequence[Path], roots: Sequence[Path]) -> tuple[np.ndarray, list[bytes]]:
    """Which root each file is below, the last of which all are, and its name there."""
    folders, names = np.zeros(len(files), np.uint8), list[bytes]()
    prefixes = [os.path.join(os.fspath(root), "") for root in roots]
    for place, file in enumerate(files):
        text = os.fspath(file)
        number = next((number for number, prefix in enumerate(prefixes) if text.startswith(prefix)), len(roots))
        folders[place] = number
        names.append(os.fsencode(text.removeprefix(prefixes[number]) if number < len(roots) else os.path.abspath(text)))
    return folders, names
