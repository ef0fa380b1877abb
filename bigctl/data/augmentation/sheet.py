"""A contact sheet of what training sees: images beside several draws of how they are changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bigctl import randomness
from bigctl.config.schema import Augment
from bigctl.data import preview
from bigctl.data.augmentation import pipeline
from bigctl.data.dataset import Dataset
from bigctl.data.pictures import crops
from bigctl.data.pictures.encoded_images import EncodedImages


def augmented_sheet(
    dataset: Dataset, config: Augment, seed: int, *, classes: int = 10, draws: int = 7, side: int = 64
) -> Image.Image:
    """A row an image: as it is, then as the first `draws` steps of a training would change it.

    The images are the first of each class, and as many of the next ones as make five rows. They are one batch: by mixup
    and CutMix each is mixed with the row above or below.

    Args:
        dataset: of images with classes.
        config: how they are changed, the part of the picture that is decoded included.
        seed: of the experiment.
        classes: rows at most, where there are more classes.
    """
    rows, names = _rows(dataset, classes)
    inputs = dataset.splits["train"]["inputs"]
    streamed = isinstance(inputs, EncodedImages)
    on_device = dataclasses.replace(config, random_resized_crop=0.0) if streamed else config
    change = jax.jit(partial(_changed, config=on_device, mean=dataset.features.mean, std=dataset.features.std))
    columns = [np.asarray(inputs[rows])]
    for step in range(draws):
        seen = columns[0]
        if isinstance(inputs, EncodedImages) and config.random_resized_crop:  # drawn before pictures are decoded
            positions = np.arange(step * len(rows), (step + 1) * len(rows))
            seen = inputs.decode(rows, keys=crops.keys(seed, positions), least=config.random_resized_crop)
        found = change(seen, randomness.key(seed, randomness.AUGMENTATION, step))
        columns.append(np.clip(np.round(np.asarray(found)), 0, 255).astype(np.uint8))
    picked = [(name, np.stack(images)) for name, *images in zip(names, *columns, strict=True)]
    return preview.sheet_of(picked, draws + 1, side)


def _rows(dataset: Dataset, classes: int) -> tuple[np.ndarray, list[str]]:
    """Which training examples are shown, and the names of their classes."""
    labels, target = dataset.splits["train"]["label"], dataset.features.target
    of_class = [(name, target.rows(labels, number)) for number, name in enumerate(target.names[:classes])]
    each = -(-5 // len(of_class))
    found = [(name, row) for name, rows in of_class for row in rows[:each].tolist()]
    return np.array([row for _, row in found]), [name for name, _ in found]


def _changed(
    images: jax.Array, key: jax.Array, *, config: Augment, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    numbers = jnp.arange(len(images))
    images = pipeline.augment(images, config, key, numbers, numbers % 2 > 0, mean, std)
    return pipeline.mix(images, config, key, numbers, numbers >= 0)[0] if config.mixes else images
