"""How numbers and dates are written is found in the training file and kept for every other one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import catalog, preview
from bigctl.data.number_style import NumberStyle, find_dates, find_style
from bigctl.data.preparation import prepare
from bigctl.data.sources import delimited
from bigctl.data.sources.content import read_text
from bigctl.data.sources.table import rows_of
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.errors import DataError

AMOUNTS = [200 + 50 * (7 * row % 97) + 6000 * (row % 2) for row in range(120)]


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def table(folder: Path, cells: list[str], name: str = "t.csv", header: str = "amount,b,y") -> Path:
    rows = [f'"{cell}",{row * 7 % 11}.5,{["low", "high"][row % 2]}' for row, cell in enumerate(cells)]
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda a, row: f"{a:,}", "numbers, ',' between thousands"),
        (lambda a, row: f"${a}.00", "numbers, each with '$'"),
        (lambda a, row: f"{a:,} €", "numbers, ',' between thousands, each with '€'"),
        (lambda a, row: f"{a}%", "numbers, each with '%'"),
        (lambda a, row: f"{a:.1f}".replace(".", ","), "numbers, ',' before decimals"),
        (lambda a, row: f"{a:,.2f}".replace(",", " ").replace(".", ","), "numbers, ' ' between thousands, ',' before"),
        (lambda a, row: f"{a} kg", "numbers, each with 'kg'"),
        (lambda a, row: a if row % 4 else "-", "numbers; '-' is taken for missing, in 30 rows"),
        (lambda a, row: a if row % 4 else "#N/A", "numbers; '#n/a' is taken for missing, in 30 rows"),
    ],
)
def test_numbers_are_read_however_they_are_written(tmp_path: Path, write, said: str) -> None:
    cells = [str(write(a, row)) for row, a in enumerate(AMOUNTS)]
    made = prepare.prepare(schema.Csv(path=str(table(tmp_path, cells)), label="y"))
    notes = [note for note in made.info["notes"] if note.startswith("column 'amount' is read as ")]
    assert len(notes) == 1 and said in notes[0]
    config = schema.Csv(path=str(tmp_path / "t.csv"), label="y")
    rows = np.asarray(catalog.read_for_prediction(table(tmp_path, cells, "new.csv"), config, made.features).inputs)
    column = made.features.encoder["columns"][0]
    expected = [a for row, a in enumerate(AMOUNTS) if "missing" not in said or row % 4]
    found = rows[:, 0] * column["std"] + column["mean"]
    kept = found if "missing" not in said else found[[row for row in range(120) if row % 4]]
    assert column["kind"] == "numeric" and np.allclose(kept, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "value"),
    [("(1,234.50)", -1234.5), ("-$5", -5), ("$-5", -5), ("−7", -7), ("$1,000,000", 1e6), ("12", 12), ("NA", math.nan)],
)
def test_signs_and_brackets(text: str, value: float) -> None:
    assert NumberStyle(group=",", affix="$").parse(text) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    "texts",
    [
        ["A12", "A13"], ["02134", "60601"], ["1-2", "3-4"], ["12:30", "13:45"], ["5 kg", "7 g"], ["1.2.3", "1.2.4"],
        ["030 123 456", "040 222 333"], ["12,34,5", "1"], ["3 1/2", "4"],
    ],
)  # fmt: skip
def test_what_only_resembles_numbers_stays_as_it_is(texts: list[str]) -> None:
    assert find_style(texts) is None


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    cells = ["02134", "10001", "60601", "94105"] * 30
    made = prepare.prepare(schema.Csv(path=str(table(tmp_path, cells)), label="y"))
    assert made.features.encoder["columns"][0]["categories"] == ["02134", "10001", "60601", "94105"]
    assert any("codes such as 02134" in note for note in made.info["notes"])
    made = prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y", numeric=["amount"]))
    assert made.features.encoder["columns"][0]["kind"] == "numeric"
    made = prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y", categorical=["b"]))
    assert made.features.encoder["columns"][1]["kind"] == "categorical"


def test_dates_are_their_parts_in_training_and_in_prediction(tmp_path: Path) -> None:
    cells = [f"2024-{1 + row % 12:02}-{1 + row % 28:02}" for row in range(120)]
    config = schema.Csv(path=str(table(tmp_path, cells)), label="y")
    made = prepare.prepare(config)
    names = [column["name"] for column in made.features.encoder["columns"]]
    assert names == ["amount.year", "amount.month", "amount.day", "amount.weekday", "b"]
    (tmp_path / "new.csv").write_text("b,amount\n1,2024-03-05\n1,soon\n")
    found = catalog.read_for_prediction(tmp_path / "new.csv", config, made.features)
    columns = made.features.encoder["columns"]
    values = [round(float(x) * c["std"] + c["mean"], 3) for x, c in zip(found.inputs[0], columns, strict=True)]
    assert values == [2024, 3, 5, 1, 1]  # a Tuesday
    assert [*found.errors] == [1] and ":3:amount: 'soon' is not a date" in str(found.errors[1])
    assert find_dates(["03/04/2024", "25/12/2024"]) == "day/month/year" and find_dates(["03/04/2024"]) == "?"
    assert find_dates(["31.12.1999 23:59"]) == "day.month.year" and find_dates(["2024-02-30"]) is None


def test_keys_say_how_a_file_is_written(tmp_path: Path) -> None:
    rows = "".join(
        f"{row * 7 % 11},5;{chr(233)}{row % 3};{row if row % 5 else 'void'};{row % 2}\n" for row in range(60)
    )
    (tmp_path / "t.csv").write_bytes(("a;b;c;y\n" + rows).encode("latin-1"))
    keys = {"separator": ";", "decimal": ",", "encoding": "latin-1", "missing": ["void"]}
    made = prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y", **keys))
    kinds = {c["name"]: c["kind"] for c in made.features.encoder["columns"]}
    assert kinds == {"a": "numeric", "b": "categorical", "c": "numeric"}
    assert made.features.encoder["columns"][1]["categories"] == ["é0", "é1", "é2"]
    assert made.features.encoder["columns"][2]["missing"]


def test_a_trained_style_survives_json() -> None:
    style = NumberStyle(",", ".", "€", ("-",))
    assert NumberStyle.from_json(json.loads(json.dumps(style.to_json()))) == style
    assert NumberStyle().to_json() == {}


def test_a_row_that_cannot_be_read_stops_or_is_left_out(tmp_path: Path) -> None:
    file = table(tmp_path, [str(a) for a in AMOUNTS])
    with file.open("a") as stream:
        stream.write("1,2\n")
    with pytest.raises(DataError, match=":122: 2 fields, where the header has 3"):
        prepare.prepare(schema.Csv(path=str(file), label="y"))
    made = prepare.prepare(schema.Csv(path=str(file), label="y", on_bad="skip"))
    assert made.info["rows"] == {"train": 120} and any("1 row is left out" in note for note in made.info["notes"])


def test_a_column_that_numbers_the_rows_is_left_out(tmp_path: Path) -> None:
    rows = [f"{row + 1},{row * 7 % 11},{'abc'[row // 30]}" for row in range(90)]
    (tmp_path / "t.csv").write_text("Zeile,len,kind\n" + "\n".join(rows) + "\n")
    config = schema.Csv(path=str(tmp_path / "t.csv"), label="kind")
    made = prepare.prepare(config)
    assert made.features.feature_names == ("len",)
    assert any("column 'Zeile' numbers the rows and is left out" in note for note in made.info["notes"])
    kept = prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="kind", numeric=["Zeile"]))
    assert kept.features.feature_names == ("Zeile", "len")


def noted(folder: Path, rows: list[str], *, regression: bool = False, **keys) -> tuple[dict, str]:
    """The columns of a file with semicolons, and the notes on it."""
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    found = delimited.decode(schema.Csv(path=str(folder / "t.csv"), separator=";", **keys), regression)
    return found.splits["train"], "\n".join(found.info["notes"])


GERMAN = ["Höhe;Gehalt;aktiv"] + [f"1,{70 + i % 9};{950 if i % 2 else '1.250'};{i % 3 == 0}" for i in range(40)]


@pytest.mark.parametrize(("label", "regression"), [("aktiv", False), ("Gehalt", True), ("Höhe", True)])
def test_points_beside_decimal_commas_are_told(tmp_path: Path, label: str, regression: bool) -> None:
    _, notes = noted(tmp_path, GERMAN, regression=regression, label=label)
    said = "column 'Gehalt': '1.250' is read as 1.25, with '.' before decimals, where column 'Höhe' has ','; "
    assert said + "data.decimal=',' reads 1250" in notes
    columns, notes = noted(tmp_path, GERMAN, regression=regression, label=label, decimal=",")
    salary = columns["label" if label == "Gehalt" else "Gehalt"]
    assert salary[:2].tolist() == [1250, 950] and "where column" not in notes


@pytest.mark.parametrize("value", ["1.25", "0.250", "1.2500", "1250.125"])
def test_points_that_are_surely_decimal_marks_are_not_told(tmp_path: Path, value: str) -> None:
    columns, notes = noted(tmp_path, [line.replace("1.250", value) for line in GERMAN], label="aktiv")
    assert columns["Gehalt"][0] == float(value) and "where column" not in notes


def test_values_that_the_typed_mark_does_not_fit_are_told(tmp_path: Path) -> None:
    _, notes = noted(tmp_path, GERMAN, label="aktiv", decimal=".")
    assert "column 'Höhe' is read as categories, for '1,70' is no number with data.decimal='.'" in notes
    rows = ["rate;aktiv;y"] + [f"{12 + i % 3}.5%;{i % 3 == 0};{'ab'[i % 2]}" for i in range(20)]
    _, notes = noted(tmp_path, rows, label="y", decimal=",")
    assert "column 'rate' is read as categories, for '12.5%' is no number with data.decimal=','" in notes
    assert "column 'aktiv' is read as categories, for 'False' is no number" in notes
    assert "no number with" not in noted(tmp_path, rows, label="y")[1]


def test_a_broken_date_is_named_by_its_column(tmp_path: Path) -> None:
    style = NumberStyle(of="Tag", date="year-month-day", part="year")
    encoder = TableEncoder([Numeric("Tag.year", 2023.0, 1.0, False, style)])
    _, bad, _ = rows_of(b"Tag\n2023-02-01\n2023-13-45\n", "csv", encoder)
    assert "input:3:Tag: '2023-13-45' is not a date, and the column holds dates, year-month-day" in str(bad[1])
    assert [*bad] == [1]


@pytest.mark.parametrize(
    ("text", "codec", "named"),
    [("姓名,年龄\n张三,3\n", "gbk", "such as gbk"), ("Größe,y\nMüller,“x”\n", "cp1252", "such as cp1252 or latin-1")],
)
def test_likely_encodings_are_named(text: str, codec: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(codec))
    with pytest.raises(DataError, match=named):
        read_text(tmp_path / "t.csv", None)


def test_a_preview_shows_zero_and_no_spread_where_there_is_none(tmp_path: Path) -> None:
    rows = [f"{row * 3 % 7},2023,{row % 3 == 0},{'ab'[row % 2]}" for row in range(50)]
    (tmp_path / "t.csv").write_text("weekday,year,half,y\n" + "\n".join(rows) + "\n")
    found = preview.columns(prepare.prepare(schema.Csv(path=str(tmp_path / "t.csv"), label="y")), 40)
    assert {*found[0].samples} == {*"0123456"} and {*found[2].samples} == {"0", "1"}
    assert found[1].summary == "2023 ± 0" and not found[0].summary.endswith("± 0")
