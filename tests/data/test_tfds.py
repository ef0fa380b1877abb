"""TFDS without TensorFlow: archives in the official layouts, generated small, read through `manual_dir`.

A builder's own checksum would refuse a generated archive; the tests register the generated ones beside it, the way
TFDS registers the official ones, so that the checksums stay enforced.
"""

from __future__ import annotations

import gzip
import io
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.data.sources import tfds, tfds_hooks
from bigctl.data.sources.decoded import Decoded
from bigctl.errors import DataError
from tests.data.tfds_archives import add

pytestmark = pytest.mark.usefixtures("no_network")

TRAIN, TEST = 30, 12
CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def small_mnist(monkeypatch):
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", TEST)


def write_mnist(folder: Path, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four idx files; returns images and labels by split."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    written = {}
    for split, stem, n in (("train", "train", TRAIN), ("test", "t10k", TEST)):
        images = random.integers(0, 256, (n, 28, 28, 1), np.uint8)
        labels = random.integers(0, 10, n).astype(np.uint8)
        with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4i", 2051, n, 28, 28) + images.tobytes())
        with gzip.open(folder / f"{stem}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">2i", 2049, n) + labels.tobytes())
        written[split] = images, labels
    return written


def assert_same_examples(data: Decoded, written: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """TFDS shuffles once while it prepares: the examples must be the same, in whatever order."""
    assert list(data.splits) == list(written)
    for split, (images, labels) in written.items():
        columns = data.splits[split]
        assert columns["image"].dtype == np.uint8 and columns["label"].dtype == np.int32
        found = sorted((int(y), x.tobytes()) for x, y in zip(columns["image"], columns["label"], strict=True))
        assert found == sorted((int(y), x.tobytes()) for x, y in zip(images, labels, strict=True))


def test_mnist_archives_become_arrays(tmp_path, register, small_mnist):
    written = write_mnist(tmp_path / "files", seed=1)
    register("mnist", tmp_path / "files")
    data = tfds.read("mnist:3.0.1", data_dir=tmp_path / "data", manual_dir=tmp_path / "files")
    assert data.kind == "image" and data.classes == tuple("0123456789")
    assert data.splits["train"]["image"].shape == (TRAIN, 28, 28, 1)
    assert_same_examples(data, written)
    assert data.info["name"] == "mnist/3.0.1" and data.info["examples"] == {"train": TRAIN, "test": TEST}
    assert data.info["description"] == "The MNIST database of handwritten digits."


def test_prepared_data_is_read_without_its_archives(tmp_path, register, small_mnist):
    written = write_mnist(tmp_path / "files", seed=1)
    register("mnist", tmp_path / "files")
    tfds.read("mnist", data_dir=tmp_path / "data", manual_dir=tmp_path / "files")
    again = tfds.read("mnist", data_dir=tmp_path / "data", download=False, image_size=(14, 20))
    assert again.splits["test"]["image"].shape == (TEST, 14, 20, 1)
    assert_same_examples(tfds.read("mnist", data_dir=tmp_path / "data", download=False), written)


def test_archives_of_the_same_name_are_never_taken_for_each_other(tmp_path, register, small_mnist):
    for seed, name in enumerate(("mnist", "fashion_mnist")):
        written = write_mnist(tmp_path / name, seed)
        register(name, tmp_path / name)
        data = tfds.read(name, data_dir=tmp_path / "data", manual_dir=tmp_path / name)
        assert_same_examples(data, written)
    assert data.classes is not None and data.classes[:2] == ("T-shirt/top", "Trouser")


def test_cifar10_is_read_from_its_binary_tar(tmp_path, register):
    random = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        add(archive, "cifar-10-batches-bin/batches.meta.txt", "\n".join(CIFAR_NAMES).encode() + b"\n\n")
        batches = [("train", f"data_batch_{i}.bin") for i in range(1, 6)] + [("test", "test_batch.bin")]
        for split, name in batches:
            labels = random.integers(0, 10, (4, 1)).astype(np.uint8)
            planes = random.integers(0, 256, (4, 3, 32, 32), np.uint8)
            add(archive, f"cifar-10-batches-bin/{name}", np.hstack([labels, planes.reshape(4, -1)]).tobytes())
            images, labels = planes.transpose(0, 2, 3, 1), labels[:, 0]
            if split in written:
                images = np.concatenate([written[split][0], images])
                labels = np.concatenate([written[split][1], labels])
            written[split] = images, labels
    register("cifar10", folder)
    data = tfds.read("cifar10", data_dir=tmp_path / "data", manual_dir=folder)
    assert data.classes == tuple(CIFAR_NAMES)
    assert_same_examples(data, written)
    assert tfds.read("cifar10", data_dir=tmp_path / "data").classes == tuple(CIFAR_NAMES)


def test_images_of_different_sizes_need_an_image_size(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    with zipfile.ZipFile(folder / "rps.zip", "w") as train, zipfile.ZipFile(folder / "rps-test-set.zip", "w") as test:
        for archive, root in ((train, "rps"), (test, "rps-test-set")):
            for i, name in enumerate(("rock", "paper", "scissors")):
                image = Image.new("L" if i else "RGB", (300, 300 + 10 * i), 60 * i if i else (200, 0, 0))
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                archive.writestr(f"{root}/{name}/{name}0.png", buffer.getvalue())
    register("rock_paper_scissors", folder)
    with pytest.raises(DataError, match=r"differ in size: 3\d0x300.*data\.image_size=\[H,W\]"):
        tfds.read("rock_paper_scissors", data_dir=tmp_path / "data", manual_dir=folder)
    data = tfds.read("rock_paper_scissors", data_dir=tmp_path / "data", image_size=(8, 6))
    train_split = data.splits["train"]
    assert train_split["image"].shape == (3, 8, 6, 3)
    # Grey images among colour ones are widened to three channels; labels stay with their images.
    expected = {0: (200, 0, 0), 1: (60, 60, 60), 2: (120, 120, 120)}
    assert {int(y): tuple(x[4, 3].tolist()) for x, y in zip(*train_split.values(), strict=True)} == expected


def test_iris_becomes_a_table(tmp_path, register):
    (tmp_path / "files").mkdir()
    rows = ["5.1,3.5,1.4,0.2,Iris-setosa", "7.0,3.2,4.7,1.4,Iris-versicolor", "6.3,3.3,6.0,2.5,Iris-virginica"]
    with zipfile.ZipFile(tmp_path / "files" / "iris.zip", "w") as archive:
        archive.writestr("iris.data", "\n".join(rows) + "\n\n")
    register("iris", tmp_path / "files")
    data = tfds.read("iris", data_dir=tmp_path / "data", manual_dir=tmp_path / "files")
    assert data.kind == "table" and data.classes == ("Iris-setosa", "Iris-versicolor", "Iris-virginica")
    columns = data.splits["train"]
    assert list(columns) == ["features_0", "features_1", "features_2", "features_3", "label"]
    order = np.argsort(columns["label"])
    np.testing.assert_allclose(columns["features_2"][order], [1.4, 4.7, 6.0], rtol=1e-6)
    assert columns["features_2"].dtype == np.float64 and columns["label"].dtype == np.int32


def test_titanic_keeps_numbers_categories_and_strings(tmp_path, register):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "phpMYEkMl.csv").write_text(
        '"pclass","survived","name","sex","age","sibsp","parch","ticket","fare","cabin","embarked","boat","body",'
        '"home.dest"\n'
        '1,1,"Allen, Miss. É.",female,29,0,0,24160,211.3375,B5,S,2,?,"St Louis, MO"\n'
        "3,0,Abbing,male,42,0,0,5547,7.55,?,Q,?,?,?\n"
    )
    register("titanic", tmp_path / "files")
    data = tfds.read("titanic", data_dir=tmp_path / "data", manual_dir=tmp_path / "files")
    columns = data.splits["train"]
    row = int(np.argmax(columns["label"]))
    assert data.classes == ("died", "survived")
    assert (columns["name"][row], columns["sex"][row], columns["embarked"][row]) == (
        "Allen, Miss. É.",
        "female",
        "Southampton",
    )
    assert columns["age"][row] == 29.0 and columns["age"].dtype == np.float64
    assert "survived" not in columns


def test_a_number_as_target_is_a_regression(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    head = (
        "fixed acidity;volatile acidity;citric acid;residual sugar;chlorides;free sulfur dioxide;"
        "total sulfur dioxide;density;pH;sulphates;alcohol;quality"
    )
    (tmp_path / "files" / "winequality-white.csv").write_text(
        f"{head}\n7;0.27;0.36;20.7;0.045;45;170;1.001;3;0.45;8.8;6\n"
    )
    # TFDS has no checksums for this one, so that it cannot be told from a manual_dir: register its URL first.
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.structured.wine_quality import wine_quality

    info = checksums.compute_url_info(tmp_path / "files" / "winequality-white.csv")
    monkeypatch.setitem(checksums.get_all_url_infos(), wine_quality._DOWNLOAD_URL_WHITE_WINES, info)
    data = tfds.read("wine_quality/white", data_dir=tmp_path / "data", manual_dir=tmp_path / "files")
    assert data.kind == "table" and data.classes is None
    columns = data.splits["train"]
    assert columns["label"].dtype == np.float64 and columns["label"].tolist() == [6.0]
    assert columns["residual sugar"][0] == pytest.approx(20.7) and len(columns) == 12


@pytest.fixture(scope="module")
def toy_builder():
    """A builder of its own for what no small official set has: palette images, and splits without labels."""
    import tensorflow_datasets.public_api as api

    class BigctlToy(api.core.GeneratorBasedBuilder):
        VERSION = api.core.Version("1.0.0")
        BUILDER_CONFIGS = [api.core.BuilderConfig(name=name, description=name) for name in ("unlabelled", "mixed")]

        def _info(self):
            image = api.features.Image(shape=(4, 4, 3))
            features = {"image": image, "label": api.features.ClassLabel(names=["red", "blue"])}
            return api.core.DatasetInfo(builder=self, features=api.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            hidden = [-1, -1] if self.builder_config.name == "unlabelled" else [-1, 0]
            return {"train": self._generate_examples([0, 1]), "test": self._generate_examples(hidden)}

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                colour = (0, 0, 255) if label == 1 else (255, 0, 0)
                yield i, {"image": Image.new("RGB", (4, 4), colour).convert("P"), "label": label}


def test_palette_images_get_their_colours_and_unlabelled_splits_are_left_out(tmp_path, toy_builder):
    data = tfds.read("bigctl_toy/unlabelled", data_dir=tmp_path)
    assert list(data.splits) == ["train"] and data.info["unlabelled"] == ["test"]
    colours = {int(y): tuple(x[0, 0].tolist()) for x, y in zip(*data.splits["train"].values(), strict=True)}
    assert colours == {0: (255, 0, 0), 1: (0, 0, 255)} and data.classes == ("red", "blue")


def test_a_split_with_some_labels_missing_is_refused(tmp_path, toy_builder):
    with pytest.raises(DataError, match="1 of 2 examples of test have no label"):
        tfds.read("bigctl_toy/mixed", data_dir=tmp_path)


def test_records_lost_on_disk_are_noticed(tmp_path, toy_builder, monkeypatch):
    tfds.read("bigctl_toy/unlabelled", data_dir=tmp_path)
    from tensorflow_datasets.core.data_sources import array_record

    monkeypatch.setattr(array_record.ArrayRecordDataSource, "__len__", lambda source: 1)
    with pytest.raises(DataError, match="1 examples on disk where 2 were prepared.*delete"):
        tfds.read("bigctl_toy/unlabelled", data_dir=tmp_path)


def test_a_changed_archive_is_refused_with_both_checksums(tmp_path, register, small_mnist):
    folder = tmp_path / "files"
    write_mnist(folder, seed=1)
    register("mnist", folder)
    with (folder / "train-labels-idx1-ubyte.gz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is not the original.*[0-9a-f]{64}.*[0-9a-f]{64}"):
        tfds.read("mnist", data_dir=tmp_path / "data", manual_dir=folder)


@pytest.mark.parametrize("download", [True, False])
def test_missing_files_without_network_are_named_after_two_tries(tmp_path, register, download, capsys, monkeypatch):
    folder = tmp_path / "files"
    write_mnist(folder, seed=1)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    register("mnist", folder)
    tries, connect = [], socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (tries.append(to), connect(self, to)))
    with pytest.raises(DataError) as caught:
        tfds.read("mnist", data_dir=tmp_path / "data", manual_dir=folder, download=download)
    assert len(tries) <= 2 * download  # and no waiting between them
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and "mnist/t10k-labels-idx1-ubyte.gz" in message
    assert "train-labels" not in message
    assert ("t10k-labels-idx1-ubyte.gz (4.44 KiB)" in capsys.readouterr().err) == download
    assert not list(tmp_path.rglob("*.tmp.*")) and not list(tmp_path.rglob("extracted-*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minst", "did you mean mnist"),
        ("cifar10_corrupted/brightnes_1", "did you mean brightness_1"),
        ("mnist/plain", "mnist has no config 'plain'"),
        ("mnist:9.9.9", "only: 3.0.1"),
        ("a name", "not a TFDS name"),
        ("glue/stsb", r"sentence1 \(Text\).*bigctl reads images and texts with one class label"),
        ("squad", r"question \(Text\).*bigctl reads images and texts"),
        ("imagenet2012", "ILSVRC2012_img_train.tar"),
        ("speech_commands", "needs TensorFlow, which bigctl does without"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_downloaded(tmp_path, name, message, capsys):
    with pytest.raises(DataError, match=message):
        tfds.read(name, data_dir=tmp_path)
    assert "downloading" not in capsys.readouterr().err


def test_a_manual_dir_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        tfds.read("mnist", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")


def test_jpeg_encoding_keeps_tensorflows_quality():
    from tensorflow_datasets.core import features

    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    tfds._resolve("mnist")
    with tfds_hooks.without_tensorflow():
        encoded = features.Image(shape=(16, 16, 3), encoding_format="jpeg").encode_example(noise)
        exact = features.Image(shape=(16, 16, 3)).encode_example(noise)
    expected = io.BytesIO()
    Image.fromarray(noise).save(expected, "JPEG", quality=95)
    assert encoded == expected.getvalue()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(exact))), noise)


def test_a_builder_that_needs_more_of_tensorflow_says_so():
    with pytest.raises(ImportError, match="needs TensorFlow"):
        tfds_hooks.stand_in().image.decode_jpeg(b"")


def test_every_patch_is_taken_back(tmp_path):
    from tensorflow_datasets.core import shuffle
    from tensorflow_datasets.core.download import downloader, extractor
    from tensorflow_datasets.core.features import image_feature
    from tensorflow_datasets.core.utils import lazy_imports_utils, tqdm_utils
    from tensorflow_datasets.image_classification import cifar

    places = [
        (extractor, "tf"),
        (shuffle, "tf"),
        (cifar, "tf"),
        (image_feature._ImageEncoder, "_encode_image"),
        (downloader, "MAX_RETRIES"),
        (downloader, "_open_url"),
        (downloader._Downloader, "download"),
        (tqdm_utils, "_active"),
    ]
    before = [getattr(owner, name) for owner, name in places]
    with tfds_hooks.without_tensorflow():
        assert cifar.tf is not lazy_imports_utils.tensorflow
        assert not [name for owner, name in places[:4] if getattr(owner, name) is before[places.index((owner, name))]]
    with pytest.raises(DataError):
        tfds.read("cifar10", data_dir=tmp_path)
    assert all(getattr(owner, name) is old for (owner, name), old in zip(places, before, strict=True))


def test_stdout_stays_empty_and_tensorflow_unimported(tmp_path):
    """In a process of its own: TFDS prints and imports once."""
    script = f"""
import sys
from pathlib import Path
from bigctl.data.sources import tfds
assert "tensorflow_datasets" not in sys.modules
for name in ("iris", "minst"):
    try:
        tfds.read(name, data_dir=Path({str(tmp_path)!r}))
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("DataError") == 2 and "Failed to import TensorFlow" not in done.stderr
