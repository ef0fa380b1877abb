"""Promises of `bigctl.data.sources.idx`: MNIST's binary files."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bigctl import memory
from bigctl.data.sources.idx import fingerprint_idx, read_idx
from bigctl.errors import DataError

MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(match: str, action, *args, **options) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def idx_bytes(array: np.ndarray, code: int = 0x08) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, split: str = "train", n: int = 6, *, shape=(4, 5), zipped=True, name="{}-{}-idx{}-ubyte"):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = noise(n, *shape), (np.arange(n) % 3).astype(np.uint8)
    for what, array in (("images", images), ("labels", labels)):
        path = folder / (name.format(split, what, array.ndim) + (".gz" if zipped else ""))
        path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "emnist-letters-{}-{}-idx{}-ubyte"])
def test_idx_is_read_under_all_its_names(tmp_path, zipped, name):
    images, labels = write_idx(tmp_path, zipped=zipped, name=name)
    tested, _ = write_idx(tmp_path, "t10k" if "emnist" not in name else "test", 5, zipped=zipped, name=name)
    decoded = read_idx(tmp_path)
    assert decoded.kind == "image" and decoded.classes == ("0", "1", "2")
    assert np.array_equal(decoded.splits["train"]["image"], images[..., None])
    assert np.array_equal(decoded.splits["train"]["label"], labels)
    assert np.array_equal(decoded.splits["test"]["image"], tested[..., None])
    assert decoded.splits["train"]["label"].dtype == np.int32


def test_idx_test_split_is_optional_and_colour_allowed(tmp_path):
    images, _ = write_idx(tmp_path, shape=(4, 5, 3))
    decoded = read_idx(tmp_path)
    assert list(decoded.splits) == ["train"] and np.array_equal(decoded.splits["train"]["image"], images)


def test_one_of_several_idx_sets_is_named_by_prefix(tmp_path):
    write_idx(tmp_path, name="emnist-letters-{}-{}-idx{}-ubyte")
    digits, _ = write_idx(tmp_path, name="emnist-digits-{}-{}-idx{}-ubyte", n=9)
    error = str(refused("several data sets are here: emnist-digits, emnist-letters", read_idx, tmp_path))
    assert "emnist-digits" in error
    assert len(read_idx(tmp_path / "emnist-digits").splits["train"]["label"]) == 9


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here")
def test_the_real_mnist_is_read():
    decoded = read_idx(MNIST)
    assert decoded.classes == tuple("0123456789")
    assert decoded.splits["train"]["image"].shape == (60000, 28, 28, 1)
    assert decoded.splits["test"]["image"].shape == (10000, 28, 28, 1)
    assert decoded.splits["train"]["label"][:5].tolist() == [5, 0, 4, 1, 9]
    # The published mean and deviation of the training pixels.
    pixels = decoded.splits["train"]["image"] / np.float32(255)
    assert pixels.mean() == pytest.approx(0.1307, abs=1e-4) and pixels.std() == pytest.approx(0.3081, abs=1e-4)


def test_missing_idx_files_are_listed(tmp_path):
    refused("no such directory", read_idx, tmp_path / "nowhere")
    (tmp_path / "readme.md").write_text("hello")
    error = str(
        refused(r"train-images-idx3-ubyte\[.gz\] is missing; the directory holds readme.md", read_idx, tmp_path)
    )
    assert "train-labels-idx1-ubyte" in error
    write_idx(tmp_path)
    write_idx(tmp_path, "t10k")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    refused("t10k-labels-idx1-ubyte.* is missing", read_idx, tmp_path)


IMAGES = noise(6, 4, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "not an IDX file: it starts with 89 50 4e 47"),
        (b"", "not an IDX file: it starts with nothing"),
        (idx_bytes(IMAGES, code=0x07), "not an IDX file"),
        (idx_bytes(IMAGES)[:10], "truncated within its header"),
        (idx_bytes(IMAGES)[:-1], "truncated: shape .6, 4, 5. needs 120 bytes, 119 follow"),
        (idx_bytes(IMAGES) + b"x", "longer than it says"),
        (idx_bytes(IMAGES, code=0x09), "type int8"),
        (idx_bytes(IMAGES.reshape(6, 20)), "shape .6, 20."),
        (idx_bytes(IMAGES.reshape(6, 2, 5, 2)), "1 or 3 channels"),
        (idx_bytes(IMAGES[:0]), "no pixels"),
        (gzip.compress(idx_bytes(IMAGES))[:-20], "gzip file is truncated"),
        (gzip.compress(idx_bytes(IMAGES))[:-8] + bytes(8), "cannot be read: CRC check failed"),
        (idx_bytes(IMAGES[:5]), "6 labels for the 5 images"),
    ],
)
def test_damaged_idx_images_are_refused(tmp_path, content, message):
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    refused(message, read_idx, tmp_path)


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("train", idx_bytes(np.array([0, 1, 0, 1, 0, -1], ">i4"), 0x0C), "label out of range: -1 of example 5"),
        ("train", idx_bytes(np.array([0, 1, 0, 1, 0, 10**6], ">i4"), 0x0C), "label out of range: 1000000"),
        ("test", idx_bytes(np.array([0, 1, 0, 1, 0, 3], np.uint8)), "label out of range: 3 .* within 0 to 2"),
        ("train", idx_bytes(np.zeros(6, np.uint8)), "only one class, 0"),
        ("train", idx_bytes(np.zeros(6, ">f4"), 0x0D), "labels must be integers"),
        ("train", idx_bytes(np.zeros((6, 1), np.uint8)), r"shape \[6, 1\]"),
    ],
)
def test_impossible_idx_labels_are_refused(tmp_path, split, content, message):
    write_idx(tmp_path)
    write_idx(tmp_path, "test")
    (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(content)
    assert "labels" in str(refused(message, read_idx, tmp_path).where)


def test_idx_splits_of_different_sizes_are_refused(tmp_path):
    write_idx(tmp_path)
    write_idx(tmp_path, "t10k", shape=(5, 5))
    refused(r"images are \[5, 5, 1\], those in train-images.* \[4, 5, 1\]", read_idx, tmp_path)


def test_the_fingerprint_follows_the_content_of_the_set_that_is_read(tmp_path):
    write_idx(tmp_path, name="emnist-letters-{}-{}-idx{}-ubyte")
    write_idx(tmp_path, name="emnist-digits-{}-{}-idx{}-ubyte", n=9)
    letters, digits = tmp_path / "emnist-letters", tmp_path / "emnist-digits"
    first = fingerprint_idx(letters)
    assert first != fingerprint_idx(digits)
    write_idx(tmp_path, name="emnist-digits-{}-{}-idx{}-ubyte", n=12)
    assert fingerprint_idx(letters) == first
    write_idx(tmp_path, name="emnist-letters-{}-{}-idx{}-ubyte", n=7)
    assert fingerprint_idx(letters) != first
    refused("no such directory", fingerprint_idx, tmp_path / "emnist")


def test_no_more_is_unpacked_than_the_header_tells(tmp_path):
    write_idx(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    bomb = idx_bytes(np.zeros((6, 4, 5), np.uint8)) + bytes(2**27)
    images.write_bytes(gzip.compress(bomb, 1))
    tracemalloc.start()
    refused("longer than it says: shape \\[6, 4, 5\\] needs 120 bytes, more follow", read_idx, tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_what_does_not_fit_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    write_idx(tmp_path)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 2**20, 2**20)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header))
    monkeypatch.setattr(memory, "limit", lambda: 2**34)
    refused("6144.0 GiB of memory, and there are 16.0 GiB", read_idx, tmp_path)
