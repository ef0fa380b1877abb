"""Tables: standardised and one-hot encoded rows to class logits, or to one real number (`model.head=regression`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes.misfit import misfit
from bigctl.recipes.supervised import Supervised
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.training.task import Batch, Network


class MlpCls(Supervised):
    """Cross-entropy over classes, a sigmoid where there are two; or squared error.

    Raises:
        ConfigError: if the data holds no table rows.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "table":
            raise misfit("mlp_cls", "table rows", features)
        super().__init__(config, features, class_counts, sigmoid=True)
        self.dtype = jnp.dtype(config.train.precision)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.features.shape, self.head.outputs, rngs=rngs)

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"inputs": jax.ShapeDtypeStruct((n, *self.features.shape), jnp.float32)}

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        return model(batch["inputs"].astype(self.dtype), **options)
