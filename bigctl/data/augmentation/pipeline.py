"""Augmentation of images on the device, inside the step: a pure function of (key, number of the example).

Each kind of change has a function that draws its numbers for one example from a key, and one that changes images by
given numbers. Here they are put together in the order of `schema.Augment`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl import randomness
from bigctl.config.schema import BLACK, NOISE, RANDAUGMENT, Augment
from bigctl.data.augmentation import boxes, colour, geometry, mixing, policies

FLIP, CROP, PART, JITTER, POLICY, ERASE, FILL, MIX, WARP = range(1, 10)
"""What an example's key is folded with for each kind of change; the affine map draws from the key itself. Append only:
a number's meaning is part of every run made with it."""


def augment(
    images: Array,
    config: Augment,
    key: jax.Array,
    numbers: Int[Array, " batch"],
    mirrored: Bool[Array, " batch"] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Float[Array, "batch height width channels"] | Array:
    """Randomly changed images; those given, untouched, where nothing is configured.

    Rotation, scale and shift become one affine map, so that an image is resampled once. Outside of the image is black,
    or for crops with `border=reflect` its mirror image.

    Args:
        images: uint8 or float [batch, height, width, channels].
        config: how much of what. What mixes or repeats examples, or is for evaluations, is left to others.
        key: the step's key for augmentation.
        numbers: int32 [batch], each example's place in the global batch, so that any sharding draws the same.
        mirrored: which images the order of training shows mirrored; needed where `config.alternates`.
        mean, std: of the channels of the training split, in [0, 1].
    """
    keys = randomness.per_example(key, numbers)
    height, width = images.shape[1:3]
    if config.random_resized_crop:
        least = config.random_resized_crop
        parts = _drawn(keys, PART, lambda k: boxes.resized_crop_box(boxes.uniform(k), height, width, least))
        images = boxes.resized(images, parts)
    if config.rotate or config.scale or config.shift or config.elastic:
        matrices = jax.vmap(lambda k: geometry.draw_affine(k, config, images.shape))(keys)
        images = geometry.affine(images, matrices, _warped(config, keys, height, width))
    if config.alternates_of(images.shape[3]):
        assert mirrored is not None
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    elif config.flip not in ("none", "auto"):
        images = jax.vmap(lambda image, k: geometry.flip(image, jax.random.fold_in(k, FLIP), config.flip))(images, keys)
    if config.crop:
        crop, border = config.crop, config.border
        images = jax.vmap(lambda image, k: geometry.crop(image, jax.random.fold_in(k, CROP), crop, border))(
            images, keys
        )
    images = _jittered(images, config, keys)
    if config.policy != "none":
        images = _by_policy(images, config, keys)
    if config.erase:
        images = _erased(images, config, keys, jnp.asarray(mean), jnp.asarray(std))
    return images


def mix(
    images: Array, config: Augment, key: jax.Array, numbers: Int[Array, " batch"], real: Bool[Array, " batch"]
) -> tuple[Float[Array, "batch height width channels"], Float[Array, " batch"]]:
    """Images mixed by mixup or CutMix with their neighbours, and the share of each that is its own.

    Args:
        images, config, key, numbers: as of `augment`, which comes first.
        real: which are examples and do not only pad.
    """
    keys = randomness.per_example(key, numbers)
    height, width = images.shape[1:3]
    return mixing.apply(images, _drawn(keys, MIX, lambda k: mixing.draw(k, config, height, width)), real)


def _drawn(keys: jax.Array, purpose: int, draw: Callable[[jax.Array], Any]) -> Any:
    """What each example draws."""
    return jax.vmap(lambda k: draw(jax.random.fold_in(k, purpose)))(keys)


def _warped(config: Augment, keys: jax.Array, height: int, width: int) -> Float[Array, "batch 2 height width"] | None:
    """How far the elastic warp moves each pixel; None for no warp."""
    if not config.elastic:
        return None
    drawn = _drawn(keys, WARP, lambda k: jax.random.normal(k, (2, geometry.NODES, geometry.NODES)))
    side = jnp.array([height, width])[None, :, None, None]
    return config.elastic * side * geometry.warp(drawn, height, width)


def _jittered(images: Array, config: Augment, keys: jax.Array) -> Array:
    """Brightness, contrast, saturation and hue, one after the other."""
    given = (config.brightness, config.contrast, config.saturation, config.hue)
    if not any(given):
        return images
    drawn = _drawn(keys, JITTER, lambda k: jax.random.uniform(k, (4,), minval=-1.0, maxval=1.0))
    images = images.astype(jnp.float32)
    changes = (colour.brightened, colour.contrasted, colour.saturated)
    for change, most, each in zip(changes, given[:3], drawn.T[:3], strict=True):
        if most:
            low = max(0.0, 1.0 - most)  # of a factor from low to 1 + most, as torchvision draws it
            images = change(images, low + (1.0 + most - low) * (each + 1.0) / 2.0)
    return colour.turned(images, config.hue * drawn[:, 3]) if config.hue else images


def _by_policy(images: Array, config: Augment, keys: jax.Array) -> Array:
    most = policies.ranges(config.policy, *images.shape[1:3])
    images = jnp.round(images.astype(jnp.float32))  # the changes are defined of integers
    for number in range(config.operations if config.policy == RANDAUGMENT else 1):

        def draw(key: jax.Array, number: int = number) -> Any:
            return policies.draw(jax.random.fold_in(key, number), config.policy, config.magnitude)

        operations, magnitudes, signs = _drawn(keys, POLICY, draw)
        images = policies.apply(images, operations, policies.levels(operations, magnitudes, signs, most))
    return images


def _erased(images: Array, config: Augment, keys: jax.Array, mean: Array, std: Array) -> Array:
    height, width, channels = images.shape[1:]

    def draw(key: jax.Array) -> Array:
        whether, place = jax.random.split(key)
        box = boxes.erasing_box(boxes.uniform(place), height, width, config.erase_area)
        return jnp.where(jax.random.bernoulli(whether, config.erase), box, 0)

    where = boxes.inside(_drawn(keys, ERASE, draw), height, width)[..., None]
    if config.erase_fill == BLACK:
        return jnp.where(where, jnp.zeros((), images.dtype), images)
    fill = 255.0 * mean
    if config.erase_fill == NOISE:
        fill = fill + 255.0 * std * _drawn(keys, FILL, lambda k: jax.random.normal(k, (height, width, channels)))
    return jnp.where(where, fill, images.astype(jnp.float32))
