"""What each place of a picture adds to a class: integrated gradients, occlusion by patches, Grad-CAM.

Dimension names: height, width, channels (of a picture), rows, columns (of patches), points (pictures that are computed
at once).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from bigctl.inference import grad_cam
from bigctl.inference.explaining import gradients
from bigctl.inference.explaining.asked import Attribution, Explanation, Output, outputs_of, score_of
from bigctl.inference.explaining.faithfulness import Units
from bigctl.inference.predictor import Predictor
from bigctl.training.state import Tree
from bigctl.training.task import Record

INTEGRATED, OCCLUSION, GRAD_CAM = "integrated_gradients", "occlusion", "grad_cam"
PATCHES = 8
"""Patches along the shorter side of a picture."""


@dataclass(frozen=True)
class ImageExplanation(Explanation):
    """What each place of a picture adds to an output.

    Attributes:
        pixels: the picture as the model is given it; values are [rows, columns], which cover it evenly.
    """

    pixels: UInt8[np.ndarray, "height width channels"] = field(default_factory=lambda: np.empty((0, 0, 1), np.uint8))

    def to_json(self) -> Record:
        values = self.attribution.values
        shape = {"shape": list(values.shape), "picture": list(self.pixels.shape)}
        about = {**self.prediction, **self.attribution.to_json(), **shape}
        return {**about, "attributions": values.tolist(), **self.details}


class ImageExplainer:
    """Explains the answers of a classifier of pictures; what it compiles is kept for further ones."""

    def __init__(self, trained: Predictor):
        self.trained, self.features = trained, trained.features
        self._structure, self.state = nnx.split(trained.model)
        mean = trained.features.mean or (0.5,) * trained.features.shape[-1]
        self.blank = np.broadcast_to(np.asarray(mean, np.float32) * 255, trained.features.shape)

    baseline = "the mean colour of the training pictures"

    def methods(self) -> tuple[str, ...]:
        shows = isinstance(self.trained.model, grad_cam.Inspected)
        return (INTEGRATED, OCCLUSION, *((GRAD_CAM,) if shows else ()))

    def explain(
        self, inputs: Sequence[Any] | np.ndarray, method: str = INTEGRATED, wanted: str | None = None
    ) -> list[ImageExplanation]:
        """One explanation a picture, uint8 [N, height, width, channels]. Raises ConfigError for an unknown class."""
        pictures = np.asarray(inputs)
        predictions = self.trained.describe_all(pictures)
        outputs = outputs_of(self.trained, wanted, predictions)
        return [
            ImageExplanation(self.attribute(picture, method, output), prediction, pixels=picture)
            for picture, output, prediction in zip(pictures, outputs, predictions, strict=True)
        ]

    def attribute(
        self, picture: UInt8[np.ndarray, "height width channels"], method: str, output: Output
    ) -> Attribution:
        """What each pixel or patch adds to an output."""
        end, start = picture.astype(np.float32), self.blank
        score, base = (float(value) for value in self.scores(np.stack([end, start]), output.number))
        told = Attribution(method, output, np.empty(0), score, self.baseline, base)

        def along(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
            given = np.asarray(places, np.float32), np.asarray(weights, np.float32)
            return np.asarray(self._along(self.state, start, end, *given, output.number))

        if method == INTEGRATED:
            found = gradients.integrated(along, start, end, score - base)
            return told.integrated(found.values.sum(-1), found)
        if method == OCCLUSION:
            shape = patches(end.shape)
            kept = ~np.eye(shape[0] * shape[1], dtype=bool)
            values = (score - self.scores_where(picture, kept, output.number)).reshape(shape)
            return replace(told, values=values)
        places = grad_cam.class_activation(self.trained, picture[None], np.array([output.number], np.int32))
        assert places is not None
        note = "Grad-CAM shows what speaks for the class alone, from 0 to 1"
        return Attribution(method, output, np.asarray(places[0], np.float64), score).with_note(note)

    def units(self, example: np.ndarray, method: str, output: Output) -> Units:
        """The patches of a picture; pixels of one count together."""
        values, cells = self.attribute(example, method, output).values, patch_of(example.shape)
        rows, columns = (np.arange(n) * size // n for n, size in zip(cells.shape, values.shape, strict=True))
        spread = values[rows[:, None], columns]  # as many numbers as pixels
        patch = np.bincount(cells.ravel(), spread.ravel()) / np.bincount(cells.ravel())
        return Units(patch, lambda kept: self.scores_where(example, kept, output.number))

    def randomised(self) -> Self:
        other = copy.copy(self)
        other.trained = self.trained.randomised()
        other.state = nnx.split(other.trained.model)[1]
        return other

    # ------------------------------------------------------------------------------------------------- the model asked

    def scores(
        self, pictures: Float[np.ndarray, "points height width channels"], number: int
    ) -> Float[np.ndarray, " points"]:
        """An output of each of some pictures, pixels from 0 to 255."""

        def block(rows: np.ndarray) -> np.ndarray:
            return np.asarray(self._scores(self.state, pictures[rows], number))

        return gradients.in_blocks(len(pictures), block)

    def scores_where(
        self, picture: UInt8[np.ndarray, "height width channels"], kept: np.ndarray, number: int
    ) -> Float[np.ndarray, " points"]:
        """An output where some patches are blank, for each of [points, patches], True for those that are kept."""
        shape = patches(picture.shape)
        cells = patch_of(picture.shape)
        whole = picture.astype(np.float32)

        def block(rows: np.ndarray) -> np.ndarray:
            shown = kept[rows].reshape(-1, shape[0] * shape[1])[:, cells]
            return np.asarray(self._scores(self.state, np.where(shown[..., None], whole, self.blank), number))

        return gradients.in_blocks(len(kept), block)

    def _outputs(self, state: Tree, pictures: Array) -> Array:
        task, model = cast(Any, self.trained.task), nnx.merge(self._structure, state)
        return cast(Array, task.scored_outputs(model, task.seen({"inputs": pictures})))

    @cached_property
    def _scores(self) -> Callable[..., Array]:
        classes = len(self.trained.classes)
        return jax.jit(lambda state, pictures, number: score_of(self._outputs(state, pictures), number, classes))

    @cached_property
    def _along(self) -> Callable[..., Array]:
        classes = len(self.trained.classes)

        def along(state: Tree, start: Array, end: Array, places: Array, weights: Array, number: Array) -> Array:
            def total(pictures: Array) -> Array:
                return jnp.vdot(weights, score_of(self._outputs(state, pictures), number, classes))

            line = start + places[:, None, None, None] * (end - start)
            gradient: Array = jax.grad(total)(line)
            return gradient.astype(jnp.float32).sum(0)

        return jax.jit(along)


def patches(shape: Sequence[int]) -> tuple[int, int]:
    """How many rows and columns of square patches, as near as can be, a picture has."""
    side = max(1, min(shape[:2]) // PATCHES)
    return max(1, shape[0] // side), max(1, shape[1] // side)


def patch_of(shape: Sequence[int]) -> np.ndarray:
    """The number of the patch that each pixel is in, int [height, width]."""
    rows, columns = patches(shape)
    down = np.arange(shape[0]) * rows // shape[0]
    across = np.arange(shape[1]) * columns // shape[1]
    return down[:, None] * columns + across
