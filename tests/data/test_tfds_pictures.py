"""Pictures of TFDS that stay encoded: the batches of a tar with the same pictures, and of the array cache."""

from __future__ import annotations

import io

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.preparation import prepare
from bigctl.data.sources import tfds
from tests.data import test_webdataset

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
        given = {"dataset": "bigctl_photographs", "image_size": test_webdataset.SIZE, **keys}
        return prepare.prepare(schema.Tfds(**given), batches=BatchOptions(least=0.1))  # type: ignore[arg-type]

    memory, stream = prepared(decoding="memory"), prepared(decoding="stream")
    assert capsys.readouterr().err.count("a copy of ") == 1
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
    assert "a copy of" not in capsys.readouterr().err
