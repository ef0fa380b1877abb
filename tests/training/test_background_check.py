"""Prepared data that was opened unread is read while the first epoch trains on it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.config import schema
from bigctl.data import background_check, cache
from bigctl.data.dataset import Dataset
from bigctl.data.files import file_index
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.sources import tokens
from bigctl.data.text import tokenization
from bigctl.errors import DataError

KEYS = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[4]", "train.batch_size=32", "train.log_every=1"]
KEYS += ["train.tensorboard=false"]


@pytest.fixture(autouse=True)
def every_set_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_LARGE", 0)
    monkeypatch.setattr(background_check, "_IDLE", 0.0)


def test_damage_that_does_not_show_from_outside_ends_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which file; the next start makes the set anew, and the results are those of sound data."""
    checks: list[background_check.BackgroundCheck] = []
    begun = background_check.begin

    def begin(dataset: Dataset) -> background_check.BackgroundCheck | None:
        found = begun(dataset)
        assert found is not None
        checks.append(found)
        found._thread.join(10)
        return found

    monkeypatch.setattr(background_check, "begin", begin)

    def train(name: str, steps: int = 2) -> dict[str, float]:
        config = bigctl.compose([*KEYS, f"train.steps={steps}"])
        return dict(bigctl.train(config, run_dir=str(tmp_path / name))["metrics"])

    sound = train("first")
    assert len(checks) == 1 and not checks[0].running
    (folder,) = (file.parent for file in (tmp_path / "cache" / "data").glob("*/meta.json"))
    file, digests = folder / "train.inputs.npy", cache.trusted_digests(folder)
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    cache._keep_sound(folder, digests)  # as it was found when it was read last
    with pytest.raises(DataError, match=r"is damaged: train\.inputs\.npy is not what was prepared") as told:
        train("second")
    assert "\n" not in str(told.value) and not checks[1].running
    capsys.readouterr()
    assert train("third") == sound
    assert "is damaged; making it again" in capsys.readouterr().err
    assert len(checks) == 3
    train("third", steps=60)  # goes on within the second epoch
    state = json.loads((tmp_path / "third" / "run.json").read_text())
    assert state["status"] == "complete"


def test_a_set_that_is_removed_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    """As by `data clean` while the first epoch trains."""
    (tmp_path / "there").write_bytes(b"")
    known = {"there": hashlib.sha256(b"").hexdigest(), "gone": "0" * 64}
    files = [background_check.Unread(tmp_path / name, digest, tmp_path) for name, digest in known.items()]
    check = background_check.BackgroundCheck(files)
    check._thread.join(10)
    assert not check.running
    check.require_sound()
    (tmp_path / "gone").write_bytes(b"other")
    check = background_check.BackgroundCheck(files)
    check._thread.join(10)
    with pytest.raises(DataError, match="gone is not what was prepared"):
        check.require_sound()


def test_tokens_in_their_files_and_corpora_of_a_mixture_are_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch keeps what a large file of tokens is; a later one finds what no size and no time tells."""
    monkeypatch.setattr(tokens, "_WHOLE", 0)
    monkeypatch.setattr(tokens, "_SAMPLED", 0)
    monkeypatch.setattr(tokens, "_SAMPLE", 16)
    monkeypatch.setattr(file_index, "LARGE", 0)
    monkeypatch.setattr(file_index, "_SETTLED", -1)
    file, book = tmp_path / "web.bin", tmp_path / "book.txt"
    np.resize(np.arange(65, 91), 5000).astype("<u2").tofile(file)
    book.write_text("a book of few words. " * 200)
    os.utime(file, (time.time() - 60, time.time() - 60))
    corpora = {"web": schema.Corpus(path=str(file)), "book": schema.Corpus(path=str(book))}
    spec = tokenization.spec(schema.StreamTokenizer(type="bytes"))

    def opened() -> Dataset:
        return prepare.prepare(schema.Mixture(corpora=corpora), tokenizer=spec, batches=BatchOptions(block=8))

    def read() -> tuple[set[str], background_check.BackgroundCheck]:
        check = background_check.begin(opened())
        assert check is not None
        check._thread.join(10)
        return {unread.file.name for unread in check._files}, check

    files, check = read()
    assert {"web.bin", "train.inputs.npy", "test.inputs.npy"} < files
    check.require_sound()
    assert file_index.recalled(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    content, changed = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    content[4000] ^= 1  # as a disk does
    file.write_bytes(content)
    os.utime(file, ns=(changed, changed))
    kept = json.loads(file_index._path().read_text())
    kept[os.path.realpath(file)][:4] = file_index.stamp(file)
    file_index._path().write_text(json.dumps(kept))
    with pytest.raises(DataError, match="its content has changed, and its size and times have not") as told:
        read()[1].require_sound()
    assert told.value.where == str(file)
    with file_index.distrust(), pytest.raises(DataError, match="content has changed"):
        opened()
