"""Pictures looked at, and not decoded: what is kept of each so that it can be read while training."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigctl.data.encoded_images import EncodedImages, Form
from bigctl.data.paths import some
from bigctl.data.progress import Progress
from bigctl.data.sources import image_decoding
from bigctl.data.sources.decoded import Columns, Origins
from bigctl.errors import DataError

_SAMPLE = 2**12
"""Bytes at the beginning and at the end of a file that stand for its content."""
FEW = 2**30
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
        look = {"background": wanted.background, "resize": wanted.resize}
        images = image_decoding.decode_all(files, wanted.size, wanted.channels, bad=given, **look)
    if len(bad) > wanted.bad_limit * len(files):
        first = bad[min(bad)]
        what = (
            f"{len(bad):,} of {len(files):,} files cannot be used, more than data.bad_limit={wanted.bad_limit:g} allows"
        )
        shown = some([str(bad[place].where) for place in sorted(bad)], 5)
        raise DataError(f"{what}: {shown}; of the first: {first.message}", where="data.on_bad", hint=first.hint)
    return images, index


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
    count, wrong = len(files), dict[int, DataError]()
    shapes, grey = np.zeros((count, 2), np.int32), np.zeros(count, bool)
    kept = {name: np.zeros(count, kind) for name, kind in (("sizes", int), ("times", int), ("digests", np.uint64))}

    looked_at = itertools.count(1)

    def look(i: int) -> None:
        shapes[i], grey[i] = image_decoding.header(files[i], str(files[i]))
        with files[i].open("rb") as stream:
            status = os.fstat(stream.fileno())
            kept["sizes"][i], kept["times"][i] = status.st_size, status.st_mtime_ns
            kept["digests"][i] = _digest(stream.fileno(), status.st_size)
        if bad is not None:
            image_decoding.read_image(files[i])
        progress.update(next(looked_at))

    with Progress("data: indexing", count, ("pictures", 1)) as progress:
        good = np.array([*image_decoding.each(range(count), look, wrong)], np.int64)
    image_decoding.refuse(wrong, bad, count)
    height, width = wanted.size or (int(shapes[good[0], 0]), int(shapes[good[0], 1]))
    if wanted.size is None:
        for i in good[(shapes[good] != (height, width)).any(1)][:1].tolist():
            raise image_decoding.differs(str(files[i]), shapes[i].tolist(), str(files[good[0]]), (height, width))
    channels = wanted.channels or (1 if grey[good].all() else 3)
    form = Form(height, width, channels, wanted.background, wanted.resize, sized=wanted.size is not None)
    folders, names = _named([files[i] for i in good.tolist()], roots)
    return EncodedImages(
        form,
        (*(str(root.absolute()) for root in roots), os.sep),
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        folders,
        **{name: values[good] for name, values in kept.items()},
        listing=wanted.listing,
    )


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


def _digest(descriptor: int, size: int) -> np.uint64:
    head = os.pread(descriptor, _SAMPLE, 0)
    tail = os.pread(descriptor, _SAMPLE, max(len(head), size - _SAMPLE))
    digest = hashlib.blake2b(b"%d\n" % size + head + tail, digest_size=8).digest()
    return np.frombuffer(digest, np.uint64)[0]
