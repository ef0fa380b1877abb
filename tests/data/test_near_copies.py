"""Promises of `bigctl.data.near_copies`: one photograph made anew is found, two of the same kind are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from bigctl.data import near_copies, notes
from bigctl.data.dataset import Features


@pytest.fixture(scope="module")
def parts() -> np.ndarray:
    """Parts of two photographs, but for those of blank sky, uint8 [N, 64, 48, 3]."""
    found = [
        picture[row : row + 128, column : column + 96]
        for picture in load_sample_images().images
        for row in (0, 128, 256, 299)
        for column in range(0, 500, 100)
    ]
    small = np.stack([np.asarray(Image.fromarray(part).resize((48, 64))) for part in found])
    return small[small.mean(-1).std((1, 2)) > 12]


def changed(picture: np.ndarray, how: str) -> np.ndarray:
    image = Image.fromarray(picture)
    if how == "compressed":
        image.save(file := io.BytesIO(), "JPEG", quality=50)
        return np.asarray(Image.open(file))
    if how == "smaller":
        return np.asarray(image.resize((30, 40)).resize((48, 64)))
    return np.clip(picture * 0.8 + 30, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("how", ["compressed", "smaller", "brighter"])
def test_the_same_photograph_is_found(parts, how):
    assert len(parts) >= 30
    copies = np.stack([changed(picture, how) for picture in parts[::3]])
    assert near_copies.near_copies(copies, parts).mean() >= 0.9


def test_other_parts_of_a_photograph_and_blank_pictures_are_not(parts):
    blank = np.full((2, 64, 48, 3), 200, np.uint8)
    assert not near_copies.near_copies(np.concatenate([parts[::2], blank]), np.concatenate([parts[1::2], blank])).any()


def test_small_pictures_are_not_compared(parts):
    small = np.ascontiguousarray(parts[:, :28, :28])
    assert not near_copies.near_copies(small, small).any()


def test_it_is_noted_beside_exact_copies(parts):
    features = Features("image", (64, 48, 3), ("a", "b"), mean=(0.5,) * 3, std=(0.2,) * 3)
    train, label = parts[:20], np.arange(20, dtype=np.int32) % 2
    again = np.stack([changed(picture, "compressed") for picture in parts[:3]])
    arrays = {
        "train": {"inputs": train, "label": label},
        "validation": {"inputs": parts[20:30], "label": label[:10]},
        "test": {"inputs": np.concatenate([train[10:12], again]), "label": label[:5]},
    }
    found = notes.on_arrays(arrays, features)
    assert "2 of 5 test pictures are also in the training split" in found
    assert any(
        line.startswith("3 of 5 test pictures are nearly the same as one of the training split") for line in found
    )
    assert not any("validation pictures" in line for line in found)
