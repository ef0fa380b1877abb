"""Images in MNIST's binary files (`idx`)."""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from bigctl import memory
from bigctl.config import schema
from bigctl.data.files.paths import fingerprint_files, require_folder, some
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.errors import DataError
from bigctl.files import expanded

_IDX_NAME = re.compile(r"(?P<prefix>.*?)(?P<split>train|t10k|test)-(?P<what>images|labels)[-.]idx\d-[a-z]+(\.gz)?")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# Only a damaged file has more classes than this, and the list of class names should not be what breaks.
_MAX_CLASSES = 65536
_PART = 2**24


def identity(config: schema.Idx) -> str:
    """What the decoded arrays depend on: the content of the files."""
    return fingerprint_idx(expanded(config.path))


def decode(config: schema.Idx, regression: bool) -> Decoded:
    """See `read_idx`."""
    return read_idx(expanded(config.path))


def read_idx(path: Path) -> Decoded:
    """Decode a directory in MNIST's format: `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]`, `t10k-...`.

    `test-...`, `....idx3-ubyte` and a common prefix as in `emnist-balanced-train-images-idx3-ubyte` are understood;
    where there are several prefixes, `path` is DIRECTORY/PREFIX. Four dimensions are [N, H, W, C]. Pixels are taken as
    stored (EMNIST's are transposed). Format: http://yann.lecun.com/exdb/mnist.

    Returns:
        Decoded images, uint8 [N, H, W, C], and labels, int32 [N], for "train" and, where it is there, "test"; the
        classes are "0" to the largest training label.

    Raises:
        DataError: files are missing, damaged, of other types or shapes, or do not fit together.
    """
    files = _find_idx(path)
    train_images, train_labels = files["train", "images"], files["train", "labels"]
    train = _idx_split(train_images, train_labels, _MAX_CLASSES - 1)
    splits = {"train": train}
    highest = int(train["label"].max())
    if (train["label"] == highest).all():
        raise DataError(
            f"there is only one class, {highest}", where=str(train_labels), hint="a classifier needs at least two"
        )
    if ("test", "images") in files:
        test = _idx_split(files["test", "images"], files["test", "labels"], highest)
        splits["test"] = test
        if test["image"].shape[1:] != train["image"].shape[1:]:
            raise DataError(
                f"images are {list(test['image'].shape[1:])}, those in {train_images.name} "
                f"{list(train['image'].shape[1:])} (height, width, channels)",
                where=str(files["test", "images"]),
                hint="are the files from one download?",
            )
    used = [str(files[key]) for key in sorted(files, reverse=True)]
    info: dict[str, Any] = {"source": "idx", "path": str(path), "files": used, "notes": []}
    return Decoded("image", splits, tuple(map(str, range(highest + 1))), info)


def fingerprint_idx(path: Path) -> str:
    """sha256 over the contents of the files that `read_idx` would read; raises DataError where one is missing."""
    files = _find_idx(path)
    return fingerprint_files(files[key] for key in sorted(files))


def _idx_split(image_file: Path, label_file: Path, highest: int) -> Columns:
    """The columns of one split, its labels from 0 to at most `highest`."""
    counts = {file: _idx_header(file)[0][0] for file in (image_file, label_file)}
    if not counts[image_file]:
        raise DataError("there are no pixels, not one image", where=str(image_file))
    if counts[image_file] != counts[label_file]:  # before the content of either is unpacked
        raise DataError(
            f"{counts[label_file]} labels for the {counts[image_file]} images of {image_file.name}",
            where=str(label_file),
            hint="are the files from one download?",
        )
    images, labels = _idx_array(image_file), _idx_array(label_file)
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] in (1, 3)):
        raise DataError(
            f"images have type {images.dtype} and shape {list(images.shape)}",
            where=str(image_file),
            hint="images must be uint8 [N, H, W], or [N, H, W, C] with 1 or 3 channels",
        )
    if labels.dtype.kind == "f" or labels.ndim != 1:
        raise DataError(
            f"labels have type {labels.dtype} and shape {list(labels.shape)}",
            where=str(label_file),
            hint="labels must be integers [N]",
        )
    if not images.size:
        raise DataError(f"there are no pixels, shape {list(images.shape)}", where=str(image_file))
    if (outside := (labels < 0) | (labels > highest)).any():
        example = int(outside.argmax())
        raise DataError(
            f"label out of range: {labels[example]} of example {example} (from 0) is not within 0 to {highest}",
            where=str(label_file),
            hint="labels count from 0, and the training labels hold every class",
        )
    return {"image": images.reshape(*images.shape[:3], -1), "label": labels.astype(np.int32)}


