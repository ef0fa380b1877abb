"""Promises of `bigctl.data.sources.parquet`: columns are what they are stored as, and mistakes are named."""

from __future__ import annotations

import datetime
import decimal
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.number_style import NumberStyle
from bigctl.data.preparation import prepare
from bigctl.data.sources import parquet
from bigctl.data.sources.decoded import GROUP, Decoded
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.errors import DataError
from tests.conftest import Cli


def config(path: Path | str, **keys: Any) -> schema.Parquet:
    return schema.Parquet(**({"path": str(path), "label": "y"} | keys))


def decode(path: Path | str, *, regression: bool = False, **keys: Any) -> Decoded:
    return parquet.decode(config(path, **keys), regression)


def write(path: Path, rows: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path, **options)
    return path


def refused(message: str, path: Path | str, **keys: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        decode(path, **keys)
    assert message in str(caught.value)
    return caught.value


STORED = {
    "int": (pa.array([3, None, 5, 6], pa.int16()), [3, None, 5, 6]),
    "big": (pa.array([1, 2, 3, 2**53], pa.uint64()), [1, 2, 3, 2.0**53]),
    "float": (pa.array([0.5, float("nan"), None, 2], pa.float32()), [0.5, None, None, 2]),
    "decimal": (pa.array([decimal.Decimal("1.25"), None, *[decimal.Decimal("2.50")] * 2]), [1.25, None, 2.5, 2.5]),
    "bool": (pa.array([True, False, None, True]), [1, 0, None, 1]),
    "date": (pa.array([datetime.date(1970, 1, 3), None, *[datetime.date(1969, 12, 31)] * 2]), [2, None, -1, -1]),
    "stamp": (pa.array([1500, 0, None, -500], pa.timestamp("ms")), [1.5, 0, None, -0.5]),
    "zoned": (pa.array([10**9, 0, None, 0], pa.timestamp("ns", "Europe/Rome")), [1, 0, None, 0]),
    "clock": (pa.array([90, 0, None, 1], pa.time32("s")), [90, 0, None, 1]),
    "long": (pa.array([2000, 0, None, 1], pa.duration("ms")), [2, 0, None, 0.001]),
    "string": (pa.array(["NA", " 1", None, "NA"]), ["NA", " 1", None, "NA"]),
    "category": (pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
}


@pytest.mark.parametrize("name", STORED)
def test_a_column_is_what_it_is_stored_as(tmp_path: Path, name: str) -> None:
    stored, expected = STORED[name]
    found = decode(write(tmp_path / "a.parquet", {name: stored, "y": ["a", "b"] * 2})).splits["train"][name]
    if name in ("string", "category"):
        assert found.tolist() == expected
    else:
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, np.array([np.nan if v is None else v for v in expected]))


def test_strings_of_digits_stay_categories(tmp_path: Path) -> None:
    decoded = decode(write(tmp_path / "a.parquet", {"x": ["1", "2", "1", "2"], "y": ["b", "a", "b", "a"]}))
    assert decoded.splits["train"]["x"].tolist() == ["1", "2", "1", "2"] and decoded.classes == ("a", "b")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([10, 9, 10, 2], ("2", "9", "10")),
        (["10", "9", "10", "2"], ("10", "2", "9")),
        ([True, False] * 2, ("false", "true")),
    ],
)
def test_classes_are_in_the_order_of_their_type(tmp_path: Path, values: list[Any], classes: tuple[str, ...]) -> None:
    decoded = decode(write(tmp_path / "a.parquet", {"x": [1, 2, 3, 4], "y": values}))
    assert decoded.classes == classes
    names = [str(value).lower() for value in values]
    assert [classes[number] for number in decoded.splits["train"]["label"]] == names


def homes(n: int = 60) -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    heating = [["gas", "oil", None][i] for i in draw.integers(0, 3, n)]
    built = [None if i % 7 == 0 else int(year) for i, year in enumerate(draw.integers(1900, 2020, n))]
    area = [float(a) for a in draw.uniform(30, 200, n).round(1)]
    return {"area": area, "heating": heating, "built": built, "new": [i % 3 == 0 for i in range(n)], "y": area}


