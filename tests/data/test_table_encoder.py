"""Promises of `bigctl.data.table_encoder`: the matrix that table columns become."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bigctl.data.table_encoder import TableEncoder
from bigctl.errors import DataError


def refused(match: str, action, *args) -> DataError:
    with pytest.raises(DataError, match=match) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return caught.value


def mixed(n: int, seed: int):
    rng = np.random.default_rng(seed)
    x = rng.normal(50, 9, n)
    x[rng.random(n) < 0.2] = np.nan
    city = rng.choice(["Rome", "Bonn", "Oslo"], n).astype(object)
    return {"x": x, "z": rng.gamma(2.0, 3.0, n), "city": city}


def test_numbers_are_standardised_as_by_scikit_learn():
    train, test = mixed(500, 0), mixed(200, 1)
    encoder = TableEncoder.fit(train)
    scaler = StandardScaler().fit(np.stack([train["x"], train["z"]], 1))
    for columns in (train, test):
        matrix = encoder.encode(columns)
        expected = np.nan_to_num(scaler.transform(np.stack([columns["x"], columns["z"]], 1)), nan=0.0)
        names = encoder.feature_names
        np.testing.assert_allclose(matrix[:, [names.index("x"), names.index("z")]], expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(matrix[:, names.index("x=missing")], np.isnan(columns["x"]))
        assert matrix.dtype == np.float32 and matrix.shape == (len(columns["x"]), len(names))
    assert names == ["x", "x=missing", "z", "city=Bonn", "city=Oslo", "city=Rome"]


def test_categories_are_one_hot_as_by_scikit_learn():
    train, test = mixed(300, 0), mixed(100, 1)
    test["city"][::3] = "Lima"
    encoder = TableEncoder.fit({"city": train["city"]})
    reference = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(train["city"][:, None])
    assert encoder.feature_names == [f"city={name}" for name in reference.categories_[0]]
    assert np.array_equal(encoder.encode(test), reference.transform(test["city"][:, None]))
    assert not encoder.encode(test)[::3].any()


def test_rare_categories_become_other_as_by_scikit_learn():
    # Value i occurs i + 1 times, so that the 64 most frequent are certain.
    values = np.array([f"v{i:02}" for i in range(70) for _ in range(i + 1)], dtype=object)
    asked = np.array(["v69", "v00", "never seen", "v06", "v05"], dtype=object)
    encoder = TableEncoder.fit({"c": values})
    reference = OneHotEncoder(max_categories=65, handle_unknown="infrequent_if_exist", sparse_output=False)
    assert np.array_equal(encoder.encode({"c": asked}), reference.fit(values[:, None]).transform(asked[:, None]))
    assert len(encoder.feature_names) == 65 and encoder.feature_names[-1] == "c=<other>"


def test_missing_and_other_are_different_categories():
    encoder = TableEncoder.fit({"c": np.array([None, *(f"v{i:02}" for i in range(65))], dtype=object)})
    assert encoder.feature_names[-2:] == ["c=<other>", "c=missing"]
    assert np.argwhere(encoder.encode({"c": np.array(["new", None], object)})).tolist() == [[0, 64], [1, 65]]


def test_missing_is_a_category_only_if_train_has_it():
    with_missing, without = np.array(["a", None, "b"], object), np.array(["a", "b"], object)
    encoder = TableEncoder.fit({"c": with_missing})
    assert encoder.feature_names == ["c=a", "c=b", "c=missing"]
    assert encoder.encode({"c": with_missing}).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert TableEncoder.fit({"c": without}).encode({"c": with_missing}).tolist() == [[1, 0], [0, 0], [0, 1]]


def test_numbers_missing_outside_train_alone_become_the_mean():
    encoder = TableEncoder.fit({"a": np.array([1.0, 3.0])})
    assert encoder.feature_names == ["a"]
    assert encoder.encode({"a": np.array([np.nan, 3.0])}).tolist() == [[0.0], [1.0]]


def test_constant_columns_become_zero():
    assert not TableEncoder.fit({"a": np.full(1000, 0.1)}).encode({"a": np.full(3, 0.1)}).any()
    # Different, but by less than the square root of the smallest float.
    assert np.isfinite(TableEncoder.fit({"a": np.array([0.0, 1e-200])}).encode({"a": np.array([0.0])})).all()


def test_only_the_fitted_split_decides_the_encoding():
    train = {"a": np.array([1.0, 3.0])}
    encoder = TableEncoder.fit(train)
    before = encoder.to_json()
    assert encoder.encode({"a": np.array([100.0])}).tolist() == [[98.0]] and encoder.to_json() == before


def test_an_encoder_survives_json():
    train = {**mixed(200, 0), "c": np.array([None, *(f"v{i}" for i in range(199))], dtype=object)}
    encoder = TableEncoder.fit(train)
    again = TableEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again.feature_names == encoder.feature_names
    assert np.array_equal(again.encode(train), encoder.encode(train))
    refused("not a saved table encoder", TableEncoder.from_json, {"version": 1})
    refused("version 2", TableEncoder.from_json, {"version": 2, "columns": []})


def test_wrong_columns_are_refused():
    encoder = TableEncoder.fit({"a": np.array([1.0, 2.0]), "c": np.array(["u", "v"], object)})
    refused("the feature columns c are missing", encoder.encode, {"a": np.array([1.0])})
    refused("'a' is text", encoder.encode, {"a": np.array(["x"], object), "c": np.array(["u"], object)})
    refused("'c' is numeric", encoder.encode, {"a": np.array([1.0]), "c": np.array([1.0])})
    refused("too large", TableEncoder.fit, {"a": np.array([1.7e308, 1.6e308])})
    with pytest.raises(ValueError, match="target"):
        TableEncoder.fit({"label": np.array([1.0])})
