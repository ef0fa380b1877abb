"""LSTM (Hochreiter & Schmidhuber 1997) over a text, for classification.

Dimension names: time (the padded length), batch, inputs, hidden, gates (4 * hidden). Inside, time comes first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bigctl.config import schema
from bigctl.models.layers import Dropout, fold


class Recurrence(nnx.Module):
    """One LSTM layer in one direction, gates in torch's order: input, forget, cell, output.

    `torch.nn.LSTM` holds the same numbers as weight_ih = input_kernel.T, weight_hh = recurrent_kernel.T, and
    bias_ih + bias_hh = bias: its two biases are only ever added. The forget gate's bias starts at 1 (Jozefowicz et al.
    2015), the kernels as in Keras: Glorot uniform and orthogonal.
    """

    def __init__(self, inputs: int, hidden: int, *, backward: bool = False, rngs: nnx.Rngs):
        self.input_kernel = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (inputs, 4 * hidden)))
        self.recurrent_kernel = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (hidden, 4 * hidden)))
        self.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1))
        self.backward = backward

    def __call__(
        self, x: Float[Array, "time batch inputs"], real: Bool[Array, "time batch"]
    ) -> tuple[Float[Array, "time batch hidden"], Float[Array, "batch hidden"]]:
        """States after each token, and the state after the last one read. Padding leaves the state as it is."""
        projected = x @ self.input_kernel[...] + self.bias[...]
        if self.backward:
            projected, real = projected[::-1], real[::-1]
        kernel = self.recurrent_kernel[...]

        def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            gates, here = now
            i, f, g, o = jnp.split(gates + h @ kernel, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            h, c = jnp.where(here[:, None], new_h, h), jnp.where(here[:, None], new_c, c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[1], len(kernel)), projected.dtype)
        (last, _), states = lax.scan(step, (zeros, zeros), (projected, real))
        return states[::-1] if self.backward else states, last


class Layer(nnx.Module):
    """One direction, or two side by side."""

    def __init__(self, inputs: int, hidden: int, bidirectional: bool, *, rngs: nnx.Rngs):
        self.forward = Recurrence(inputs, hidden, rngs=rngs)
        self.backward = Recurrence(inputs, hidden, backward=True, rngs=rngs) if bidirectional else None

    def __call__(
        self, x: Float[Array, "time batch inputs"], real: Bool[Array, "time batch"]
    ) -> tuple[Float[Array, "time batch features"], Float[Array, "batch features"]]:
        states, last = self.forward(x, real)
        if self.backward is None:
            return states, last
        other_states, other_last = self.backward(x, real)
        return jnp.concatenate([states, other_states], -1), jnp.concatenate([last, other_last], -1)


class LstmClassifier(nnx.Module):
    """Embedding, LSTM layers, one vector for each text, linear output. What pads a text changes nothing.

    Args:
        config: widths, layers, directions, pool, dropout.
        vocab_size: rows of the embedding.
        outputs: number of logits.
    """

    loops_on_cpu = False

    def __init__(self, config: schema.Lstm, vocab_size: int, outputs: int, *, rngs: nnx.Rngs):
        features = config.hidden * (2 if config.bidirectional else 1)
        widths = [config.embedding, *[features] * (config.layers - 1)]
        self.pool = config.pool
        self.embedding = nnx.Embed(vocab_size, config.embedding, rngs=rngs)
        self.layers = nnx.List(Layer(width, config.hidden, config.bidirectional, rngs=rngs) for width in widths)
        self.dropout = Dropout(config.dropout)
        self.head = nnx.Linear(features, outputs, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        second: Int[Array, " batch"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
    ) -> Float[Array, "batch outputs"]:
        real = jnp.arange(tokens.shape[1])[:, None] < lengths
        states = self.embedding.embedding[...][tokens.T]
        for i, layer in enumerate(self.layers):
            states, last = layer(self.dropout(states, fold(key, i)), real)
        pooled = _pool(states, last, lengths, self.pool)
        return self.head(self.dropout(pooled, fold(key, len(self.layers))))


def _pool(
    states: Float[Array, "time batch features"],
    last: Float[Array, "batch features"],
    lengths: Int[Array, " batch"],
    kind: str,
) -> Float[Array, "batch features"]:
    """One vector for each text: its last state, or the mean or maximum over its real tokens."""
    if kind == "last":
        return last
    lengths = jnp.maximum(lengths, 1)  # a text of no tokens has states of zeros
    real = (jnp.arange(len(states))[:, None] < lengths)[..., None]
    if kind == "max":
        return jnp.max(jnp.where(real, states, -jnp.inf), axis=0)
    return (jnp.sum(jnp.where(real, states, 0), axis=0, dtype=jnp.float32) / lengths[:, None]).astype(states.dtype)
