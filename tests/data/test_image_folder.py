"""Promises of `bigctl.data.sources.image_folder` and `paths`: folders of images, their fingerprints."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.data.files.paths import fingerprint_files, fingerprint_folder
from bigctl.data.sources.image_folder import read_image, read_image_folder
from bigctl.data.sources.image_index import Wanted
from bigctl.errors import DataError


def save(file: Path, *, size=(4, 6), colour=(10, 20, 30), mode="RGB", **options) -> Path:
    """An image of one colour, `size` being (height, width)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size[1], size[0]), colour).save(file, **options)
    return file


def two_classes(root: Path, **options) -> Path:
    for name in ("cat", "dog"):
        for i in range(2):
            save(root / name / f"{i}.png", **options)
    return root


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(match: str, action, *args, **options) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# --- What a folder becomes --------------------------------------------------------------------------------------------


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    pixels = noise(5, 4, 6, 3)
    for i, name in enumerate(["b/0.png", "a/1.png", "a/0.png", "c/deep/down/0.png", "b/1.PNG"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(tmp_path / name, format="PNG")
    decoded = read_image_folder(tmp_path)
    train = decoded.splits["train"]
    assert decoded.kind == "image" and decoded.classes == ("a", "b", "c") and list(decoded.splits) == ["train"]
    assert train["image"].dtype == np.uint8 and train["label"].dtype == np.int32
    assert train["label"].tolist() == [0, 0, 1, 1, 2]
    assert np.array_equal(train["image"], pixels[[2, 1, 0, 4, 3]])


def test_classes_and_files_are_in_natural_order(tmp_path):
    for name in ("10", "9", "1"):
        for i in (10, 9):
            save(tmp_path / name / f"{i}.png", colour=(int(name), i, 0))
    decoded = read_image_folder(tmp_path)
    assert decoded.classes == ("1", "9", "10")
    assert decoded.splits["train"]["image"][:, 0, 0, :2].tolist() == [
        [1, 9],
        [1, 10],
        [9, 9],
        [9, 10],
        [10, 9],
        [10, 10],
    ]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders_are_splits(tmp_path, name):
    for split in ("train", name, "test"):
        two_classes(tmp_path / split)
    save(tmp_path / "test" / "dog" / "more.png")
    (tmp_path / "docs").mkdir()
    decoded = read_image_folder(tmp_path)
    assert {split: len(columns["label"]) for split, columns in decoded.splits.items()} == {
        "train": 4,
        "validation": 4,
        "test": 5,
    }
    assert "docs" in decoded.info["notes"][0]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "plane"):
        save(tmp_path / name / "0.png")
    assert read_image_folder(tmp_path).classes == ("plane", "train")


def test_explicit_paths_are_splits(tmp_path):
    decoded = read_image_folder(
        two_classes(tmp_path / "a"), validation_path=two_classes(tmp_path / "b"), test_path=two_classes(tmp_path / "c")
    )
    assert list(decoded.splits) == ["train", "validation", "test"]


def test_labels_of_other_splits_follow_train(tmp_path):
    two_classes(tmp_path / "train")
    save(tmp_path / "test" / "dog" / "0.png")
    assert read_image_folder(tmp_path / "train", test_path=tmp_path / "test").splits["test"]["label"].tolist() == [1]


def test_other_and_hidden_files_are_ignored_and_counted(tmp_path):
    two_classes(tmp_path)
    for name in ("cat/.DS_Store", "cat/notes.txt", "dog/.hidden.png", "dog/.git/x.png", "__MACOSX/cat/._0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    decoded = read_image_folder(tmp_path)
    assert len(decoded.splits["train"]["label"]) == 4 and decoded.info["ignored_files"] == 3


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    (two_classes(tmp_path) / "cat" / "again").symlink_to(tmp_path / "cat", target_is_directory=True)
    assert len(read_image_folder(tmp_path).splits["train"]["label"]) == 4


def test_images_in_no_class_are_noted(tmp_path):
    save(two_classes(tmp_path) / "stray.png")
    assert "1 images lie directly" in read_image_folder(tmp_path).info["notes"][0]


def test_grey_files_have_one_channel_unless_one_is_coloured(tmp_path):
    two_classes(tmp_path, mode="L", colour=7)
    assert read_image_folder(tmp_path).splits["train"]["image"].shape == (4, 4, 6, 1)
    save(tmp_path / "cat" / "colour.png")
    assert read_image_folder(tmp_path).splits["train"]["image"].shape == (5, 4, 6, 3)
    assert read_image_folder(tmp_path, wanted=Wanted(channels=1)).splits["train"]["image"].shape == (5, 4, 6, 1)


def test_images_are_resized_like_pillow_does(tmp_path):
    pixels = noise(9, 7, 3)
    two_classes(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "cat" / "0.png")
    images = read_image_folder(tmp_path, wanted=Wanted((5, 3))).splits["train"]["image"]
    assert images.shape == (4, 5, 3, 3)
    assert np.array_equal(images[0], np.asarray(Image.fromarray(pixels).resize((3, 5), Image.Resampling.BILINEAR)))


def test_order_does_not_depend_on_threads(tmp_path):
    for i in range(100):
        save(tmp_path / f"{i % 2}" / f"{i}.png", colour=i, mode="L")
    values = read_image_folder(tmp_path).splits["train"]["image"][:, 0, 0, 0]
    assert values.tolist() == [*range(0, 100, 2), *range(1, 100, 2)]


# --- One picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "gif", "webp"])
def test_formats_are_read_and_prediction_decodes_as_training(tmp_path, suffix):
    for name in ("a", "b"):
        save(tmp_path / name / f"0.{suffix}", size=(16, 8), colour=(200, 100, 50))
    images = read_image_folder(tmp_path, wanted=Wanted((5, 5))).splits["train"]["image"]
    assert np.abs(images[0].reshape(-1, 3).astype(int) - [200, 100, 50]).max() <= 3
    file = tmp_path / "a" / f"0.{suffix}"
    assert np.array_equal(read_image(file, (5, 5), 3), images[0])
    assert np.array_equal(read_image(file.read_bytes(), (5, 5), 3), images[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = noise(4, 6)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name / "0.png", exif=exif)
    assert np.array_equal(read_image_folder(tmp_path).splits["train"]["image"][0, :, :, 0], upright)


def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path):
    wide = np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png")[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_alpha_is_composited_over_black(tmp_path):
    save(tmp_path / "clear.png", mode="RGBA", colour=(200, 100, 50, 0))
    save(tmp_path / "half.png", mode="RGBA", colour=(200, 100, 50, 128))
    save(tmp_path / "grey.png", mode="LA", colour=(200, 128))
    assert read_image(tmp_path / "clear.png").max() == 0
    assert read_image(tmp_path / "half.png")[0, 0].tolist() == pytest.approx([100, 50, 25], abs=1)
    grey = read_image(tmp_path / "grey.png")
    assert grey.shape[2] == 1 and grey[0, 0, 0] == pytest.approx(100, abs=1)


def test_palettes_are_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    image.putpalette([5, 6, 7, 250, 0, 128])
    image.save(tmp_path / "colour.png")
    assert read_image(tmp_path / "colour.png").tolist() == [[[5, 6, 7], [250, 0, 128]]]
    image.putpalette([5, 5, 5, 250, 250, 250])
    image.save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[5], [250]]]
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "clear.png").tolist() == [[[5], [0]]]


