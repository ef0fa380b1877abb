"""Language modelling (Radford et al. 2019): one long text in windows, or documents packed into such, each token
predicted from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from bigctl.recipes import lm_loss
from bigctl.recipes.misfit import misfit
from flax import nnx

from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.layouts.choose import DOCUMENTS
from bigctl.data.layouts.windows import BYTES_PER_TOKEN, NO_TARGET
from bigctl.models.decoder import Decoder
from bigctl.models.experts import Routing
from bigctl.training.metrics import Sums
from bigctl.training.state import Weights
from bigctl.training.task import TEACHER, Batch, ExportedModel, Record, Task

_PLACES = ("segments", "positions")
"""What a model is told besides of documents that are packed, see `layouts.packed`."""

_ROUTING = {
    "load_balance": "load_balance",
    "router_z": "z",
    "expert_load_min": "lowest",
    "expert_load_max": "highest",
    "dropped_tokens": "dropped",
}
"""Metrics of training and the fields of `models.experts.Routing` that they are the means of."""


class GptLm(Task):
    """Mean cross-entropy of the next token [nats]; `perplexity` is its exponential, `bits_per_byte` what a byte of the
    text takes to be told, which does not depend on the tokenizer.

    Raises:
        ConfigError: if the data is not one long text.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        if features.kind != "stream" or features.tokenizer is None:
            raise misfit(
                "gpt_lm",
                "a text",
                features,
                "data=text data.path=FILE is any text, data=csv data.text=COLUMN a column of texts",
            )
        self.recipe = schema.GptLm.require(config.recipe, by="recipes.gpt_lm")
        self.model_config = config.model
        self.sample_tokens, self.prompt = self.recipe.sample_tokens, self.recipe.prompt
        self.vocabulary: int = features.tokenizer["vocab_size"]
        (self.block,) = features.shape
        self.tokens_per_example = self.block
        self.packed = self.recipe.packing == DOCUMENTS
        self.distil = config.distil if config.distil.teacher is not None else None

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return self.model_config.build(self.vocabulary, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        window = jax.ShapeDtypeStruct((n, self.block), jnp.int32)
        names = ("inputs", "targets", *(_PLACES if self.packed else ()))
        return dict.fromkeys(names, window)

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        z_loss = hparams["recipe.z_loss"] if self.recipe.z_loss else 0.0
        spoken, routing = self._spoken(model, batch, key)
        found = self._sums(spoken, batch, z_loss)
        plain = {"cross_entropy": jnp.stack([found.cross_entropy, found.weight])}
        if self.distil is not None:
            soft = self._soft(spoken, batch, hparams.get(TEACHER))
            mixed = (1 - self.distil.alpha) * found.total + self.distil.alpha * soft
            found, plain = found._replace(total=mixed), {**plain, "distil": jnp.stack([soft, found.weight])}
        if routing is None:
            told = plain if self.recipe.z_loss or self.distil is not None else {}
            return {"loss": jnp.stack([found.total, found.weight]), **told}
        added = sum(
            hparams[f"model.{name}"] * value
            for name, value in (("load_balance_loss", routing.load_balance), ("router_z_loss", routing.z))
            if getattr(self.model_config, name)
        )
        drops = getattr(self.model_config, "capacity_factor", None) is not None
        routed = {
            name: found.weight * jax.lax.stop_gradient(getattr(routing, field))
            for name, field in _ROUTING.items()
            if drops or field != "dropped"
        }
        sums = {name: jnp.stack([total, found.weight]) for name, total in routed.items()}
        return {"loss": jnp.stack([found.total + found.weight * added, found.weight]), **plain, **sums}

    def _soft(self, spoken: lm_loss.Spoken, batch: Batch, weights: Weights | None) -> jax.Array:
        """What the teacher says against it, summed; without a teacher's weights, as where only shapes are asked, 0."""
        if self.distil is None or self.teacher is None or weights is None:
            return jnp.float32(0)
        teacher, _ = self._spoken(self.teacher(weights), batch, None)
        return lm_loss.soft_sum(spoken, teacher, self._weights(batch), self.distil.temperature, self.recipe.loss_chunk)

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        found = self._sums(self._spoken(model, batch, None)[0], batch, 0.0)
        return {"loss": jnp.stack([found.total, found.weight])}  # and not the other sum, which has no gradient

    def exported_inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        longest = getattr(self.model_config, "context", None) or self.block
        return {"inputs": jax.ShapeDtypeStruct((n, longest), jnp.int32)}

    def exported(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """`logits` of the next token at each place, float32 [batch, length, vocabulary]."""
        model = cast(Decoder, model)
        return {"logits": model.logits(model(batch["inputs"]))[..., : model.vocab_size].astype(jnp.float32)}

    def evaluate_exported(self, model: ExportedModel, batch: Batch) -> Sums:
        weights = np.asarray(self._weights(batch))
        inputs, targets = np.asarray(batch["inputs"]), np.asarray(batch["targets"])
        if self.packed:  # documents are alone in windows of their own, as the model is told of no others
            segments, places = np.asarray(batch["segments"]), np.asarray(batch["positions"])
            inputs, targets, weights = apart(segments, places, inputs, targets, weights)
        total = 0.0
        for rows, logits in lm_loss.exported_logits(model, {"inputs": inputs}, self.vocabulary):
            losses = lm_loss.token_losses(logits, np.maximum(targets[rows], 0))
            total += float((losses * weights[rows]).sum())
        return {"loss": jnp.asarray([total, weights.sum()], jnp.float32)}

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        total, count = (float(value) for value in sums["loss"])
        mean = total / max(count, 1.0)
        found = {"perplexity": math.exp(min(mean, 700.0))}
        if BYTES_PER_TOKEN in sums:
            found["bits_per_byte"] = mean / math.log(2) / float(sums[BYTES_PER_TOKEN])
        return found

    def flops_per_example(self, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
        layers, width = (getattr(self.model_config, name, None) for name in ("layers", "width"))
        if layers is None or width is None:
            return None
        shares = {name: self.model_config.active_share(name) for name in shapes}
        return self.block * flops_per_token(shapes, layers=layers, width=width, block=self.block, shares=shares)

    def _spoken(self, model: nnx.Module, batch: Batch, key: jax.Array | None) -> tuple[lm_loss.Spoken, Routing | None]:
        """What a model says of a batch, and where its own keys have experts, which of them were asked."""
        model, routing = cast(Decoder, model), None
        places = {name: batch[name] for name in _PLACES} if self.packed else {}
        if key is not None and getattr(self.model_config, "experts", None):
            hidden, routing = model.routed(batch["inputs"], key=key, weights=self._weights(batch), **places)
        else:
            hidden = model(batch["inputs"], key=key, **places)
        return lm_loss.Spoken(hidden, model.head_kernel(), model.vocab_size), routing

    def _weights(self, batch: Batch) -> jax.Array:
        """What each place counts, [batch, length]."""
        return batch["mask"][:, None] * (batch["targets"] != NO_TARGET)

    def _sums(self, spoken: lm_loss.Spoken, batch: Batch, z_loss: float | jax.Array) -> lm_loss.LossSums:
        hidden, kernel, size = spoken
        targets, weights = jnp.maximum(batch["targets"], 0), self._weights(batch)
        return lm_loss.loss_sums(hidden, kernel, targets, weights, size, z_loss, self.recipe.loss_chunk)


def apart(segments: np.ndarray, positions: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Columns of packed documents, [batch, length], with each document in a row of its own from the first place on."""
    real = segments > 0
    keys = np.arange(len(segments))[:, None] * (int(segments.max(initial=0)) + 1) + segments
    numbers, row = np.unique(keys[real], return_inverse=True)
    found = [np.zeros((len(numbers), segments.shape[1]), column.dtype) for column in columns]
    for column, of_rows in zip(columns, found, strict=True):
        of_rows[row, positions[real]] = column[real]
    return found


def flops_per_token(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    layers: int,
    width: int,
    block: int,
    shares: Mapping[str, float] | None = None,
) -> float:
    """Operations that training takes for a token.

    It is 6 operations for each weight that multiplies it (2 forward, 4 backward) and 12 x layers x width x block for
    attention over a window of `block` tokens: appendix B of PaLM (Chowdhery et al. 2022). A causal mask saves none.

    Args:
        shapes: of all parameters, by path; tables that are only looked up count for nothing.
        layers, width: of the model.
        block: tokens a window.
        shares: of the weights of experts, the part that multiplies a token; see `schema.Model.active_share`.
    """
    looked_up = {"position/embedding"} | ({"token/embedding"} if "head/kernel" in shapes else set())
    weights = sum((shares or {}).get(name, 1) * math.prod(s) for name, s in shapes.items() if name not in looked_up)
    return 6.0 * weights + 12.0 * layers * width * block
