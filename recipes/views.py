"""Test-time augmentation: what a model says of an image is the mean of what it says of several views of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from jaxtyping import Array, Float


def mean_outputs(
    images: Float[Array, "batch height width channels"] | Array,
    which: str,
    outputs: Callable[[Array], Float[Array, "batch outputs"]],
) -> Float[Array, "batch outputs"]:
    """The mean of the outputs over views, weighted as in airbench (Jordan 2024, arXiv 2404.00498).

    Args:
        images: before they are standardised.
        which: "none"; "mirror", the image and its mirror image; "shift", half of the image
            and a quarter each of it after a move by a pixel up left and down right, what comes in being the image
            reflected at its edge; "translate", the same with the mean over mirror images in place of each image.
        outputs: of a model, of such images.
    """
    if which == "none":
        return outputs(images)
    total = None
    for weight, view in _views(images, which):
        found = weight * outputs(view)
        total = found if total is None else total + found
    assert total is not None
    return total


def _views(images: Array, which: str) -> Iterator[tuple[float, Array]]:
    moves = [(1.0, images)]
    if which != "mirror":
        _, height, width, _ = images.shape
        mode = "reflect" if min(height, width) > 1 else "edge"
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode)
        ends = (padded[:, :height, :width], padded[:, 2:, 2:])
        moves = [(0.5, images), *((0.25, moved) for moved in ends)]
    for weight, moved in moves:
        if which == "shift":
            yield weight, moved
            continue
        yield weight / 2, moved
        yield weight / 2, moved[:, :, ::-1]
