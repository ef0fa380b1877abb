"""Pictures of TFDS that stay encoded: the batches of a tar with the same pictures, and of the array cache."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.pictures import packs, records
from bigctl.data.preparation import prepare
from bigctl.data.sources import tfds
from tests.data import test_webdataset

GIVEN = {"dataset": "bigctl_photographs", "image_size": test_webdataset.SIZE}

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def photographs():
    """A builder of pictures that are stored as they are given, in many shapes."""
    import tensorflow_datasets.public_api as api

    class BigctlPhotographs(api.core.GeneratorBasedBuilder):
        VERSION = api.core.Version("1.0.0")

        def _info(self):
            features = {"image": api.features.Image(), "label": api.features.ClassLabel(names=["cat", "dog"])}
            return api.core.DatasetInfo(builder=self, features=api.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for number, (name, content) in enumerate(test_webdataset.pictures()):
                yield number, {"image": io.BytesIO(content), "label": name}


def test_records_are_streamed_as_they_are_encoded(tmp_path, photographs, monkeypatch, capsys):
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))

    def prepared(**keys: object) -> Dataset:
        given = GIVEN | keys
        return prepare.prepare(schema.Tfds(**given), batches=BatchOptions(least=0.1))  # type: ignore[arg-type]

    memory, stream = prepared(decoding="memory"), prepared(decoding="stream")
    assert "a copy of " not in capsys.readouterr().err and not packs.root().exists()
    source = tfds.read("bigctl_photographs", data_dir=tmp_path / "cache" / "tfds", streamed=True, image_size=(16, 12))
    assert source.index is not None
    members: list[tuple[str, bytes]] = []  # the same pictures in the order in which TFDS has shuffled them
    for row, label in enumerate(source.splits["train"]["label"].tolist()):
        members += [(f"{row}.jpg", source.index.store.read(row)), (f"{row}.cls", str(label).encode())]
    shard = test_webdataset.tar(tmp_path / "x.tar", members)
    test_webdataset.same(stream, test_webdataset.prepared(shard, least=0.1))
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(np.asarray(stream.splits[split]["inputs"]), memory.splits[split]["inputs"])
        np.testing.assert_array_equal(stream.splits[split]["label"], memory.splits[split]["label"])
    assert not prepared().streamed and prepared().path == memory.path
    monkeypatch.setattr("bigctl.data.sources.image_index.FEW", 1000)
    assert prepared(image_size=[10, 10]).streamed
    (file,) = (tmp_path / "cache" / "tfds").rglob("*.array_record*")
    os.utime(file)
    np.testing.assert_array_equal(np.asarray(stream.splits["train"]["inputs"]), memory.splits["train"]["inputs"])
    again = prepared(decoding="stream")
    assert again.fingerprint == stream.fingerprint and "making the index again" in capsys.readouterr().err
    np.testing.assert_array_equal(np.asarray(again.splits["test"]["inputs"]), memory.splits["test"]["inputs"])
    monkeypatch.setattr(tfds, "_records", lambda *given: {})  # as of another format
    copied = prepare.prepare(schema.Tfds(**GIVEN, decoding="stream"), rebuild=True)
    assert copied.fingerprint == stream.fingerprint


def test_a_record_that_is_no_example_is_told() -> None:
    assert [bytes(found) for found in records._fields(memoryview(b"\x08\x96\x01\x12\x02hi\x0a\x01x"), 2)] == [b"hi"]
    for content in (b"\x12\x05hi", b"\x08\x96", b"\x0b", b"\xff" * 12):
        with pytest.raises(ValueError, match="cut short|of kind"):
            list(records._fields(memoryview(content), 2))
