"""LSTM (Hochreiter & Schmidhuber 1997) over a text, for classification.

Dimension names: time (the padded length), batch, inputs, hidden, gates (4 * hidden). Inside, time comes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from bigctl.config import schema
from bigctl.models.embed import look_up
from bigctl.models.layers import QuickDropout, fold
from bigctl.models.ngram_head import NgramHead
from bigctl.models.ops import matmul
from bigctl.models.rounded import rounded_inputs


class Recurrence(nnx.Module):
    """One LSTM layer in one direction, gates in torch's order: input, forget, cell, output.

    `torch.nn.LSTM` holds the same numbers as weight_ih = input_kernel.T, weight_hh = recurrent_kernel.T, and
    bias_ih + bias_hh = bias: its two biases are only ever added. The forget gate's bias starts at 1 (Jozefowicz et al.
    2015), the kernels as in Keras: Glorot uniform and orthogonal.
    """

    rounds_inputs = False  # see `rounded.rounding`; the state is never rounded

    def __init__(self, inputs: int, hidden: int, *, backward: bool = False, rngs: nnx.Rngs):
        self.input_kernel = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (inputs, 4 * hidden)))
        self.recurrent_kernel = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (hidden, 4 * hidden)))
        self.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1))
        self.backward = backward

    def __call__(
        self, x: Float[Array, "time batch inputs"], real: Bool[Array, "time batch"]
    ) -> tuple[Float[Array, "time batch hidden"], Float[Array, "batch hidden"]]:
        """States at each token, and the state after the last one read. Padding leaves the state as it is."""
        x = rounded_inputs(x) if self.rounds_inputs else x
        layer = bigctl_lstm_backward if self.backward else bigctl_lstm_forward
        if _CALLED.get():
            layer = jax.jit(layer)
        return layer(x, self.input_kernel[...], self.recurrent_kernel[...], self.bias[...], real)


_CALLED: ContextVar[bool] = ContextVar("_CALLED", default=False)


@contextlib.contextmanager
def layers_called() -> Iterator[None]:
    """What is traced meanwhile calls each layer by its name, for exporters that have an operator for it."""
    token = _CALLED.set(True)
    try:
        yield
    finally:
        _CALLED.reset(token)


def bigctl_lstm_forward(
    x: Float[Array, "time batch inputs"],
    input_kernel: Float[Array, "inputs gates"],
    recurrent_kernel: Float[Array, "hidden gates"],
    bias: Float[Array, " gates"],
    real: Bool[Array, "time batch"],
) -> tuple[Float[Array, "time batch hidden"], Float[Array, "batch hidden"]]:
    """The states of a layer, and the last one. `interop.onnx` knows it by its name."""
    states = recur(matmul(x, input_kernel) + bias, recurrent_kernel, real)
    return states, states[-1]


def bigctl_lstm_backward(
    x: Float[Array, "time batch inputs"],
    input_kernel: Float[Array, "inputs gates"],
    recurrent_kernel: Float[Array, "hidden gates"],
    bias: Float[Array, " gates"],
    real: Bool[Array, "time batch"],
) -> tuple[Float[Array, "time batch hidden"], Float[Array, "batch hidden"]]:
    """The same from the last token to the first."""
    projected = matmul(x, input_kernel) + bias
    states = recur(projected[::-1], recurrent_kernel, real[::-1])
    return states[::-1], states[-1]


# ------------------------------------------------------------------------------------------------- the loop over time


@jax.custom_vjp
def recur(
    projected: Float[Array, "time batch gates"], kernel: Float[Array, "hidden gates"], real: Bool[Array, "time batch"]
) -> Float[Array, "time batch hidden"]:
    """States of an LSTM that starts from zeros.

    Its reverse-mode rule is the textbook's, save that the gradient of the kernel is one product after the loop instead
    of one in each of its steps. There is no forward-mode rule.

    Args:
        projected: what the inputs add to the gates, biases included.
        kernel: what the state adds to them.
        real: where this is false the state stays as it is.
    """
    return _scan(projected, kernel, real, lambda h, c, gates: h)


def _scan(projected: Array, kernel: Array, real: Array, keep: Callable[[Array, Array, Array], Any]) -> Any:
    """What `keep` takes of state, cell and gates at each step. Gates and cell are float32."""

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Any]:
        h, c = carry
        added, here = now[0], now[1][:, None]
        i, f, g, o = jnp.split((added + h @ kernel).astype(jnp.float32), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        c = jnp.where(here, f * c + i * g, c)
        h = jnp.where(here, (o * jnp.tanh(c)).astype(h.dtype), h)
        return (h, c), keep(h, c, jnp.concatenate([i, f, g, o], axis=-1))

    shape = projected.shape[1], len(kernel)
    start = jnp.zeros(shape, projected.dtype), jnp.zeros(shape, jnp.float32)
    return lax.scan(step, start, (projected, real))[1]


def _recur_forward(projected: Array, kernel: Array, real: Array) -> tuple[Array, tuple[Array, ...]]:
    states, cells, gates = _scan(projected, kernel, real, lambda *everything: everything)
    return states, (kernel, real, states, cells, gates)


def _recur_backward(saved: tuple[Array, ...], d_states: Array) -> tuple[Array, Array, None]:
    kernel, real, states, cells, gates = saved

    def step(carry: tuple[Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        dh, dc = carry
        d_state, i_f_g_o, c, c_before, here = now
        i, f, g, o = jnp.split(i_f_g_o, 4, axis=-1)
        here = here[:, None]
        dh, tanh_c = dh + d_state, jnp.tanh(c)
        d_cell = dc + dh * o * (1 - jnp.square(tanh_c))
        slopes = [
            d_cell * g * i * (1 - i),
            d_cell * c_before * f * (1 - f),
            d_cell * i * (1 - jnp.square(g)),
            dh * tanh_c * o * (1 - o),
        ]
        d_gates = jnp.where(here, jnp.concatenate(slopes, axis=-1), 0).astype(kernel.dtype)
        dh = jnp.where(here, 0, dh) + d_gates @ kernel.T
        return (dh, jnp.where(here, d_cell * f, dc)), d_gates

    zeros = jnp.zeros(cells.shape[1:], jnp.float32)
    each = d_states, gates, cells, _before(cells), real
    d_gates = lax.scan(step, (zeros, zeros), each, reverse=True)[1]
    rows, columns = (x.reshape(-1, x.shape[-1]) for x in (_before(states), d_gates))
    return d_gates, lax.dot_general(rows, columns, (((0,), (0,)), ((), ()))), None


def _before(x: Array) -> Array:
    """What was there one step earlier, time being the first dimension; zeros at first."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


