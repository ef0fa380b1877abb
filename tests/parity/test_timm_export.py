"""ResNet, ViT and ConvNeXt exported to timm: the same logits there, and the same weights back here."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from bigctl.config import schema
from bigctl.data.sources.image_decoding import read_pictures
from bigctl.errors import ConfigError
from bigctl.interop import huggingface, loading, sources, timm_export
from bigctl.interop.pictures import CROP, STRETCH, Pixels
from bigctl.interop.vision_export import Export
from tests.parity import cases
from tests.parity.test_vision_export import drawn

pytestmark = pytest.mark.fewer

SHAPE = (64, 48, 3)
PIXELS = Pixels(SHAPE[:2], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), STRETCH)
MODELS: dict[str, schema.Model] = {
    "resnet": schema.Resnet(blocks=[1, 1, 2, 1], stem="imagenet"),
    "resnet of bottlenecks": schema.Resnet(blocks=[1, 1, 1, 1], stem="imagenet", bottleneck=True),
    "vit": schema.Vit(patch=8, layers=2, width=12, heads=3, intermediate=20),
    "vit with registers": schema.Vit(patch=8, layers=2, width=12, heads=3, intermediate=24, registers=2),
    "vit of fixed places": schema.Vit(patch=8, layers=1, width=12, heads=3, intermediate=24, position="sincos"),
    "vit of the mean": schema.Vit(patch=8, layers=1, width=12, heads=3, intermediate=24, pool="mean"),
    "convnext": schema.Convnext(blocks=[1, 2, 1, 1], widths=[4, 6, 8, 8], layer_scale=0.5),
    "convnext without scales": schema.Convnext(blocks=[1, 1, 1, 1], widths=[4, 6, 8, 8], layer_scale=0, kernel_size=3),
}


def export_of(model: schema.Model) -> Export:
    return Export(model, drawn(model, 3, SHAPE)[1], PIXELS, ("ant", "bee", "cat"))


@pytest.mark.parametrize("name", MODELS)
def test_an_export_has_the_logits_in_timm(name: str, tmp_path: Path) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    export = export_of(MODELS[name])
    folder = timm_export.write(export, tmp_path / "out")
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    seen = timm.data.create_transform(**timm.data.resolve_model_data_config(net))(Image.fromarray(pixels))[None]
    standardised = ((pixels / 255 - export.pixels.mean) / export.pixels.std).astype(np.float32)[None]
    np.testing.assert_allclose(seen.numpy()[0].transpose(1, 2, 0), standardised[0], atol=1e-5)
    with torch.no_grad():
        cases.assert_close("logits", drawn(MODELS[name], 3, SHAPE)[0](standardised), net(seen).numpy())


@pytest.mark.parametrize("size", [(64, 64), (64, 48)], ids=["square", "portrait"])
@pytest.mark.parametrize("resize", [CROP, STRETCH])
def test_timm_sees_pictures_of_another_shape_as_we_do(size: tuple[int, int], resize: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = schema.Convnext(blocks=[1, 1, 1, 1], widths=[4, 6, 8, 8])
    export = dataclasses.replace(export_of(model), pixels=Pixels(size, (0.0,) * 3, (1.0,) * 3, resize))
    net = timm.create_model(f"local-dir:{timm_export.write(export, tmp_path / 'out')}", pretrained=True)
    photograph = Image.fromarray(load_sample_image("china.jpg")[:400, 20:600])
    seen = timm.data.create_transform(**timm.data.resolve_model_data_config(net))(photograph).numpy()

    def apart(resize: str) -> float:
        ours = read_pictures([photograph], size, 3, resize=resize)[0]
        return float(np.abs(seen.transpose(1, 2, 0) * 255 - ours).mean())

    # timm resizes first and cuts then, to whole pixels: half of one away.
    assert apart(resize) < (8 if resize == CROP else 1) and 3 * apart(resize) < apart(*{CROP, STRETCH} - {resize})


@pytest.mark.parametrize("name", MODELS)
def test_an_export_to_timm_is_read_back_as_it_was(name: str, tmp_path: Path) -> None:
    export = export_of(MODELS[name])
    source = sources.locate_source(str(timm_export.write(export, tmp_path / "out")))
    stored = loading.stored_of(source)
    assert source.pixels == export.pixels
    found = stored.read(list(stored.shapes))
    assert found.keys() - {"position"} == {n for n in export.values if not n.endswith(("/mean", "/var", "position"))}
    for path, value in found.items():
        if path not in ("cls", "position"):  # the class token has its place in it
            np.testing.assert_array_equal(value, export.values[path], err_msg=path)
    if "cls" in found and "position" in export.values:
        table = export.values["position"]
        np.testing.assert_allclose(found["cls"], export.values["cls"] + table[:1], rtol=1e-6)
        np.testing.assert_array_equal(found["position"], [0 * table[0], *table[1:]])


@pytest.mark.parametrize("size", [(64, 64), (64, 48), (40, 24)])  # 15 patches and a class token are a square of places
@pytest.mark.parametrize("write", [timm_export.write, huggingface.write_vision])
def test_places_of_patches_are_read_back_whatever_their_number(write: Any, size: tuple[int, int], tmp_path) -> None:
    model = schema.Vit(patch=8, layers=1, width=12, heads=3, intermediate=24)
    values = drawn(model, 3, (*size, 3))[1]
    pixels = dataclasses.replace(PIXELS, size=size)
    write(Export(model, values, pixels, ("ant", "bee", "cat")), tmp_path / "out")
    stored = loading.stored_of(sources.locate_source(str(tmp_path / "out")))
    assert stored.shapes["position"] == values["position"].shape
    np.testing.assert_array_equal(stored.read(["position"])["position"][1:], values["position"][1:])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (schema.Resnet(blocks=[1, 1]), "timm has no model=resnet with 2 stages"),
        (schema.Resnet(width=4), "timm has no model=resnet with model.width=4"),
        (schema.Vit(eps=1e-12), "timm has no model=vit with model.eps=1e-12"),
        (schema.Convnext(blocks=[1], widths=[4]), "timm has no model=convnext with 1 stages"),
        (schema.Convnext(patch=2), "timm has no model=convnext with model.patch=2"),
        (schema.Cnn(), "timm has no model=cnn; only resnet, vit and convnext"),
    ],
)
def test_what_timm_does_not_have_is_refused(model: schema.Model, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        timm_export.require(model, "run")
    assert said in str(caught.value)


def test_a_stem_for_small_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ResNet with a stem for small images"):
        timm_export.write(export_of(schema.Resnet(blocks=[1, 1, 1, 1], stem="cifar")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