def test_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif", None, 3)[0, 0].tolist() == [255, 0, 0]


def test_one_bit_and_cmyk_images_are_read(tmp_path):
    save(tmp_path / "bit.png", mode="1", colour=1)
    save(tmp_path / "cmyk.jpg", mode="CMYK", colour=(0, 255, 255, 0))
    assert read_image(tmp_path / "bit.png").tolist() == np.full((4, 6, 1), 255).tolist()
    red = read_image(tmp_path / "cmyk.jpg")[0, 0]
    assert red[0] > 200 and red[1] < 50


# --- What a folder is refused for -------------------------------------------------------------------------------------


def test_a_missing_folder_is_named_with_its_likes(tmp_path):
    two_classes(tmp_path / "flowers")
    (tmp_path / "flower.err").touch()  # no folder
    assert "did you mean flowers?" in str(refused("no such directory", read_image_folder, tmp_path / "flower"))
    assert "does not exist either" in str(refused("no such directory", read_image_folder, tmp_path / "x" / "y"))


def test_a_file_is_no_folder(tmp_path):
    refused("not a directory", read_image_folder, save(tmp_path / "x.png"))


def test_images_without_class_folders_are_refused(tmp_path):
    save(tmp_path / "0.png")
    assert "1 images lie directly in it" in str(refused("no class folders", read_image_folder, tmp_path))


def test_an_empty_folder_is_refused(tmp_path):
    refused("it holds no images", read_image_folder, tmp_path)


