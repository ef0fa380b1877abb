"""Pictures in Parquet and Arrow files, decoded while training, give the batches of a folder of the same pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigctl.config import compose
from bigctl.config.schema import Arrow, Parquet
from bigctl.data import cache, notes
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.pictures import packs
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.preparation import prepare
from bigctl.data.sources import column_pictures, parquet_pages
from bigctl.errors import BigctlError, DataError
from tests.data.test_webdataset import SIZE, folder, fresh_cache, of_folder, pictures, same  # noqa: F401

KEYS: dict[str, object] = {"image": "image", "label": "kind", "image_size": SIZE}


def table(*, struct: bool = False) -> pa.Table:
    images = [content for _, content in pictures()]
    column: pa.Array = pa.array(images, pa.binary())
    if struct:  # as Hugging Face writes images
        column = pa.array([{"bytes": content, "path": None} for content in images])
    return pa.table({"image": column, "kind": [name for name, _ in pictures()]})


def parquet(place: Path, rows: pa.Table | None = None, *, parts: int = 2, **keys: object) -> str:
    rows = table() if rows is None else rows
    place.mkdir(parents=True, exist_ok=True)
    step = -(-rows.num_rows // parts)
    for part in range(parts):
        pq.write_table(rows.slice(part * step, step), place / f"{part}.parquet", row_group_size=5, **keys)
    return str(place)


def arrow(place: Path, rows: pa.Table | None = None, *, compression: str | None = None, stream: bool = False) -> str:
    rows = table(struct=True) if rows is None else rows
    opens = pa.ipc.new_stream if stream else pa.ipc.new_file
    with opens(place, rows.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(rows, max_chunksize=7)
    return str(place)


def prepared(path: str, *, least: float = 0.0, **keys: object) -> Dataset:
    kind = Arrow if path.endswith(".arrow") else Parquet
    config = kind(path=path, **{"decoding": "stream", **KEYS, **keys})  # type: ignore[arg-type]
    return prepare.prepare(config, batches=BatchOptions(least=least))


def images(dataset: Dataset) -> EncodedImages:
    found = dataset.splits["train"]["inputs"]
    assert isinstance(found, EncodedImages)
    return found


def refused(match: str, path: str, **keys: object) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        prepared(path, **keys)
    assert "\n" not in str(caught.value)
    return caught.value


def test_parquet_and_arrow_give_the_batches_of_a_folder(tmp_path: Path) -> None:
    known = of_folder(folder(tmp_path / "folder"), least=0.1)
    found = prepared(parquet(tmp_path / "parquet"), least=0.1)
    same(found, known)
    same(found, known, threads=(2, 8))
    ways = [
        parquet(tmp_path / "struct", table(struct=True), parts=1, use_dictionary=False),
        arrow(tmp_path / "file.arrow"),
        arrow(tmp_path / "stream.arrow", stream=True),
        arrow(tmp_path / "bytes.arrow", table()),
        arrow(tmp_path / "packed.arrow", compression="zstd"),
    ]
    for path in ways:
        assert prepared(path, least=0.1).fingerprint == found.fingerprint
    same(prepared(ways[1], least=0.1), found)
    assert notes.notes_of(found)[-1].startswith("24 pictures (")


def test_parquet_that_is_not_compressed_is_read_where_it_is(tmp_path: Path) -> None:
    known = of_folder(folder(tmp_path / "folder"), least=0.1)
    plain: dict[str, object] = {"compression": "none", "data_page_size": 2000}
    found = prepared(parquet(tmp_path / "plain", **plain), least=0.1)
    same(found, known)
    ways = [
        parquet(tmp_path / "struct", table(struct=True), use_dictionary=False, **plain),
        parquet(tmp_path / "later", data_page_version="2.0", dictionary_pagesize_limit=3000, **plain),
    ]
    for path in ways:
        again = prepared(path, least=0.1)
        assert again.fingerprint == found.fingerprint
        np.testing.assert_array_equal(np.asarray(images(again)), np.asarray(images(found)))
    assert not packs.root().exists()


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_are_found_in_pages_byte_for_byte(tmp_path: Path, dictionary: bool, version: str) -> None:
    """Those that repeat, are empty, missing, begin alike or hold one another, over many pages and groups."""
    draw = np.random.default_rng(0)
    values: list[bytes | None] = [bytes(draw.integers(0, 3, size).astype(np.uint8)) for size in range(1, 200)]
    values += [None, b"", *values[:50], None, b"", *(bytes(value or b"") * 2 for value in values[100:150])]
    file = tmp_path / "a.parquet"
    pages: dict[str, object] = {"data_page_size": 500, "dictionary_pagesize_limit": 2000, "row_group_size": 120}
    columns = pa.table({"other": range(len(values)), "it": pa.array(values, pa.binary())})
    pq.write_table(columns, file, compression="none", use_dictionary=dictionary, data_page_version=version, **pages)
    found = parquet_pages.places(file, "it", lambda block: block)
    assert found is not None
    content = file.read_bytes()
    read = [None if size < 0 else content[start : start + size] for start, size in zip(*found, strict=True)]
    assert read == values
    pq.write_table(columns, file, compression={"it": "snappy", "other": "none"})
    assert parquet_pages.places(file, "it", lambda block: block) is None


def test_what_has_no_random_access_is_copied_once_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "rows", parts=1)
    first = prepared(path)
    told = capsys.readouterr().err
    assert told.count("pages, which have no random access: a copy of ") == 1
    place = Path(images(first).store.files[0].path).parent  # type: ignore[attr-defined]
    assert place.parent == packs.root()
    prepared(arrow(tmp_path / "plain.arrow"))
    assert not capsys.readouterr().err  # which is read where it is
    with monkeypatch.context() as only:
        only.setattr(column_pictures, "_pack", None)
        second = prepared(path, image_size=[8, 8])
    assert not cache.sweep_packs([Path(first.path)]) and place.is_dir()  # as the second refers to it
    assert cache.sweep_packs([Path(first.path), Path(second.path)]) and not place.exists()
    assert prepared(path).fingerprint == first.fingerprint and place.is_dir()  # it is made again


def test_few_images_are_decoded_once_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (parquet(tmp_path / "rows"), arrow(tmp_path / "rows.arrow")):
        memory, stream = prepared(path, decoding=None, resize="crop"), prepared(path, resize="crop")
        assert not memory.streamed and stream.streamed
        for split in ("train", "validation", "test"):
            np.testing.assert_array_equal(memory.splits[split]["inputs"], np.asarray(stream.splits[split]["inputs"]))
        with monkeypatch.context() as only:
            only.setattr("bigctl.data.sources.image_index.FEW", 1000)
            assert prepared(path, decoding=None).streamed
            assert prepared(path, decoding=None, image_size=[12, 12]).streamed


# ----------------------------------------------------------------------------------------------------------- bad input


def test_one_bad_image_among_many_is_refused_or_left_out(tmp_path: Path) -> None:
    rows = table()
    values = rows.column("image").to_pylist()
    values[3], values[9] = None, b"no picture"
    rows = rows.set_column(0, "image", pa.array(values, pa.binary()))
    for path in (parquet(tmp_path / "rows", rows, parts=1), arrow(tmp_path / "rows.arrow", rows)):
        assert str(refused("there is no image", path).where).endswith("row 4:image")
        refused("2 of 24 files cannot be used, more than data.bad_limit=0.05", path, on_bad="skip", bad_limit=0.05)
        kept = prepared(path, on_bad="skip")
        memory = prepared(path, on_bad="skip", decoding="memory")
        assert notes.notes_of(kept)[0].startswith("2 rows are left out, the first with this: ")
        for split in ("train", "validation", "test"):
            np.testing.assert_array_equal(memory.splits[split]["inputs"], np.asarray(kept.splits[split]["inputs"]))
            np.testing.assert_array_equal(memory.splits[split]["label"], kept.splits[split]["label"])


def test_columns_and_files_that_cannot_be_used_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "rows")
    assert "did you mean 'image'" in str(refused("no image column 'imag'", path, image="imag"))
    refused("the column 'kind' is string, not of bytes", path, image="kind", label="image")
    second = Path(path, "1.parquet")
    whole = second.read_bytes()
    pq.write_table(pa.table({"image": pa.array(range(12)), "kind": ["cat", "dog"] * 6}), second)
    assert refused("the column 'image' is int64, not of bytes", path).where == str(second)
    second.write_bytes(whole)
    start = pq.ParquetFile(second).metadata.row_group(1).column(0).dictionary_page_offset
    second.write_bytes(whole[:start] + b"x" * 40 + whole[start + 40 :])  # in the second row group
    assert refused("damaged", path).where == str(second)
    second.write_bytes(whole[:-100])
    refused("damaged", path)
    second.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused("too large, above 100 pixels", path)


def test_an_arrow_file_that_goes_or_changes_is_told(tmp_path: Path) -> None:
    path = Path(arrow(tmp_path / "rows.arrow"))
    first = prepared(str(path))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="changed since it was indexed"):
        np.asarray(first.splits["train"]["inputs"])
    refused("damaged", str(path))
    path.unlink()
    with pytest.raises(DataError, match="not there any more"):
        np.asarray(first.splits["train"]["inputs"])


def test_keys_of_images_are_refused_of_other_columns() -> None:
    given = ["recipe=mlp_cls", "data=parquet", "data.path=x", "data.label=y"]
    for key in ("data.decoding=stream", "data.resize=crop"):
        with pytest.raises(BigctlError, match="images"):
            compose.compose([*given, key])
