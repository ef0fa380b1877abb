"""Promises of `bigctl.interop.tensors`: weights are read as float32, damage is named, pickles are never opened."""

from __future__ import annotations

import json
import os
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bigctl.errors import DataError
from bigctl.interop.tensors import Tensors

VALUES = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def refused(folder, *words: str) -> str:
    """The one line that refuses a folder, at opening or at reading."""
    with pytest.raises(DataError) as caught:
        tensors = Tensors(folder)
        for name in tensors.shapes:
            tensors.read(name)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, line
    return line


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_of_any_width_become_float32(tmp_path, dtype):
    save_file({"x": VALUES.astype(dtype)}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    assert tensors.shapes == {"x": (3, 4)}
    found = tensors.read("x")
    assert found.dtype == np.float32 and np.array_equal(found, VALUES.astype(dtype).astype(np.float32))


def test_shards_are_found_through_their_index(tmp_path):
    save_file({"x": VALUES}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"y": VALUES + 1}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tensors = Tensors(tmp_path)
    assert set(tensors.shapes) == {"x", "y"} and np.array_equal(tensors.read("y"), VALUES + 1)


def test_missing_shards_are_named(tmp_path):
    places = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    save_file({"x": VALUES}, tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    line = refused(tmp_path, "index.json", "model-00002-of-00002.safetensors")
    assert "model-00001" not in line


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"x": "../secret.safetensors"}}', '{"weight_map": 3}', "{}", "[", "3"]
)
def test_an_index_that_is_none_or_leaves_its_folder_is_refused(tmp_path, index):
    save_file({"x": VALUES}, tmp_path / "secret.safetensors")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.safetensors.index.json").write_text(index)
    refused(tmp_path / "inner", "model.safetensors.index.json")


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


DAMAGES = {
    "truncated": lambda whole: whole[:-3],
    "cut in the header": lambda whole: whole[:20],
    "empty": lambda whole: b"",
    "longer": lambda whole: whole + b"xx",
    "something else": lambda whole: b"these are no weights, but some text" * 9,
    "no JSON": lambda whole: header(b"{abc") + whole,
    "offsets beyond the end": lambda whole: header(b'{"x":{"dtype":"F32","shape":[3,4],"data_offsets":[0,4000]}}'),
    "unknown type": lambda whole: header(b'{"x":{"dtype":"Q9","shape":[1],"data_offsets":[0,4]}}') + b"1234",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    save_file({"x": VALUES}, file)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    refused(tmp_path, str(file), "is no whole safetensors file", "again")


def test_a_git_lfs_reference_says_how_to_get_the_weights(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "model.safetensors").write_text(text)
    refused(tmp_path, "git lfs pull")


def test_quantised_and_not_finite_weights_are_refused_by_name(tmp_path):
    save_file({"x": VALUES.astype(np.int8)}, tmp_path / "model.safetensors")
    refused(tmp_path, "x is stored as I8")
    save_file({"x": np.array([1, np.nan], np.float32)}, tmp_path / "model.safetensors")
    refused(tmp_path, "x holds values that are not finite")


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_is_refused_unopened_with_the_line_that_converts_it(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    refused(tmp_path, name, "pickle", "save_pretrained", "safe_serialization=True", str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    save_file({"x": VALUES}, tmp_path / "model.safetensors")
    assert np.array_equal(Tensors(tmp_path).read("x"), VALUES) and not (tmp_path / "ran").exists()


def test_a_folder_without_weights_says_what_belongs_there(tmp_path):
    refused(tmp_path, "there is no model.safetensors", "save_pretrained")
