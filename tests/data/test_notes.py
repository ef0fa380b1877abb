"""What data does not say is said: at each preparation, each training and each look at a run."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.data.catalog import read_for_prediction
from bigctl.data.notes import notes_of, unknown_share
from bigctl.data.preparation.encode import channel_statistics
from bigctl.data.preparation.prepare import prepare
from bigctl.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def twice(config: schema.Data) -> list[str]:
    """The notes of a data set, which are the same from a cold and from a warm cache."""
    first = notes_of(prepare(config))
    assert notes_of(prepare(config)) == first
    return first


def pictures(folder: Path, count: int, draw) -> Path:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(draw(label, number)).save(folder / label / f"{number}.png")
    return folder


def test_copies_across_splits_are_told_of_tables_and_pictures(tmp_path: Path) -> None:
    rows = "".join(f"{n % 30 * 7 % 11},{n % 30 * 5 % 13},{'np'[n * n % 2]}\n" for n in range(90))
    (tmp_path / "t.csv").write_text("a,b,y\n" + rows)
    found = twice(schema.Csv(path=str(tmp_path / "t.csv"), label="y"))
    assert any("test rows are also in the training split" in note for note in found)
    draw = np.random.default_rng(0)
    folder = pictures(tmp_path / "p" / "train", 8, lambda *_: draw.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    shutil.copytree(folder, tmp_path / "p" / "test")
    found = twice(schema.ImageFolder(path=str(tmp_path / "p")))
    told = "14 of 16 test pictures are also in the training split: test/a/"  # two were held out for validation
    assert any(note.startswith(told) for note in found)


def test_pictures_that_show_nothing_are_counted(tmp_path: Path) -> None:
    def icon(label: str, number: int) -> np.ndarray:
        pixels = np.zeros((16, 16, 4), np.uint8)  # black on transparent
        pixels[number % 8 :, : 8 if label == "a" else 3, 3] = 255
        return pixels

    folder = pictures(tmp_path / "icons", 10, icon)
    found = twice(schema.ImageFolder(path=str(folder)))
    assert any(note.startswith("20 of 20 pictures are of one colour throughout") for note in found)
    config = schema.ImageFolder(path=str(folder), background="white")
    made = prepare(config)
    assert not any("of one colour" in note for note in notes_of(made))
    again = read_for_prediction(folder / "a" / "3.png", config, made.features).inputs
    expected = np.full((16, 16), 255)
    expected[3:, :8] = 0
    assert np.array_equal(np.asarray(again)[0, ..., 0], expected)


def test_a_split_that_lacks_classes_says_so(tmp_path: Path) -> None:
    rows = "".join(f"{n % 7},{n % 5}.5,{'common' if n % 20 else ('x', 'y')[n % 40 == 0]}\n" for n in range(200))
    (tmp_path / "t.csv").write_text("a,b,y\n" + rows)
    config = schema.Csv(path=str(tmp_path / "t.csv"), label="y", validation="train[1:20]", test="train[21:40]")
    found = twice(config)
    assert "the validation split lacks 2 of 3 classes: 'x', 'y'" in found


def test_files_that_are_no_pictures_are_counted(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 8, lambda label, number: np.full((4, 4), 9 * number + (label == "a"), np.uint8))
    (folder / "a" / "readme.tif").write_text("x")
    assert "1 files are no images by their suffix, and are left out" in twice(schema.ImageFolder(path=str(folder)))


def test_unknown_tokens_are_a_share_of_words_not_of_marks() -> None:
    assert unknown_share(100 / 300, tokens=300, texts=100, pairs=False) == pytest.approx(1)
    assert unknown_share(0.0, tokens=4, texts=2, pairs=False) == 0


def test_few_examples_get_the_share_that_helps(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(f"{n * 7 % 9},{n * n % 5},{'xyz'[n % 3]}\n" for n in range(9)))
    with pytest.raises(DataError) as error:
        prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y"))
    assert "only 2 in each class are left" in str(error.value)
    assert error.value.where == "data.validation_fraction" and "data.validation_fraction=0.34" in str(error.value.hint)
    (tmp_path / "few.csv").write_text(
        "a,b,y\n" + "".join(f"{n * 7 % 9},{n * n % 5},{'xyz'[n % 3]}\n" for n in range(3))
    )
    with pytest.raises(DataError) as error:  # one of a class is too few for three splits, whatever the shares
        prepare(schema.Csv(path=str(tmp_path / "few.csv"), label="y"))
    assert "_fraction=" not in str(error.value.hint) and "three of each class at least" in str(error.value.hint)
    prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y", validation_fraction=0.34))


def test_statistics_of_pictures_take_little_memory_and_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 96, 96, 3), dtype=np.uint8)
    tracemalloc.start()
    mean, std = channel_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20  # eight bytes a value would be 66 MB of pictures, twice
    np.testing.assert_allclose(mean, (images / 255.0).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255.0).std((0, 1, 2)), rtol=1e-9)


def test_pictures_that_cannot_be_used_are_left_out_on_request(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 9, lambda label, n: np.full((4, 4), 9 * n + (label == "a") + 1, np.uint8))
    (folder / "a" / "3.png").write_text("no picture")
    broken = (folder / "b" / "4.png").read_bytes()
    (folder / "b" / "4.png").write_bytes(broken[:50])
    with pytest.raises(DataError, match="not an image"):
        prepare(schema.ImageFolder(path=str(folder)))
    made = prepare(schema.ImageFolder(path=str(folder), on_bad="skip"))
    assert any(note.startswith("2 files are left out") for note in notes_of(made))
    found = {
        (int(x[0, 0, 0]), int(y)) for s in made.splits.values() for x, y in zip(s["inputs"], s["label"], strict=True)
    }
    assert found == {(9 * n + 2, 0) for n in range(9) if n != 3} | {(9 * n + 1, 1) for n in range(9) if n != 4}


def test_names_of_pictures_may_be_in_another_encoding(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 8, lambda label, n: np.full((4, 4), 9 * n + (label == "a"), np.uint8))
    os.rename(folder / "a" / "0.png", os.fsencode(folder / "a") + "/照片.png".encode("gbk"))
    assert sum(prepare(schema.ImageFolder(path=str(folder))).size(s) for s in ("train", "validation", "test")) == 16
    with pytest.raises(ConfigError, match="data.path: the value is not UTF-8"):
        compose([os.fsdecode(b"data.path=\xca\xfd.csv")])
