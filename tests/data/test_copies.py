"""Promises of `bigctl.data.copies`: one photograph made anew is found, two of the same kind are not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

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
    if how == "grey":
        return np.asarray(image.convert("L").convert("RGB"))
    if how == "mirrored":
        return picture[:, ::-1]
    return np.clip(picture * 0.8 + 30, 0, 255).astype(np.uint8)


def found(pictures: np.ndarray, train: np.ndarray, validation: np.ndarray | None = None) -> list[copies.Copy]:
    """What of these pictures of a test split is in the others too."""
    others = {"train": train, "validation": train[:0] if validation is None else validation}
    return [copy for copy in copies.across(copies.looks({**others, "test": pictures}, near=True)) if copy[0] == "test"]


@pytest.mark.parametrize("how", ["compressed", "smaller", "brighter", "grey", "mirrored"])
def test_the_same_photograph_is_found(parts, how):
    assert len(parts) >= 30
    copied = found(np.stack([changed(picture, how) for picture in parts[::3]]), parts)
    assert len(copied) >= 0.9 * len(parts[::3])
    for copy in copied:
        assert (copy.of_split, copy.of_row) == ("train", 3 * copy.row) and copies.ALIKE <= copy.alike <= 1
        assert copy.how == (copies.MIRRORED if how == "mirrored" else copies.NEAR)


def test_other_parts_of_a_photograph_are_none(parts):
    assert not found(parts[::2], parts[1::2])


def test_pictures_of_one_colour_are_no_copies_and_counted(parts):
    blank = np.full((1, 64, 48, 3), 200, np.uint8)
    assert not found(np.concatenate([parts[::2], blank]), np.concatenate([parts[1::2], blank]))
    assert copies.looks({"train": np.concatenate([parts[:3], blank])}, near=False)["train"].blank.tolist() == [
        0,
        0,
        0,
        1,
    ]


def disc(colour: tuple[int, int, int], letter: bool, seed: int) -> np.ndarray:
    """A sign: a disc of a colour on white, at nearly the same place, with or without a bar."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[(rows - 32) ** 2 + (columns - 32) ** 2 < 24**2] = colour
    if letter:
        picture[24:40, 30:34] = 255
    return np.clip(picture + draw.integers(-3, 4, picture.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("other", [((0, 140, 0), False), ((200, 0, 0), True)], ids=["colour", "letter"])
def test_signs_of_one_shape_are_told_apart(other):
    signs = np.stack([disc((200, 0, 0), False, seed) for seed in range(3)])
    assert len(found(signs[:1], signs[1:])) == 1
    assert not found(np.stack([disc(*other, seed=9)]), signs)


def test_the_first_of_equal_pictures_is_named_and_validation_is_compared_too(parts):
    copied = found(parts[[4, 5, 9]], parts[[0, 5, 4, 4]], parts[[8, 9, 5]])
    assert [copy[:5] for copy in copied] == [
        ("test", 0, "train", 2, copies.SAME), ("test", 1, "train", 1, copies.SAME),
        ("test", 2, "validation", 1, copies.SAME),
    ]  # fmt: skip


def test_small_pictures_are_compared_by_their_bytes_alone(parts):
    small = np.ascontiguousarray(parts[:10, :28, :28])
    assert [copy.how for copy in found(small[3:4], small)] == [copies.SAME]
    assert not found(np.clip(small[3:4].astype(int) + 1, 0, 255).astype(np.uint8), small)


def test_rows_of_a_table_are_known_by_their_bytes():
    rows = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    keys = copies.row_keys(rows)
    assert copies.same(copies.row_keys(rows[[7, 3]]), keys).tolist() == [7, 3]
    assert copies.same(copies.row_keys(rows[:2, ::-1]), keys).tolist() == [-1, -1]
    assert copies.same(keys[:1], keys[:0]).tolist() == [-1]


def write(folder: Path, pictures: dict[str, np.ndarray], suffix: str = ".png") -> None:
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}{suffix}")


def streamed(folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> list[str]:
    """What is noted of copies in a folder of pictures that stay in their files."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(folder.parent / "cache"))
    config = schema.ImageFolder(path=str(folder), image_size=[64, 48], decoding="stream", test="test", **keys)
    return [line for line in notes.notes_of(prepare(config)) if "also in" in line or "nearly the same" in line]


def test_files_that_differ_in_their_middle_alone_are_no_copies(tmp_path: Path, parts, monkeypatch) -> None:
    """Of bitmaps all sizes are the same, and with a white margin the samples are too that files are indexed by."""
    margin = [np.pad(part, ((40, 40), (40, 40), (0, 0)), constant_values=255) for part in parts[:12]]
    names = [f"{split}/{'ab'[n % 2]}/{n}" for split in ("train", "validation", "test") for n in range(4)]
    write(tmp_path / "p", dict(zip(names, margin, strict=True)), ".bmp")
    assert len({(tmp_path / "p" / f"{name}.bmp").read_bytes()[:4096] for name in names}) == 1
    assert not streamed(tmp_path / "p", monkeypatch)


def test_a_small_picture_among_large_ones_changes_nothing_for_these(leaking: Path, parts, monkeypatch) -> None:
    write(leaking, {"train/a/000": parts[0, :20, :20], "test/b/000": parts[0, :20, :20]})
    assert [line[:40] for line in streamed(leaking, monkeypatch)] == [
        "2 of 8 test pictures are also in the tra", "2 of 8 test pictures are nearly the same"
    ]  # fmt: skip


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
    (leaking / "test" / "b" / "chosen.png").write_bytes((leaking / "validation" / "a" / "00.png").read_bytes())
    folder = ("data", "image_folder", f"data.path={leaking}", "data.image_size=[64,48]", "--copies")
    found = bigctl.json(*folder)
    assert found["count"] == {"validation": 0, "test": 4} and found["compared"]
    listed = [(each["picture"], each["of"], each["class"], each["of_class"], each["how"]) for each in found["copies"]]
    assert listed == [
        ("test/a/copy.png", "train/b/03.png", "a", "b", "same"),
        ("test/a/small.jpg", "train/b/05.png", "a", "b", "near"),
        ("test/b/turned.png", "train/a/08.png", "b", "a", "mirrored"),
        ("test/b/chosen.png", "validation/a/00.png", "b", "a", "same"),
    ]
    text = bigctl(*folder, "--most", "1").stdout
    assert "3 of 8 test pictures (37.5%) are in the training split too" in text and "and 3 more" in text
    assert "1 of 8 test pictures (12.5%) are in the validation split too" in text
    assert "small.jpg" not in text
    assert "--copies goes with nothing else" in bigctl(*folder, "--contact-sheet", "s.png", code=2).stderr
    assert "only pictures are compared" in bigctl("data", "breast_cancer", "--copies", code=2).stderr
