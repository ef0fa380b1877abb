"""Pictures decoded while training are those decoded before it; what is drawn of them follows from (seed, position)."""

from __future__ import annotations

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.config import compose
from bigctl.config.schema import ImageFolder
from bigctl.data import cache, notes
from bigctl.data.dataset import Dataset
from bigctl.data.files import file_index
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.layouts.streamed import Streamed
from bigctl.data.pictures import crops, sums
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.preparation import encode, prepare
from bigctl.data.sources import image_decoding, image_index, listing
from bigctl.errors import DataError

SIZE = [24, 20]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes of twelve pictures of many shapes, most of them JPEG, one of them turned by its EXIF orientation."""
    rng = np.random.default_rng(0)
    for number in range(24):
        height, width = rng.integers(20, 180, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)).resize((width, height))
        file = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.{'png' if number % 5 == 4 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if number == 2:
            exif[0x0112] = 6
        image.save(file, **({} if file.suffix == ".png" else {"exif": exif, "quality": 90}))
    return settled(tmp_path / "photographs")


def settled(folder: Path) -> Path:
    """The folder, and all in it, as if nothing had changed there for a minute."""
    for place in [folder, *folder.rglob("*")]:
        os.utime(place, (time.time() - 60, time.time() - 60))
    return folder


def config(folder: Path, **keys: object) -> ImageFolder:
    return ImageFolder(kind="image_folder", path=str(folder), **{"image_size": SIZE, **keys})  # type: ignore[arg-type]


def streamed(folder: Path, *, least: float = 0.0, threads: int | None = None, **keys: object) -> Dataset:
    options = BatchOptions(least=least, threads=threads)
    return prepare.prepare(config(folder, decoding="stream", **keys), batches=options)


def images(dataset: Dataset, split: str = "train") -> EncodedImages:
    found = dataset.splits[split]["inputs"]
    assert isinstance(found, EncodedImages)
    return found


def refused(match: str, *work: object) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        work[0](*work[1:])  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return caught.value


# ------------------------------------------------------------------------------------------- the same as from memory


@pytest.mark.parametrize("keys", [{}, {"resize": "crop"}, {"channels": 1, "background": "white"}], ids=str)
def test_streamed_pictures_are_those_of_the_array_cache(photographs: Path, keys: dict[str, object]) -> None:
    stream, memory = streamed(photographs, **keys), prepare.prepare(config(photographs, **keys))
    assert stream.streamed and not memory.streamed
    assert stream.features == memory.features
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(np.asarray(images(stream, split)), memory.splits[split]["inputs"])
        np.testing.assert_array_equal(stream.splits[split]["label"], memory.splits[split]["label"])
    assert notes.notes_of(stream)[-1].startswith("24 pictures (")
    assert images(stream).shape == memory.splits["train"]["inputs"].shape


def test_of_a_file_of_labels_too(photographs: Path, tmp_path: Path) -> None:
    rows = [f"{file.relative_to(photographs)},{file.parent.name}" for file in sorted(photographs.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("file_name,labels\n" + "\n".join(rows))
    keys: dict[str, object] = {"labels_file": str(tmp_path / "labels.csv")}
    stream, memory = streamed(photographs, **keys), prepare.prepare(config(photographs, **keys))
    np.testing.assert_array_equal(np.asarray(images(stream)), memory.splits["train"]["inputs"])
    assert not any("not used" in note for note in notes.notes_of(memory))


def test_a_column_of_splits_that_nobody_asked_for_is_told(photographs: Path, tmp_path: Path) -> None:
    rows = [
        f"{file.relative_to(photographs)},{file.parent.name},{('train', 'val', 'test')[number % 3]}"
        for number, file in enumerate(sorted(photographs.rglob("*.jpg")))
    ]
    (tmp_path / "labels.csv").write_text("file_name,labels,split\n" + "\n".join(rows))
    keys: dict[str, object] = {"labels_file": str(tmp_path / "labels.csv")}
    told = "the column 'split' is not used: data.split=split goes by it"
    assert told in notes.notes_of(prepare.prepare(config(photographs, **keys)))
    assert told not in notes.notes_of(prepare.prepare(config(photographs, split="split", **keys)))


def test_many_pictures_are_streamed_and_few_are_not(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not prepare.prepare(config(photographs)).streamed
    monkeypatch.setattr(image_index, "FEW", 24 * SIZE[0] * SIZE[1] * 3 - 1)
    assert prepare.prepare(config(photographs)).streamed
    assert not prepare.prepare(config(photographs, decoding="memory")).streamed


def test_a_configuration_saved_before_the_key_was_there_keeps_its_pictures_in_memory() -> None:
    given = compose.compose(["recipe=cnn_cls", "data=image_folder", "data.path=x"]).config
    assert given.data.decoding is None  # type: ignore[attr-defined]
    lines = [line for line in compose.to_yaml(given).splitlines() if "decoding" not in line]
    assert compose.from_yaml("\n".join(lines), where="x").data.decoding == "memory"  # type: ignore[attr-defined]


def test_statistics_are_of_a_sample_drawn_by_the_seed_of_splits(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_SAMPLED", 5)
    dataset = streamed(photographs)
    sample = images(dataset).take(encode._sample(len(images(dataset)), 0))
    assert len(sample) == 5
    assert dataset.features.mean == encode.channel_statistics(np.asarray(sample))[0]
    assert "of 5 drawn at random" in notes.notes_of(dataset)[-1]


# ----------------------------------------------------------------------------------------------- (seed, position)


def test_batches_are_the_same_for_any_number_of_threads_and_processes(photographs: Path) -> None:
    dataset = streamed(photographs, least=0.08)
    columns = dataset.splits["train"]
    plan = dataset.batches.training_plan(columns, batch_size=8, seed=3)
    indices, length = plan.batch(40)
    whole = dataset.batches.gather(columns, indices, length)
    for threads in (1, 2, 8):
        layout = Streamed(0.08, threads)
        again, _ = layout.training_plan(columns, batch_size=8, seed=3).batch(40)
        np.testing.assert_array_equal(layout.gather(columns, again, None)["inputs"], whole["inputs"])
    parts = [Streamed(0.08).gather(columns, indices[start : start + 2], None) for start in range(0, 8, 2)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_what_is_drawn_follows_from_seed_and_position_alone(photographs: Path) -> None:
    columns = streamed(photographs, least=0.08).splits["train"]
    layout = Streamed(0.08)

    def batch(position: int, seed: int = 0, size: int = 4, frozen: bool = False) -> np.ndarray:
        plan = layout.training_plan(columns, batch_size=size, seed=seed, frozen=frozen)
        return np.asarray(layout.gather(columns, *plan.batch(position))["inputs"])

    assert not np.array_equal(batch(0), batch(0, seed=1))
    np.testing.assert_array_equal(batch(0, size=8)[4:], batch(4))
    size = len(columns["label"])
    rows = [Streamed().training_plan(columns, batch_size=size, seed=0).batch(p)[0] for p in (0, size)]
    epochs = [batch(p, size=size)[np.argsort(own)] for p, own in zip((0, size), rows, strict=True)]
    assert not np.array_equal(*epochs)  # another part of each picture in every epoch
    np.testing.assert_array_equal(batch(0, frozen=True), batch(40, frozen=True))


def test_evaluation_sees_the_middle_of_every_picture_once(photographs: Path) -> None:
    dataset = streamed(photographs, least=0.08, resize="crop")
    columns = dataset.splits["test"]
    seen = [
        dataset.batches.gather(columns, indices, length)["inputs"][mask > 0]
        for indices, mask, length in dataset.batches.evaluation_plan(columns, batch_size=2, shards=1).batches()
    ]
    np.testing.assert_array_equal(np.concatenate(seen), np.asarray(images(dataset, "test")))


# ------------------------------------------------------------------------------------------------------------- parts


def test_the_middle_has_the_shape_wanted_and_touches_two_sides() -> None:
    assert crops.middle(400, 300, (224, 224)) == (50, 0, 350, 300)
    assert crops.middle(300, 400, (224, 224)) == (0, 50, 300, 350)
    assert crops.middle(500, 375, (100, 200)) == (0, 62.5, 500, 312.5)


def test_random_parts_have_the_areas_and_shapes_of_inception() -> None:
    numbers = crops.draws(crops.keys(0, np.arange(4000)))
    assert numbers.min() >= 0 and numbers.max() < 1
    boxes = np.array([crops.drawn(450, 450, (224, 224), 0.08, each) for each in numbers])
    columns, rows = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, shape = columns * rows / (450 * 450), columns / rows
    assert (boxes >= 0).all() and boxes[:, 2:].max() <= 450
    assert 0.078 < share.min() < 0.1 and share.max() > 0.9
    assert 0.73 < shape.min() < 0.77 and 1.3 < shape.max() < 1.37
    assert abs(np.log(shape).mean()) < 0.01
    assert abs(share.mean() - 0.5) < 0.03  # large ones that do not fit are drawn again
    assert abs((boxes[:, 0] / np.maximum(1, 450 - columns)).mean() - 0.5) < 0.03
    long = crops.drawn(4000, 10, (32, 32), 0.9, numbers[0])  # of which no attempt can fit
    assert long == (1993, 0, 2006, 10)


def test_large_jpegs_are_decoded_small_where_a_part_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize(
        (1600, 1200), Image.Resampling.BICUBIC
    )
    smooth.save(tmp_path / "x.jpg", quality=95)
    small = image_decoding.read_image(tmp_path / "x.jpg", (60, 60), 3, resize="crop").astype(int)
    monkeypatch.setattr(image_decoding, "_drafted", lambda image, box, wanted, turned: box)
    full = image_decoding.read_image(tmp_path / "x.jpg", (60, 60), 3, resize="crop").astype(int)
    assert 0 < abs(small - full).max() <= 6 and abs(small - full).mean() < 1


# --------------------------------------------------------------------------------------------------------- bad input


def test_a_damaged_file_is_named_when_it_is_decoded_and_skipped_where_that_is_asked(photographs: Path) -> None:
    file = photographs / "a" / "0.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    settled(photographs)
    error = refused("cannot be decoded: .*truncated", streamed, photographs)  # of a sample, which is all of so few
    assert error.where == str(file)
    refused(
        r"1 of 24 files .* data.bad_limit=0.01 allows: .*0.jpg;",
        lambda: streamed(photographs, on_bad="skip", bad_limit=0.01),
    )
    kept = streamed(photographs, on_bad="skip")
    memory = prepare.prepare(config(photographs, on_bad="skip"))
    assert notes.notes_of(kept)[0].startswith("1 file is left out, the first with this: ")
    np.testing.assert_array_equal(np.asarray(images(kept)), memory.splits["train"]["inputs"])


def test_what_cannot_be_a_picture_is_told_before_anything_is_trained(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photographs / "b" / "99.jpg").write_text("no picture")
    assert refused("not an image", streamed, photographs).where == str(photographs / "b" / "99.jpg")
    (photographs / "b" / "99.jpg").unlink()
    refused("images differ in size", lambda: streamed(photographs, image_size=None))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    refused("too large, above 200 pixels", streamed, photographs)


def test_a_file_that_changed_or_went_is_told_and_found_by_the_next_start(photographs: Path) -> None:
    dataset = streamed(photographs)
    place = listing.place((str(photographs), None, None))
    assert place.is_file()
    changed, gone = (Path(images(dataset).store.name(row)) for row in (0, 1))
    changed.write_bytes(changed.read_bytes() + b"x")
    assert refused("changed since it was indexed", images(dataset).__getitem__, 0).where == str(changed)
    assert not place.exists()
    assert streamed(photographs).fingerprint != dataset.fingerprint
    gone.unlink()
    assert refused("not there any more", images(dataset).__getitem__, 1).where == str(gone)


def test_files_that_were_touched_go_on_and_the_next_start_makes_the_index_again(photographs: Path) -> None:
    dataset = streamed(photographs)
    known = np.asarray(images(dataset))
    for file in photographs.rglob("*.*"):
        os.utime(file, (time.time() - 30, time.time() - 30))
    again = streamed(photographs)
    assert again.path == dataset.path  # as no folder has changed
    np.testing.assert_array_equal(np.asarray(images(again)), known)
    newest = streamed(photographs)
    assert newest.path != dataset.path and newest.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(np.asarray(images(newest)), known)


def test_a_set_is_the_same_once_it_is_decided_how_pictures_are_resized(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps what was decided, and makes the index again where the pictures were moved or the cache removed."""
    dataset = streamed(photographs)
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "other"))
    assert streamed(photographs, resize="stretch").fingerprint == dataset.fingerprint
    assert streamed(photographs, resize="crop").fingerprint != dataset.fingerprint


