"""The directions in which small patches of pictures vary, each scaled to unit variance."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sampler import permutation

_PATCHES = 2**20
"""Patches that the covariance is taken of, about."""
_PICTURES = (256, 5000)
"""How few and how many pictures they are of."""
_SAMPLE = 0x776869  # keys which ones


def directions(
    pictures: np.ndarray | EncodedImages,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int = 2,
    eps: float = 5e-4,
) -> Float[np.ndarray, "directions size size channels"]:
    """Eigenvectors of the covariance of patches, the largest eigenvalue first, each over the root of its eigenvalue.

    As in airbench (Jordan 2024), after Page 2018: the products of a patch with them are uncorrelated and of variance 1,
    but for `eps`. They are of a sample of the pictures that depends on nothing but how many there are.

    Args:
        pictures: uint8 [N, H, W, C], an array or what gives one for integers [n], such as `EncodedImages`.
        mean, std: for each channel, of pixels in [0, 1].
        size: side of the patches [pixels].
        eps: added to the eigenvalues.
    """
    count, height, width = pictures.shape[:3]
    channels = max(pictures.shape[3], len(mean))  # grey ones become coloured, as where they are standardised
    if min(height, width) < size:  # no patch at all: the model will say so
        return np.eye(size * size * channels, dtype=np.float32).reshape(-1, size, size, channels)
    patches = max(1, (height - size + 1) * (width - size + 1))
    wanted = min(count, int(np.clip(_PATCHES // patches, *_PICTURES)))
    rows = np.sort(permutation(count, _SAMPLE)[:wanted])
    sums, squares = np.zeros(size * size * channels), np.zeros((size * size * channels,) * 2)
    for start in range(0, wanted, 64):
        found = _patches(pictures[rows[start : start + 64]], mean, std, size)
        sums, squares = sums + found.sum(0), squares + found.T @ found
    number = wanted * patches
    covariance = (squares - np.outer(sums, sums) / number) / max(number - 1, 1)
    values, vectors = np.linalg.eigh(covariance)
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(len(values))] < 0, -1, 1)
    scaled = vectors[:, ::-1] / np.sqrt(np.maximum(values[::-1], 0) + eps)
    return scaled.T.reshape(-1, size, size, channels).astype(np.float32)


def _patches(
    pictures: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> Float64[np.ndarray, "patches values"]:
    """All patches of some standardised pictures, in the order of row, column, channel."""
    scaled = (pictures / 255.0 - np.asarray(mean)) / np.asarray(std)
    windows = np.lib.stride_tricks.sliding_window_view(scaled, (size, size), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * scaled.shape[-1])