def test_one_class_is_refused(tmp_path):
    save(tmp_path / "cat" / "0.png")
    refused("only one class, 'cat'", read_image_folder, tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_named(tmp_path, split):
    for name in ("train", "test"):
        two_classes(tmp_path / name)
    (tmp_path / split / "emu").mkdir()
    (tmp_path / split / "emu" / "readme.txt").write_text("none yet")
    refused(r"emu: class folder 'emu' has no images \(1 other files\)", read_image_folder, tmp_path)


def test_files_that_are_no_images_are_named(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "cat" / "2.jpg").write_text("hello")
    (tmp_path / "dog" / "3.png").write_bytes(b"")
    error = refused("not an image: its content is none of PNG, JPEG", read_image_folder, tmp_path)
    assert error.where == str(tmp_path / "cat" / "2.jpg") and str(tmp_path / "dog" / "3.png") in error.message
    refused("the file is empty", read_image, tmp_path / "dog" / "3.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_images_are_named(tmp_path, suffix):
    two_classes(tmp_path, size=(64, 64))
    file = tmp_path / "cat" / f"9.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(file)
    file.write_bytes(file.read_bytes()[:-500])
    assert refused("cannot be decoded: .*truncated", read_image_folder, tmp_path).where == str(file)


def test_bytes_that_are_no_image_are_refused():
    refused("image data: this is not an image", read_image, b"hello")
    refused("no such file", read_image, Path("no/such.png"))


def test_different_sizes_are_named_with_the_remedy(tmp_path):
    save(two_classes(tmp_path) / "dog" / "2.png", size=(5, 6))
    error = str(refused("this one is 5x6 .*, .*0.png is 4x6", read_image_folder, tmp_path))
    assert "data.image_size=[4,6]" in error and "2.png" in error


def test_an_orientation_behind_the_pixels_counts_too(tmp_path):
    two_classes(tmp_path)
    file = tmp_path / "dog" / "1.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    data = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    file.write_bytes(file.read_bytes()[:-12] + chunk + file.read_bytes()[-12:])
    assert read_image(file).shape == (6, 4, 3)
    refused("this one is 6x4", read_image_folder, tmp_path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_train_lacks_is_refused(tmp_path, split):
    two_classes(tmp_path / "train")
    save(tmp_path / split / "emu" / "0.png")
    refused("class 'emu' is not among the training classes cat, dog", read_image_folder, tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    save(two_classes(tmp_path) / "dog" / "big.png", size=(50, 50))
    for limit in (2000, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "big.png" in str(refused(f"too large, above {limit} pixels", read_image_folder, tmp_path))


def test_a_split_given_twice_is_refused(tmp_path):
    data, own = tmp_path / "data", two_classes(tmp_path / "own")
    two_classes(data / "train")
    two_classes(data / "val")
    refused("validation images are given twice", read_image_folder, data, validation_path=own)
    refused("training folder itself", read_image_folder, own, test_path=own)


def test_two_names_for_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        two_classes(tmp_path / name)
    refused("would both be the validation split", read_image_folder, tmp_path)


def test_a_test_folder_without_classes_is_refused(tmp_path):
    two_classes(tmp_path / "train")
    save(tmp_path / "test" / "0.png")
    refused("'test' has images but is neither", read_image_folder, tmp_path)


def test_splits_without_train_are_refused(tmp_path):
    two_classes(tmp_path / "val")
    two_classes(tmp_path / "test")
    refused("there is no 'train'", read_image_folder, tmp_path)


def test_impossible_shapes_are_refused(tmp_path):
    two_classes(tmp_path)
    refused("data.image_size", read_image_folder, tmp_path, wanted=Wanted((0, 3)))
    refused("4 channels", read_image_folder, tmp_path, wanted=Wanted(channels=4))


# --- Fingerprints -----------------------------------------------------------------------------------------------------


def test_folder_fingerprint_changes_with_any_visible_file(tmp_path):
    two_classes(tmp_path)
    first = fingerprint_folder(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert fingerprint_folder(tmp_path) == first
    os.utime(tmp_path / "cat" / "0.png", ns=(1, 1))
    second = fingerprint_folder(tmp_path)
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    assert len({first, second, fingerprint_folder(tmp_path)}) == 3


def test_file_fingerprint_follows_content_alone(tmp_path):
    a, b, c = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    for path, text in ((a, "one"), (b, "one"), (c, "two")):
        path.write_text(text)
    assert fingerprint_files([a, c]) == fingerprint_files([b, c])
    assert len({fingerprint_files(paths) for paths in ([a], [c], [a, c], [c, a])}) == 4
    refused("no such file", fingerprint_files, [tmp_path / "d"])