def as_csv(rows: dict[str, list[Any]]) -> str:
    lines = [",".join(rows)]
    for values in zip(*rows.values(), strict=True):
        lines.append(",".join("" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("regression", [True, False])
def test_the_same_table_as_csv_is_prepared_alike(tmp_path: Path, monkeypatch: Any, regression: bool) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    rows = homes() if regression else {**homes(), "y": ["cat" if i % 2 else "dog" for i in range(60)]}
    write(tmp_path / "rows.parquet", rows, row_group_size=7)
    (tmp_path / "rows.csv").write_text(as_csv(rows))
    ours = prepare.prepare(config(tmp_path / "rows.parquet"), regression=regression)
    theirs = prepare.prepare(schema.Csv(path=str(tmp_path / "rows.csv"), label="y"), regression=regression)
    assert ours.fingerprint == theirs.fingerprint


def test_several_files_are_one_table(tmp_path: Path) -> None:
    rows = homes()
    whole = decode(write(tmp_path / "whole.parquet", rows), regression=True).splits["train"]
    for number in range(3):
        part = {name: values[number * 20 : number * 20 + 20] for name, values in rows.items()}
        write(tmp_path / "parts" / "deep" / f"{number}.parquet", part)
    (tmp_path / "parts" / "notes.txt").write_text("no rows")
    for path in (tmp_path / "parts", f"{tmp_path}/parts/**/*.parquet"):
        found = decode(path, regression=True).splits["train"]
        for name, values in whole.items():
            assert found[name].tolist() == values.tolist() or values.dtype == np.float64
            np.testing.assert_array_equal(found[name], values)


def test_other_files_are_held_to_the_training_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", {"x": [1, 2, 3, 4], "z": ["a", "a", "b", "b"], "y": ["p", "q"] * 2})
    more = write(tmp_path / "test.parquet", {"y": ["q"], "x": [None], "more": [1], "z": ["c"]})
    decoded = decode(train, test_path=str(more))
    assert np.isnan(decoded.splits["test"]["x"]).all() and decoded.splits["test"]["label"].tolist() == [1]
    strings = write(tmp_path / "strings.parquet", {"x": ["1"], "z": ["c"], "y": ["q"]})
    assert "text, where it was a number in training" in str(refused("'x' is", train, test_path=str(strings)))
    stranger = write(tmp_path / "stranger.parquet", {"x": [1, 2], "z": ["c", "c"], "y": ["q", "r"]})
    error = refused("'r' is not among the training classes p, q", train, test_path=str(stranger))
    assert error.where == f"{stranger}:row 2:y"


def test_mistakes_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"x": [1.0, float("inf")] * 2, "list": [[1]] * 4, "y": ["a", "b"] * 2})
    assert "did you mean 'y'?" in str(refused("no target column 'Y'", file, label="Y").hint)
    assert "data.drop=[list]" in str(refused("'list' is list<", file).hint)
    assert refused("the value is infinite, and 1 more are", file, drop=["list"]).where == f"{file}:row 2:x"
    refused("no data.drop column 'lists'", file, drop=["lists"])
    refused("is list<", file, text="list", label=None)
    refused("which is no class", file, drop=["list"], label="x")
    refused("rows have no value", write(tmp_path / "b.parquet", {"x": [1, 2], "y": ["a", None]}))
    refused("different values in 50 rows", write(tmp_path / "c.parquet", {"x": [0, 1] * 25, "y": list(range(50))}))
    refused(
        "there are no rows",
        write(tmp_path / "d.parquet", {"x": pa.array([], pa.int8()), "y": pa.array([], pa.string())}),
    )


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"x": list(range(1000)), "y": ["a", "b"] * 500})
    content = file.read_bytes()
    for damaged in (content[:-40], b"x,y\n1,2\n", b"", content[:100] + bytes(2000) + content[2100:]):
        file.write_bytes(damaged)
        assert refused("no Parquet file, or a damaged one", file).where == str(file)


