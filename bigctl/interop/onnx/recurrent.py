"""Layers that ONNX has one operator for, of which jax writes a call by name: see `models.lstm.layers_called`.

A runtime takes a Scan one operator after the other, some microseconds each, for every token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.extend.core import JaxprEqn
from onnx import helper

from bigctl.interop.onnx.graph import Graph, Value, shaped
from bigctl.interop.onnx.shaping import squeezed

Layer = Callable[[Graph, JaxprEqn, list[Value]], list[Value] | None]
"""None where it is to be written as what it calls."""


def _lstm(direction: str) -> Layer:
    def convert(graph: Graph, eqn: JaxprEqn, values: list[Value]) -> list[Value] | None:
        """Arguments are those of `models.lstm.bigctl_lstm_forward`; padding is behind the tokens."""
        ranks = [len(value.wanted) for value in values]
        if ranks != [3, 2, 2, 1, 2] or any(value.constant is None for value in values[1:4]):
            return None
        if any(value.dtype != np.float32 for value in values[:4]):
            return None
        x, real = graph.full(values[0]), graph.full(values[4])
        kernel, recurrent, bias = (np.asarray(value.constant) for value in values[1:4])
        states, last = (shaped(out) for out in eqn.outvars)
        whole = graph.node("Cast", [real], real.shape, np.int32, to=6)
        lengths = graph.node("ReduceSum", [whole, graph.ints([0])], real.shape[1:], np.int32, keepdims=0)
        hints = [value.origin[0] if value.origin else "kernel" for value in values[1:4]]
        given = [
            graph.constant(_matrix(kernel), hint=hints[0]),
            graph.constant(_matrix(recurrent), hint=hints[1]),
            graph.constant(np.concatenate([_ordered(bias), np.zeros_like(bias)])[None], hint=hints[2]),
        ]
        names = [graph.fresh(name) for name in ("states", "last")]
        inputs = [graph.named(value) for value in (x, *given, lengths)]
        hidden = len(recurrent)
        graph.nodes.append(helper.make_node("LSTM", inputs, names, direction=direction, hidden_size=hidden))
        time, batch, _ = states.shape
        found = Value(names[0], (time, 1, batch, hidden), (time, 1, batch, hidden), x.dtype)
        end = Value(names[1], (1, batch, hidden), (1, batch, hidden), x.dtype)
        beyond = end if direction == "forward" else graph.constant(0, np.float32)  # the state stays as it is
        within = graph.unsqueezed(real, (2,))
        kept = graph.node("Where", [within, squeezed(graph, found, (1,)), beyond], states.shape, x.dtype)
        return [kept, squeezed(graph, end, (0,))]

    return convert


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """[inputs, 4 * hidden] as the operator has it, [1, 4 * hidden, inputs]."""
    return _ordered(kernel).T[None].copy()


def kernel_of(matrix: np.ndarray) -> np.ndarray:
    """What `matrix` [1, 4 * hidden, inputs] of the operator was before: [inputs, 4 * hidden], gates in our order."""
    i, o, f, c = np.split(matrix[0], 4)
    return np.concatenate([i, f, c, o]).T


def _ordered(gates: np.ndarray) -> np.ndarray:
    """Input, forget, cell, output of the last dimension as input, output, forget, cell."""
    i, f, c, o = np.split(gates, 4, axis=-1)
    return np.concatenate([i, o, f, c], axis=-1)


TABLE: dict[str, Layer] = {"bigctl_lstm_forward": _lstm("forward"), "bigctl_lstm_backward": _lstm("reverse")}
"""By the name of what is called."""
