"""Every file and row that is to be predicted gets a record: a prediction, or what is wrong with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.number_style import NumberStyle
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.errors import ConfigError, DataError
from bigctl.inference.file_records import Ids, predict_files

ENCODER = TableEncoder([Numeric("x", 0.0, 1.0, True), Categorical("part", ('"M10"', '"M8"'), False, False)])
TABLE = Features("table", (4,), ("a", "b"), encoder=ENCODER.to_json())


@dataclass
class Echo:
    """A model that says what it is given."""

    data: schema.Data
    features: Features

    @property
    def config(self) -> Any:
        return SimpleNamespace(data=self.data)

    def describe_all(self, inputs: Any) -> list[dict[str, Any]]:
        return [{"said": np.asarray(each).tolist() if isinstance(each, np.ndarray) else each} for each in inputs]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_files_are_read_as_the_training_file_was(tmp_path: Path) -> None:
    trained = Echo(schema.Tsv(path="old.tsv", quoting=False), TABLE)
    rows = "".join(f'"M{(8, 10)[n % 2]}"\t{n}\n' for n in range(4))
    found = list(predict_files(trained, [write(tmp_path, "new.tsv", "part\tx\n" + rows)]))
    assert [record["said"] for record in found] == [[n, 0, n % 2, 1 - n % 2] for n in range(4)]
    assert [record["row"] for record in found] == [0, 1, 2, 3]


def test_a_bad_row_is_a_record_and_not_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = Echo(schema.Csv(path="old.csv"), TABLE)
    file = write(tmp_path, "new.csv", "x,part\n1,M8\nold,M8\n,\n1,2,3\ninf,M9\n2,M8\n")
    with caplog.at_level(logging.WARNING, "bigctl"):
        found = list(predict_files(trained, [file, str(tmp_path / "gone.csv"), file]))
    assert [("error" in record, record.get("row")) for record in found[:7]] == [
        (False, 0), (True, 1), (False, 2), (True, 3), (True, 4), (False, 5), (True, None),
    ]  # fmt: skip
    assert found[7:] == found[:6] and "no such file" in found[6]["error"]
    assert ":3:x: 'old' is not a number" in found[1]["error"] and ":5: 3 fields" in found[3]["error"]
    assert caplog.messages[:2] == [
        f"{file}: 1 rows have no value in any column of the model",
        f"{file}: 4 values of 'part' are not among those of the training: 'M8', 'M9'",
    ]
    with pytest.raises(DataError, match="'old' is not a number"):
        next(predict_files(trained, [file], strict=True))


def test_text_of_another_kind_of_file_is_in_the_encoding_of_the_training(tmp_path: Path) -> None:
    trained = Echo(schema.Csv(path="old.csv", text="t", encoding="latin-1"), Features("text", (8,), ("a", "b")))
    (tmp_path / "new.txt").write_bytes("d\xe9j\xe0 vu\n\n".encode("latin-1"))
    found = list(predict_files(trained, [tmp_path / "new.txt"]))
    assert found[0]["said"] == "d\xe9j\xe0 vu" and "the text is empty" in found[1]["error"]


def test_a_picture_is_laid_over_the_background_of_the_training(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    trained = Echo(schema.Parquet(path="old.parquet", background="white"), Features("image", (2, 2, 1), ("a", "b")))
    assert np.min(next(predict_files(trained, [tmp_path / "clear.png"]))["said"]) == 255


def test_rows_come_by_standard_input_too() -> None:
    trained = Echo(schema.Tsv(path="old.tsv"), TABLE)
    for content in (b"x\tpart\n3\t\n", b'{"x": 3, "part": ""}\n', b'[{"x": 3, "part": null}]'):
        assert list(predict_files(trained, [content])) == [{"file": "stdin", "row": 0, "said": [3, 0, 0, 0]}]
    packaged = Echo(schema.Packaged(name="x"), TABLE)
    assert next(predict_files(packaged, [b"x,part\n3,\n"]))["said"] == [3, 0, 0, 0]


def test_styles_of_the_training_are_those_of_prediction(tmp_path: Path) -> None:
    encoder = TableEncoder([Numeric("x", 0.0, 1.0, False, NumberStyle(",", ".", "€"))])
    trained = Echo(schema.Csv(path="o.csv"), Features("table", (1,), None, (0.0,), (1.0,), encoder.to_json()))
    file = write(tmp_path, "new.csv", 'x\n"1.234,5 €"\n€7\n$7\n')
    found = list(predict_files(trained, [file]))
    assert [record.get("said") for record in found] == [[1234.5], [7.0], None]


def test_a_picture_that_is_none_is_a_record(tmp_path: Path) -> None:
    trained = Echo(schema.Packaged(name="digits"), Features("image", (2, 2, 1), ("a", "b")))
    Image.new("L", (4, 4), 50).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    found = list(predict_files(trained, [str(tmp_path / name) for name in ("a.png", "b.png", "a.png")]))
    assert [record.get("said") for record in found] == [[[[50], [50]]] * 2, None, [[[50], [50]]] * 2]
    assert "this is not an image" in found[1]["error"] and "row" not in found[0]


def test_a_column_that_would_hide_the_prediction_names_no_rows() -> None:
    with pytest.raises(ConfigError, match="'label' is what a column of the predictions is called"):
        Ids(("label",))


def test_a_row_that_is_cut_off_keeps_its_id() -> None:
    trained = Echo(schema.Csv(path="old.csv"), TABLE)
    found = [*predict_files(trained, [b"id,x,part\n7,3,\n8,4\n9,5,\n"], ids=Ids(("id",)))]
    assert [record["id"] for record in found] == [7, 8, 9] and ":3: 2 fields" in found[1]["error"]
