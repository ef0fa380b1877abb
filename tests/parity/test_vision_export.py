"""ResNet, ViT and ConvNeXt exported to transformers: the same logits there, and the same weights back here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import bigctl
from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.inference.exporters.huggingface import export_run
from bigctl.inference.trained import TrainedRun
from bigctl.interop import huggingface, loading, sources
from bigctl.interop.pictures import STRETCH, Pixels
from bigctl.interop.vision_export import Export
from bigctl.training.checkpoints.arrays import flatten
from tests.parity import cases

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.fewer

MODELS: dict[str, schema.Model] = {
    "resnet": schema.Resnet(blocks=[1, 2], width=4, stem="imagenet"),
    "resnet of bottlenecks": schema.Resnet(blocks=[1, 1], width=4, stem="imagenet", bottleneck=True),
    "vit": schema.Vit(patch=8, layers=2, width=12, heads=3, intermediate=20),
    "vit with fixed places": schema.Vit(patch=8, layers=1, width=12, heads=3, intermediate=20, position="sincos"),
    "convnext": schema.Convnext(blocks=[1, 2], widths=[4, 6], layer_scale=0.5),
}
SHAPE = (32, 24, 3)
PIXELS = Pixels(SHAPE[:2], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), STRETCH)


def drawn(model: schema.Model, outputs: int, shape: tuple[int, int, int] = SHAPE) -> tuple[Any, dict[str, np.ndarray]]:
    """(the model as a function of pictures, its parameters and statistics), none of them as they begin."""
    empty = nnx.eval_shape(lambda: model.build(shape, outputs, rngs=nnx.Rngs(0)))
    structure, params, rest = nnx.split(empty, nnx.Param, ...)
    random = np.random.default_rng(0)

    def values(part: Any) -> dict[str, np.ndarray]:
        found = {n: random.normal(size=v.shape).astype(np.float32) for n, v in flatten(nnx.to_pure_dict(part)).items()}
        return {n: np.abs(v) + 0.5 if n.endswith("/var") else v * 0.3 for n, v in found.items()}

    parts = values(params), values(rest)

    def run(images: np.ndarray) -> np.ndarray:
        nets = [cases.nested(part) for part in parts]
        return np.asarray(jax.jit(lambda *nets: nnx.merge(structure, *nets)(jnp.asarray(images)))(*nets))

    return run, {**parts[0], **parts[1]}


@pytest.mark.parametrize("name", MODELS)
def test_an_export_has_the_logits_in_transformers(name: str, tmp_path: Path) -> None:
    run, values = drawn(MODELS[name], 3)
    export = Export(MODELS[name], values, PIXELS, ("ant", "bee", "cat"))
    folder = huggingface.write_vision(export, tmp_path / "out")
    net, info = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert net.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="pt")
    standardised = ((pixels / 255 - export.pixels.mean) / export.pixels.std).astype(np.float32)[None]
    with torch.no_grad():
        cases.assert_close("logits", run(standardised), net.eval()(**inputs).logits.numpy())
    source = sources.locate_source(str(folder))
    stored = loading.stored_of(source)
    assert source.pixels == export.pixels
    for path, value in {**stored.read(list(stored.shapes))}.items():
        if path in values:  # a table of fixed places is none of ours
            np.testing.assert_array_equal(value, values[path])


def test_one_output_becomes_two(tmp_path: Path) -> None:
    run, values = drawn(MODELS["convnext"], 1)
    export = Export(MODELS["convnext"], values, Pixels(SHAPE[:2], (0.5,) * 3, (0.2,) * 3, STRETCH), ("no", "yes"))
    net = transformers.AutoModelForImageClassification.from_pretrained(
        huggingface.write_vision(export, tmp_path / "out")
    )
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        found = net.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    cases.assert_close("log-odds", run(images)[:, 0], found[:, 1] - found[:, 0])


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (schema.Vit(pool="mean"), "a mean over patches"), (schema.Vit(registers=1), "registers"),
        (schema.Convnext(kernel_size=3), "depthwise convolutions of 3x3"),
    ],
)  # fmt: skip
def test_what_transformers_lacks_is_refused(model: schema.Model, why: str) -> None:
    with pytest.raises(ConfigError, match=f"transformers has no class for model={model.kind} with {why}"):
        huggingface.require_exportable(model, "runs/x")


@pytest.mark.slow
def test_a_trained_run_is_exported_with_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
    keys = ["recipe=resnet_cls", "model.blocks=[1]", "model.width=4", "model.stem=imagenet", "recipe.augment.crop=0"]
    keys += ["train.epochs=1", "train.batch_size=8"]
    finished = bigctl.train(keys, "run", data=(images, np.arange(24) % 3), quiet=True)
    run = TrainedRun.load("run")
    folder = export_run(run, tmp_path / "out")
    net = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        found = torch.softmax(
            net(**processor([Image.fromarray(x) for x in images[:4]], return_tensors="pt")).logits, -1
        )
    again = [*keys, "train.steps=1", "train.epochs=null", "model.init_from=out"]
    bigctl.train(again, "again", data=(images, np.arange(24) % 3), quiet=True)
    assert "model.init_from: 11 of 11 parameters, 6 of 6 statistics from out" in Path("again/log.txt").read_text()
    np.testing.assert_allclose(finished.predict(images[:4]), found.numpy(), atol=1e-4)
