"""Promises of `preparation.prepare`: decoded once, whole or not at all, the same data under the same fingerprint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigctl.config.schema import Conll, Csv, Data, ImageFolder, Jsonl, Packaged, Parquet, TextFiles
from bigctl.data import cache, catalog, preview
from bigctl.data.dataset import Features
from bigctl.data.preparation import encode, prepare
from bigctl.data.sources.decoded import Decoded
from bigctl.errors import DataError

DIGITS = Packaged(name="digits", test_fraction=0.2)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The kinds of data that were decoded since."""
    done: list[str] = []
    real = catalog.decode

    def counting(config, regression=False):
        done.append(config.kind)
        return real(config, regression)

    monkeypatch.setattr(catalog, "decode", counting)
    return done


def table(folder: Path, rows: int = 60, extra: str = "") -> Csv:
    rng = np.random.default_rng(0)
    lines = [f"{rng.normal():.3f},{'uvw'[i % 3]},{i % 2}" for i in range(rows)]
    file = folder / "t.csv"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("a,b,y\n" + "\n".join(lines) + "\n" + extra)
    return Csv(path=str(file), label="y")


def same(a, b) -> bool:
    return all(np.array_equal(a.splits[s][c], b.splits[s][c]) for s in a.splits for c in a.splits[s])


# --- What is prepared -------------------------------------------------------------------------------------------------


def test_image_statistics_are_those_of_the_training_split_alone(tmp_path):
    rng = np.random.default_rng(0)
    for name, low, high in (("train", 0, 100), ("test", 200, 256)):
        for i in range(20):
            file = tmp_path / "pictures" / name / f"class{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(low, high, (5, 4, 3), dtype=np.uint8)).save(file)
    made = prepare.prepare(ImageFolder(path=str(tmp_path / "pictures")))
    pixels = made.splits["train"]["inputs"].astype(np.float64) / 255
    assert made.features.shape == (5, 4, 3) and made.splits["train"]["inputs"].dtype == np.uint8
    np.testing.assert_allclose(made.features.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(made.features.std, pixels.std((0, 1, 2)), rtol=1e-9)
    assert max(made.features.mean) < 100 / 255 and made.splits["test"]["inputs"].min() >= 200


def test_statistics_by_blocks_are_those_of_all_images():
    images = np.random.default_rng(0).integers(0, 256, (9000, 3, 2, 3), dtype=np.uint8)
    images[..., 2] = 7  # a constant channel must not be divided by zero
    mean, std = encode.channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], (images / 255).std((0, 1, 2))[:2], rtol=1e-9)
    assert std[2] == 1.0


def test_tables_are_encoded_by_the_training_split_alone(tmp_path):
    made = prepare.prepare(table(tmp_path))
    train = np.asarray(made.splits["train"]["inputs"])
    assert made.features.feature_names == ("a", "b=u", "b=v", "b=w") and made.features.classes == ("0", "1")
    assert train[:, 0].mean() == pytest.approx(0, abs=1e-6) and train[:, 0].std() == pytest.approx(1, abs=1e-5)
    assert abs(np.concatenate([v["inputs"] for v in made.splits.values()])[:, 0].mean()) > 1e-4
    assert np.array_equal(train[:, 1:].sum(1), np.ones(len(train)))


def test_regression_targets_keep_their_unit_and_have_statistics(tmp_path):
    config = Csv(path=table(tmp_path).path, label="a", drop=["y"])
    made = prepare.prepare(config, regression=True)
    target = made.splits["train"]["label"]
    assert made.features.classes is None and target.dtype == np.float32
    assert made.features.mean[0] == pytest.approx(target.mean(), abs=1e-5)
    assert made.features.std[0] == pytest.approx(target.std(), rel=1e-5)


@pytest.mark.parametrize(("base", "spread", "coarse"), [(5.4e6, 0.2, True), (1.7e9, 30.0, True), (5.0, 0.2, False)])
def test_targets_of_large_size_and_small_spread_keep_their_digits(tmp_path, base, spread, coarse):
    values = [base + spread * np.sin(7 * row) for row in range(80)]
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{row},{value:.4f}\n" for row, value in enumerate(values)))
    made = prepare.prepare(Csv(path=str(tmp_path / "t.csv"), label="y"), regression=True)
    target, stored = made.features.target, made.splits["train"]["label"]
    rows = made.splits["train"]["inputs"][:, 0] * made.features.encoder["columns"][0]["std"]
    rows = np.rint(rows + made.features.encoder["columns"][0]["mean"]).astype(int)
    assert np.abs(target.restored(stored) - np.array(values)[rows]).max() < 2e-4 + 1e-6 * spread
    assert bool(target.origin) == coarse and stored.dtype == np.float32
    assert abs((stored - target.mean) / target.std).mean() == pytest.approx(2**0.5 * 2 / np.pi, rel=0.1)
    assert Features.from_json(json.loads(json.dumps(made.features.to_json()))) == made.features
    assert ("origin" in made.features.to_json()) == coarse
    assert abs(preview.describe(made)["splits"]["train"]["target"]["mean"] - base) < spread


