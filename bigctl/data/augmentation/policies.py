"""Changes picked at random from a list: RandAugment (Cubuk et al. 2019) and TrivialAugment (Müller & Hutter 2021).

Every image of a batch may be given another change, and shapes do not depend on which. So what a change needs is
computed for all images at once, and each keeps its own: all that move pixels are one map and one gather, all that mix
an image with a copy of itself are one blend. Names, ranges and signs are those of torchvision's `RandAugment` and
`TrivialAugmentWide`, which resample by the nearest pixel; outside of the image is black.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bigctl.config.schema import RANDAUGMENT
from bigctl.data.augmentation import colour, geometry

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
MAGNITUDES = 30
"""The largest magnitude; the smallest is 0."""

_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_SIGNED = np.array([name in OPERATIONS[1:10] for name in OPERATIONS])


@dataclass(frozen=True)
class Ranges:
    """What the largest magnitude means.

    Attributes:
        shear: tangent of the angle.
        translate: [columns, rows], in pixels.
        rotate: in degrees.
        enhance: relative change of brightness, colour, contrast and sharpness.
        posterize: bits that are lost of eight.
    """

    shear: float
    translate: tuple[float, float]
    rotate: float
    enhance: float
    posterize: float


def ranges(policy: str, height: int, width: int) -> Ranges:
    """Those of a policy, for images of a size."""
    if policy == RANDAUGMENT:
        return Ranges(0.3, (150 / 331 * width, 150 / 331 * height), 30.0, 0.9, 4)
    return Ranges(0.99, (32.0, 32.0), 135.0, 0.99, 6)


def levels(
    operations: Int[Array, " batch"], magnitudes: Float[Array, " batch"], signs: Float[Array, " batch"], most: Ranges
) -> Float[Array, " batch"]:
    """What each image's change is given: a tangent, pixels, degrees, a relative change, bits, or a threshold.

    Args:
        operations: numbers of `OPERATIONS`.
        magnitudes: from 0 to `MAGNITUDES`.
        signs: 1 or -1; those of changes without a direction count for nothing.
        most: what the largest magnitude means.
    """
    m = magnitudes / MAGNITUDES
    zero, enhance = jnp.zeros_like(m), m * most.enhance
    across, down = (jnp.trunc(m * pixels) for pixels in most.translate)
    table = [zero, m * most.shear, m * most.shear, across, down, m * most.rotate, *[enhance] * 4]
    table += [8.0 - jnp.round(m * most.posterize), 255.0 * (1.0 - m), zero, zero]
    level = jnp.take_along_axis(jnp.stack(table, -1), operations[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.asarray(_SIGNED)[operations], signs * level, level)


def draw(key: jax.Array, policy: str, magnitude: float) -> tuple[Array, Array, Array]:
    """Number of an operation, magnitude and sign for one image."""
    which, strength, direction = jax.random.split(key, 3)
    operation = jax.random.randint(which, (), 0, len(OPERATIONS))
    sign = jnp.where(jax.random.bernoulli(direction), 1.0, -1.0)
    if policy == RANDAUGMENT:
        return operation, jnp.float32(magnitude), sign
    return operation, jax.random.randint(strength, (), 0, MAGNITUDES + 1).astype(jnp.float32), sign


def apply(
    images: Array, operations: Int[Array, " batch"], level: Float[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """Each image changed by its operation.

    Args:
        images: of integers, uint8 or float32, [batch, height, width, channels].
        operations: numbers of `OPERATIONS`.
        level: as `levels` gives it.

    Returns:
        float32 of integers.
    """
    images = jnp.asarray(images, jnp.float32)

    def chosen(name: str) -> Array:
        return (operations == _NUMBER[name])[:, None, None, None]

    found = geometry.nearest(images, matrices(operations, level, *images.shape[1:3]))
    towards = jnp.where(chosen("contrast"), colour.mean_grey(images), colour.smoothed(images))
    towards = jnp.where(chosen("color"), jnp.floor(colour.grey(images)), towards)
    towards = jnp.where(chosen("brightness"), 0.0, towards)
    # A little more, so that what rounding leaves just below an integer is that integer.
    blended = jnp.floor(jnp.minimum(colour.blend(images, towards, 1.0 + level) + 1e-3, 255.0))
    enhances = chosen("brightness") | chosen("contrast") | chosen("sharpness")
    if images.shape[-1] == 3:
        enhances |= chosen("color")
    found = jnp.where(enhances, blended, found)
    found = jnp.where(chosen("posterize"), colour.posterized(images, level), found)
    found = jnp.where(chosen("solarize"), colour.solarized(images, level), found)
    found = jnp.where(chosen("autocontrast"), colour.stretched(images), found)
    return jnp.where(chosen("equalize"), colour.equalized(images), found)


def matrices(
    operations: Int[Array, " batch"], level: Float[Array, " batch"], height: int, width: int
) -> Float[Array, "batch 2 3"]:
    """Of the changes that move pixels, as `geometry.affine` takes them; of others the identity."""

    def of(name: str) -> Array:
        return jnp.where(operations == _NUMBER[name], level, 0.0)

    angle, shear_x, shear_y = jnp.radians(of("rotate")), of("shear_x"), of("shear_y")
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Shears leave the corner of the first pixel in its place, and rotations turn counterclockwise.
    down = shear_y * (width / 2) - of("translate_y")
    right = shear_x * (height / 2) - of("translate_x")
    return jnp.stack([jnp.stack([cos, shear_y + sin, down], -1), jnp.stack([shear_x - sin, cos, right], -1)], -2)
