"""Data that stays in its files is found where it is now, and not where a prepared set saw it first."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.text import tokenization

TOKENS = np.frombuffer(b"".join(b"%d bottles of beer.\n" % number for number in range(200)), np.uint8)
SIZE = [6, 8]
SPEC = tokenization.spec(schema.StreamTokenizer(type="bytes"))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def pictures() -> list[tuple[str, bytes]]:
    found = []
    for number in range(16):
        content = io.BytesIO()
        Image.fromarray(np.full((6, 8, 3), 15 * number, np.uint8)).save(content, "PNG")
        found.append(("ab"[number % 2], content.getvalue()))
    return found


def table() -> pa.Table:
    return pa.table({"label": [name for name, _ in pictures()], "image": [content for _, content in pictures()]})


def shards(folder: Path) -> None:
    for number, part in enumerate(np.array_split(TOKENS, 3)):
        part.astype("<u2").tofile(folder / f"{number}.bin")


def book_and_shards(folder: Path) -> None:
    shards(folder)
    (folder / "book.txt").write_bytes(TOKENS.tobytes())


def arrow(folder: Path) -> None:
    with ipc.new_file(str(folder / "a.arrow"), table().schema) as out:
        out.write_table(table())


def parquet(folder: Path) -> None:
    pq.write_table(table(), folder / "a.parquet")


def packed_tar(folder: Path) -> None:
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        for number, (name, content) in enumerate(pictures()):
            info = tarfile.TarInfo(f"{name}/{number}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def of_tokens(folder: Path) -> Dataset:
    return prepare.prepare(schema.Tokens(path=str(folder)), tokenizer=SPEC, batches=BatchOptions(block=8))


def of_documents(folder: Path) -> Dataset:
    options = BatchOptions(block=8, packing="documents", end_token=10)
    return prepare.prepare(schema.Tokens(path=str(folder)), tokenizer=SPEC, batches=options)


def of_mixture(folder: Path) -> Dataset:
    corpora = {"web": schema.Corpus(path=f"{folder}/*.bin"), "book": schema.Corpus(path=f"{folder}/book.txt")}
    return prepare.prepare(schema.Mixture(corpora=corpora), tokenizer=SPEC, batches=BatchOptions(block=8))


def of_arrow(folder: Path) -> Dataset:
    keys = {"image": "image", "label": "label", "image_size": SIZE, "decoding": "stream"}
    return prepare.prepare(schema.Arrow(path=f"{folder}/a.arrow", **keys))  # type: ignore[arg-type]


def of_parquet(folder: Path) -> Dataset:
    keys = {"image": "image", "label": "label", "image_size": SIZE, "decoding": "stream"}
    return prepare.prepare(schema.Parquet(path=f"{folder}/a.parquet", **keys))  # type: ignore[arg-type]


def of_tar(folder: Path) -> Dataset:
    keys = {"image_size": SIZE, "decoding": "stream"}
    return prepare.prepare(schema.Webdataset(path=f"{folder}/a.tar.gz", **keys))  # type: ignore[arg-type]


def everything(dataset: Dataset) -> list[object]:
    return [dataset.fingerprint, *(np.asarray(columns["inputs"]).tolist() for columns in dataset.splits.values())]


KINDS = [
    (shards, of_tokens),
    (shards, of_documents),
    (book_and_shards, of_mixture),
    (arrow, of_arrow),
    (parquet, of_parquet),
    (packed_tar, of_tar),
]


@pytest.mark.parametrize(("write", "made"), KINDS, ids=[made.__name__ for _, made in KINDS])
def test_the_same_content_is_read_wherever_it_lies(
    write: Callable[[Path], None], made: Callable[[Path], Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved, by a link that leads elsewhere, by a path from elsewhere, touched, copied, and with another cache."""
    first, second, link = (tmp_path / name for name in ("first", "second", "link"))
    first.mkdir()
    write(first)
    for file in first.iterdir():
        os.utime(file, (time.time() - 60, time.time() - 60))
    known = everything(made(first))
    first.rename(second)
    assert everything(made(second)) == known
    link.symlink_to(second)
    assert everything(made(link)) == known
    shutil.copytree(second, tmp_path / "here" / "set")
    shutil.rmtree(second)
    link.unlink()
    link.symlink_to(tmp_path / "here" / "set")
    assert everything(made(link)) == known
    monkeypatch.chdir(tmp_path / "here")
    assert everything(made(Path("set"))) == known
    shutil.copytree("set", tmp_path / "there" / "set", copy_function=shutil.copyfile)  # as new as today
    shutil.rmtree("set")
    monkeypatch.chdir(tmp_path / "there")
    assert everything(made(Path("set"))) == known
    for file in Path("set").iterdir():
        os.utime(file, (time.time() - 30, time.time() - 30))
    assert everything(made(Path("set"))) == known
    (tmp_path / "cache").rename(tmp_path / "other")
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "other"))
    assert everything(made(Path("set"))) == known


def test_an_index_lies_beside_the_link_to_its_tokens(tmp_path: Path) -> None:
    """As a hub keeps files: under other names, and links to them under their own."""
    from bigctl.data.sources.token_formats import MEGATRON
    from tests.data.test_tokens import megatron

    (tmp_path / "blobs").mkdir()
    file = megatron(tmp_path / "blobs" / "a.bin", TOKENS)
    (tmp_path / "set").mkdir()
    for suffix in (".bin", ".idx"):
        file.with_suffix(suffix).rename(tmp_path / "blobs" / f"f{suffix[1:]}")
        (tmp_path / "set" / f"a{suffix}").symlink_to(tmp_path / "blobs" / f"f{suffix[1:]}")
    config = schema.Tokens(path=str(tmp_path / "set"), format=MEGATRON, validation_fraction=0.1, test_fraction=0.1)
    options = BatchOptions(block=8, packing="documents")
    found = prepare.prepare(config, tokenizer=SPEC, batches=options)
    assert found.info["packing"]["train"]["documents"] == 4