def png(shade: int, mode: str = "L", size: tuple[int, int] = (4, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("nested", [False, True])
def test_images_are_bytes_in_a_column(tmp_path: Path, nested: bool) -> None:
    contents = [png(shade) for shade in (0, 50, 100, 150)]
    column = [{"bytes": c, "path": "a.png"} for c in contents] if nested else contents
    file = write(tmp_path / "a.parquet", {"photo": column, "y": ["dark", "dark", "light", "light"]})
    train = decode(file, image="photo").splits["train"]
    assert train["image"].shape == (4, 6, 4, 1) and train["image"][:, 0, 0, 0].tolist() == [0, 50, 100, 150]
    assert train["label"].tolist() == [0, 0, 1, 1]
    assert decode(file, image="photo", image_size=[2, 2], channels=3).splits["train"]["image"].shape == (4, 2, 2, 3)
    features = Features("image", (6, 4, 1), ("dark", "light"))
    again = catalog.read_for_prediction(file, config(file, image="photo"), features)
    assert np.asarray(again.inputs).tolist() == train["image"].tolist() and again.rows


def test_a_damaged_image_is_named_by_its_row(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"photo": [png(1), b"no image"], "y": ["a", "b"]})
    assert refused("this is not an image", file, image="photo").where == f"{file}:row 2:photo"
    file = write(tmp_path / "b.parquet", {"photo": [png(1), png(2, size=(4, 4))], "y": ["a", "b"]})
    assert refused("images differ in size", file, image="photo").where == f"{file}:row 2:photo"


def test_texts_and_several_classes(tmp_path: Path) -> None:
    rows = {"body": ["one", "two two", "three"], "tags": [["b", "a"], [], ["b"]], "y": ["p", "q", "p"]}
    file = write(tmp_path / "a.parquet", rows)
    decoded = decode(file, text="body")
    assert decoded.kind == "text" and decoded.splits["train"]["text"].tolist() == rows["body"]
    sets = decode(file, text="body", label=None, labels="tags")
    assert sets.target.names == ("a", "b") and sets.splits["train"]["label"].tolist() == [[1, 1], [0, 0], [0, 1]]
    features = Features("text", (8,), ("p", "q"), columns=("body",))
    assert catalog.read_for_prediction(file, schema.Csv(path="old.csv"), features).inputs == rows["body"]
    file = write(tmp_path / "b.parquet", {"body": ["one", None], "y": ["p", "q"]})
    assert refused("the text is empty", file, text="body").where == f"{file}:row 2:body"


def test_rows_to_be_predicted_are_encoded_as_csv_is(tmp_path: Path) -> None:
    rows = homes()
    file = write(tmp_path / "rows.parquet", rows)
    (tmp_path / "rows.csv").write_text(as_csv(rows))
    columns = {
        name: values for name, values in decode(file, regression=True).splits["train"].items() if name != "label"
    }
    encoder = TableEncoder.fit(columns)
    features = Features("table", (1,), None, encoder=encoder.to_json())
    found = [catalog.read_for_prediction(path, config(file), features) for path in (file, tmp_path / "rows.csv")]
    np.testing.assert_array_equal(*[np.asarray(each.inputs) for each in found])
    short = write(tmp_path / "short.parquet", {"area": [1.0]})
    with pytest.raises(DataError, match="needs the feature columns"):
        catalog.read_for_prediction(short, config(file), features)


def test_a_row_that_cannot_be_used_is_an_error_of_its_own(tmp_path: Path) -> None:
    inf, broken = float("inf"), pa.array([b"ok", b"\xff", b"ok", b"ok", None]).cast(pa.string(), safe=False)
    rows = {"x": [1.0, 2.0, inf, -inf, None], "part": pa.array(["a", "b", "a", "a", None])}
    file = write(tmp_path / "a.parquet", rows)
    encoder = TableEncoder([Numeric("x", 0.0, 1.0, True), Categorical("part", ("a", "b"), False, False)])
    features = Features("table", (4,), None, encoder=encoder.to_json())
    found = catalog.read_for_prediction(file, config(file), features)
    assert sorted(found.errors) == [2, 3] and found.errors[2].where == f"{file}:row 3:x"
    assert np.asarray(found.inputs)[1].tolist() == [2, 0, 0, 1]
    assert found.notes == (f"{file}: 1 rows have no value in any column of the model",)
    styled = TableEncoder([Numeric("x", 0.0, 1.0, False, NumberStyle(decimal=","))])
    file = write(tmp_path / "b.parquet", {"x": ["1,5", "old", None]})
    found = catalog.read_for_prediction(file, config(file), Features("table", (1,), None, encoder=styled.to_json()))
    assert list(found.errors) == [1] and np.asarray(found.inputs)[0] == 1.5

    file = write(tmp_path / "c.parquet", {"body": broken})
    features = Features("text", (8,), ("p", "q"), columns=("body",))
    found = catalog.read_for_prediction(file, config(file), features)
    assert sorted(found.errors) == [1, 4] and [found.inputs[row] for row in (0, 2, 3)] == ["ok"] * 3
    assert "the string is not UTF-8" in str(found.errors[1]) and "the text is empty" in str(found.errors[4])

    file = write(tmp_path / "d.parquet", {"photo": [png(9), b"no image", None, png(7, size=(4, 4))]})
    found = catalog.read_for_prediction(file, config(file, image="photo"), Features("image", (6, 4, 1), ("p", "q")))
    assert sorted(found.errors) == [1, 2] and np.asarray(found.inputs)[[0, 3], 0, 0, 0].tolist() == [9, 7]


def test_columns_that_python_has_no_values_for_are_told_or_told_apart(tmp_path: Path) -> None:
    times = pa.array([1, 2, 2**60], pa.timestamp("ns"))  # finer than a microsecond
    rows = {
        "x": [1.0, 2.0, 3.0],
        "y": ["a", "b", "a"],
        "when": times,
        "body": pa.array(["p", "q", "r"], pa.string_view()),
    }
    file = write(tmp_path / "a.parquet", rows)
    assert len(set(decode(file, group="when").splits["train"][GROUP])) == 3
    assert decode(file, text="body").splits["train"]["text"].tolist() == ["p", "q", "r"]
    refused("'when' is timestamp", file, text="body", label=None, labels="when")
    broken = pa.array([[b"\xff"], [b"a"], [b"a"]]).cast(pa.list_(pa.string()), safe=False)
    other = write(tmp_path / "b.parquet", {"body": ["p", "q", "r"], "tags": broken})
    refused("row 1:tags: the string is not UTF-8", other, text="body", label=None, labels="tags")


def test_rows_that_cannot_be_used_are_left_out_where_asked(tmp_path: Path) -> None:
    column = [png(1), b"no image", png(3), None]
    file = write(tmp_path / "a.parquet", {"photo": column, "y": ["a", "a", "b", "b"], "who": ["m", "n", "o", "p"]})
    found = decode(file, image="photo", on_bad="skip", group="who")
    assert found.splits["train"]["image"][:, 0, 0, 0].tolist() == [1, 3]
    assert found.splits["train"]["label"].tolist() == [0, 1] and found.splits["train"][GROUP].tolist() == ["m", "o"]
    (note,) = found.info["notes"]
    assert note.startswith(f"2 rows are left out, the first with this: {file}:row 2:photo: this is not an image")
    other = write(tmp_path / "b.parquet", {"x": [1.0, float("inf"), 3.0, 4.0], "y": ["a", "b"] * 2})
    assert decode(other, on_bad="skip").splits["train"]["x"].tolist() == [1, 3, 4]
    assert parquet.identity(config(file)) != parquet.identity(config(file, on_bad="skip"))


def test_other_rows_are_another_identity(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"x": [1, 2], "y": ["a", "b"]})
    before = parquet.identity(config(file))
    assert parquet.identity(config(file)) == before != parquet.identity(config(file, drop=["x"]))
    write(file, {"x": [1, 3], "y": ["a", "b"]})
    assert parquet.identity(config(file)) != before


