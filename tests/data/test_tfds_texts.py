"""Texts of TFDS without TensorFlow: archives in the official layouts, generated small, read through `manual_dir`."""

from __future__ import annotations

import tarfile
import zipfile

import numpy as np
import pytest

from bigctl.data.sources import tfds
from bigctl.data.sources.decoded import Decoded
from bigctl.errors import DataError
from tests.data.tfds_archives import add

pytestmark = pytest.mark.usefixtures("no_network")


def examples(data: Decoded, split: str) -> set[tuple]:
    columns = data.splits[split]
    assert all(columns[name].dtype == (np.int32 if name == "label" else object) for name in columns)
    return set(zip(*(values.tolist() for values in columns.values()), strict=True))


def test_sst2_is_read_from_its_zip_without_the_secret_test_labels(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    with zipfile.ZipFile(folder / "SST-2.zip", "w") as archive:
        archive.writestr("SST-2/train.tsv", 'sentence\tlabel\nhide new secretions \t0\nça "va" , quoted \t1\n')
        archive.writestr("SST-2/dev.tsv", "sentence\tlabel\nit 's a charming journey . \t1\n")
        archive.writestr("SST-2/test.tsv", "index\tsentence\n0\tuneasy mishmash .\n1\tby-the-numbers .\n")
    register("glue/sst2", folder)
    data = tfds.read("glue/sst2", data_dir=tmp_path / "data", manual_dir=folder)
    assert data.kind == "text" and data.classes == ("negative", "positive")
    assert list(data.splits) == ["train", "validation"] and data.info["unlabelled"] == ["test"]
    assert examples(data, "train") == {("hide new secretions", 0), ('ça "va" , quoted', 1)}
    assert examples(data, "validation") == {("it 's a charming journey .", 1)}


def test_imdb_reviews_are_read_from_their_tar(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    written = {
        "train/pos/0_9.txt": "Great.<br /><br />Really\n",
        "train/neg/0_3.txt": "Déjà vu",
        "train/unsup/0_0.txt": "Who knows",
        "test/pos/0_10.txt": "Fine",
        "test/neg/0_1.txt": " ",
    }
    with tarfile.open(folder / "aclImdb_v1.tar.gz", "w:gz") as archive:
        for name, text in written.items():
            add(archive, f"aclImdb/{name}", text.encode())
    register("imdb_reviews", folder)
    data = tfds.read("imdb_reviews", data_dir=tmp_path / "data", manual_dir=folder)
    assert data.kind == "text" and data.classes == ("neg", "pos")
    assert list(data.splits) == ["train", "test"] and data.info["unlabelled"] == ["unsupervised"]
    assert examples(data, "train") == {("Great.<br /><br />Really", 1), ("Déjà vu", 0)}
    assert examples(data, "test") == {("Fine", 1), ("", 0)} and data.info["notes"] == ["1 texts of test are empty"]


def test_ag_news_has_two_texts_to_choose_from(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    rows = {"train.csv": '"3","Oil up","Prices, again"\n"4","Chips","Smaller"\n', "test.csv": '"1","Vote","Today"\n'}
    with tarfile.open(folder / "ag_news_csv.tar.gz", "w:gz") as archive:
        for name, content in rows.items():
            add(archive, f"ag_news_csv/{name}", content.encode())
    register("ag_news_subset", folder)
    where = {"data_dir": tmp_path / "data", "manual_dir": folder}
    data = tfds.read("ag_news_subset", **where)
    assert data.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert examples(data, "train") == {("Prices, again", 2), ("Smaller", 3)}
    assert examples(tfds.read("ag_news_subset", **where, text="title"), "test") == {("Vote", 0)}
    pairs = tfds.read("ag_news_subset", **where, text="title", text_pair="description")
    assert list(pairs.splits["train"]) == ["text", "text_pair", "label"]
    assert examples(pairs, "train") == {("Oil up", "Prices, again", 2), ("Chips", "Smaller", 3)}


def test_of_two_texts_the_one_that_is_not_the_second_is_the_first(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    with zipfile.ZipFile(folder / "WNLI.zip", "w") as archive:
        for name in ("train", "dev", "test"):
            archive.writestr(f"WNLI/{name}.tsv", "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tWet.\t1\n")
    register("glue/wnli", folder)
    data = tfds.read("glue/wnli", data_dir=tmp_path / "data", manual_dir=folder, text_pair="sentence2")
    assert examples(data, "validation") == {("It rains.", "Wet.", 1)}


def test_tiny_shakespeare_is_one_text_in_its_official_splits(tmp_path, register):
    folder = tmp_path / "files"
    folder.mkdir()
    whole = "".join(f"First Citizen {i}:\nSpeak, speak.\n\n" for i in range(100))
    (folder / "input.txt").write_text(whole)
    register("tiny_shakespeare", folder)
    data = tfds.read("tiny_shakespeare", data_dir=tmp_path / "data", manual_dir=folder)
    assert data.kind == "stream" and data.classes is None
    assert {split: list(columns) for split, columns in data.splits.items()} == dict.fromkeys(
        ("train", "validation", "test"), ["document"]
    )
    assert "".join(columns["document"][0] for columns in data.splits.values()) == whole  # blanks at the cuts too
    assert len(data.splits["train"]["document"][0]) == int(0.9 * len(whole))


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("ag_news_subset", {"text": "body"}, r"text=body is no feature with text \(its texts are title, description"),
        ("ag_news_subset", {"text_pair": "label"}, r"data\.text_pair=label is no feature with text"),
        ("ag_news_subset", {"text": "title", "text_pair": "title"}, "name the same feature"),
        ("mnist", {"text": "label"}, r"data\.text=label is no feature with text \(it has none"),
        ("glue/qnli", {}, r"several texts: question, sentence \(set data\.text=NAME, and data\.text_pair=NAME"),
        ("glue/stsb", {"text": "sentence1"}, "its features cannot be used.*texts with one class label"),
    ],
)
def test_texts_that_cannot_be_chosen_are_said_before_anything_is_downloaded(tmp_path, name, chosen, message, capsys):
    with pytest.raises(DataError, match=message):
        tfds.read(name, data_dir=tmp_path, **chosen)
    assert "downloading" not in capsys.readouterr().err
