"""Masked language modelling (Devlin et al. 2019): some tokens of a text are hidden, the model says which they were.

15% of the tokens are to be guessed: 80% of them are replaced by [MASK], 10% by any token, 10% stay as they are. Which
ones, is a function of (seed, step, place in the batch), so masks change from epoch to epoch and resume is exact; in
evaluation they depend on the text alone, so that every evaluation asks the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bigctl.recipes import lm_loss
from bigctl.recipes.text_cls import padding, require_text, text_shapes
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from bigctl import randomness
from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.errors import ConfigError
from bigctl.models.bert import BertMaskedLM
from bigctl.training.metrics import Sums
from bigctl.training.task import Batch, ExportedModel, Record, Task

_REPLACED, _RANDOM = 0.8, 0.1


class BertMlm(Task):
    """Cross-entropy of the hidden tokens; `perplexity` is its exponential.

    Raises:
        ConfigError: if the data holds no texts, the tokenizer has no [MASK], or the model cannot guess tokens.
    """

    def __init__(self, config: schema.Config, features: Features, class_counts: np.ndarray | None = None):
        recipe = schema.BertMlm.require(config.recipe, by="recipes.bert_mlm")
        known = require_text(features, config.recipe.kind)
        if "mask" not in known:
            raise ConfigError(
                "the tokenizer has no [MASK]", where="recipe.tokenizer", hint="use one that was made for BERT"
            )
        hint = "choose a BERT, such as model=bert_tiny"
        self.model = schema.Bert.require(config.model, by=f"recipe={config.recipe.kind}", hint=hint)
        self.features = features
        self.frozen = config.model.frozen()
        self.vocabulary: int = known["vocab_size"]
        self.mask_token: int = known["mask"]
        self.special = [known[name] for name in ("pad", "cls", "sep", "mask") if name in known]
        self.rate = recipe.mask_rate

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return BertMaskedLM(self.model, self.vocabulary, rngs=rngs)

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {**text_shapes(self.features, n), "label": jax.ShapeDtypeStruct((n,), jnp.int32)}

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        keys = randomness.per_example(augment_key, batch["number"])
        return {**self._sums(model, batch, keys, key), "padding": padding(batch)}

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        return self._sums(model, batch, _keys_of(batch["inputs"]), None)

    def evaluate_exported(self, model: ExportedModel, batch: Batch) -> Sums:
        hidden, chosen = self._hide(batch["inputs"], batch["lengths"], _keys_of(batch["inputs"]))
        guessed, tokens = np.asarray(chosen & (batch["mask"][:, None] > 0)), np.asarray(batch["inputs"])
        columns = {name: np.asarray(batch[name]) for name in ("lengths", "segment_start")}
        loss = hits = 0.0
        for rows, logits in lm_loss.exported_logits(model, {**columns, "inputs": np.asarray(hidden)}, self.vocabulary):
            said, wanted = logits[guessed[rows]], tokens[rows][guessed[rows]]
            loss += float(lm_loss.token_losses(said, wanted).sum())
            hits += float((said.argmax(-1) == wanted).sum())
        found = {"loss": [loss, guessed.sum()], "accuracy": [hits, guessed.sum()]}
        return {name: jnp.asarray(pair, jnp.float32) for name, pair in found.items()}

    @cached_property
    def _hide(self) -> Callable[..., tuple[Array, Array]]:
        return jax.jit(self.hide)

    def exported_inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        return text_shapes(self.features, n)

    def exported(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """`logits` of what each token was, float32 [batch, length, vocabulary]."""
        model = cast(BertMaskedLM, model)
        states = model(batch["inputs"], batch["lengths"], batch["segment_start"])
        return {"logits": model.logits(states).astype(jnp.float32)}

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        total, count = (float(v) for v in sums["loss"])
        return {"perplexity": math.exp(min(total / max(count, 1), 700))}

    def _sums(self, model: nnx.Module, batch: Batch, keys: jax.Array, dropout: jax.Array | None) -> Sums:
        model, tokens = cast(BertMaskedLM, model), batch["inputs"]
        hidden, chosen = self.hide(tokens, batch["lengths"], keys)
        chosen &= batch["mask"][:, None] > 0
        states = model(hidden, batch["lengths"], batch["segment_start"], key=dropout)
        # Logits are made for the chosen tokens alone; no text has more of them than its share of the padded length.
        room = len(tokens) * max(1, math.ceil(self.rate * tokens.shape[1]))
        (places,) = jnp.nonzero(chosen.reshape(-1), size=room, fill_value=tokens.size)
        real = (places < tokens.size).astype(jnp.float32)
        places = jnp.minimum(places, tokens.size - 1)
        logits = model.logits(states.reshape(tokens.size, -1)[places]).astype(jnp.float32)
        targets = tokens.reshape(-1)[places]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        hits = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        count = jnp.sum(real)
        return {
            "loss": jnp.stack([jnp.sum(losses * real), count]),
            "accuracy": jnp.stack([jnp.sum(hits * real), count]),
        }

    def hide(
        self, tokens: Int[Array, "batch length"], lengths: Int[Array, " batch"], keys: Array
    ) -> tuple[Int[Array, "batch length"], Bool[Array, "batch length"]]:
        """What the model sees, and which tokens it is to guess; one key a text. Special tokens are left alone.

        Of every text the share `mask_rate` is chosen, rounded, at least one token.
        """
        allowed = jnp.arange(tokens.shape[1]) < lengths[:, None]
        for number in self.special:
            allowed &= tokens != number

        def one(key: Array, row: Array, allowed: Array) -> tuple[Array, Array]:
            order, fate, other = jax.random.split(key, 3)
            draw: Float[Array, " length"] = jnp.where(allowed, jax.random.uniform(order, row.shape), 2.0)
            count = jnp.maximum(1, jnp.round(self.rate * jnp.sum(allowed))).astype(jnp.int32)
            chosen = allowed & (jnp.argsort(jnp.argsort(draw)) < count)  # by rank: draws may be equal
            kind = jax.random.uniform(fate, row.shape)
            random = jax.random.randint(other, row.shape, 0, self.vocabulary)
            seen = jnp.where(kind < _REPLACED, self.mask_token, jnp.where(kind < _REPLACED + _RANDOM, random, row))
            return jnp.where(chosen, seen, row), chosen

        return jax.vmap(one)(keys, tokens, allowed)


def _keys_of(tokens: Int[Array, "batch length"]) -> Array:
    """Keyed by the text itself: whatever batch it is in, the same tokens are hidden."""
    digest = jnp.sum(tokens * (1 + jnp.arange(tokens.shape[1])), axis=1)
    return jax.vmap(lambda d: jax.random.fold_in(randomness.key(0, randomness.AUGMENTATION), d))(digest)
