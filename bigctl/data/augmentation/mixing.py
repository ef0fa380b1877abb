"""Images mixed with their neighbours: mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019).

The neighbour of an example is the other one of its pair: 0 and 1, 2 and 3, and so on. Batches are in random order, so
it is a random other one; and pairs are whole on every device and in every part of an accumulated batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bigctl.config.schema import Augment
from bigctl.data.augmentation import boxes


class Mix(NamedTuple):
    """How images are mixed.

    Attributes:
        share: what each keeps of itself under mixup; 1 where it is not mixed.
        box: what each is given of its neighbour by CutMix; of no pixels for none.
    """

    share: Float[Array, " batch"]
    box: Int[Array, "batch 4"]


def draw(key: jax.Array, config: Augment, height: int, width: int) -> Mix:
    """For one image."""
    first, second, third = jax.random.split(key, 3)
    mixed, cut = jax.random.uniform(first, (2,))
    mixed, cut = mixed < config.mix, (cut < 0.5) if config.mixup else jnp.bool_(True)
    cut &= config.cutmix > 0
    share = jnp.float32(1.0)
    if config.mixup:
        share = jnp.where(mixed & ~cut, jax.random.beta(second, config.mixup, config.mixup), share)
    box = jnp.zeros((4,), jnp.int32)
    if config.cutmix:
        place, area = jax.random.split(third)
        lost = jax.random.beta(area, config.cutmix, config.cutmix)
        drawn = boxes.cut_box(lost, jax.random.uniform(place, (2,)), height, width)
        box = jnp.where(mixed & cut, drawn, box)
    return Mix(share, box)


def apply(
    images: Array, mix: Mix, real: Bool[Array, " batch"]
) -> tuple[Float[Array, "batch height width channels"], Float[Array, " batch"]]:
    """Mixed images, and the share of each that is its own: what its label weighs, 1 less that of its neighbour's.

    Args:
        images: [batch, height, width, channels].
        mix: how.
        real: which are examples, and do not only pad; others are not mixed in.
    """
    height, width = images.shape[1:3]
    inside, mixes = boxes.inside(mix.box, height, width), neighbours(real)
    share = mix.share * (1.0 - mix.box[:, 2] * mix.box[:, 3] / (height * width))
    own = mix.share[:, None, None] * jnp.where(inside, 0.0, 1.0)
    own = jnp.where(mixes[:, None, None], own, 1.0)[..., None]
    images = images.astype(jnp.float32)
    return own * images + (1.0 - own) * neighbours(images), jnp.where(mixes, share, 1.0)


def neighbours(values: Array) -> Array:
    """Those of the other example of each pair; of the last of an odd number, its own."""
    pairs, rest = divmod(len(values), 2)
    swapped = values[: 2 * pairs].reshape(pairs, 2, *values.shape[1:])[:, ::-1].reshape(2 * pairs, *values.shape[1:])
    return jnp.concatenate([swapped, values[2 * pairs :]]) if rest else swapped