def test_targets_that_float32_cannot_hold_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{row},{row}e200\n" for row in range(80)))
    with pytest.raises(DataError, match="the target's numbers have a standard deviation of"):
        prepare.prepare(Csv(path=str(tmp_path / "t.csv"), label="y"), regression=True)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_lacks_is_refused(monkeypatch, split):
    label = np.array([0] * 10 + [1] * 10, np.int32)
    found = Decoded("table", {"train": {"x": np.arange(20.0), "label": label}}, ("common", "rare"))
    reader = catalog.Reader(lambda config: "own", lambda config, regression: found)
    monkeypatch.setattr(catalog, "source", lambda config: reader)
    keys: dict[str, Any] = {"train": "train[:9]", split: "train[9:]"}
    config = Packaged(name="own", **keys)
    with pytest.raises(DataError, match=f"class 'rare' is in the {split} split but not in the training split"):
        prepare.prepare(config)


# --- The cache --------------------------------------------------------------------------------------------------------


def test_prepared_data_is_decoded_once(decoded):
    first = prepare.prepare(DIGITS)
    again = prepare.prepare(DIGITS)
    assert decoded == ["packaged"]
    assert again.fingerprint == first.fingerprint and again.features == first.features and same(first, again)
    assert isinstance(again.splits["train"]["inputs"], np.memmap)
    prepare.prepare(DIGITS, rebuild=True)
    assert decoded == ["packaged"] * 2


