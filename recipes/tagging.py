"""One class a token: loss, metrics and predictions of tagging.

The first token of a word stands for it; tokens without a label (-1) count nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bigctl.recipes.classification import resolve_class_weights, training_sums
from bigctl.recipes.entities import Scheme
from bigctl.recipes.head import Head
from jaxtyping import Array, Bool, Float

from bigctl.training.metrics import EACH, Sums, pair
from bigctl.training.task import Batch, Record


class TagHead(Head):
    """Cross-entropy over the tags of words: the mean is over words, however they are spread over sentences.

    Args:
        tags: their names, in label order. Where they mark entities (B-PER, I-PER, O, ...), these are scored too.
        class_weights: `recipe.class_weights`, of each tag.
        counts: training words of each tag; None where nothing is trained.
    """

    def __init__(self, tags: tuple[str, ...], class_weights: Any, counts: np.ndarray | None):
        self.tags = tags
        self.outputs = len(tags)
        self.scheme = Scheme.of(tags)
        self.metric = "val/entity_f1" if self.scheme else "val/accuracy"
        self.class_weights = resolve_class_weights(class_weights, np.ones(len(tags)) if counts is None else counts)

    def loss(self, outputs: Float[Array, "batch length tags"], batch: Batch, hparams: Mapping[str, Any]) -> Sums:
        real = _words(batch)
        return training_sums(
            outputs.astype(jnp.float32).reshape(-1, self.outputs),
            jnp.where(real, batch["label"], 0).reshape(-1),
            real.astype(jnp.float32).reshape(-1),
            smoothing=hparams["recipe.label_smoothing"],
            class_weights=self.class_weights,
        )

    def evaluate(self, outputs: Float[Array, "batch length tags"], batch: Batch) -> Sums:
        """Plain cross-entropy, accuracy of words, counts of entities; of each sentence the sum of its words' losses and
        how many of them have a wrong tag."""
        logits, real = outputs.astype(jnp.float32), _words(batch)
        labels, predicted = jnp.where(real, batch["label"], 0), jnp.argmax(logits, -1).astype(jnp.int32)
        weights = real.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        sums = {"loss": pair(losses, weights), "accuracy": pair(predicted == labels, weights)}
        if self.scheme is not None:
            sums["entities"] = self.scheme.counts(labels, predicted, real, jnp)
        wrong = jnp.sum(real & (predicted != labels), axis=1).astype(jnp.int32)
        return {**sums, f"{EACH}loss": jnp.sum(losses * weights, axis=1), f"{EACH}wrong": wrong}

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        return {} if self.scheme is None else self.scheme.metrics(np.asarray(sums["entities"], np.float64))

    def predict(self, outputs: Float[Array, "batch length tags"]) -> Float[Array, "batch length tags"]:
        return jax.nn.softmax(outputs.astype(jnp.float32))

    def describe(self, prediction: Float[np.ndarray, "words tags"]) -> Record:
        """The tags of one sentence's words and the spans that they mark, in places of words, `stop` exclusive.

        Of tags that mark no entities each word is a span of its own, but for a tag O. The probability of a span is the
        mean of those of its words' tags.
        """
        best, likely = prediction.argmax(-1), prediction.max(-1)
        if self.scheme is None:
            found = [(place, place + 1, self.tags[tag]) for place, tag in enumerate(best) if self.tags[tag] != "O"]
        else:
            entities = self.scheme.entities(best[None], np.ones((1, len(best)), bool))
            types, stops = entities.types[0], entities.stops[0]
            begins = np.flatnonzero(entities.begins[0]).tolist()
            found = [(place, int(stops[place]), self.scheme.types[types[place]]) for place in begins]
        spans = [
            {"label": name, "start": start, "stop": stop, "probability": round(float(likely[start:stop].mean()), 6)}
            for start, stop, name in found
        ]
        return {"tags": [self.tags[tag] for tag in best], "spans": spans}

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        """The sentences with wrong tags whose losses add up to the most."""
        wrong = np.flatnonzero(examples["wrong"])
        rows = wrong[np.argsort(-examples["loss"][wrong], kind="stable")][:count].tolist()
        return [{"row": n, "loss": float(examples["loss"][n]), "wrong": int(examples["wrong"][n])} for n in rows]


def _words(batch: Batch) -> Bool[Array, "batch length"]:
    """Which tokens stand for a word, in examples that are not there to pad the batch."""
    return (batch["label"] >= 0) & (batch["mask"][:, None] > 0)
