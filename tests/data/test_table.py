"""Promises of `bigctl.data.sources.table` and `rows`: tables of the user's own."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.sources import content as packed
from bigctl.data.sources.read_table import Dialect
from bigctl.data.sources.table import read_table, rows_of
from bigctl.data.sources.text_table import read_texts
from bigctl.data.table_encoder import TableEncoder
from bigctl.errors import DataError
from tests.work import counted

PEOPLE = "age,city,y\n31,Rome,yes\n,Bonn,no\n45,Rome,no\n28.5,?,yes\n"


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refused(match: str, action, *args, **options) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def features(decoded, split="train"):
    return {name: values for name, values in decoded.splits[split].items() if name != "label"}


# --- What a table becomes ---------------------------------------------------------------------------------------------


def test_columns_are_typed_and_missing_values_marked(tmp_path):
    decoded = read_table(write(tmp_path, PEOPLE), label="y")
    train = decoded.splits["train"]
    assert decoded.kind == "table" and decoded.classes == ("no", "yes")
    assert list(train) == ["age", "city", "label"]
    assert train["age"].dtype == np.float64 and np.array_equal(train["age"], [31, np.nan, 45, 28.5], equal_nan=True)
    assert train["city"].dtype == object and train["city"].tolist() == ["Rome", "Bonn", "Rome", None]
    assert train["label"].dtype == np.int32 and train["label"].tolist() == [1, 0, 0, 1]
    json.dumps(decoded.info)


@pytest.mark.parametrize("text", ["", "NA", "n/a", "NaN", "null", "?", "None", " na "])
def test_missing_is_spelled_in_many_ways(tmp_path, text):
    train = read_table(write(tmp_path, f"a,b,y\n1,u,0\n{text},{text},1\n2,u,1\n"), label="y").splits["train"]
    assert np.isnan(train["a"][1]) and train["b"][1] is None


def test_all_formats_say_the_same(tmp_path):
    rows = [
        {"age": 31, "city": "Rome", "ok": True, "y": "a"},
        {"age": None, "city": "Bonn", "ok": False, "y": "b"},
        {"age": 4.5, "city": "Bonn", "ok": True, "y": "b"},
    ]
    lines = [
        ["age", "city", "ok", "y"],
        ["31", "Rome", "true", "a"],
        ["", "Bonn", "FALSE", "b"],
        ["4.5", "Bonn", "True", "b"],
    ]
    files = {
        "csv": "\n".join(map(",".join, lines)),
        "tsv": "\r\n".join(map("\t".join, lines)) + "\r\n",
        "jsonl": "\n".join(map(json.dumps, rows)) + "\n\n",
    }
    read = [read_table(write(tmp_path, text, f"t.{f}"), label="y", format=f) for f, text in files.items()]
    for decoded in read:
        train = decoded.splits["train"]
        assert np.array_equal(train["age"], [31, np.nan, 4.5], equal_nan=True)
        assert train["city"].tolist() == ["Rome", "Bonn", "Bonn"] and train["ok"].tolist() == [1, 0, 1]
        assert decoded.classes == ("a", "b") and train["label"].tolist() == [0, 1, 1]


def test_quoting_blank_lines_and_a_byte_order_mark_are_understood(tmp_path):
    text = '\ufeff"a, b",c,y\n\n"say ""hi""\nthere", 1 ,0\nu,2,1\nu,3,1\n'
    train = read_table(write(tmp_path, text), label="y").splits["train"]
    assert train["a, b"].tolist() == ['say "hi"\nthere', "u", "u"] and train["c"].tolist() == [1, 2, 3]


def test_jsonl_rows_may_lack_keys(tmp_path):
    file = write(tmp_path, '{"a": 1, "y": 0}\n{"b": 2, "y": 1}\n')
    train = read_table(file, label="y", format="jsonl").splits["train"]
    assert np.array_equal(train["a"], [1, np.nan], equal_nan=True)
    assert np.array_equal(train["b"], [np.nan, 2], equal_nan=True)


def test_integer_classes_are_in_numeric_order(tmp_path):
    decoded = read_table(write(tmp_path, "a,y\n1,10\n2,9\n3,10.0\n4,-1\n"), label="y")
    assert decoded.classes == ("-1", "9", "10") and decoded.splits["train"]["label"].tolist() == [2, 1, 2, 0]


def test_booleans_can_be_classes(tmp_path):
    assert read_table(write(tmp_path, "a,y\n1,true\n2,false\n"), label="y").classes == ("false", "true")


def test_regression_targets_are_floats(tmp_path):
    decoded = read_table(write(tmp_path, "a,price\n1,10\n2,0.5\n"), label="price", regression=True)
    assert decoded.classes is None and decoded.splits["train"]["label"].dtype == np.float64
    assert decoded.splits["train"]["label"].tolist() == [10, 0.5]


def test_other_splits_follow_the_training_file(tmp_path):
    train = write(tmp_path, PEOPLE, "train.csv")
    val = write(tmp_path, "extra,y,city,age\n1,yes,Oslo,1\n2,yes,7,NA\n", "val.csv")
    decoded = read_table(train, label="y", validation_path=val, test_path=write(tmp_path, PEOPLE, "test.csv"))
    assert list(decoded.splits) == ["train", "validation", "test"]
    got = decoded.splits["validation"]
    assert list(got) == ["age", "city", "label"] and got["label"].tolist() == [1, 1]
    assert got["city"].tolist() == ["Oslo", "7"] and got["age"].dtype == np.float64


def test_useless_columns_are_left_out_with_a_note(tmp_path):
    text = ",name,gone,a,b,y\n0,Ann,NA,1,7,0\n1,Ben,,2,7,1\n2,Cid,,3,7,1\n"
    decoded = read_table(write(tmp_path, text), label="y", drop=["b"])
    assert list(features(decoded)) == ["a"]
    notes = " | ".join(decoded.info["notes"])
    assert "column 1 has no name" in notes and "'name' is different in every row" in notes
    assert "'gone' has no values" in notes and len(decoded.info["notes"]) == 3


def test_a_stray_word_among_numbers_is_noted(tmp_path):
    rows = "".join(f"{i % 7},{i % 2}\n" for i in range(30))
    decoded = read_table(write(tmp_path, f"a,y\n{rows}oops,1\n"), label="y")
    assert decoded.splits["train"]["a"].dtype == object
    assert "1 of its values are not numbers, the first 'oops' on line 32" in decoded.info["notes"][0]


def test_underscores_do_not_make_numbers(tmp_path):
    assert read_table(write(tmp_path, "a,y\n1_0,0\n1_0,1\n"), label="y").splits["train"]["a"].tolist() == ["1_0", "1_0"]


def test_a_row_takes_little_work(tmp_path):
    row = ",".join(["1.25"] * 15 + ["x", "y", "x", "y", "x"])
    text = ",".join(f"c{i}" for i in range(20)) + ",target\n" + "".join(f"{row},{i % 2}\n" for i in range(5000))
    file = write(tmp_path, text)
    with counted() as calls:
        decoded = read_table(file, label="target")
    assert len(decoded.splits["train"]["c0"]) == 5000 and calls.count / 5000 < 200  # of 21 columns


# --- What a table is refused for --------------------------------------------------------------------------------------


def test_a_missing_file_is_named_with_its_likes(tmp_path):
    write(tmp_path, PEOPLE, "train.csv")
    assert "did you mean train.csv" in str(refused("no such file", read_table, tmp_path / "trian.csv", label="y"))
    refused("a directory", read_table, tmp_path, label="y")
    refused("no table format 'xls'", read_table, tmp_path / "train.csv", label="y", format="xls")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "file is empty"),
        ("\n \n", "file is empty"),
        ("a,y\n", "a header but not a single row"),
        ("a,a,y\n1,2,3\n", ":1: duplicate column names: a "),
        ("a,y\n1,0\n\n1,2,3\n", ":4: 3 fields, where the header has 2"),
        ("a,y\n1,0\n1\n", ":3: 1 fields, where the header has 2"),
        (b"a,y\n1,0\ncaf\xe9,1\n", ":3: byte 0xe9 is not UTF-8"),
        (b"\xef\xbb\xbfa,y\n\xff,0\n", ":2: byte 0xff is not UTF-8"),
        (
            "a,y\n1,0\n".encode("utf-16-le"),
            ":1: there is a NUL byte .it looks like UTF-16: set data.encoding=utf-16-le",
        ),
        (b"a,y\n1,\0\n", ":2: there is a NUL byte"),
        ('a,y\nu,0\n"v,1\nw,0\n', ":3: a quote is opened and never closed"),
        ('a,y\nu,0\n"' + "v,1\n" * 50_000, ":3: a quote is opened and never closed"),
        ('a,y\n"u"v,0\n', ":2: malformed quotes"),
        ("a,y\n1,0\n2,0\n", "only one class, '0'"),
        ("a,y\n1,0\n2,\n3,NA\n4,1\n", "2 rows have no value in the target column 'y': line 3, 4"),
        ("a,y\n1,0\ninf,1\n", ":3:a: the value 'inf' is infinite"),
        ("a,y\n1,0\n1e999,1\n", ":3:a: the value '1e999' is infinite"),
        ("y\n0\n1\n", "no feature columns are left"),
        ("words,y\nfine day,0\nbad day,1\n", "no feature columns .*'words' is different in every row"),
        ("label,a,y\n1,2,0\n1,3,1\n", "'label' is in the way"),
        ("1,2,0\n3,4,1\n", "the first line must name the columns"),
        ("a;y\n1;2\n", "separated by ';'"),
        ("a,y\n1,0.5\n2,0\n", "model.head=regression"),
        ("a,y\n" + "".join(f"1,{i}\n" for i in range(30)), "30 different values in 30 rows .*model.head=regression"),
        ("a,y\n" + "".join(f"1,{i % 1001}\n" for i in range(3000)), "1001 different values .*model.head=regression"),
        ("a,y\n" + "".join(f"1,w{i % 1001}\n" for i in range(3000)), "is data.label=y the right column"),
    ],
)
def test_bad_tables_are_refused_with_their_place(tmp_path, content, message):
    assert str(tmp_path / "t.csv") in str(refused(message, read_table, write(tmp_path, content), label="y"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "y": 0}\n\n{"a": 1,\n', ":3: invalid JSON: .* at character"),
        ('{"a": 1, "y": 0}\n[1, 2]\n', ":2: this is a list, not an object"),
        ("null\n", ":1: this is null, not an object"),
        ('{"a": [1], "y": 0}\n{"a": 2, "y": 1}\n', ":1:a: the value is a list"),
        ('{"a": 1, "y": 0}\n{"a": Infinity, "y": 1}\n', ":2:a: the value 'inf' is infinite"),
        ("[" * 100_000 + "\n", "t.csv: invalid JSON"),
    ],
)
def test_bad_json_lines_are_refused_with_their_place(tmp_path, content, message):
    refused(message, read_table, write(tmp_path, content), label="y", format="jsonl")


def test_nested_json_may_be_dropped(tmp_path):
    file = write(tmp_path, '{"a": 1, "b": [1], "y": 0}\n{"a": 2, "b": {}, "y": 1}\n')
    assert list(features(read_table(file, label="y", format="jsonl", drop=["b"]))) == ["a"]


def test_missing_columns_are_named_with_their_likes(tmp_path):
    file = write(tmp_path, "age,species\n1,a\n2,b\n")
    error = str(refused("no target column 'Species'", read_table, file, label="Species"))
    assert "did you mean 'species'?" in error and "age, species" in error
    assert "did you mean 'age'" in str(refused("no column", read_table, file, label="species", drop=["agee"]))
    refused("holds the target", read_table, file, label="species", drop=["species"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,city,y\n1,Rome,yes\nold,Rome,no\n", "val.csv:3:age: 'old' is not a number"),
        ("age,city,y\n-inf,Rome,yes\n", "val.csv:2:age: the value '-inf' is infinite"),
        ("age,city,y\n1,Rome,maybe\n", "val.csv:2:y: label out of range: 'maybe' .* no, yes"),
        ("age,city,y\n1,Rome,\n", "val.csv: 1 rows have no value in the target"),
        ("age,y\n1,yes\n", "val.csv: feature column 'city' of the training file is missing"),
        ("age,city\n1,Rome\n", "val.csv: there is no target column 'y'"),
    ],
)
@pytest.mark.parametrize("split", ["validation_path", "test_path"])
def test_other_splits_are_held_to_the_training_file(tmp_path, text, message, split):
    files = {split: write(tmp_path, text, "val.csv")}
    refused(message, read_table, write(tmp_path, PEOPLE), label="y", **files)


def test_the_training_file_is_no_test_file(tmp_path):
    file = write(tmp_path, PEOPLE)
    refused("training file itself", read_table, file, label="y", test_path=file)


def test_regression_targets_must_be_numbers(tmp_path):
    refused(":3:y: 'high' is not", read_table, write(tmp_path, "a,y\n1,2\n2,high\n"), label="y", regression=True)
    refused("no value.* line 3", read_table, write(tmp_path, "a,y\n1,2\n2,\n"), label="y", regression=True)
    refused(":3:y: .* infinite", read_table, write(tmp_path, "a,y\n1,2\n2,inf\n"), label="y", regression=True)


# --- Prediction -------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(tmp_path):
    decoded = read_table(write(tmp_path, PEOPLE), label="y")
    return tmp_path, features(decoded), TableEncoder.fit(features(decoded))


def read(file: Path, encoder: TableEncoder, kind: type[schema.Data] = schema.Csv, **keys) -> np.ndarray:
    features = Features("table", (1,), ("a", "b"), encoder=encoder.to_json())
    return np.asarray(catalog.read_for_prediction(file, kind(**keys), features).inputs)


def test_prediction_encodes_as_training(people):
    folder, train, encoder = people
    expected = encoder.encode(train)
    assert np.array_equal(read(folder / "t.csv", encoder), expected)
    bare = "city,note,age\nRome,hi,31\nBonn,,\nRome,,45\n,,28.5\n"
    assert np.array_equal(read(write(folder, bare, "bare.csv"), encoder), expected)
    assert np.array_equal(read(write(folder, bare.replace(",", "\t"), "bare.tsv"), encoder), expected)
    lines = '{"age": 31, "city": "Rome", "more": []}\n{"city": "Bonn"}\n{"age": 45, "city": "Rome"}\n{"age": 28.5}\n'
    assert np.array_equal(read(write(folder, lines, "bare.jsonl"), encoder), expected)
    assert np.array_equal(read(write(folder, lines, "bare.txt"), encoder, schema.Jsonl, path="old.txt"), expected)
    assert np.array_equal(rows_of(lines.encode(), "jsonl", encoder)[0], expected)


def test_prediction_names_what_is_wrong(people):
    folder, _, encoder = people
    error = str(refused("needs the feature columns age, city", read, write(folder, "x,y\n1,2\n", "x.csv"), encoder))
    assert "x, y" in error
    bad = rows_of(b"age,city\n3,Rome\nold,Rome\n", "csv", encoder)[1]
    assert "input:3:age: 'old' is not a number" in str(bad[1]) and [*bad] == [1]
    refused("'.txt' tells no format", read, write(folder, "x", "x.txt"), encoder)
    refused("no such file", read, folder / "gone.csv", encoder)
    refused("not a single row", rows_of, b"age,city\n", "csv", encoder)


# --- Headers, quotes and codes ----------------------------------------------------------------------------------------


def test_a_first_row_of_numbers_is_an_example_unless_it_is_the_header(tmp_path):
    rows = "".join(f"{n % 3},{n % 4},{n % 2}\n" for n in range(60))
    dialect = Dialect(["0", "1", "2"])
    for first, count in (("2,0,1\n", 61), ("0,1,2\n", 60), ("1,1,0\n", 61)):
        decoded = read_table(write(tmp_path, first + rows), label="2", dialect=dialect)
        assert len(decoded.splits["train"]["label"]) == count and decoded.classes == ("0", "1")


def test_a_header_that_data_columns_replaces_is_no_example(tmp_path):
    rows = "".join(f"{('ham', 'spam')[n % 2]},message number {n}\n" for n in range(60))
    file = write(tmp_path, "Category,Message\n" + rows)
    decoded = read_texts(file, text="text", label="label", dialect=Dialect(["label", "text"]))
    assert decoded.classes == ("ham", "spam") and len(decoded.splits["train"]["label"]) == 60
    assert "line 1 (Category, Message) names columns" in decoded.info["notes"][0]
    decoded = read_texts(write(tmp_path, rows), text="text", label="label", dialect=Dialect(["label", "text"]))
    assert len(decoded.splits["train"]["label"]) == 60


def test_a_quote_after_a_blank_encloses_a_field(tmp_path):
    rows = "".join(f'{n % 7}, "{n % 5}.5", "{("neg", "pos")[n % 2]}"\n' for n in range(40))
    decoded = read_table(write(tmp_path, "a, b, y\n" + rows), label="y")
    assert decoded.classes == ("neg", "pos") and decoded.info["numeric"] == ["a", "b"]
    decoded = read_texts(write(tmp_path, 'y, text\nneg, "one, two"\npos, three\n'), text="text", label="y")
    assert decoded.splits["train"]["text"].tolist() == ["one, two", "three"]
    decoded = read_texts(write(tmp_path, 'y,text\nneg, "so" good\npos, b\n'), text="text", label="y")
    assert decoded.splits["train"]["text"].tolist() == ['"so" good', "b"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ("010 10 0010 7", ("0010", "010", "10", "7")),
        ("1E1 10 2E3 2000", ("10", "1E1", "2000", "2E3")),
        ("1 １ 2 ２", ("1", "2", "１", "２")),
        ("2 10 1.0 1", ("1", "2", "10")),
        ("-1 1", ("-1", "1")),
    ],
)
def test_labels_that_are_codes_stay_apart(tmp_path, labels, classes):
    text = "text,y\n" + "".join(f"report {n} of {label},{label}\n" for n in range(9) for label in labels.split())
    assert read_texts(write(tmp_path, text), text="text", label="y").classes == classes


def test_what_spreadsheets_write_besides_is_understood(tmp_path):
    rows = "".join(f"{n % 7},{n % 5},{n % 2}\n" for n in range(30))
    for content in (
        f"sep=,\na,b,y\n{rows}", f"# exported\na,b,y\n{rows}", f"a,b,y\n{rows},,\n,,\n",
        "a,b,y\n" + rows.replace("\n", ",\n"), "sep=;\n" + f"a,b,y\n{rows}".replace(",", ";"),
    ):  # fmt: skip
        decoded = read_table(write(tmp_path, content), label="y")
        assert len(decoded.splits["train"]["label"]) == 30 and decoded.info["numeric"] == ["a", "b"]
    excel = "\ufeffa;b;y\n" + rows.replace(",", ";").replace(";", ",5;", 1)
    assert "set data.separator=';'" in str(refused(":2: 2 fields", read_table, write(tmp_path, excel), label="y"))
    hint = refused("no target column 'y'", read_table, write(tmp_path, f"a,b,y\n{rows}".replace(",", ";")), label="y")
    assert "set data.separator=';'" in str(hint)


def test_packed_files_are_read_as_they_are(tmp_path):
    content = PEOPLE.encode()
    expected = read_table(write(tmp_path, content), label="y").splits["train"]
    with pa.OSFile(str(tmp_path / "t.csv.zst"), "wb") as raw, pa.CompressedOutputStream(raw, "zstd") as stream:
        stream.write(content)
    for file in (write(tmp_path, gzip.compress(content), "t.csv.gz"), tmp_path / "t.csv.zst"):
        found = read_table(file, label="y").splits["train"]
        assert all(np.array_equal(found[name], expected[name], equal_nan=name == "age") for name in expected)
    refused("packed, and damaged", read_table, write(tmp_path, gzip.compress(content)[:-9], "t.csv.gz"), label="y")


def test_a_json_list_and_inner_objects_are_rows(tmp_path):
    records = [{"id": {"age": n % 5}, "y": "ab"[n % 2]} for n in range(30)]
    as_list = read_table(write(tmp_path, json.dumps(records, indent=1), "t.json"), label="y", format="jsonl")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    as_lines = read_table(write(tmp_path, lines, "t.jsonl"), label="y", format="jsonl")
    assert (
        as_list.splits["train"]["id.age"].tolist()
        == as_lines.splits["train"]["id.age"].tolist()
        == [n % 5 for n in range(30)]
    )


def test_a_key_of_its_own_in_every_line_is_refused_before_the_table_is_made(tmp_path):
    lines = "\n".join(json.dumps({f"k{number}": number, "y": number % 2}) for number in range(20_000))
    file = write(tmp_path, lines, "t.jsonl")
    with counted() as calls:
        error = refused("most of them are missing in most lines", read_table, file, label="y", format="jsonl")
    assert "a key is the name of a column" in str(error.hint) and calls.count / 20_000 < 60


def test_a_packed_file_that_unpacks_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_MOST", 2**20)
    bomb = gzip.compress(b"a,y\n" + b"1,0\n" * 2**20, 9)
    error = refused("the file unpacks to more than", read_table, write(tmp_path, bomb, "t.csv.gz"), label="y")
    assert error.hint == "split it into parts"
