"""What Python gives to be predicted reaches the model as files do, or is refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.errors import DataError
from bigctl.inference import given_inputs

ENCODER = TableEncoder([Numeric("age", 0.0, 1.0, True), Categorical("city", ("Oslo", "Rome"), False, False)])
TABLE = Features("table", (4,), ("a", "b"), encoder=ENCODER.to_json())
COLUMNS = frozenset({"age", "city", "id", "label"})
GREY = Features("image", (4, 6, 1), ("a", "b"), (0.5,), (0.2,))
TEXT = Features("text", (16,), ("a", "b"), tokenizer={}, columns=("words",))
ROWS = np.array([[30, 0, 1, 0], [0, 1, 0, 1]], np.float32)


def read(given: Any, features: Features, config: schema.Data | None = None) -> given_inputs.Asked:
    return given_inputs.read(given, features, config or schema.Memory(), COLUMNS)


@pytest.mark.parametrize(
    "frame",
    [
        {"city": ["Oslo", "Rome"], "age": [30.0, None]},
        pa.table({"age": pa.array([30, None], pa.int16()), "city": ["Oslo", "Rome"], "id": [1, 2]}),
        [{"age": 30, "city": "Oslo"}, {"city": "Rome"}],
        ROWS,
    ],
)
def test_columns_are_known_by_their_names(frame: Any) -> None:
    asked = read(frame, TABLE)
    np.testing.assert_array_equal(asked.inputs, ROWS)
    assert not asked.single


def test_frames_of_pandas_are_read_as_others() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"city": pandas.Categorical(["Oslo", "Rome"]), "age": [30.0, np.nan]}, index=[7, 3])
    np.testing.assert_array_equal(read(frame, TABLE).inputs, ROWS)
    with pytest.raises(DataError, match="'age' is text, where it was a number"):
        read(frame.astype({"age": str}), TABLE)


def test_one_row_is_one_row() -> None:
    asked = read({"age": 30, "city": "Oslo"}, TABLE)
    assert asked.single and asked.inputs.tolist() == ROWS[:1].tolist()


def test_one_row_of_a_pandas_frame_is_one_row() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [30.0, np.nan], "city": ["Oslo", "Rome"]})
    for place in range(2):
        asked = read(frame.iloc[place], TABLE)
        assert asked.single and asked.inputs.tolist() == ROWS[place : place + 1].tolist()
    with pytest.raises(ValueError, match="add a batch dimension"):
        read(frame["age"], TABLE)  # a column
    with pytest.raises(DataError, match="duplicate column names: age"):
        read(frame[["age", "city", "age"]].iloc[0], TABLE)


def test_an_array_of_a_run_on_an_array_holds_raw_values() -> None:
    features = Features(
        "table",
        (2,),
        ("a", "b"),
        encoder=TableEncoder([Numeric("x0", 1, 2, False), Numeric("x1", 0, 1, False)]).to_json(),
    )
    memory = schema.Memory(unnamed=True)
    known = frozenset({"x0", "x1"})
    asked = given_inputs.read(np.array([[3, 4]]), features, memory, known)
    assert asked.inputs.tolist() == [[1, 4]]
    with pytest.raises(ValueError, match=r"^the array has 3 columns, the model takes 2$"):
        given_inputs.read(np.zeros((1, 3)), features, memory, known)


PICTURE = Image.new("L", (6, 4))


@pytest.mark.parametrize(
    ("given", "features", "what"),
    [
        (PICTURE, TABLE, "a picture is given, and the model takes rows of a table"),
        (np.zeros((2, 4, 6)), TABLE, r"an array of shape \(2, 4, 6\) is given, and the model takes rows of a table"),
        (["a text"], TABLE, "need the names of their columns"),
        (np.zeros((2, 9)), TABLE, r"the array has 9 columns, the model takes \d features, encoded; give a frame"),
        (PICTURE, TEXT, "a picture is given, and the model takes texts"),
        (np.zeros((2, 3)), TEXT, r"an array of shape \(2, 3\) is given, and the model takes texts"),
        ({"age": [1]}, GREY, "a frame is given, and the model takes images"),
    ],
)
def test_what_is_for_another_model_is_named(given: Any, features: Features, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read(given, features)


def test_raw_values_where_encoded_ones_are_taken_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    raw = np.array([[650.0, *[0.0] * (TABLE.shape[0] - 1)]])
    read(raw / 1000, TABLE)
    assert not caplog.records
    read(raw, TABLE)
    assert "give a frame of the columns" in caplog.text


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        ({"age": [1], "town": ["Oslo"]}, "no feature column 'city'"),
        ({"Age": [1], "city": ["Oslo"]}, "did you mean 'age'|no feature column 'age'.*did you mean 'Age'"),
        ({"age": [1], "city": ["Oslo"], "extra": [0]}, "'extra' is none of the training's.*leave it out"),
        ({"age": ["1"], "city": ["Oslo"]}, "'age' is text, where it was a number"),
        ({"age": [1], "city": [5]}, "'city' is int64, where it was a category"),
        ({"age": [1, 2], "city": ["Oslo"]}, "one length each"),
        ({"age": [], "city": []}, "there are no rows"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(frame: Any, what: str) -> None:
    with pytest.raises(DataError) as error:
        read(frame, TABLE)
    import re

    assert re.search(what, str(error.value), re.DOTALL), str(error.value)


def test_pictures_come_as_arrays_images_and_paths(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    picture, file = Image.fromarray(pixels), tmp_path / "one.png"
    picture.save(file)
    for one in (picture, file, str(file)):
        asked = read(one, GREY, schema.ImageFolder(path=""))
        assert asked.single and np.array_equal(asked.inputs[0, ..., 0], pixels), one
    for many in ([picture, file], [str(file)] * 2, np.stack([pixels] * 2), np.stack([pixels] * 2)[..., None]):
        asked = read(many, GREY, schema.ImageFolder(path=""))
        assert not asked.single and asked.inputs.shape == (2, 4, 6, 1)
    assert read(picture.convert("RGB").resize((60, 40)), GREY).inputs.shape == (1, 4, 6, 1)


@pytest.mark.parametrize(
    ("given", "features"),
    [
        (np.zeros((4, 6, 1), np.uint8), GREY),
        (np.zeros((4, 6), np.uint8), GREY),
        (np.zeros(4, np.float32), TABLE),
    ],
)
def test_one_example_without_a_batch_dimension_is_told_so(given: np.ndarray, features: Features) -> None:
    with pytest.raises(ValueError, match="add a batch dimension"):
        read(given, features)


@pytest.mark.parametrize("channels", [3, 4])
def test_one_image_of_other_channels_is_told_so(channels: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^one image of {channels} channels is given, .* reads \(4, 6, 1\): give a PIL"
    ):
        read(np.zeros((4, 6, channels), np.uint8), GREY)


def test_texts_come_alone_in_lists_and_in_frames() -> None:
    assert read("hello", TEXT) == given_inputs.Asked(["hello"], True)
    assert read(["hello", "you"], TEXT) == given_inputs.Asked(["hello", "you"])
    assert read({"words": ["hello"], "label": ["a"]}, TEXT) == given_inputs.Asked(["hello"])
    with pytest.raises(DataError, match="no text column 'words'"):
        read({"text": ["hello"]}, TEXT)