def test_a_run_is_trained_and_used_on_parquet(bigctl: Cli) -> None:
    shades = [(i * 37) % 256 for i in range(60)]
    rows = {
        "photo": [png(shade, size=(8, 8)) for shade in shades],
        "y": ["light" if s > 127 else "dark" for s in shades],
    }
    file = write(bigctl.folder / "rows.parquet", rows)
    overrides = ["recipe=cnn_cls", "data=parquet", f"data.path={file}", "data.image=photo", "data.label=y"]
    bigctl("train", *overrides, "model.channels=[4]", "train.steps=2", "train.batch_size=8", "--name", "photos")
    done = bigctl("predict", "photos", str(file))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["row"] for record in records] == list(range(60))
    assert {record["label"] for record in records} <= {"dark", "light"}


def test_dates_and_numbers_of_rows_are_told(tmp_path: Path) -> None:
    days = [datetime.date(2023, 1, 1 + row % 28) for row in range(60)]
    rows = {"row": [*range(1, 61)], "x": [row % 7 for row in range(60)], "day": days, "y": ["a", "b"] * 30}
    written = {"as_text": [str(day) for day in days], "word": [f"w{row % 5}" for row in range(60)]}
    found = decode(write(tmp_path / "t.parquet", rows | written))
    more = "columns of year, month, day and weekday tell a model more"
    assert found.info["notes"] == [
        "column 'row' numbers the rows; data.drop=[row] leaves it out",
        f"column 'day' of dates is read as one number, days since 1970; {more}",
        f"column 'as_text' holds dates as strings, which stay strings; {more}",
    ]


def test_the_file_with_a_column_of_another_type_is_named(tmp_path) -> None:
    for number, kind in enumerate((pa.float64(), pa.int32(), pa.string())):
        values = pa.array([1, 2], pa.int32()).cast(kind)
        pq.write_table(pa.table({"x": values, "y": ["a", "b"]}), tmp_path / f"{number}.parquet")
    with pytest.raises(
        DataError, match="2.parquet: the file stores a column differently .* x has incompatible"
    ) as told:
        catalog.decode(schema.Parquet(path=f"{tmp_path}/*.parquet", label="y"))
    assert told.value.where == str(tmp_path / "2.parquet")
