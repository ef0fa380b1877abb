"""Augmentation of images on the device, inside the step: a pure function of (key, number of the example)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int

from bigctl import randomness
from bigctl.config.schema import Augment
from bigctl.data.augmentation import geometry


def augment(
    images: Array, config: Augment, key: jax.Array, numbers: Int[Array, " batch"]
) -> Float[Array, "batch height width channels"] | Array:
    """Randomly changed images; those given, untouched, where nothing is configured.

    Rotation, scale and shift become one affine map, so that an image is resampled once; then flips; then crops. Outside
    of the image is black.

    Args:
        images: uint8 or float [batch, height, width, channels].
        config: how much of what.
        key: the step's key for augmentation.
        numbers: int32 [batch], each example's place in the global batch, so that any sharding draws the same.
    """
    keys = randomness.per_example(key, numbers)
    if config.rotate or config.scale or config.shift:
        images = geometry.affine(images, jax.vmap(lambda k: geometry.draw_affine(k, config, images.shape))(keys))
    if config.flip != "none":
        images = jax.vmap(lambda image, k: geometry.flip(image, jax.random.fold_in(k, 1), config.flip))(images, keys)
    if config.crop:
        images = jax.vmap(lambda image, k: geometry.crop(image, jax.random.fold_in(k, 2), config.crop))(images, keys)
    return images
