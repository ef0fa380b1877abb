"""A trained model asked about examples, batch by batch: what it predicts of each, and what its last layer reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bigctl.data.dataset import Features
from bigctl.inference import text_batches
from bigctl.inference.text_batches import Text
from bigctl.models.layers import Unchanged
from bigctl.training.programs import ModelPrograms, options_of_use
from bigctl.training.state import Tree, Weights
from bigctl.training.task import Batch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 256
Compiled = Callable[[Any], Any]
"""A batch -> one row an example."""


class Forward:
    """The compiled functions of a model with its weights."""

    sizes: tuple[int, ...] = (BATCH,)
    """Sizes to which batches of arrays are padded, ascending."""

    def __init__(self, programs: ModelPrograms, weights: Weights, features: Features):
        self._programs, self._weights, self._features = programs, weights, features
        self._jitted: dict[str, Callable[[Tree, Tree, Batch], jax.Array]] = {}

    def with_weights(self, weights: Weights) -> Forward:
        """The same functions with other weights; what is compiled is shared."""
        other = copy.copy(self)
        for name in ("predict", "logits", "embed"):  # which hold the old ones
            other.__dict__.pop(name, None)
        other._weights = weights
        return other

    def use_smaller(self, sizes: Sequence[int]) -> None:
        """Pad few arrays to these sizes too, those of them whose answers are the full batch's to the last bit, as tried
        on inputs drawn at random."""
        rng, shape = np.random.default_rng(0), (BATCH, *self._features.shape)
        image = self._features.kind == "image"
        inputs = rng.integers(0, 256, shape, np.uint8) if image else rng.normal(size=shape).astype(np.float32)
        full = np.asarray(self.predict({"inputs": inputs}))
        agreeing = []
        for size in sorted(sizes):
            parts = [np.asarray(self.predict({"inputs": inputs[at : at + size]})) for at in range(0, BATCH, size)]
            if np.array_equal(np.concatenate(parts), full):
                agreeing.append(size)
        self.sizes = (*agreeing, BATCH)

    @cached_property
    def predict(self) -> Compiled:
        """What the task predicts, [batch, outputs]."""
        return self._compiled("predict", lambda model, batch: self._programs.task.predict(model, batch))

    @cached_property
    def logits(self) -> Compiled:
        """Of every class, float32 [batch, classes]; of tasks that predict classes."""
        return self._compiled("logits", lambda model, batch: self._programs.task.exported(model, batch)["logits"])

    @cached_property
    def embed(self) -> Compiled:
        """What the model's `head` reads, float32 [batch, width]."""

        def headless(model: nnx.Module, batch: Batch) -> jax.Array:
            model.head = Unchanged()  # type: ignore[attr-defined]
            task = cast(Any, self._programs.task)
            found: jax.Array = task.outputs(model, task.seen(batch))
            return found.astype(jnp.float32).reshape(len(found), -1)

        return self._compiled("embed", headless)

    def _compiled(self, name: str, run: Callable[[nnx.Module, Batch], jax.Array]) -> Compiled:
        programs, weights = self._programs, self._weights

        def merged(params: Tree, variables: Tree, batch: Batch) -> jax.Array:
            return run(programs.merge(params, variables), batch)

        compiled = self._jitted.setdefault(name, jax.jit(merged, compiler_options=options_of_use(programs.step)))
        return lambda batch: compiled(weights.params, weights.variables, batch)

    def arrays(self, inputs: np.ndarray, run: Compiled) -> np.ndarray:
        """One row for each of [N, *features.shape]. Raises ValueError for what is of another shape or type."""
        shape = tuple(self._features.shape)
        if inputs.shape[1:] != shape:
            raise ValueError(f"inputs have shape {inputs.shape[1:]}, the model takes {shape}")
        if self._features.kind == "image" and inputs.dtype != np.uint8:
            whole = np.issubdtype(inputs.dtype, np.integer) and inputs.size
            if inputs.size and not (whole and inputs.min() >= 0 and inputs.max() <= 255):
                # pixels from 0 to 1 would be taken for black ones, and the answer would look like any other
                raise ValueError(f"images are uint8, from 0 to 255; these are {inputs.dtype}")
            inputs = inputs.astype(np.uint8)
        results = []
        for start in range(0, len(inputs), BATCH):
            block = inputs[start : start + BATCH]
            size = next(size for size in self.sizes if size >= len(block))
            padded = np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)])
            results.append(np.asarray(run({"inputs": padded}))[: len(block)])
        return np.concatenate(results) if results else np.empty((0, 0), np.float32)

    def texts(
        self, texts: np.ndarray | Sequence[Text], run: Compiled, tokenizer: Tokenizer
    ) -> tuple[np.ndarray, np.ndarray]:
        """One row for each of N texts, and which of them were cut, bool [N]. Raises ValueError for what is none."""
        columns, cut = text_batches.encode_texts(tokenizer, list(texts), self._features)
        longest = int(self._features.shape[0])
        batches = text_batches.text_batches(columns, np.arange(len(cut)), longest)
        given = [(places, run(batch)) for places, batch in batches]
        found = np.empty((len(cut), given[0][1].shape[-1] if given else 0), np.float32)
        for places, values in given:
            found[places] = np.asarray(values)[: len(places)]
        return found, cut
