"""Pictures as they come about by accident: noise, blur, light, compression (Hendrycks and Dietterich 2019)."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64
"""Shorter side up to which pictures are corrupted as those of CIFAR-10-C are, larger ones as those of ImageNet-C."""
Unit = Float[np.ndarray, "n height width channels"]

_STRENGTHS = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
"""By severity, of small pictures and of large ones: standard deviation of Gaussian noise, of a Gaussian blur [pixels],
what is added to the value of colours, share of the contrast that is left, quality of JPEG."""


def corrupted(
    images: UInt8[np.ndarray, "n height width channels"], name: str, severity: int, seed: int = 0
) -> UInt8[np.ndarray, "n height width channels"]:
    """Pictures with one of the corruptions of `_STRENGTHS`.

    Args:
        images: from 0 to 255.
        name: of the corruption.
        severity: 1 to 5.
        seed: of noise.
    """
    small, large = _STRENGTHS[name]
    strength = float((small if min(images.shape[1:3]) <= SMALL else large)[severity - 1])
    if name == "jpeg":
        return np.stack([_jpeg(image, int(strength)) for image in images])
    unit = images.astype(np.float32) / np.float32(255)
    rng = np.random.default_rng(seed)
    changed = _CHANGES[name](unit, strength, rng)
    return np.asarray(np.clip(np.round(changed * 255), 0, 255), np.uint8)


def names() -> list[str]:
    return list(_STRENGTHS)


def _noise(x: Unit, strength: float, rng: np.random.Generator) -> Unit:
    return np.asarray(x + rng.normal(0, strength, x.shape).astype(np.float32))


def _blur(x: Unit, strength: float, rng: np.random.Generator) -> Unit:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(x, (0, strength, strength, 0), mode="nearest", truncate=4.0))


def _brightness(x: Unit, strength: float, rng: np.random.Generator) -> Unit:
    """More of the value in hue, saturation and value: colours keep their hue and saturation."""
    value = x.max(-1, keepdims=True)
    lighter = np.clip(value + np.float32(strength), 0, 1)
    return np.asarray(np.where(value > 0, x * (lighter / np.maximum(value, 1e-6)), lighter))


def _contrast(x: Unit, strength: float, rng: np.random.Generator) -> Unit:
    mean = x.mean((1, 2), keepdims=True)
    return np.asarray((x - mean) * np.float32(strength) + mean)


_CHANGES: dict[str, Callable[[Unit, float, np.random.Generator], Unit]] = {
    "noise": _noise, "blur": _blur, "brightness": _brightness, "contrast": _contrast,
}  # fmt: skip


def _jpeg(image: UInt8[np.ndarray, "height width channels"], quality: int) -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "JPEG", quality=quality)
    found = np.asarray(Image.open(stream))
    return found.reshape(image.shape)
