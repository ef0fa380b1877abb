"""Promises of splits of decoded pictures: rows of arrays that are read like an array, and no second copy of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bigctl
from bigctl.data.pictures.taken import TakenRows
from bigctl.data.preparation.prepare import prepare
from bigctl.files import sha256

SIDE = 96


def test_taken_rows_are_those_of_the_arrays_joined(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (count, 3, 2), np.uint8) for count in (5, 0, 8)]
    places = np.array([12, 0, 4, 5, 5, 9])
    joined, rows = np.concatenate(arrays)[places], TakenRows(arrays, places)
    assert (len(rows), rows.shape, rows.size, rows.dtype) == (6, joined.shape, joined.size, joined.dtype)
    np.testing.assert_array_equal(rows[1:4], joined[1:4])
    np.testing.assert_array_equal(rows[np.array([3, 0])], joined[[3, 0]])
    np.testing.assert_array_equal(rows[2], joined[2])
    np.testing.assert_array_equal(np.stack([*rows]), joined)
    np.save(tmp_path / "whole.npy", joined)
    assert rows.save(tmp_path / "blocks.npy") == sha256(tmp_path / "whole.npy") == sha256(tmp_path / "blocks.npy")


def test_pictures_that_are_decoded_once_take_little_more_memory_than_they_have_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    peaks = [_peak(tmp_path / str(count), count) for count in (600, 1400)]  # blocks are full of the fewer already
    assert peaks[1] - peaks[0] < 1.5 * 800 * SIDE * SIDE * 3  # 2.0 where splits are copies


def _peak(folder: Path, count: int) -> int:
    """Bytes that Python and numpy held at most while so many pictures were prepared."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = np.kron(rng.integers(0, 255, (6, 6, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png", compress_level=1)
    config = bigctl.compose(["recipe=cnn_cls", "data=image_folder", f"data.path={folder}", "data.decoding=memory"])
    tracemalloc.start()
    try:
        prepare(config.data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