@pytest.mark.parametrize("damage", ["one flipped byte", "short array", "cut meta", "no meta", "no array", "other meta"])
def test_a_damaged_cache_is_noticed_and_made_again(decoded, damage, capsys):
    first = prepare.prepare(DIGITS)
    expected = {s: {c: np.array(v) for c, v in columns.items()} for s, columns in first.splits.items()}
    folder = cache.cache_folder(DIGITS)
    array, meta = folder / "train.inputs.npy", folder / "meta.json"
    if damage == "one flipped byte":
        content = bytearray(array.read_bytes())
        content[-1] ^= 1
        array.write_bytes(content)
    elif damage == "short array":
        os.truncate(array, array.stat().st_size - 1)
    elif damage == "cut meta":
        os.truncate(meta, meta.stat().st_size // 2)
    elif damage == "no meta":
        meta.unlink()
    elif damage == "no array":
        array.unlink()
    else:
        values = json.loads(meta.read_text())
        values["features"]["mean"] = [0.25]
        meta.write_text(json.dumps(values))
    again = prepare.prepare(DIGITS)
    assert decoded == ["packaged"] * 2 and "damaged" in capsys.readouterr().err
    assert again.fingerprint == first.fingerprint and again.features == first.features
    assert all(np.array_equal(again.splits[s][c], expected[s][c]) for s in expected for c in expected[s])
    prepare.prepare(DIGITS)
    assert len(decoded) == 2


def test_a_changed_source_file_gets_another_cache(tmp_path, decoded):
    first = prepare.prepare(table(tmp_path))
    folder = cache.cache_folder(table(tmp_path))
    changed = table(tmp_path, extra="0.5,u,1\n")
    assert cache.cache_folder(changed) != folder
    second = prepare.prepare(changed)
    assert len(decoded) == 2 and second.fingerprint != first.fingerprint
    assert sum(second.size(s) for s in second.splits) == 61


def test_every_key_that_changes_the_arrays_gets_another_cache(tmp_path):
    config = table(tmp_path)
    changed: list[dict[str, Any]] = [
        {"split_seed": 1}, {"train": "train[:50%]"}, {"validation": "train[90%:]"}, {"test": "train[:10%]"},
        {"validation_fraction": 0.2}, {"test_fraction": 0.2}, {"drop": ["b"]}, {"label": "b"},
        {"test_path": config.path},
    ]  # fmt: skip
    folders = [cache.cache_folder(replace(config, **keys)) for keys in changed]
    folders += [cache.cache_folder(config), cache.cache_folder(config, regression=True)]
    assert len(set(folders)) == len(changed) + 2
    assert cache.cache_folder(replace(config, resident_mib=1)) == cache.cache_folder(config)


def test_a_changed_picture_gets_another_cache(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("L", (3, 3), 9).save(tmp_path / "pictures" / name / "0.png")
    config = ImageFolder(path=str(tmp_path / "pictures"))
    folder = cache.cache_folder(config)
    assert cache.cache_folder(config) == folder
    assert cache.cache_folder(replace(config, image_size=[2, 2])) != folder
    assert cache.cache_folder(replace(config, channels=3)) != folder
    Image.new("L", (3, 3), 8).save(tmp_path / "pictures" / "a" / "0.png")
    assert cache.cache_folder(config) != folder


def test_equal_data_has_an_equal_fingerprint_wherever_it_lies(tmp_path):
    here, there = prepare.prepare(table(tmp_path / "here")), prepare.prepare(table(tmp_path / "there"))
    assert here.fingerprint == there.fingerprint
    other = replace(table(tmp_path / "here"), split_seed=1)
    assert prepare.prepare(other).fingerprint != here.fingerprint
    more = table(tmp_path / "more", extra="0.5,u,1\n")
    assert prepare.prepare(more).fingerprint != here.fingerprint


def test_a_valid_cache_is_never_taken_from_its_readers(decoded):
    first = prepare.prepare(DIGITS)
    folder = cache.cache_folder(DIGITS)
    inode = folder.stat().st_ino
    prepare.prepare(DIGITS, rebuild=True)
    assert decoded == ["packaged"] * 2 and folder.stat().st_ino == inode
    assert same(first, prepare.prepare(DIGITS))


PREPARE = """
import sys
from bigctl.config.schema import Packaged
from bigctl.data.preparation import prepare
from bigctl.errors import DataError
try:
    print(prepare.prepare(Packaged(name="digits", test_fraction=0.2)).fingerprint)
except DataError as error:
    print(error)
    sys.exit(2)
"""


def test_two_processes_may_prepare_at_once(cache_dir):
    commands = [[sys.executable, "-c", PREPARE] for _ in range(2)]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    results = [(*process.communicate(), process.returncode) for process in running]
    assert [code for *_, code in results] == [0, 0], results
    assert len({out for out, *_ in results}) == 1
    folder = cache.cache_folder(DIGITS)
    assert [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] == [folder.name]
    assert prepare.prepare(DIGITS).fingerprint == results[0][0].strip()


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(cache_dir):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = subprocess.run([sys.executable, "-c", limit + PREPARE], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot store prepared data" in done.stdout and "BIGCTL_CACHE_DIR" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not [entry for entry in (cache_dir / "data").iterdir() if entry.is_dir()]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot store prepared data: Not a directory"):
        prepare.prepare(DIGITS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_one_line(cache_dir):
    cache_dir.mkdir()
    cache_dir.chmod(0o500)
    with pytest.raises(DataError, match="cannot store prepared data: Permission denied"):
        prepare.prepare(DIGITS)


def test_clean_frees_what_it_says():
    prepare.prepare(DIGITS)
    folder = cache.cache_folder(DIGITS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert prepare.clean(DIGITS) == size > 100_000 and not folder.exists()
    assert prepare.clean(DIGITS) == 0


# --- Bad examples ----------------------------------------------------------------------------------------------------


def with_bad(folder: Path, kind: str) -> Data:
    """A source of which one example of 41, or picture of 21, cannot be used."""
    if kind == "csv":
        return replace(table(folder, 40, "1\n"), on_bad="skip")
    if kind == "parquet":
        values = [float("inf"), *(number / 3 for number in range(40))]
        pq.write_table(pa.table({"x": values, "y": ["a", *["a", "b"] * 20]}), folder / "t.parquet")
        return Parquet(path=str(folder / "t.parquet"), label="y", on_bad="skip")
    if kind == "conll":
        (folder / "t.conll").write_text("Rome B-LOC\n. O\n\n" * 40 + "Rome\n\n")
        return Conll(path=str(folder / "t.conll"), tokens="0", tags="1", on_bad="skip")
    if kind == "tagged jsonl":
        lines = [json.dumps({"words": ["in", "Rome"], "tags": ["O", "LOC"]})] * 40
        (folder / "t.jsonl").write_text("\n".join([*lines, '{"words": ["in"]}']))
        return Jsonl(path=str(folder / "t.jsonl"), tokens="words", tags="tags", on_bad="skip")
    if kind in ("jsonl", "text"):
        lines = [json.dumps({"text": f"text {number}", "y": "ab"[number % 2]}) for number in range(40)]
        (folder / "t.jsonl").write_text("\n".join([*lines, "{"]))
        given: dict[str, Any] = {"path": str(folder / "t.jsonl"), "on_bad": "skip"}
        return Jsonl(**given, text="text", label="y") if kind == "jsonl" else TextFiles(**given, field="text")
    for number in range(20):
        file = folder / "pictures" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(file)
    (folder / "pictures" / "a" / "bad.png").write_bytes(b"no picture")
    return ImageFolder(path=str(folder / "pictures"), on_bad="skip", decoding=kind)


@pytest.mark.parametrize("kind", ["csv", "parquet", "conll", "jsonl", "tagged jsonl", "text", "memory", "stream"])
def test_the_limit_of_bad_examples_counts_where_a_set_is_opened_too(kind: str, tmp_path, decoded) -> None:
    config = with_bad(tmp_path, kind)
    first, count = prepare.prepare(config), len(decoded)
    assert prepare.prepare(replace(config, bad_limit=0.05)).fingerprint == first.fingerprint
    few = replace(config, bad_limit=0.001)
    with pytest.raises(DataError, match="1 of [24]1 .*, more than data.bad_limit=0.001 allows") as opened:
        prepare.prepare(few)
    assert len(decoded) == count
    with pytest.raises(DataError) as made:
        prepare.prepare(few, rebuild=True)
    assert str(opened.value) == str(made.value)
    meta = json.loads((Path(first.path) / "meta.json").read_text())
    del meta["info"]["left_out"]  # as a set that was prepared before
    (Path(first.path) / "meta.json").write_text(json.dumps(meta))
    assert prepare.prepare(few).fingerprint == first.fingerprint
