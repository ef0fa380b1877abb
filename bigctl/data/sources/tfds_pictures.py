"""Pictures of TensorFlow Datasets that stay encoded.

Those in ArrayRecord files are read where they are, record by record (0.1 ms for 95 kB). Of other formats the pictures
of each split are copied into the cache once, as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.cache_root import cache_root
from bigctl.config import schema
from bigctl.data.pictures import packs
from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.pictures.stores import Held, Names, Ranges, Records
from bigctl.data.progress import Progress
from bigctl.data.sources import image_index
from bigctl.data.sources.decoded import Columns
from bigctl.data.sources.image_index import Wanted
from bigctl.errors import DataError
from bigctl.files import write_text
from bigctl.formatting import size

_CONTENT, _SIZES, _LABELS = "pictures.bin", "sizes.npy", "labels.npy"


def is_streamed(config: schema.Tfds) -> bool | None:
    """Whether pictures are decoded while training, as is said or was decided before; None where nobody knows yet."""
    if config.decoding is not None:
        return config.decoding == schema.DECODE_STREAM
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads(_place(config).read_text(encoding="utf-8")))
    return None


def keep(config: schema.Tfds, streamed: bool) -> None:
    """Keep what was decided, so that it is known without asking TFDS."""
    with contextlib.suppress(OSError):
        _place(config).parent.mkdir(parents=True, exist_ok=True)
        write_text(_place(config), json.dumps(streamed))


def _place(config: schema.Tfds) -> Path:
    known = hashlib.sha256(json.dumps([config.dataset, config.image_size]).encode()).hexdigest()[:16]
    return cache_root() / "data" / "listings" / f"tfds-{known}.json"


@dataclass(frozen=True)
class Copy:
    """The encoded pictures of a split, and labels, int32 [N]."""

    ranges: Ranges
    labels: np.ndarray


def in_records(
    examples: Callable[[], Iterable[dict[str, Any]]],
    files: Mapping[Path, int],
    folder: Path,
    split: str,
    keys: list[str],
) -> Copy:
    """The pictures of a split where they are.

    Args:
        examples: of the split.
        files: of ArrayRecord, in order, and how many records each has.
        folder, split, keys: as of `copied`.

    Raises:
        DataError: one of the files cannot be read.
    """
    count, shown = sum(files.values()), f"{folder.parent.name}/{split}"
    sizes, labels = np.zeros(count, np.int64), np.zeros(count, np.int32)
    with Progress(f"data: looking through {shown}", count, ("pictures", 1)) as progress:
        for row, example in enumerate(examples()):
            sizes[row], labels[row] = len(example[keys[0]]), example[keys[1]]
            progress.update(row + 1)
    lengths = np.array([*files.values()], np.int64)
    places = np.repeat(np.arange(len(files), dtype=np.uint32), lengths)
    starts = np.arange(count, dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    names = Names.of([str(number).encode() for number in range(count)])
    try:
        held = tuple(Held.of(file, shown) for file in files)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(error.filename)) from error
    return Copy(Records(held, names, places, starts, sizes, np.zeros(count, np.uint64), keys[0]), labels)


def copied(
    examples: Callable[[], Iterable[dict[str, Any]]], count: int, folder: Path, split: str, keys: list[str]
) -> Copy:
    """The pictures of a split as they are encoded, copied where that was not done before.

    Args:
        examples: of the split.
        count: how many there are.
        folder: of the prepared set.
        split: its name.
        keys: of the picture and of the label in an example.

    Raises:
        DataError: there is no room.
    """
    described = folder / "dataset_info.json"
    shown = f"{folder.parent.name}/{split}"

    def make(place: Path) -> None:
        sizes, labels = np.zeros(count, np.int64), np.zeros(count, np.int32)
        with (
            (place / _CONTENT).open("wb") as out,
            Progress(f"data: copying {shown}", count, ("pictures", 1)) as progress,
        ):
            for row, example in enumerate(examples()):
                sizes[row], labels[row] = out.write(example[keys[0]]), example[keys[1]]
                progress.update(row + 1)
        np.save(place / _SIZES, sizes)
        np.save(place / _LABELS, labels)
        why = "has its pictures in compressed records, which are slow to reach one by one"
        print(f"data: {shown} {why}: a copy of {size(int(sizes.sum()))} is kept in {packs.root()}", file=sys.stderr)

    place = packs.kept(described, f"{split} {keys}", make)
    sizes, labels = (np.load(place / name, allow_pickle=False) for name in (_SIZES, _LABELS))
    names = [str(number).encode() for number in range(count)]
    ranges = picture_stores.in_one(Held.of(place / _CONTENT, shown), names, np.cumsum(sizes) - sizes, sizes)
    return Copy(ranges, labels)


def indexed(
    found: Mapping[str, Copy], image_size: tuple[int, int] | None, channels: int
) -> tuple[dict[str, Columns], EncodedImages | None]:
    """Where the pictures of all splits are, and that. Raises DataError for one that cannot be used."""
    bad: dict[int, DataError] = {}
    whole = picture_stores.joined([copy.ranges for copy in found.values()])
    places, index = image_index.read_ranges(whole, Wanted(image_size, channels, streamed=True), bad)
    return image_index.by_split(places, {split: copy.labels for split, copy in found.items()}, bad), index