recur.defvjp(_recur_forward, _recur_backward)


# ----------------------------------------------------------------------------------------------------------- the model


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

    With `config.ngrams` a linear model of the text's runs of tokens is beside it, see `NgramHead`: of few examples runs
    of words tell more than an LSTM learns.

    Args:
        config: widths, layers, directions, pool, dropout, window, n-grams.
        vocab_size: rows of the embedding.
        outputs: number of logits.
        per_token: give logits for each token, and not for each text: nothing is pooled then.
    """

    def __init__(self, config: schema.Lstm, vocab_size: int, outputs: int, *, per_token: bool = False, rngs: nnx.Rngs):
        features = config.hidden * (2 if config.bidirectional else 1)
        widths = [config.embedding, *[features] * (config.layers - 1)]
        self.pool = "none" if per_token else config.pool
        self.window = None if per_token else config.window
        self.embedding = nnx.Embed(vocab_size, config.embedding, rngs=rngs)
        self.layers = nnx.List(Layer(width, config.hidden, config.bidirectional, rngs=rngs) for width in widths)
        self.dropout = QuickDropout(config.dropout)
        self.head: Callable[..., Array]  # of what is read: vectors, or vectors and tokens
        if config.ngrams and not per_token:
            self.head = NgramHead(features, outputs, config, rngs=rngs)
        else:
            self.head = nnx.Linear(features, outputs, rngs=rngs)
        self.reads_runs = bool(config.ngrams) and not per_token

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        segment_start: Int[Array, " batch"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
        vectors: Float[Array, "batch length features"] | None = None,
    ) -> Float[Array, "batch *length outputs"]:
        """Logits. `vectors` stand in place of those that `look_up` gives."""
        return self.head(*self._read(tokens, lengths, key, vectors))

    def apart(
        self,
        tokens: Int[Array, "batch length"],
        lengths: Int[Array, " batch"],
        segment_start: Int[Array, " batch"],
        *,
        key: Array | None = None,
        mask: Array | None = None,
    ) -> tuple[Float[Array, "batch outputs"], Float[Array, "batch outputs"]]:
        """The logits of the LSTM and those of the runs beside it; only where there are such."""
        return cast(NgramHead, self.head).apart(*self._read(tokens, lengths, key, None))

    def _read(self, tokens: Array, lengths: Array, key: Array | None, vectors: Array | None) -> tuple[Any, ...]:
        """What the head is given."""
        present = None
        if vectors is not None and self.reads_runs:
            vectors, present = vectors[..., :-1], vectors[..., -1]
        begun = tokens[:, : self.window]
        read = jnp.minimum(lengths, begun.shape[1])
        real = jnp.arange(begun.shape[1])[:, None] < read
        states = look_up(self.embedding.embedding[...], begun.T) if vectors is None else vectors.swapaxes(0, 1)
        states = states[: self.window]
        for i, layer in enumerate(self.layers):
            states, last = layer(self.dropout(states, fold(key, i)), real)
        if self.pool == "none":
            return (self.dropout(states.swapaxes(0, 1), fold(key, len(self.layers))),)
        pooled = _pool(states, last, read, self.pool)
        pooled = self.dropout(pooled, fold(key, len(self.layers)))
        runs = (tokens, lengths, fold(key, len(self.layers) + 1), present) if self.reads_runs else ()
        return (pooled, *runs)

    def look_up(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch length features"]:
        """What the model reads of each token: its embedding and, where runs of tokens are read too, a 1, which says
        that it is there."""
        found = self.embedding.embedding[...][tokens]
        return jnp.concatenate([found, jnp.ones_like(found[..., :1])], -1) if self.reads_runs else found

    def blank(self, tokens: Int[Array, "batch length"], padding: int) -> Float[Array, "batch length features"]:
        """The same of tokens that are left out: padding stands in their places, and no run is there."""
        found = self.look_up(jnp.full_like(tokens, padding))
        return found.at[..., -1].set(0) if self.reads_runs else found


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
    real = (jnp.arange(states.shape[0])[:, None] < lengths)[..., None]
    if kind == "max":
        return jnp.max(jnp.where(real, states, -jnp.inf), axis=0)
    return (jnp.sum(jnp.where(real, states, 0), axis=0, dtype=jnp.float32) / lengths[:, None]).astype(states.dtype)
