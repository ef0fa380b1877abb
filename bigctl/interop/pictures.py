"""What pictures are made into for a model, as timm and transformers write it down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CROP, STRETCH = "crop", "stretch"
_BILINEAR, _BICUBIC = 2, 3
"""Of Pillow's `resample`, which transformers writes down."""


@dataclass(frozen=True)
class Pixels:
    """How pictures are made into inputs.

    Attributes:
        size: height and width.
        mean, std: of each channel, in [0, 1], that pixels are standardised by.
        resize: what becomes of another shape, as `data.resize` names it.
        otherwise: what was done to the pictures of the weights and is done otherwise here, a sentence each.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = CROP
    otherwise: tuple[str, ...] = ()


def read(config: Mapping[str, Any], processor: Mapping[str, Any]) -> Pixels | None:
    """What timm's config.json, or the preprocessor_config.json of transformers, says of pictures; None if nothing."""
    timm = config.get("pretrained_cfg")
    if isinstance(timm, Mapping):
        return _of_timm(timm)
    name = str(processor.get("image_processor_type", processor.get("feature_extractor_type", "")))
    convnext, (size, resize, share) = name.startswith("ConvNext"), _shape(processor)
    if convnext:
        resize, share = _of_convnext(size, processor)
    usual = _BICUBIC if convnext or name.startswith("Bit") else _BILINEAR
    method = processor.get("resample", usual)
    otherwise = [] if method == _BILINEAR else [_resized(_METHODS.get(method, "") if type(method) is int else "")]
    otherwise += _middle(share)
    return _pixels(size, processor.get("image_mean"), processor.get("image_std"), resize, otherwise)


def _shape(processor: Mapping[str, Any]) -> tuple[list[object], str, object]:
    """Height and width, what becomes of another shape, and the share of a picture's side that is seen."""
    given, crop = processor.get("size"), processor.get("crop_size")
    if processor.get("do_center_crop") and crop is not None:
        size, edge = _sides(crop), given.get("shortest_edge") if isinstance(given, Mapping) else given
        side = size[0]
        larger = isinstance(edge, int) and isinstance(side, int) and 0 < side < edge
        return size, CROP, side / edge if larger else 1.0  # type: ignore[operator]
    squeezes = not isinstance(given, Mapping) or "height" in given  # an integer is both sides
    return _sides(given), STRETCH if squeezes else CROP, 1.0


def _sides(given: object) -> list[object]:
    if not isinstance(given, Mapping):
        return [given, given]
    edge = given.get("shortest_edge")
    return [given.get("height", edge), given.get("width", edge)]


def _of_convnext(size: list[object], processor: Mapping[str, Any]) -> tuple[str, object]:
    """Of its processor: from 384 pixels on pictures are squeezed, of smaller ones the middle is seen."""
    squeezes = isinstance(size[0], int) and size[0] >= 384
    return (STRETCH, 1.0) if squeezes else (CROP, processor.get("crop_pct", 224 / 256))


def _of_timm(settings: Mapping[str, Any]) -> Pixels | None:
    """Where a key is missing, timm has a value for it."""
    size, mode = settings.get("input_size"), settings.get("crop_mode", "center")
    method, otherwise = settings.get("interpolation", "bicubic"), list[str]()
    if method != "bilinear":
        otherwise.append(_resized(str(method)))
    if mode == "border":
        otherwise.append("pictures of another shape had a border, of which here the middle is taken")
    else:
        otherwise += _middle(settings.get("crop_pct", 0.875))
    size = size[1:] if isinstance(size, Sequence) and len(size) == 3 else None
    resize = STRETCH if mode == "squash" else CROP
    return _pixels(size, settings.get("mean"), settings.get("std"), resize, otherwise)


def _middle(share: object) -> list[str]:
    if not isinstance(share, int | float) or not 0 < share < 1:
        return []
    keys = f"recipe.augment.center_crop={share:g}"
    return [f"evaluation saw the middle of each picture, {share:g} of its side: {keys} does so"]


_METHODS = {0: "nearest", 1: "lanczos", 3: "bicubic", 4: "box", 5: "hamming"}


def _resized(method: str) -> str:
    return f"pictures were resized by {method or 'another interpolation'}, here it is bilinear"


def _pixels(size: object, mean: object, std: object, resize: str, otherwise: Sequence[str]) -> Pixels | None:
    sides, means, deviations = _numbers(size), _numbers(mean), _numbers(std)
    if len(sides) != 2 or not means or len(means) != len(deviations):
        return None
    return Pixels((int(sides[0]), int(sides[1])), means, deviations, resize, tuple(otherwise))


def _numbers(values: object) -> tuple[float, ...]:
    """Nothing where they are not all numbers."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return ()
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return tuple(map(float, values)) if numbers else ()


# ------------------------------------------------------------------------------------------------------------- writing


def for_timm(pixels: Pixels) -> dict[str, Any]:
    """What `pretrained_cfg` says of pictures."""
    return {
        "input_size": [len(pixels.mean), *pixels.size],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center" if pixels.resize == CROP else "squash",
        "mean": list(pixels.mean),
        "std": list(pixels.std),
    }


def for_transformers(pixels: Pixels) -> dict[str, Any]:
    """preprocessor_config.json; of pictures of another shape the middle can only be taken as a square."""
    height, width = pixels.size
    if pixels.resize == CROP:
        shape: dict[str, Any] = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": height},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    else:
        shape = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return shape | {
        "do_convert_rgb": len(pixels.mean) == 3,
        "do_resize": True,
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


def says(pixels: Pixels) -> bool:
    """Whether `for_transformers` says it all."""
    return pixels.resize != CROP or pixels.size[0] == pixels.size[1]