def _find_idx(path: Path) -> dict[tuple[str, str], Path]:
    """The file of each (split, "images" or "labels"): always train's two, and both of test or none."""
    by_prefix: dict[str, dict[tuple[str, str], Path]] = {}
    folder = path if path.is_dir() or not path.parent.is_dir() else path.parent
    names = sorted(file.name for file in require_folder(folder).iterdir() if file.is_file())
    for name in sorted(names, key=lambda name: name.endswith(".gz")):  # the unpacked of two is the quicker
        if match := _IDX_NAME.fullmatch(name):
            split = "train" if match["split"] == "train" else "test"
            by_prefix.setdefault(match["prefix"].strip("-_"), {}).setdefault((split, match["what"]), folder / name)
    if folder != path:
        if path.name not in by_prefix:
            require_folder(path)  # the usual complaint
        prefix = path.name
    elif len(by_prefix) > 1 and "" not in by_prefix:
        raise DataError(
            f"several data sets are here: {some(sorted(by_prefix))}",
            where=str(path),
            hint=f"name one: data.path={path / sorted(by_prefix)[0]}",
        )
    else:
        prefix = "" if "" in by_prefix else next(iter(by_prefix), "")
    files = by_prefix.get(prefix, {})
    needed = {"train", *(split for split, _ in files)}
    lead = f"{prefix}-" if prefix else ""
    for split in sorted(needed, reverse=True):
        for what, rank in (("images", 3), ("labels", 1)):
            if (split, what) not in files:
                expected = f"{lead}{'t10k' if split == 'test' else split}-{what}-idx{rank}-ubyte[.gz]"
                raise DataError(
                    f"{expected} is missing; the directory holds {some(names)}",
                    where=str(folder),
                    hint="expected are train-images-idx3-ubyte and train-labels-idx1-ubyte, and the same for t10k, "
                    "each plain or with .gz",
                )
    return files


_DAMAGED = "download the file again"


def _idx_array(file: Path) -> np.ndarray:
    """The array in one IDX file, gzipped or not, whatever its name says; no more is unpacked than its header tells."""
    shape, dtype = _idx_header(file)
    start, expected = 4 + 4 * len(shape), math.prod(shape) * dtype.itemsize
    memory.require(expected, f"what has the shape {list(shape)}", where=str(file))
    with _opened(file) as stream:
        stream.seek(start)
        data = _read(stream, expected + 1)
    if len(data) != expected:
        what = "truncated" if len(data) < expected else "longer than it says"
        raise DataError(
            f"the file is {what}: shape {list(shape)} needs {expected} bytes, "
            f"{'more' if len(data) > expected else len(data)} follow the header",
            where=str(file),
            hint=_DAMAGED,
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read(stream: IO[bytes], most: int) -> bytearray:
    """What is there, `most` bytes of it at most; takes no memory for what a damaged header promises beyond that."""
    data = bytearray()
    while len(data) < most and (part := stream.read(min(most - len(data), _PART))):
        data += part
    return data


def _idx_header(file: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array in a file."""
    with _opened(file) as stream:
        data = stream.read(4)
        if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES or not data[3]:
            found = data[:4].hex(" ") or "nothing"
            message = f"this is not an IDX file: it starts with {found}, not 00 00 TYPE DIMENSIONS"
            raise DataError(message, where=str(file), hint=_DAMAGED)
        sizes = stream.read(4 * data[3])
    if len(sizes) < 4 * data[3]:
        raise DataError("the file is truncated within its header", where=str(file), hint=_DAMAGED)
    return struct.unpack(f">{data[3]}I", sizes), np.dtype(_IDX_TYPES[data[2]])


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    """The content of a file, unpacked as it is read; DataError for what goes wrong meanwhile."""
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if packed else open(file, "rb") as stream:
            yield cast(IO[bytes], stream)
    except EOFError:
        raise DataError("the gzip file is truncated", where=str(file), hint=_DAMAGED) from None
    except (OSError, zlib.error) as error:
        raise DataError(f"the file cannot be read: {error}", where=str(file), hint=_DAMAGED) from None
