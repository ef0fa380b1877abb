"""Image recognition: uint8 images, augmented and standardised on the device, to class logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import adversarial, views
from bigctl.recipes.adversarial import Adversary
from bigctl.recipes.classification import class_logits
from bigctl.recipes.misfit import misfit
from bigctl.recipes.supervised import OTHER, SHARE, Supervised
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.data import whitening
from bigctl.data.augmentation import boxes, mixing, pipeline
from bigctl.data.dataset import Features
from bigctl.data.pictures import scaling
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError
from bigctl.models.speed_cnn import SpeedCnn
from bigctl.training.metrics import Sums, pair
from bigctl.training.task import STEP, Batch, ExportedModel, Network


class ImageCls(Supervised):
    """Cross-entropy over the classes of an image data set.

    Raises:
        ConfigError: if the data holds no images, or no classes.
    """

    whitening: np.ndarray | None = None
    """What a model that whitens patches begins with; None where none does, or nothing is begun."""

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "image" or not features.target.names:
            raise misfit(config.recipe.kind, "images with classes", features)
        self.recipe = schema.ImageCls.require(config.recipe, by="ImageCls")
        super().__init__(config, features, class_counts, binary=jnp.mean if self.recipe.loss == schema.BCE else None)
        self.dtype = jnp.dtype(config.train.precision)
        self.changes = changes_of(config, self.recipe.augment)
        self.tta = config.eval.tta
        self.adversary = Adversary(config.train.adversarial) if config.train.adversarial.eps else None
        if self.adversary is not None and features.target.kind != CLASS:
            hint = "leave out train.adversarial.eps"
            raise ConfigError("is for one class an image", where="train.adversarial", hint=hint)
        self.mean, self.std = self._statistics()
        # Grey images become coloured ones for weights of such.
        self.shape = (*features.shape[:2], max(len(self.mean), features.shape[2]))
        for side in self.recipe.augment.sizes:
            self._check_size(side)

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel: those that the recipe names, else those of the training split."""
        mean, std, channels = self.recipe.mean, self.recipe.std, self.features.shape[-1]
        if mean is None or std is None:
            return self.features.mean, self.features.std
        for name, given in (("mean", mean), ("std", std)):
            if len(given) != channels != 1:
                message = f"recipe.{name} has {len(given)} numbers, the images have {channels} channels"
                hint = f"data.channels={len(given)} reads files so; or choose other weights"
                raise ConfigError(message, where=f"recipe.{name}", hint=hint)
        return tuple(mean), tuple(std)

    def _check_size(self, side: int) -> None:
        """Raises ConfigError where the model cannot take pictures at that size."""
        height, width, channels = self.shape
        shape = (*scaling.scaled_size((height, width), side), channels)
        model, images = self.model_config, jax.ShapeDtypeStruct((1, *shape), jnp.float32)

        def network(size: Sequence[int]) -> Any:
            return model.build(tuple(size), self.head.outputs, rngs=nnx.Rngs(0))

        try:
            nnx.eval_shape(lambda: network(shape))
        except ConfigError as error:  # which says what is too small, or no whole number of patches
            hint = f"give sides that model={model.kind} takes"
            raise ConfigError(error.message, where="recipe.augment.sizes", hint=hint) from error
        try:
            nnx.eval_shape(lambda x: network(self.shape)(x), images)
        except (TypeError, ValueError) as error:
            what = f"model={model.kind} takes pictures of one size"
            hint = "leave it out; resnet18, convnext_t, vit_s, lite0, speed_cnn and inception_v3 take several"
            raise ConfigError(what, where="recipe.augment.sizes", hint=hint) from error

    def look(self, columns: Mapping[str, Any]) -> None:
        require_fit(self.recipe.augment, self.features)
        if size := self.model_config.whitens:
            self.whitening = whitening.directions(columns["inputs"], self.mean, self.std, size)

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        model = self.model_config.build(self.shape, self.head.outputs, rngs=rngs)
        if self.whitening is not None:
            cast(SpeedCnn, model).whiten.put(self.whitening)
        return model

    def inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"inputs": jax.ShapeDtypeStruct((n, *self.features.shape), jnp.uint8)}

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        alternates = self.recipe.augment.alternates
        order = {"mirrored": jax.ShapeDtypeStruct((n,), jnp.bool_)} if alternates else {}
        return {**super().example_shapes(n), **order}

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        # Augmenting in standardised numbers would fill borders with the mean colour; black is what the data has.
        config, numbers, features = self.changes, batch["number"], self.features
        mirrored = batch.get("mirrored")
        pictures = pipeline.augment(batch["inputs"], config, key, numbers, mirrored, features.mean, features.std)
        if not config.mixes:
            return {**batch, "inputs": pictures}
        pictures, share = pipeline.mix(pictures, config, key, numbers, batch["mask"] > 0)
        return {**batch, "inputs": pictures, OTHER: mixing.neighbours(batch["label"]), SHARE: share}

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        if self.adversary is None:
            return super().loss(model, batch, key, augment_key, hparams)
        seen = self.augment(batch, augment_key) if self.augments else batch
        pixels, labels, mask = _unit(seen["inputs"]), batch["label"], batch["mask"]
        number, step = batch["number"], hparams[STEP]
        moved = self.adversary.trained_on(self._logits(model), pixels, labels, augment_key, number, step)
        against = self._outputs(model, {**seen, "inputs": moved * 255.0}, key=key, mask=mask)
        if not self.adversary.trades:
            return self.head.loss(against, batch, hparams)
        plain = self._outputs(model, seen, key=key, mask=mask)
        sums = dict(self.head.loss(plain, batch, hparams))
        apart = adversarial.divergence(class_logits(plain), class_logits(against))
        share = self.adversary.config.beta * jnp.sum(apart * mask) / jnp.maximum(jnp.sum(mask), 1.0)
        sums["loss"] = sums["loss"] + jnp.stack([share * sums["loss"][1], 0.0])
        return sums

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        sums = super().evaluate(model, batch)
        if self.adversary is None:
            return sums
        seen, logits = self.seen(batch), self._logits(model)
        moved = self.adversary.judged_on(logits, _unit(seen["inputs"]), batch["label"])
        right = jnp.argmax(logits(moved), -1) == batch["label"]
        return {**sums, "robust_accuracy": pair(right, batch["mask"])}

    def evaluate_exported(self, model: ExportedModel, batch: Batch) -> Sums:
        """Without what needs gradients, `robust_accuracy`."""
        return super().evaluate_exported(model, batch)

    def _logits(self, model: nnx.Module) -> adversarial.Logits:
        """Of every class, of pictures with pixels from 0 to 1, as the model evaluates."""
        return adversarial.frozen(model, lambda m, x: class_logits(self.outputs(m, {"inputs": x * 255.0})))

    def seen(self, batch: Batch) -> Batch:
        return {**batch, "inputs": boxes.center_cropped(batch["inputs"], self.changes.center_crop)}

    def scored_outputs(self, model: Network, batch: Batch) -> Float[Array, "batch outputs"]:
        return views.mean_outputs(batch["inputs"], self.tta, lambda x: self.outputs(model, {**batch, "inputs": x}))

    def outputs(self, model: Network, batch: Batch, **options: jax.Array) -> jax.Array:
        standardised = standardise(batch["inputs"], self.mean, self.std).astype(self.dtype)
        return model(standardised, **options)


