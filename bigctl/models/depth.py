"""Layers of one structure on top of each other: written out, or one of them compiled and looped over their stacked
weights; and what of each is kept for the backward pass.

Dimension names: layers; batch, length, width as in the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, PyTree

NAMES = ("projected", "attended", "stream")
"""What `remat=names` and `offload` keep of a layer: queries, keys and values; what attention makes of them, before its
projection; and what the feed-forward part reads and adds to."""

Layers = nnx.List[Any] | nnx.Module
"""Layers of a model: a list, or all of them as one module, see `as_one`."""
Call = Callable[[Any, Array, Any], tuple[Array, Any]]
"""(layer, x, what is this layer's own) -> (x after it, what it tells)."""


def named(x: Array, name: str) -> Array:
    """The same array, which `remat` can ask for by one of `NAMES`."""
    return checkpoint_name(x, name)


def through(
    layers: Layers, x: Array, count: int, own: Callable[[Any], PyTree], call: Call, *, scan: bool, remat: str
) -> tuple[Array, PyTree]:
    """What comes out of the topmost layer, and what each layer tells, stacked [layers, ...].

    Args:
        layers: of one structure; with `scan` they may differ in what `own` says alone, and the topmost is the pattern.
        x: what the lowest one reads.
        count: of the layers.
        own: what the layer of a number, the lowest 0, has of its own besides its weights, such as a key.
        call: how a layer is called.
        scan: compile one layer and loop over it.
        remat: as in the configuration.
    """
    if scan or not isinstance(layers, nnx.List):
        structure, params, rest = _together(layers)
        layer = (
            _lean(_calling(call, structure)) if remat == "none" else rematerialised(_calling(call, structure), remat)
        )
        given = jax.vmap(own)(jnp.arange(count)), params
        return jax.lax.scan(lambda x, part: layer(x, *part, rest), x, given)
    found = []
    for number, each in enumerate(layers):
        structure, state = nnx.split(each)
        x, told = rematerialised(_calling(call, structure), remat)(x, own(number), state)
        found.append(told)
    return x, jax.tree.map(lambda *each: jnp.stack(each), *found)


_by_loop: ContextVar[bool] = ContextVar("by_loop", default=False)


@contextmanager
def made_as_one() -> Iterator[None]:
    """Layers that are `made` in this context are one module, see `as_one`: the program that draws the weights of many
    is as long as that for one. The bits are those of layers that are made one by one."""
    token = _by_loop.set(True)
    try:
        yield
    finally:
        _by_loop.reset(token)


def made(make: Callable[[int, nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.List[Any]:
    """Layers of one structure, the lowest first; in `made_as_one` one module in place of the list.

    Args:
        make: gives the layer of a number, the lowest 0. Each draws as many keys.
        count: of the layers.
        rngs: of which `params` alone is drawn from.
    """
    if count < 2 or not _by_loop.get():
        return nnx.List(make(number, rngs) for number in range(count))
    stream = rngs.params
    begun = stream.count[...]
    structure, _, rest = _together(make(count - 1, rngs))  # with other weights in the end
    keys = stream.count[...] - begun

    def weights(number: Array) -> PyTree:
        own = nnx.Rngs(params=stream.key[...])
        own.params.count[...] = begun + number * keys
        return nnx.state(make(count - 1, own), nnx.Param)

    params = jax.vmap(weights)(jnp.arange(count, dtype=jnp.uint32))
    stream.count[...] = begun + count * keys
    merged: nnx.List[Any] = nnx.merge(structure, params, rest)
    return merged


def as_one(model: nnx.Module) -> nnx.Module:
    """The model, whose `layers` are one, with parameters [layers, ...]; it can do nothing but what it is called for."""
    for module in [found for _, found in nnx.iter_graph(model)]:
        if isinstance(getattr(module, "layers", None), nnx.List) and getattr(module, "scan", False):
            module.layers = nnx.merge(*_together(module.layers))
    return model


def _together(layers: Layers) -> Any:
    """(the structure of one layer, the parameters of all, stacked, and what else one has)."""
    if not isinstance(layers, nnx.List):
        return nnx.split(layers, nnx.Param, ...)
    parts: list[Any] = [nnx.split(layer, nnx.Param, ...) for layer in layers]
    structure, _, rest = parts[-1]
    return structure, jax.tree.map(lambda *each: jnp.stack(each), *(part[1] for part in parts)), rest


def _calling(call: Call, structure: nnx.GraphDef[Any]) -> Callable[..., tuple[Array, Any]]:
    return lambda x, own, *states: call(nnx.merge(structure, *states), x, own)


def rematerialised(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """The layer, of which the backward pass computes anew what `model.remat` says."""
    return layer if remat == "none" else jax.checkpoint(layer, policy=_policy(remat))


_QUICK = {
    "abs", "add", "add_any", "broadcast_in_dim", "convert_element_type", "copy", "div", "erf", "erfc", "exp",
    "integer_pow", "log", "logistic", "max", "min", "mul", "neg", "pow", "reshape", "rsqrt", "select_n", "sign",
    "sqrt", "square", "squeeze", "stop_gradient", "sub", "tanh", "transpose",
}  # fmt: skip
"""Primitives that take each element by itself; not comparisons, whose results take a byte."""


def _lean(layer: Callable[..., Any]) -> Callable[..., Any]:
    """The layer, of which a loop does not keep what is quick to make anew from what it keeps: XLA decides this itself
    where layers are written out, and not across the passes of a loop."""
    return jax.checkpoint(layer, policy=lambda primitive, *_, **__: primitive.name not in _QUICK, prevent_cse=False)


def _policy(remat: str) -> Callable[..., Any] | None:
    """What is kept; None for nothing but what the layer reads."""
    policies = jax.checkpoint_policies
    if remat == "dots":
        return policies.dots_with_no_batch_dims_saveable
    if remat == "names":
        return policies.save_only_these_names(*NAMES)
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=list(NAMES),
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
    return None
