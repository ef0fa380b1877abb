"""Where in a picture a model looks: class activation by gradients (Grad-CAM, Selvaraju et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from bigctl.inference.predictor import Predictor
from bigctl.training.state import Tree


@runtime_checkable
class Inspected(Protocol):
    """A model of pictures that shows its last feature maps."""

    def inspect(self, x: Array, added: Array) -> tuple[Array, Array]:
        """Logits [batch, outputs], and the maps [batch, rows, columns, features] plus `added`, from which they are
        computed."""


@runtime_checkable
class Filtered(Protocol):
    """A model of pictures that shows the weights of its first layer."""

    def filters(self) -> Array:
        """[rows, columns, channels, filters]."""


def class_activation(
    trained: Predictor, pictures: UInt8[np.ndarray, "batch height width channels"], classes: Int[np.ndarray, " batch"]
) -> Float[np.ndarray, "batch rows columns"] | None:
    """How much each place speaks for a class, from 0 to 1 within each picture; None of a model that does not show it.

    A feature counts as much as the mean over all places of the logit's gradient by it; what speaks against the class is
    left out.

    Args:
        trained: a classifier of pictures.
        pictures: as its data has them.
        classes: number of the class that is asked about, of each picture.
    """
    if not isinstance(trained.model, Inspected):
        return None
    structure, state = nnx.split(trained.model)

    def ask(state: Tree, images: Array, added: Array) -> tuple[Array, Array]:
        model, task = cast(Any, nnx.merge(structure, state)), cast(Any, trained.task)
        # The task standardises pictures and asks the network, whatever it gives.
        found: tuple[Array, Array] = task.outputs(lambda x: model.inspect(x, added), {"inputs": images})
        return found

    return activations(ask, state, pictures, classes)


def activations(
    ask: Callable[[Tree, Array, Array], tuple[Array, Array]],
    state: Tree,
    images: np.ndarray,
    classes: np.ndarray,
) -> Float[np.ndarray, "batch rows columns"]:
    """The same of any function of (state, images, what is added to the maps) that gives logits and maps."""

    def score(added: Array, state: Tree, images: Array, classes: Array) -> tuple[Array, Array]:
        logits, maps = ask(state, images, added)
        logits = logits.astype(jnp.float32)
        if logits.shape[-1] == 1:  # the log-odds of the second of two classes
            logits = jnp.concatenate([-logits, logits], -1)
        return jnp.take_along_axis(logits, classes[:, None], 1).sum(), maps

    def found(state: Tree, images: Array, classes: Array) -> Array:
        shape = jax.eval_shape(score, jnp.zeros(()), state, images, classes)[1]
        gradient, maps = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype), state, images, classes)
        weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
        speaks = jax.nn.relu((weights * maps.astype(jnp.float32)).sum(-1))
        return speaks / jnp.maximum(speaks.max((1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)

    return np.asarray(jax.jit(found)(state, jnp.asarray(images), jnp.asarray(classes)))