def _unit(images: Array) -> Float[Array, "batch h w c"]:
    """Pixels from 0 to 1."""
    return images.astype(jnp.float32) / 255.0


def standardise(images: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "batch h w c"]:
    """uint8 [0, 255] -> float32, (x / 255 - mean) / std of each channel."""
    scaled = images.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def changes_of(config: schema.Config, augment: schema.Augment) -> schema.Augment:
    """What is changed on the device: not which part is seen of pictures that are decoded while training."""
    streamed = getattr(config.data, "decoding", schema.DECODE_MEMORY) == schema.DECODE_STREAM
    return dataclasses.replace(augment, random_resized_crop=0.0) if streamed else augment


def require_fit(augment: schema.Augment, features: Features) -> None:
    """Raises ConfigError for changes that these images cannot have: of colour where there is none, by more pixels than
    there are, from a size that they do not grow from."""
    _require_colours(augment, features)
    _require_crop(augment, features.shape)
    height, width = features.shape[:2]
    for side in augment.sizes:
        if side >= min(height, width):
            what = f"pictures of {height} x {width} pixels do not grow from {side}"
            hint = f"give sides below {min(height, width)}"
            raise ConfigError(what, where="recipe.augment.sizes", hint=hint)


def _require_colours(augment: schema.Augment, features: Features) -> None:
    """Raises ConfigError for changes of colour where there is none."""
    for name in ("saturation", "hue"):
        if getattr(augment, name) and features.shape[-1] != 3:
            channels = features.shape[-1]
            what = f"{name} is of colours, the images have {channels} channel{'s' * (channels != 1)}"
            hint = "leave it out; brightness and contrast change grey images too"
            raise ConfigError(what, where=f"recipe.augment.{name}", hint=hint)


def _require_crop(augment: schema.Augment, shape: Sequence[int]) -> None:
    """Raises ConfigError where images are moved out of sight, or are too small to be mirrored around their edges."""
    side = min(shape[:2])
    if augment.crop >= side:
        lacks = (
            "have no {} pixels to mirror around their edges"
            if augment.border == "reflect"
            else "are out of sight when moved by {}"
        )
        what = f"images of {shape[0]}x{shape[1]} {lacks.format(augment.crop)}"
        raise ConfigError(what, where="recipe.augment.crop", hint=f"use {side - 1} or less")