def test_a_file_that_was_written_anew_in_the_same_size_is_told(photographs: Path) -> None:
    dataset = streamed(photographs)
    file = Path(images(dataset).store.name(0))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert refused("changed since it was indexed", images(dataset).__getitem__, 0).where == str(file)


def test_to_verify_a_set_is_to_decode_all_of_it(photographs: Path) -> None:
    dataset = streamed(photographs)
    file = Path(images(dataset, "test").store.name(0))
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # of the same size and time
    file.write_bytes(content if file.suffix == ".png" else content[:40] + bytes(len(content) - 40))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert streamed(photographs).fingerprint == dataset.fingerprint
    with file_index.distrust():
        assert refused("image|not what it was", streamed, photographs).where == str(file)


@pytest.mark.parametrize("touched", [True, False])
def test_a_picture_that_changes_in_its_middle_is_found_once_it_was_read(
    touched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size, beginning and end, by which an index knows it, are what they were, and it can be decoded."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 40, 3), np.uint8)
    for number, values in enumerate(noise):
        file = tmp_path / "photographs" / "ab"[number % 2] / f"{number}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(values, (2, 2, 1))).save(file)
    folder = tmp_path / "photographs"
    settled(folder)
    first = streamed(folder)
    np.asarray(images(first))  # an epoch
    file = Path(images(first).store.name(3))
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if not touched:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for dataset in (first, streamed(folder)):  # an index that is made again is the same to all that it looks at
        assert dataset.fingerprint == first.fingerprint
        np.asarray(images(dataset)[:3])
        assert refused("not what it was when it was first read", images(dataset).__getitem__, 3).where == str(file)
    with file_index.distrust():
        assert refused("not what it was when it was first read", streamed, folder).where == str(file)
    assert prepare.clean(config(folder, decoding="stream")) > 0
    with file_index.distrust():
        np.asarray(images(streamed(folder)))


def test_threads_that_begin_at_once_keep_what_they_read_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))
    both, named = threading.Barrier(2), sums.temporary_name

    def together(file: Path) -> Path:
        both.wait(timeout=10)  # neither has found a file
        return named(file)

    monkeypatch.setattr(sums, "temporary_name", together)
    known = sums.Sums.of("ab" * 32, "train", 2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(known.keep, range(2), (b"first", b"second")))
    later = sums.Sums.of("ab" * 32, "train", 2)
    assert later.agrees(0, b"first") and later.agrees(1, b"second")
    assert not later.agrees(0, b"another") and not later.agrees(1, b"another")
    assert [file.name for file in sums.root().iterdir()] == [known.file.name]


