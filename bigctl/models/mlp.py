"""A fully connected network for tables, or for flattened images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.models.layers import ACTIVATIONS, Dropout, Norm, fold


class MLP(nnx.Module):
    """Dense - norm - activation - dropout for each width in `hidden`, then a linear output.

    Args:
        config: widths, activation, norm, dropout.
        shape: shape of one input; more than one dimension is flattened.
        outputs: width of the output.
    """

    def __init__(self, config: schema.Mlp, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        widths = [math.prod(shape), *config.hidden]
        init = nnx.initializers.he_normal()
        self.activation = config.activation
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=init, rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nnx.List(Norm(config.norm, width, rngs=rngs) for width in config.hidden)
        self.dropout = Dropout(config.dropout)
        self.head = nnx.Linear(widths[-1], outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, batch * shape], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        x = x.reshape(x.shape[0], -1)
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = ACTIVATIONS[self.activation](norm(layer(x), training=key is not None, mask=mask))
            x = self.dropout(x, fold(key, i))
        return self.head(x)
