"""Promises of `bigctl.data.copies`: one photograph made anew is found, two of the same kind are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from bigctl.config import schema
from bigctl.data import copies, notes
from bigctl.data.preparation.prepare import prepare
from bigctl.errors import DataError


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
    if how == "mirrored":
        return picture[:, ::-1]
    return np.clip(picture * 0.8 + 30, 0, 255).astype(np.uint8)


def near(pictures: np.ndarray, train: np.ndarray) -> copies.Copies:
    assert copies.large(train)
    return copies.of_pictures({"train": train, "test": pictures}, near=True)["test"]


@pytest.mark.parametrize("how", ["compressed", "smaller", "brighter", "mirrored"])
def test_the_same_photograph_is_found(parts, how):
    assert len(parts) >= 30
    found = near(np.stack([changed(picture, how) for picture in parts[::3]]), parts)
    assert len(found) >= 0.9 * len(parts[::3])
    np.testing.assert_array_equal(found.of, 3 * found.rows)
    assert set(found.how) == {copies.MIRRORED if how == "mirrored" else copies.NEAR}
    assert found.likeness.min() >= copies.ALIKE and found.likeness.max() <= 1


def test_other_parts_of_a_photograph_and_blank_pictures_are_not(parts):
    blank = [np.full((1, 64, 48, 3), level, np.uint8) for level in (200, 201)]
    assert not len(near(np.concatenate([parts[::2], blank[0]]), np.concatenate([parts[1::2], blank[1]])))


def test_the_first_of_equal_pictures_is_named(parts):
    found = near(parts[4:6], parts[[0, 5, 4, 4]])
    assert (found.rows.tolist(), found.of.tolist(), found.how) == ([0, 1], [2, 1], [copies.SAME] * 2)


def test_small_pictures_are_not_compared(parts):
    assert not copies.large(parts[:, :28, :28]) and copies.large(parts)


def test_rows_of_a_table_are_known_by_their_bytes():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    keys = copies.row_keys(rows)
    assert copies.same(copies.row_keys(rows[[7, 3]]), keys).tolist() == [7, 3]
    assert copies.same(copies.row_keys(rows[:2, ::-1]), keys).tolist() == [-1, -1]
    assert copies.same(keys[:1], keys[:0]).tolist() == [-1]


@pytest.fixture
def leaking(tmp_path: Path, parts) -> Path:
    """An image folder whose test split has an exact copy, a smaller and a mirrored one of pictures of training."""
    for split, own in (("train", parts[:20]), ("validation", parts[20:24]), ("test", parts[24:28])):
        for number, picture in enumerate(own):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:02}.png")
    (tmp_path / "test" / "a" / "copy.png").write_bytes((tmp_path / "train" / "b" / "03.png").read_bytes())
    Image.fromarray(parts[5]).resize((36, 48)).save(tmp_path / "test" / "a" / "small.jpg", quality=70)
    Image.fromarray(parts[8][:, ::-1]).save(tmp_path / "test" / "b" / "turned.png")
    return tmp_path


@pytest.mark.parametrize("decoding", ["stream", "memory"])
def test_copies_are_named_by_their_files(leaking: Path, decoding, monkeypatch):
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(leaking / "cache"))
    config = schema.ImageFolder(path=str(leaking), image_size=[64, 48], decoding=decoding, test="test")
    told = [line for line in notes.notes_of(prepare(config)) if "training split" in line]
    assert told == [
        "1 of 7 test pictures is also in the training split: test/a/copy.png (train/b/03.png)",
        "2 of 7 test pictures are nearly the same as one of the training split, resized, compressed or mirrored: "
        "test/a/small.jpg (train/b/05.png), test/b/turned.png (train/a/08.png)",
    ]


def test_a_damaged_picture_is_told_before_training(leaking: Path, monkeypatch):
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(leaking / "cache"))
    file = leaking / "test" / "a" / "00.png"
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(DataError) as error:
        prepare(schema.ImageFolder(path=str(leaking), image_size=[64, 48], decoding="stream"))
    assert error.value.where == str(file)


def test_the_command_lists_all(bigctl, leaking: Path):
    folder = ("data", "image_folder", f"data.path={leaking}", "data.image_size=[64,48]", "--copies")
    found = bigctl.json(*folder)
    assert found["count"] == {"validation": 0, "test": 3} and found["compared"]
    listed = [(each["picture"], each["of"], each["class"], each["of_class"], each["how"]) for each in found["copies"]]
    assert listed == [
        ("test/a/copy.png", "train/b/03.png", "a", "b", "same"),
        ("test/a/small.jpg", "train/b/05.png", "a", "b", "near"),
        ("test/b/turned.png", "train/a/08.png", "b", "a", "mirrored"),
    ]
    text = bigctl(*folder, "--most", "1").stdout
    assert "3 of 7 test pictures (42.9%) are in the training split too" in text and "and 2 more" in text
    assert "small.jpg" not in text
    assert "only pictures are compared" in bigctl("data", "breast_cancer", "--copies", code=2).stderr