def test_what_pictures_were_is_known_to_this_process_alone_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is taken when the file is made: a hole in a mapped file that finds none later would end the process."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))

    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    known = sums.Sums.of("ab" * 32, "train", 2)
    known.keep(1, b"second")
    assert known.agrees(1, b"second") and not known.agrees(1, b"another")
    assert not list(sums.root().iterdir())


# ------------------------------------------------------------------------------------------------------ instant start


def test_a_set_that_is_prepared_opens_without_looking_at_its_files(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = streamed(photographs)

    def never(*given: object) -> object:
        raise AssertionError("files were looked at")

    with monkeypatch.context() as only:
        only.setattr(listing, "take", never)
        only.setattr(image_decoding, "header", never)
        assert streamed(photographs).fingerprint == first.fingerprint
    Image.new("RGB", (30, 30)).save(photographs / "a" / "new.png")
    assert cache.cache_folder(config(photographs, decoding="stream")) != Path(first.path)


def test_touched_or_copied_files_of_the_same_content_are_the_same_data(photographs: Path, tmp_path: Path) -> None:
    first = streamed(photographs)
    copy = tmp_path / "copy"
    os.system(f"cp -r {photographs} {copy}")
    second = streamed(copy)
    assert second.fingerprint == first.fingerprint and second.path != first.path
    assert Path(images(second).store.name(0)).is_relative_to(copy)
