"""Weights as small integers: eight bits with a scale a row, four bits with a scale a group of neighbours in a row."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8, UInt8

GROUP = 32
"""Neighbours that share a scale in four bits, as in llama.cpp's Q4_0."""


def to_int8(
    values: Float[np.ndarray, "rows columns"], levels: int = 127
) -> tuple[Int8[np.ndarray, "rows columns"], Float[np.ndarray, "rows 1"]]:
    """Each row as integers in [-levels, levels] times a scale of its own; symmetric, so that 0 stays 0."""
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    scale = (largest / levels).astype(np.float32)
    found = np.rint(values / np.where(scale > 0, scale, 1)).astype(np.int8)
    return found, scale


def to_int4(
    values: Float[np.ndarray, "rows columns"], group: int = GROUP
) -> tuple[UInt8[np.ndarray, "rows groups group"], Float[np.ndarray, "rows groups"]]:
    """Each group of neighbours in a row as integers in [0, 15] that stand for `scale * (integer - 8)`.

    The scale maps the largest value of the group, with its sign, to -8, so that all sixteen values are used and 0 stays
    0; it is that of llama.cpp's Q4_0. The last group of a row is filled up with zeros.
    """
    rows, columns = values.shape
    groups = -(-columns // group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :columns] = values
    parts = padded.reshape(rows, groups, group)
    extreme = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)[..., 0]
    scale = (extreme / -8).astype(np.float32)
    inverse = np.where(scale != 0, 1 / np.where(scale != 0, scale, 1), 0)
    found = np.clip(np.floor(parts * inverse[..., None] + 8.5), 0, 15).astype(np.uint8)
    return found, scale


def from_int4(
    found: UInt8[np.ndarray, "rows groups group"], scale: Float[np.ndarray, "rows groups"], columns: int
) -> Float[np.ndarray, "rows columns"]:
    """What `to_int4` stands for."""
    values = (found.astype(np.float32) - 8) * scale[..., None]
    return values.reshape(len(found), -1)[:, :columns]


def packed(found: UInt8[np.ndarray, "rows groups group"]) -> UInt8[np.ndarray, "rows groups half"]:
    """Two integers of four bits a byte, the earlier one in the lower half, as onnxruntime has them."""
    return found[..., 0::2] | (found[..., 1::2] << 4)
