"""Pictures in tar shards are those of a folder, batch for batch; whatever is wrong with a shard is one clear line."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigctl.config.schema import ImageFolder, Webdataset
from bigctl.data import cache, catalog, notes
from bigctl.data.dataset import Dataset, Features
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.layouts.streamed import Streamed
from bigctl.data.look import inspection
from bigctl.data.pictures import packs
from bigctl.data.preparation import prepare
from bigctl.data.sources import image_decoding, tar_shards, webdataset
from bigctl.errors import DataError

Members = Iterable[tuple[str, bytes | tarfile.TarInfo]]
SIZE = [16, 12]


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def pictures(count: int = 24) -> list[tuple[str, bytes]]:
    """Encoded pictures of many shapes, each with its class; those of "cat" come first."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        shape = rng.integers(14, 60, 2).tolist()
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize(shape)
        image.save(content := io.BytesIO(), "PNG" if number % 5 == 4 else "JPEG")
        found.append(("cat" if number < count // 2 else "dog", content.getvalue()))
    return found


def folder(place: Path) -> Path:
    for number, (name, content) in enumerate(pictures()):
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / f"{number:03d}.jpg").write_bytes(content)
    return place


def tar(file: Path, members: Members) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    os.utime(file, (time.time() - 60, time.time() - 60))
    return file


def shards(place: Path, label: Callable[[str], tuple[str, bytes]], parts: int = 3) -> str:
    """The pictures in a few shards, each with a file beside it that tells the class; gives the pattern."""
    step = 24 // parts
    for part in range(parts):
        members: list[tuple[str, bytes]] = []
        for number, (name, content) in list(enumerate(pictures()))[part * step : (part + 1) * step]:
            suffix, text = label(name)
            members += [(f"{number:03d}.JPG", content), (f"{number:03d}.{suffix}", text)]
        tar(place / f"{part:02d}.tar", members)
    return str(place / f"{{00..{parts - 1:02d}}}.tar")


def as_number(name: str) -> tuple[str, bytes]:
    return "cls", str(("cat", "dog").index(name)).encode()


def config(path: object, **keys: object) -> Webdataset:
    return Webdataset(kind="webdataset", path=str(path), **{"image_size": SIZE, **keys})  # type: ignore[arg-type]


def prepared(path: object, *, least: float = 0.0, **keys: object) -> Dataset:
    return prepare.prepare(config(path, **{"decoding": "stream", **keys}), batches=BatchOptions(least=least))


def of_folder(path: Path, *, least: float = 0.0, **keys: object) -> Dataset:
    given = {"image_size": SIZE, "decoding": "stream", **keys}
    return prepare.prepare(ImageFolder(path=str(path), **given), batches=BatchOptions(least=least))  # type: ignore[arg-type]


def same(one: Dataset, other: Dataset, *, threads: Iterable[int] = (1, 2, 8)) -> None:
    """All batches of two sets are equal, bit for bit, whatever the number of threads."""
    assert one.features.mean == other.features.mean and one.features.std == other.features.std
    assert isinstance(one.batches, Streamed)
    for split in ("train", "validation", "test"):
        mine, theirs = one.splits[split], other.splits[split]
        plan = one.batches.training_plan(mine, batch_size=4, seed=3)
        again = other.batches.training_plan(theirs, batch_size=4, seed=3)
        for position, count in zip((0, 40), threads, strict=False):
            batch = Streamed(one.batches.least, count).gather(mine, *plan.batch(position))
            known = other.batches.gather(theirs, *again.batch(position))
            for name, values in known.items():
                np.testing.assert_array_equal(batch[name], values)
        np.testing.assert_array_equal(np.asarray(mine["inputs"]), np.asarray(theirs["inputs"]))
        np.testing.assert_array_equal(mine["label"], theirs["label"])


def refused(match: str, path: object, **keys: object) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        prepared(path, **keys)
    assert "\n" not in str(caught.value)
    return caught.value


# ----------------------------------------------------------------------------------------------------- the same batches


@pytest.mark.parametrize("keys", [{"least": 0.1}, {"resize": "crop", "channels": 1}], ids=str)
def test_shards_give_the_batches_of_a_folder(tmp_path: Path, keys: dict[str, object]) -> None:
    path = shards(tmp_path / "shards", as_number)
    found, known = prepared(path, **keys), of_folder(folder(tmp_path / "folder"), **keys)  # type: ignore[arg-type]
    same(found, known)
    same(known, found, threads=(2, 8))
    assert found.features.classes == ("0", "1")
    assert notes.notes_of(found)[-1].startswith("24 pictures (")


def test_what_tells_the_class_is_found_or_named(tmp_path: Path) -> None:
    known = of_folder(folder(tmp_path / "folder"))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    ways: dict[str, tuple[str, dict[str, object]]] = {
        "named": (shards(tmp_path / "named", as_number), {"names_file": str(tmp_path / "names.txt")}),
        "text": (shards(tmp_path / "text", lambda name: ("txt", name.encode())), {}),
        "json": (shards(tmp_path / "json", lambda name: ("json", f'{{"label": "{name}"}}'.encode())), {}),
        "other": (shards(tmp_path / "other", lambda name: ("json", f'{{"kind": "{name}"}}'.encode())),
                  {"label": "json.kind"}),
        "folder": (str(tar(tmp_path / "one.tar", ((f"./top/{name}/{number:03d}.jpg", content)
                                                  for number, (name, content) in enumerate(pictures())))), {}),
    }  # fmt: skip
    prints = set()
    for path, keys in ways.values():
        found = prepared(path, **keys)
        assert found.features == known.features
        prints.add(found.fingerprint)
        np.testing.assert_array_equal(found.splits["train"]["label"], known.splits["train"]["label"])
    assert len(prints) == 1  # which is of pictures and classes, not of where they are
    assert refused(r"no \.cls.*tell the class", ways["text"][0], label="cls").where == f"{tmp_path}/text/00.tar:000"


def test_a_compressed_shard_is_copied_once_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = shards(tmp_path / "plain", as_number, parts=1)
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "plain" / "00.tar").read_bytes(), mtime=0))
    same(found := prepared(packed), prepared(plain))
    told = capsys.readouterr().err
    assert told.count("is compressed, which has no random access: a copy of ") == 1
    monkeypatch.setattr(tar_shards, "_unpack", None)
    prepared(packed, image_size=[8, 8])
    store = found.splits["train"]["inputs"].store  # type: ignore[attr-defined]
    assert store.name(0).startswith(f"{packed}:")
    cache.sweep_packs([Path(found.path)])  # which another set refers to as well
    assert list(packs.root().iterdir())


