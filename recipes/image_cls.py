"""Image recognition: uint8 images, augmented and standardised on the device, to class logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes.supervised import Supervised
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data.augmentation import pipeline
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError
from bigctl.training.task import Batch, Network


class ImageCls(Supervised):
    """Cross-entropy over the classes of an image data set.

    Raises:
        ConfigError: if the data holds no images, or no classes.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "image" or not features.target.names:
            raise ConfigError(
                f"recipe={config.recipe.kind} needs images with classes, the data holds {features.kind} rows",
                where="data",
                hint="use recipe=mlp_cls for tables, bert_cls or lstm_cls for texts, or a data set of images",
            )
        self.recipe = schema.ImageCls.require(config.recipe, by="ImageCls")
        super().__init__(config, features, class_counts)
        self.dtype = jnp.dtype(config.train.precision)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.features.shape, self.head.outputs, rngs=rngs)

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"inputs": jax.ShapeDtypeStruct((n, *self.features.shape), jnp.uint8)}

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        # Augmenting in standardised numbers would fill borders with the mean colour; black is what the data has.
        pictures = pipeline.augment(batch["inputs"], self.recipe.augment, key, batch["number"])
        return {**batch, "inputs": pictures}

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        standardised = standardise(batch["inputs"], self.features.mean, self.features.std).astype(self.dtype)
        return model(standardised, **options)


def standardise(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "batch h w c"]:
    """uint8 [0, 255] -> float32, by the statistics of the training split."""
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
