"""Promises of several classes an example: what cells mean, what is refused, and how splits share the classes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.data.dataset import Features
from bigctl.data.sources.labelled_images import read_labelled_images
from bigctl.data.sources.text_table import read_texts
from bigctl.data.target import CLASSES, Target
from bigctl.errors import DataError


def rows(file: Path, *cells: str) -> Path:
    file.write_text("\n".join(["text,tags", *(f'text {n},"{cell}"' for n, cell in enumerate(cells))]) + "\n")
    return file


def test_cells_are_names_between_separators_or_json_lists(tmp_path: Path) -> None:
    file = rows(tmp_path / "a.csv", "b; a", "", '[""a"", ""c;d"", ""a""]', "c;d", "[]", ";a;")
    found = read_texts(file, text="text", labels="tags")
    assert found.classes is None and found.target == Target(CLASSES, ("a", "b", "c", "c;d", "d"))
    expected = [[1, 1, 0, 0, 0], [0] * 5, [1, 0, 0, 1, 0], [0, 0, 1, 0, 1], [0] * 5, [1, 0, 0, 0, 0]]
    assert found.splits["train"]["label"].tolist() == expected
    assert found.splits["train"]["label"].dtype == np.uint8
    assert "2 of 6 training examples have no class" in found.info["notes"]


def test_json_lines_hold_lists(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    values = [["x", "y"], [], None, ["y"], "x;y", [3]]
    file.write_text("".join(json.dumps({"text": f"t{n}", "tags": v}) + "\n" for n, v in enumerate(values)))
    found = read_texts(file, text="text", labels="tags", format="jsonl")
    assert found.target.names == ("3", "x", "y")
    assert found.splits["train"]["label"][:, 1:].tolist() == [[1, 1], [0, 0], [0, 0], [0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["a", "[a, b"], "begins like a JSON list and is none"),
        (["a", "[[1]]"], r"\[1\] in a list of classes is no name"),
        (["", "[]"], "no row of the column 'tags' names a class"),
    ],
)
def test_cells_that_say_nothing_are_refused_with_their_line(tmp_path: Path, cells: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_texts(rows(tmp_path / "a.csv", *cells), text="text", labels="tags")
    assert str(error.value.where).startswith(str(tmp_path / "a.csv"))


def test_a_class_that_training_does_not_have_is_refused(tmp_path: Path) -> None:
    train, test = rows(tmp_path / "a.csv", "a;b", "b"), rows(tmp_path / "t.csv", "b", "b;c")
    with pytest.raises(DataError, match="class 'c' is not among the training classes") as error:
        read_texts(train, text="text", labels="tags", test_path=test)
    assert error.value.where == f"{test}:3:tags"


def test_a_wrong_separator_is_noticed(tmp_path: Path) -> None:
    found = read_texts(rows(tmp_path / "a.csv", "a|b", "b|c", "c|a"), text="text", labels="tags")
    assert any("data.label_separator=';' right" in note for note in found.info["notes"])
    with pytest.raises(DataError, match="separator is empty"):
        read_texts(tmp_path / "a.csv", text="text", labels="tags", label_separator="")


def test_rare_classes_are_shared_out_over_the_splits() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((1000, 4)) < [0.5, 0.5, 0.02, 0.0]).astype(np.uint8)
    target = Target(CLASSES, ("a", "b", "rare", "never"))
    strata = target.strata(labels)
    rare = labels[:, 2] > 0
    assert (strata[rare] == 2).all() and (strata[~rare] != 2).all()
    assert (strata[~labels.any(1)] == 4).all() and not (strata == 3).any()


def test_the_description_survives_json_and_is_left_out_where_it_follows_from_the_classes() -> None:
    several = Features("text", (8,), None, target=Target(CLASSES, ("a", "b")))
    assert Features.from_json(json.loads(json.dumps(several.to_json()))) == several
    number = Features("table", (3,), None, (1.5,), (2.0,))
    known = ((Features("text", (8,), ("a", "b")), "class"), (number, "number"), (Features("text", (8,), None), "none"))
    for features, kind in known:
        assert "target" not in features.to_json() and features.target.kind == kind
        assert Features.from_json(json.loads(json.dumps(features.to_json()))) == features
    assert (number.target.mean, number.target.std) == (1.5, 2.0)


# --- Images -----------------------------------------------------------------------------------------------------------


def pictures(folder: Path, count: int = 6) -> Path:
    (folder / "sub").mkdir(parents=True)
    for n in range(count):
        Image.new("L", (8, 8), 10 * n).save(folder / ("sub" if n % 2 else "") / f"{n}.png")
    return folder


def named(n: int) -> str:
    return f"sub/{n}.png" if n % 2 else f"{n}.png"


def test_a_file_names_the_classes_of_images(tmp_path: Path) -> None:
    folder, file = pictures(tmp_path / "images"), tmp_path / "labels.csv"
    said = ((3, "a;b", "train"), (0, "", "dev"), (1, "b", "train"), (2, "a", "test"))
    lines = [f"{named(n)},{tags},{split}" for n, tags, split in said]
    file.write_text("\n".join(["file_name,labels,part", *lines]) + "\n")
    found = read_labelled_images(folder, file, split="part")
    assert found.target.names == ("a", "b") and list(found.splits) == ["train", "validation", "test"]
    assert found.splits["train"]["image"][:, 0, 0, 0].tolist() == [30, 10]
    assert found.splits["train"]["label"].tolist() == [[1, 1], [0, 1]]
    assert found.splits["validation"]["label"].tolist() == [[0, 0]]
    other = tmp_path / "other.csv"
    other.write_bytes("file_name,labels\n0.png,\xe4\nsub/1.png,b\n".encode("latin-1"))
    assert read_labelled_images(folder, other, encoding="latin-1").target.names == ("b", "\xe4")
    with pytest.raises(DataError, match="other.csv:2: byte 0xe4 is not UTF-8, at offset 23"):
        read_labelled_images(folder, other)
    assert found.info["ignored_files"] == 2
    assert list(read_labelled_images(folder, file).splits) == ["train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,labels\nno.png,a\n", "'no.png' is not in the folder"),
        ("file_name,labels\n0.png,a\n0.png,b\n", "named twice"),
        ("name,labels\n0.png,a\n", "no file name column 'file_name'"),
        ("file_name,tags\n0.png,a\n", "no label column 'labels'"),
        ("file_name,labels,part\n0.png,a,later\n", "'later' is no split"),
    ],
)
def test_what_does_not_fit_the_folder_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder, file = pictures(tmp_path / "images"), tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_labelled_images(folder, file, split="part" if "part" in text else None)