def test_small_sets_are_decoded_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shards(tmp_path / "shards", as_number)
    memory, stream = prepared(path, decoding=None), prepared(path)
    assert not memory.streamed and stream.streamed
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(memory.splits[split]["inputs"], np.asarray(stream.splits[split]["inputs"]))
    monkeypatch.setattr("bigctl.data.sources.image_index.FEW", 1000)
    assert prepared(path, decoding=None).streamed


def test_shards_are_recognised(tmp_path: Path) -> None:
    path = shards(tmp_path / "shards", as_number)
    for given in (path, str(tmp_path / "shards")):
        entry = inspection.inspect(given, {})
        assert (entry.kind, entry.keys) == ("webdataset", {"path": given, "image_size": [32, 32]})
        assert entry.summary.startswith("8 pictures in the first of 3 shards, ")
        assert entry.assumed[0].startswith("what tells the class is cls ")


# ----------------------------------------------------------------------------------------------------------- bad input


def test_pictures_of_a_shard_are_predicted_like_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels, in the order of the shard; what cannot be read has its error, what is no picture is left out."""
    monkeypatch.setattr(webdataset, "_PREDICTED", 7)
    path, features = folder(tmp_path / "folder"), Features("image", (10, 12, 3), ("cat", "dog"))
    trained = ImageFolder(path="x", resize="crop")
    files = sorted(path.rglob("*.jpg"), key=lambda file: file.name)
    expected = [catalog.read_for_prediction(file, trained, features).inputs for file in files]
    members: list[tuple[str, Any]] = [(f"a/{file.name}", file.read_bytes()) for file in files]
    members[3:3] = [("a/x.jpg", b"no picture"), ("a/y.txt", b"a text"), ("../z.jpg", b"x")]
    shard = tar(tmp_path / "all.tar", members)
    (tmp_path / "all.tgz").write_bytes(gzip.compress(shard.read_bytes()))
    for archive in (shard, tmp_path / "all.tgz"):
        found = catalog.read_for_prediction(archive, trained, features)
        good = [row for row in range(len(found.inputs)) if row not in found.errors]
        np.testing.assert_array_equal(np.asarray(found.inputs)[good], np.concatenate(expected))
        assert [*found.errors] == [3, 4] and found.rows
        assert all(archive.name in str(error) and "\n" not in str(error) for error in found.errors.values())
        ids = catalog.read_column(archive, trained, features, "id")
        assert ids is not None and ids[:4] == ["a/000", "a/001", "a/002", "a/x"] and len(ids) == 26
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(DataError, match="cut short"):
        catalog.read_for_prediction(shard, trained, features)


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def test_a_shard_that_was_cut_short_is_told_wherever_it_ends(tmp_path: Path) -> None:
    path = Path(shards(tmp_path, as_number, parts=1).replace("{00..00}", "00"))
    whole = path.read_bytes()
    end = max(member.start + -(-member.size // 512) * 512 for member in tar_shards.members(tar_shards.held(path)))
    for length, match in ((900, "cut short: it ends within"), (end, "it has no end"), (end - 100, "cut short"),
                          (300, "no tar archive"), (0, "the file is empty")):  # fmt: skip
        path.write_bytes(whole[:length])
        assert refused(match, path).where == str(path)
    path.write_bytes(whole)
    second = [*tar_shards.members(tar_shards.held(path))][1].start - 512
    path.write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    refused("damaged", path)
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(whole)[:-900])
    assert "cut short" in str(refused("compressed archive", tmp_path / "x.tar.gz"))
    (tmp_path / "x.tar").write_bytes(b"BZh9" + whole)
    refused("compressed with bzip2, which has no random access", tmp_path / "x.tar")


def test_members_that_are_no_files_of_the_archive_are_refused_or_left_out(tmp_path: Path) -> None:
    good = [(f"{name}/{number}.jpg", content) for number, (name, content) in enumerate(pictures())]
    for bad, match in ((("../x.jpg", good[0][1]), "leads out of the archive"),
                       (("/etc/x.jpg", good[0][1]), "leads out of the archive"),
                       (("cat/l.jpg", link("cat/l.jpg")), "is a link to '/etc/passwd'"),
                       (("cat/99.jpg", b"no picture"), "not an image"),
                       (("cat/2.jpg", good[0][1]), None)):  # fmt: skip
        path = tar(tmp_path / "x.tar", [*good[:3], bad, *good[3:]])  # type: ignore[list-item]
        if match is not None:
            refused(match, path)
            refused("1 of 25 files cannot be used, more than data.bad_limit=0.01", path, on_bad="skip", bad_limit=0.01)
        else:
            refused("two members are called cat/2.jpg", path)
        kept = prepared(path, on_bad="skip")
        left = 24 if match else 23
        assert sum(len(columns["label"]) for columns in kept.splits.values()) == left
        assert notes.notes_of(kept)[0].startswith("1 file is left out, the first with this: ")
        assert not (tmp_path.parent / "x.jpg").exists()


def test_what_a_name_holds_is_taken_as_it_is(tmp_path: Path) -> None:
    long = "d" * 300
    members = [(f"{'cat' if number % 2 else long}/{number}.jpg", c) for number, (_, c) in enumerate(pictures())]
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
            for name, content in [*members, ("cat/._1.jpg", b"resource fork"), ("README.md", b"text")]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        found = prepared(tmp_path / "x.tar")
        assert found.features.classes == ("cat", long)
        assert "1 files are no images" in notes.notes_of(found)[-1] + notes.notes_of(found)[-2]


def test_classes_that_cannot_be_are_told_with_their_place(tmp_path: Path) -> None:
    path = shards(tmp_path / "a", as_number)
    (tmp_path / "names.txt").write_text("cat\n\ndog")
    assert refused("line is empty", path, names_file=str(tmp_path / "names.txt")).where.endswith("names.txt:2")  # type: ignore[union-attr]
    (tmp_path / "names.txt").write_text("cat\n")
    refused("there is only one class", path, names_file=str(tmp_path / "names.txt"))
    other = tar(tmp_path / "v.tar", [("7.jpg", pictures()[0][1]), ("7.cls", b"7")])
    assert "7.jpg" in str(refused("class '7' is not among", path, validation_path=str(other)))
    two = tar(tmp_path / "two.tar", [("7.a.jpg", pictures()[0][1]), ("7.b.jpg", pictures()[0][1]), ("7.cls", b"7")])
    refused(r"several pictures: a.jpg, b.jpg \(data.image=a.jpg\)", two)
    refused("is no number and no name", shards(tmp_path / "j", lambda name: ("json", b"{}")), label="json.label")
    refused("nothing tells the class", tar(tmp_path / "n.tar", [("7.jpg", pictures()[0][1])]))


def test_shards_that_go_or_change_between_two_starts_are_told(tmp_path: Path) -> None:
    path = shards(tmp_path / "shards", as_number)
    first = prepared(path)
    found = dict(catalog.files(config(path)))
    assert found and {key for key, _ in catalog.files(config(path))} == {"data.path"}
    shard = tmp_path / "shards" / "01.tar"
    shard.write_bytes(content := shard.read_bytes() + bytes(512))
    with pytest.raises(DataError, match="has changed since it was indexed") as caught:
        np.asarray(first.splits["train"]["inputs"])
    assert caught.value.where == str(shard)
    assert prepared(path).path != first.path and prepared(path).fingerprint == first.fingerprint
    second = prepared(path)
    os.utime(shard, (1e9, 1e9))
    np.testing.assert_array_equal(  # touched since it was opened: each picture is held against what is known of it
        np.asarray(second.splits["train"]["inputs"]), np.asarray(prepared(path).splits["train"]["inputs"])
    )
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match="has changed since it was indexed"):
        np.asarray(second.splits["train"]["inputs"])
    shard.unlink()
    assert refused("no such file", path).where == str(shard)
    shard.write_bytes(content)


def test_a_decoding_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr(image_decoding, "_to_array", None)
    refused("too large, above 200 pixels", shards(tmp_path, as_number))
