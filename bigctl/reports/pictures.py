"""Pictures of a page as data URIs: examples, where a model looks, all classes, and the filters of a first layer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 160
"""Larger images are made smaller: pixels."""
_THUMB = 48
_GLOW, _STRENGTH = (255.0, 64.0, 0.0), 0.65
"""Colour of what speaks for a class, and how much of it covers a picture at most."""
_FILTERS = 64
_LARGE = 320
_FOR, _AGAINST = (43.0, 108.0, 255.0), (240.0, 60.0, 40.0)


def image_of(pixels: UInt8[np.ndarray, "height width channels"]) -> Image:
    from PIL import Image

    return Image.fromarray(np.asarray(pixels)[..., 0] if pixels.shape[-1] == 1 else np.asarray(pixels))


def picture(pixels: UInt8[np.ndarray, "height width channels"]) -> str:
    """A picture as a PNG."""
    image = image_of(pixels)
    image.thumbnail((SIDE, SIDE))
    return _uri(image, "PNG", optimize=True)


def glowing(pixels: UInt8[np.ndarray, "height width channels"], places: Float[np.ndarray, "rows columns"]) -> str:
    """A picture with what speaks for a class in red, as a JPEG."""
    from PIL import Image

    image = image_of(pixels).convert("L").convert("RGB")
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    grey = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
    cover = np.asarray(Image.fromarray(np.asarray(places, np.float32)).resize(size, Image.Resampling.BILINEAR))
    share = _STRENGTH * np.clip(cover, 0, 1)[..., None]
    mixed = np.asarray(grey, np.float32) * (1 - share) + np.asarray(_GLOW) * share
    return _uri(Image.fromarray(mixed.astype(np.uint8)), "JPEG", quality=80)


def enlarged(pixels: UInt8[np.ndarray, "height width channels"]) -> str:
    """A picture at about the size of a page's own, as a PNG."""
    return _uri(_sized(image_of(pixels).convert("RGB")), "PNG", optimize=True)


def tinted(pixels: UInt8[np.ndarray, "height width channels"], values: Float[np.ndarray, "rows columns"]) -> str:
    """A picture with what speaks for a class in blue and against it in red, as a PNG."""
    from PIL import Image

    grey = _sized(image_of(pixels).convert("L").convert("RGB"))
    strongest = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max()) or 1.0
    fine = values.shape[0] >= pixels.shape[0]  # a number a pixel; a few numbers are spread smoothly
    how = Image.Resampling.NEAREST if fine else Image.Resampling.BILINEAR
    share = np.asarray(Image.fromarray(np.asarray(values / strongest, np.float32)).resize(grey.size, how))
    share = np.clip(share, -1, 1)[..., None]
    colour = np.where(share > 0, np.asarray(_FOR), np.asarray(_AGAINST))
    cover = 0.85 * np.abs(share)
    mixed = np.asarray(grey, np.float32) * (1 - cover) + colour * cover
    return _uri(Image.fromarray(mixed.astype(np.uint8)), "PNG", optimize=True)


def _sized(image: Image) -> Image:
    from PIL import Image as Images

    scale = _LARGE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Images.Resampling.NEAREST if scale > 1 else Images.Resampling.BOX)


def strip(pictures: Sequence[UInt8[np.ndarray, "height width channels"]], wrong: Sequence[bool]) -> str:
    """Pictures beside each other, those that were taken for another class in a red frame, as a JPEG."""
    from PIL import Image, ImageDraw

    whole = Image.new("RGB", (len(pictures) * (_THUMB + 6), _THUMB + 6), "white")
    draw = ImageDraw.Draw(whole)
    for place, (pixels, is_wrong) in enumerate(zip(pictures, wrong, strict=True)):
        image, left = image_of(pixels).convert("RGB"), place * (_THUMB + 6)
        scale = _THUMB / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        if is_wrong:
            draw.rectangle((left, 0, left + _THUMB + 5, _THUMB + 5), fill="#c62828")
        small = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)
        whole.paste(small, (left + 3 + (_THUMB - size[0]) // 2, 3 + (_THUMB - size[1]) // 2))
    return _uri(whole, "JPEG", quality=85)


def filters(kernels: Float[np.ndarray, "rows columns channels filters"]) -> str:
    """The first filters of a layer, each from its least to its largest weight, as a PNG; empty where there is nothing
    to see in them: smaller than 3x3, or not of grey or coloured pictures."""
    from PIL import Image

    rows, columns, channels, count = kernels.shape
    if min(rows, columns) < 3 or channels not in (1, 3):
        return ""
    shown = np.asarray(kernels, np.float32)[..., :_FILTERS].transpose(3, 0, 1, 2)
    low, high = (f(shown, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    shown = np.repeat((255 * (shown - low) / np.maximum(high - low, 1e-12)).astype(np.uint8), 3 // channels, axis=-1)
    scale, across = max(1, 32 // max(rows, columns)), min(16, len(shown))
    high_cell, wide_cell = rows * scale + 2, columns * scale + 2
    page = np.full((math.ceil(len(shown) / across) * high_cell, across * wide_cell, 3), 255, np.uint8)
    for number, kernel in enumerate(shown):
        top, left = number // across * high_cell, number % across * wide_cell
        page[top : top + rows * scale, left : left + columns * scale] = kernel.repeat(scale, 0).repeat(scale, 1)
    return _uri(Image.fromarray(page), "PNG", optimize=True)


def _uri(image: Image, kind: str, **options: object) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode()
