"""Augmentation of images on the device, inside the step: a pure function of (key, number of the example)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl import randomness
from bigctl.config.schema import Augment
from bigctl.data.augmentation import geometry


def augment(
    images: Array,
    config: Augment,
    key: jax.Array,
    numbers: Int[Array, " batch"],
    mirrored: Bool[Array, " batch"] | None = None,
) -> Float[Array, "batch height width channels"] | Array:
    """Randomly changed images; those given, untouched, where nothing is configured.

    Rotation, scale and shift become one affine map, so that an image is resampled once; then flips; then crops. Outside
    of the image is black, or for crops with `border=reflect` its mirror image.

    Args:
        images: uint8 or float [batch, height, width, channels].
        config: how much of what.
        key: the step's key for augmentation.
        numbers: int32 [batch], each example's place in the global batch, so that any sharding draws the same.
        mirrored: which images the order of training shows mirrored; needed for flip=alternating.
    """
    keys = randomness.per_example(key, numbers)
    if config.rotate or config.scale or config.shift:
        images = geometry.affine(images, jax.vmap(lambda k: geometry.draw_affine(k, config, images.shape))(keys))
    if config.flip == "alternating":
        assert mirrored is not None
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    elif config.flip != "none":
        images = jax.vmap(lambda image, k: geometry.flip(image, jax.random.fold_in(k, 1), config.flip))(images, keys)
    if config.crop:
        crop, border = config.crop, config.border
        images = jax.vmap(lambda image, k: geometry.crop(image, jax.random.fold_in(k, 2), crop, border))(images, keys)
    return images
