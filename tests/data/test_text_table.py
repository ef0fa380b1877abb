"""Promises of `bigctl.data.sources.text_table`, and of `rows` for texts: a user's own texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.sources.read_table import Dialect
from bigctl.data.sources.table import read_table
from bigctl.data.sources.text_files import texts_by_line
from bigctl.data.sources.text_table import read_texts
from bigctl.errors import DataError
from tests.conftest import SHARED_DATA
from tests.work import counted

REVIEWS = 'text,stars,mood\n"Good, really",5,pos\nNA,1,neg\n  null ,2,neg\n'


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(match: str, action, *args, **options) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# --- What files of texts become ---------------------------------------------------------------------------------------


def test_texts_and_labels_are_read(tmp_path):
    decoded = read_texts(write(tmp_path, REVIEWS), text="text", label="mood")
    train = decoded.splits["train"]
    assert decoded.kind == "text" and decoded.classes == ("neg", "pos") and list(train) == ["text", "label"]
    assert train["text"].dtype == object and train["label"].dtype == np.int32 and train["label"].tolist() == [1, 0, 0]
    assert decoded.info["text"] == ["text"] and decoded.info["target"] == "mood"
    json.dumps(decoded.info)


def test_na_and_null_are_words_and_blanks_around_are_dropped(tmp_path):
    train = read_texts(write(tmp_path, REVIEWS), text="text", label="mood").splits["train"]
    assert train["text"].tolist() == ["Good, really", "NA", "null"]


def test_all_formats_say_the_same(tmp_path):
    rows = [("Grüß dich, Welt", 1), ('say "no"', 0), ("两\n行", 1)]
    lines = [json.dumps({"q": text, "y": label}) for text, label in rows]
    files = {"jsonl": write(tmp_path, "\n".join(lines), "t.jsonl")}
    for format, mark in (("csv", ","), ("tsv", "\t")):
        files[format] = tmp_path / f"t.{format}"
        with files[format].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=mark).writerows([("q", "y"), *rows])
    for format, file in files.items():
        decoded = read_texts(file, text="q", label="y", format=format)
        assert decoded.splits["train"]["text"].tolist() == [text for text, _ in rows], format
        assert decoded.classes == ("0", "1") and decoded.splits["train"]["label"].tolist() == [1, 0, 1]


def test_pairs_have_a_second_text(tmp_path):
    file = write(tmp_path, "a,b,y\nIs it?,It is.,1\nIs it?,No,0\n")
    train = read_texts(file, text="a", text_pair="b", label="y").splits["train"]
    assert list(train) == ["text", "text_pair", "label"] and train["text_pair"].tolist() == ["It is.", "No"]


def test_unlabelled_text_has_no_classes(tmp_path):
    decoded = read_texts(write(tmp_path, REVIEWS), text="text")
    assert decoded.classes is None and decoded.splits["train"]["label"].tolist() == [0, 0, 0]
    assert decoded.splits["train"]["label"].dtype == np.int32


def test_other_files_are_other_splits(tmp_path):
    files = {f"{split}_path": write(tmp_path, REVIEWS, f"{split}.csv") for split in ("validation", "test")}
    decoded = read_texts(write(tmp_path, REVIEWS), text="text", label="mood", **files)
    assert list(decoded.splits) == ["train", "validation", "test"]
    assert decoded.info["rows"] == {"train": 3, "validation": 3, "test": 3}


@pytest.mark.parametrize("mark", ["\r\n", "\r"])
def test_byte_order_marks_and_other_line_ends_change_nothing(tmp_path, mark):
    content = b"\xef\xbb\xbf" + REVIEWS.replace("\n", mark).encode()
    assert read_texts(write(tmp_path, content), text="text", label="mood").splits["train"]["text"][1] == "NA"


def test_a_file_without_header_takes_the_names_given(tmp_path):
    content = 'ham\tis it "late"\nspam\t"free\nham\tok\n'
    options = {"text": "text", "label": "kind", "format": "tsv"}
    decoded = read_texts(write(tmp_path, content), dialect=Dialect(["kind", "text"], quoting=False), **options)
    assert decoded.splits["train"]["text"].tolist() == ['is it "late"', '"free', "ok"]
    named = read_texts(
        write(tmp_path, f"kind\ttext\n{content}"), dialect=Dialect(["kind", "text"], quoting=False), **options
    )
    assert named.splits["train"]["text"].tolist() == decoded.splits["train"]["text"].tolist()


def test_a_table_without_header_takes_the_names_given(tmp_path):
    decoded = read_table(write(tmp_path, '1,"u\n2,"u\n4,"v\n'), label="b", dialect=Dialect(["a", "b"], quoting=False))
    assert decoded.splits["train"]["a"].tolist() == [1, 2, 4] and decoded.classes == ('"u', '"v')


def test_a_text_of_a_megabyte_is_read_and_the_limit_put_back(tmp_path):
    before, long = csv.field_size_limit(), "word " * 200_000
    file = write(tmp_path, f'text,y\n"{long}",0\nshort,1\n')
    assert read_texts(file, text="text", label="y").splits["train"]["text"][0] == long.strip()
    refused("a quote is opened", read_texts, write(tmp_path, f'text,y\nu,0\n"{long}'), text="text", label="y")
    assert csv.field_size_limit() == before


def test_a_row_takes_little_work(tmp_path):
    lines = [f'"{i} words, and more ""words"" that go on for a while","class {i % 7}"' for i in range(2000)]
    file, other = (write(tmp_path, "\n".join(["text,y", *lines]), name) for name in ("t.csv", "o.csv"))
    with counted() as calls:
        decoded = read_texts(file, text="text", label="y", test_path=other)
    assert len(decoded.splits["train"]["text"]) == 2000 and calls.count / 2000 < 80  # of two files


def test_rows_lost_between_plain_quotes_are_noted(tmp_path):
    content = 'y\ttext\n0\tfine\n1\t"Hello\n0\tyou\n1\tlost"\n0\tbye\n'
    decoded = read_texts(write(tmp_path, content), text="text", label="y", format="tsv")
    assert len(decoded.splits["train"]["text"]) == 3
    assert any("line 3" in note and "data.quoting=false" in note for note in decoded.info["notes"])
    assert not read_texts(
        write(tmp_path, content), text="text", label="y", format="tsv", dialect=Dialect(quoting=False)
    ).info["notes"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="needs the shared data")
def test_sst2_and_sms_spam_are_read_as_they_come():
    folder = SHARED_DATA / "sst2"
    options = {"validation_path": folder / "dev.tsv", "test_path": folder / "test.tsv", "format": "tsv"}
    sst2 = read_texts(
        folder / "train.tsv", text="text", label="label", dialect=Dialect(["text", "label"], quoting=False), **options
    )
    assert {split: len(columns["text"]) for split, columns in sst2.splits.items()} == {
        "train": 6920,
        "validation": 872,
        "test": 1821,
    }
    assert sst2.classes == ("0", "1") and sst2.splits["test"]["label"].sum() == 909
    file, names = SHARED_DATA / "sms_spam" / "sms.tsv", {"text": "text", "label": "label", "format": "tsv"}
    error = refused(r"malformed quotes: '\\t' expected", read_texts, file, dialect=Dialect(["label", "text"]), **names)
    assert "data.quoting=false" in str(error.hint)
    sms = read_texts(file, dialect=Dialect(["label", "text"], quoting=False), **names)
    assert len(sms.splits["train"]["text"]) == 5574 and sms.classes == ("ham", "spam")


# --- What texts are refused for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,y\nu,0\n,1\n", r":3:text: the text is empty"),
        ("text,y\nu,0\n  ,1\nv,1\n\t,0\n", r":3:text: 2 texts are empty"),
        ("text,y\nu,0\nv\n", ":3: 1 fields, where the header has 2"),
        ("text,y\nu, or v,0\n", ":2: 3 fields.*quote fields that contain the separator"),
        (b"text,y\nu,0\ncaf\xe9,1\n", ":3: byte 0xe9 is not UTF-8"),
        (b"text,y\nu\0,0\n", ":2: there is a NUL byte"),
        ('text,y\n"so" good,0\n', ":2: malformed quotes.*data.quoting=false"),
        ("text,y\nu,0\nv,0\n", "only one class, '0'"),
        ("text,y\nu,0\nv,\nw,NA\n", "2 rows have no value in the target column 'y': line 3, 4"),
        ("text,y\nu,0.5\nv,1\n", "does not look like classes.*is data.label=y the right column"),
        ("Text,y\nu,0\n", "no text column 'text'.*did you mean 'Text'"),
        ("text,Y\nu,0\n", "no target column 'y'.*did you mean 'Y'"),
        (
            "a film,0\nb film,1\n",
            r"no text column 'text'.*the first line must name.*all 2 with data\.columns=\[\.\.\.\]",
        ),
        ("text\ty\nu\t0\n", "no text column 'text'.*separated by '\\\\t'.*data.separator='tab'"),
        ("text,y\n", "a header but not a single row"),
        ("", "the file is empty"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, content, message):
    error = refused(message, read_texts, write(tmp_path, content), text="text", label="y")
    assert str(tmp_path / "t.csv") in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "u", "y": 0}\n{"text": null, "y": 1}\n', ":2:text: the text is empty"),
        ('{"text": "u", "y": 0}\n{"y": 1}\n', ":2:text: the text is empty"),
        ('{"text": "u", "y": 0}\n{"text": ["u"], "y": 1}\n', ":2:text: the value is a list"),
        ('{"text": "u", "y": 0}\n{"text": "cut \\ud83d", "y": 1}\n', ":2:text: .*half of a character"),
        ('{"txt": "u", "y": 0}\n', r"no text column 'text' \(did you mean 'txt'"),
        ('{"body": "u", "y": 0}\n', r"no text column 'text' \(the columns are body, y\)"),
    ],
)
def test_bad_json_lines_are_refused_with_their_place(tmp_path, content, message):
    refused(message, read_texts, write(tmp_path, content), text="text", label="y", format="jsonl")


def test_long_values_are_shortened_in_messages(tmp_path):
    headless = f"{'long ' * 1000},0\n{'text ' * 1000},1\n"
    assert len(str(refused("no text column", read_texts, write(tmp_path, headless), text="text", label="y"))) < 500
    swapped = write(tmp_path, f"text,y\n0,{'long ' * 1000}\n1,{'text ' * 1000}\n", "other.csv")
    train = write(tmp_path, "text,y\nu,0\nv,1\n")
    error = refused("label out of range", read_texts, train, text="text", label="y", test_path=swapped)
    assert len(str(error)) < 500


def test_names_given_must_fit_the_file(tmp_path):
    file = write(tmp_path, "u,0\nv,1,2\n")
    refused(
        ":2: 3 fields, where data.columns names 2", read_texts, file, text="t", label="y", dialect=Dialect(["t", "y"])
    )
    even = write(tmp_path, "u,0\nv,1\n", "even.csv")
    refused("data.columns: duplicate column names: t", read_texts, even, text="t", dialect=Dialect(["t", "t"]))
    error = refused("no text column 'text'", read_texts, even, text="text", dialect=Dialect(["body", "y"]))
    assert "body, y" in str(error.hint)
    lines = write(tmp_path, '{"t": "u"}\n', "t.jsonl")
    refused("names its own columns", read_texts, lines, text="t", format="jsonl", dialect=Dialect(["t"]))


@pytest.mark.parametrize("split", ["validation_path", "test_path"])
def test_other_splits_are_held_to_the_training_file(tmp_path, split):
    train = write(tmp_path, REVIEWS)
    for content, message in [
        ("text,mood\nu,fine\n", "val.csv:2:mood: label out of range: 'fine' is not among .* neg, pos"),
        ("text,mood\nu,\n", "val.csv: 1 rows have no value"),
        ("text,mood\n,pos\n", "val.csv:2:text: the text is empty"),
        ("body,mood\nu,pos\n", "val.csv: there is no text column"),
    ]:
        files = {split: write(tmp_path, content, "val.csv")}
        refused(message, read_texts, train, text="text", label="mood", **files)
    refused("training file itself", read_texts, train, text="text", label="mood", **{split: train})


def test_columns_have_one_role_each(tmp_path):
    file = write(tmp_path, REVIEWS)
    refused("data.text and data.label name the same column", read_texts, file, text="text", label="text")
    refused("data.text and data.text_pair name the same", read_texts, file, text="text", text_pair="text", label="mood")


# --- Prediction -------------------------------------------------------------------------------------------------------


def read(file: Path, text: str = "text", pair: str | None = None, kind: type[schema.Data] = schema.Csv, **keys):
    """The texts of a file, by a run that was trained on data of a kind."""
    return read_all(file, text, pair, kind, **keys).inputs


def read_all(file: Path, text: str = "text", pair: str | None = None, kind: type[schema.Data] = schema.Csv, **keys):
    """The same with all that is said of the file."""
    features = Features("text", (8,), ("a", "b"), pairs=pair is not None, columns=(text, pair) if pair else (text,))
    return catalog.read_for_prediction(file, kind(**keys), features)


def test_texts_to_predict_need_no_labels(tmp_path):
    expected = ["Good, really", "NA", "null"]
    assert read(write(tmp_path, REVIEWS)) == expected
    assert read(write(tmp_path, "text\nGood, really\nNA\nnull\n", "t.tsv")) == expected
    lines = write(tmp_path, "".join(json.dumps({"text": text}) + "\n" for text in expected), "t.jsonl")
    assert read(lines, columns=["label", "text"]) == expected
    plain = write(tmp_path, "Good, really\r\nNA\nnull", "t.txt")
    assert read(plain) == expected == read(plain, kind=schema.Packaged) == texts_by_line(plain.read_bytes(), False)[0]


def test_pairs_to_predict_come_in_columns_or_with_a_tab(tmp_path):
    assert read(write(tmp_path, "b,a\nv,u\n"), "a", "b") == [("u", "v")]
    assert read(write(tmp_path, "u\tv\n", "t.txt"), "a", "b") == [("u", "v")]
    bad = read_all(write(tmp_path, "u\tv\nw\n", "t.txt"), "a", "b").errors
    assert [*bad] == [1] and "t.txt:2: 1 texts where the model takes two" in str(bad[1])
    refused("no text column 'b'", read, write(tmp_path, "a\nu\n"), "a", "b")


def test_files_to_predict_may_lack_the_header_as_in_training(tmp_path):
    options = {"columns": ["label", "text"], "quoting": False}
    file = write(tmp_path, 'ham\tone "two"\nspam\tthree\n', "t.tsv")
    assert read(file, **options) == ['one "two"', "three"]
    assert read(write(tmp_path, "text\nonly texts\n", "u.tsv"), **options) == ["only texts"]


def test_a_file_with_the_suffix_of_the_training_file_is_read_as_that_was(tmp_path):
    file = write(tmp_path, "text\tn\nu, v\t1\n", "new.dat")
    assert read(file, kind=schema.Tsv, path="old.dat") == ["u, v"]
    refused("'.dat' tells no format", read, file, kind=schema.Tsv, path="old.tsv")


def test_prediction_names_what_is_wrong(tmp_path):
    for content, names in (("u\n\nv\n", ()), ("u\tv\n\n", ("a", "b"))):
        bad = read_all(write(tmp_path, content, "t.txt"), *names).errors
        assert [*bad] == [1] and "t.txt:2: the text is empty" in str(bad[1])
    refused("input: the file is empty", texts_by_line, b"", False)
    refused("input:1: byte 0xff", texts_by_line, b"\xff\xfa\n", False)
    bad = read_all(write(tmp_path, "text,n\nu,1\n,2\nv\n")).errors
    assert {row: str(error).split("t.csv")[1].split(" (")[0] for row, error in bad.items()} == {
        1: ":3:text: the text is empty",
        2: ":4: 1 fields, where the header has 2",
    }
    refused("'.doc' tells no format.*\\.txt", read, write(tmp_path, "u", "t.doc"))
    refused("no such file", read, tmp_path / "gone.txt")


# --- In a configuration -----------------------------------------------------------------------------------------------


def test_data_text_makes_a_table_text(tmp_path):
    file = str(write(tmp_path, REVIEWS))
    config = schema.Csv(path=file, label="mood")
    assert catalog.decode(config).kind == "table"
    config.text = "text"
    assert catalog.decode(config).kind == "text"
    second = schema.Csv(path=file, label="mood", text_pair="text")
    refused("data.text_pair is set without data.text", catalog.decode, second)


def test_every_choice_of_columns_has_a_cache_of_its_own(tmp_path):
    file = str(write(tmp_path, REVIEWS))
    options = [{}, {"text": "text"}, {"text": "text", "text_pair": "stars"}, {"columns": ["a", "b", "c"]}]
    options += [{"quoting": False}, {"text": "text", "drop": ["stars"]}]
    configs = [schema.Csv(path=file, label="mood", **chosen) for chosen in options]
    configs.append(schema.Csv(path=file, label="stars"))
    found = {json.dumps(catalog.source(config).identity(config)) for config in configs}
    assert len(found) == len(configs)
