"""Promises of `bigctl.interop.pictures`: preprocessing is read as timm and transformers mean it, and written so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bigctl
from bigctl.errors import ConfigError
from bigctl.inference.exporters import huggingface, timm_folder
from bigctl.inference.trained import TrainedRun
from bigctl.interop import pictures
from bigctl.interop.pictures import CROP, STRETCH, Pixels

NUMBERS = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.mark.parametrize("size", [(64, 64), (64, 48)])
@pytest.mark.parametrize("resize", [CROP, STRETCH])
def test_what_is_written_is_read_back(size, resize) -> None:
    pixels = Pixels(size, *NUMBERS, resize)
    assert pictures.read({"pretrained_cfg": pictures.for_timm(pixels)}, {}) == pixels
    if pictures.says(pixels):
        assert pictures.read({}, pictures.for_transformers(pixels)) == pixels
    else:
        assert (size, resize) == ((64, 48), CROP)


@pytest.mark.parametrize(
    ("timm", "resize", "otherwise"),
    [
        ({}, CROP, ["resized by bicubic", "recipe.augment.center_crop=0.875"]),
        ({"crop_pct": 1.0, "interpolation": "bilinear"}, CROP, []),
        ({"crop_pct": 0.9, "interpolation": "bilinear"}, CROP, ["recipe.augment.center_crop=0.9"]),
        ({"crop_mode": "squash", "crop_pct": 1.0}, STRETCH, ["resized by bicubic"]),
        ({"crop_mode": "border", "interpolation": "bilinear"}, CROP, ["had a border"]),
    ],
)
def test_what_timm_does_otherwise_is_told(timm, resize, otherwise) -> None:
    config = {"pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5], "std": [0.2], **timm}}
    found = pictures.read(config, {})
    assert found is not None and found.resize == resize and len(found.otherwise) == len(otherwise)
    assert all(part in said for part, said in zip(otherwise, found.otherwise, strict=True))


CONVNEXT = {"image_processor_type": "ConvNextImageProcessor", "resample": 2}


@pytest.mark.parametrize(
    ("processor", "size", "resize", "otherwise"),
    [
        ({"size": {"shortest_edge": 8}}, (8, 8), CROP, []),
        ({"size": {"height": 8, "width": 6}}, (8, 6), STRETCH, []),
        ({"size": {"shortest_edge": 10}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}, (8, 8), CROP,
         ["center_crop=0.8"]),
        ({"size": {"shortest_edge": 8}, "crop_size": 8, "do_center_crop": True}, (8, 8), CROP, []),
        ({"size": 8, "resample": 3}, (8, 8), STRETCH, ["resized by bicubic"]),
        ({"size": 8, "resample": [1]}, (8, 8), STRETCH, ["resized by another interpolation"]),
        ({**CONVNEXT, "size": {"shortest_edge": 224}}, (224, 224), CROP, ["center_crop=0.875"]),
        ({**CONVNEXT, "size": 224, "crop_pct": 0.95}, (224, 224), CROP, ["center_crop=0.95"]),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, (384, 384), STRETCH, []),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384}, (384, 384), STRETCH, ["bicubic"]),
    ],
)  # fmt: skip
def test_what_transformers_says_is_read(processor, size, resize, otherwise) -> None:
    found = pictures.read({}, {"image_mean": [0.5], "image_std": [1], **processor})
    assert found is not None and (found.size, found.resize) == (size, resize)
    assert len(found.otherwise) == len(otherwise)
    assert all(part in said for part, said in zip(otherwise, found.otherwise, strict=True))


def test_of_files_that_say_nothing_nothing_is_read() -> None:
    assert pictures.read({}, {}) is None
    assert pictures.read({"pretrained_cfg": {"input_size": [3, 8, 8], "mean": ["0.5"], "std": [0.2]}}, {}) is None


def test_pictures_whose_middle_is_taken_leave_as_such(tmp_path: Path) -> None:
    for number in range(20):
        file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (48, 36, 3), np.uint8)).save(file)
    keys = ["recipe=vit_cls", "model.layers=1", "model.width=8", "model.heads=2", "model.intermediate=8"]
    keys += ["model.patch=16", "model.pool=cls", "data=image_folder", f"data.path={tmp_path / 'photos'}"]
    keys += ["train.steps=1", "train.tensorboard=false", "train.batch_size=4"]
    grey = ["data.image_size=[32,32]", "data.channels=1"]
    for name, more in {
        "square": ["data.image_size=[32,32]"],
        "grey": grey,
        "portrait": ["data.image_size=[48,32]"],
    }.items():
        bigctl.train([*keys, *more, "data.resize=crop"], tmp_path / name, quiet=True)
        trained = TrainedRun.load(str(tmp_path / name))
        timm_folder.write(trained, tmp_path / f"{name}-timm")
        config = json.loads((tmp_path / f"{name}-timm" / "config.json").read_text())
        assert config["pretrained_cfg"]["crop_mode"] == "center"
    with pytest.raises(ConfigError, match="can only do to a square"):
        huggingface.write(trained, tmp_path / "portrait-hf")
    for name in ("square", "grey"):
        huggingface.write(TrainedRun.load(str(tmp_path / name)), tmp_path / f"{name}-hf")
        processor = json.loads((tmp_path / f"{name}-hf" / "preprocessor_config.json").read_text())
        assert processor["do_center_crop"] and processor["size"] == {"shortest_edge": 32}
        assert processor["do_convert_rgb"] is (name == "square")
