"""Inception-v3: its size, and what does not fit."""

from __future__ import annotations

import math

import jax
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.config.compose import compose
from bigctl.errors import ConfigError
from bigctl.models.inception import Inception


def test_size_is_that_of_the_paper() -> None:
    """What torchvision counts without the auxiliary head, with 1000 classes."""
    config = compose(["model=inception_v3"], partial=True).config.model
    model = nnx.eval_shape(lambda: config.build((299, 299, 3), 1000, rngs=nnx.Rngs(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 23_834_568


def test_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="images of 74x80 are used up before the last blocks") as error:
        Inception(schema.Inception(), (74, 80, 3), 2, rngs=nnx.Rngs(0))
    assert error.value.hint and "images of 75x75 or more" in error.value.hint
