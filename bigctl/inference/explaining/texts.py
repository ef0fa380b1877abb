"""What each token of a text adds to a class: integrated gradients, gradient x input, occlusion, attention rollout.

Dimension names: length (of the padded text), width (of what the model reads of a token), points (on a line, or texts
that are computed at once).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from bigctl.data.layouts.layout import Columns
from bigctl.data.text import tokenization
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import RunError
from bigctl.inference import text_batches
from bigctl.inference.explaining import gradients, text_tokens
from bigctl.inference.explaining.asked import Attribution, Explanation, Output, outputs_of, score_of
from bigctl.inference.explaining.faithfulness import Units
from bigctl.inference.explaining.text_tokens import Piece
from bigctl.inference.predictor import Predictor
from bigctl.inference.text_batches import Text
from bigctl.models.bert import BertClassifier
from bigctl.training.state import Tree
from bigctl.training.task import Batch, Record

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INTEGRATED, GRADIENT, OCCLUSION, ROLLOUT = "integrated_gradients", "gradient_x_input", "occlusion", "attention_rollout"
METHODS = (INTEGRATED, GRADIENT, OCCLUSION, ROLLOUT)


@runtime_checkable
class ReadsVectors(Protocol):
    """A model of texts that says what it reads of each token, and takes other vectors in place of these, as an argument
    `vectors`."""

    def look_up(self, tokens: Array) -> Array:
        """[batch, length, width] of tokens int32 [batch, length]."""

    def blank(self, tokens: Array, padding: int) -> Array:
        """The same where each token is left out."""


@dataclass(frozen=True)
class TextExplanation(Explanation):
    """What each piece of a text adds to an output.

    Attributes:
        texts: the text, or both of a pair.
        pieces: as many as values.
        rest: what belongs to no place in the text.
        cut: whether the text was longer than the model takes.
    """

    texts: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    rest: float = 0.0
    cut: bool = False

    def to_json(self) -> Record:
        pair = {"text_pair": self.texts[1]} if len(self.texts) > 1 else {}
        parts = {"parts": [piece.part for piece in self.pieces]} if pair else {}
        return {
            "text": self.texts[0],
            **pair,
            **self.prediction,
            **self.attribution.to_json(),
            "tokens": [piece.token for piece in self.pieces],
            "offsets": [None if piece.part is None else [piece.start, piece.end] for piece in self.pieces],
            **parts,
            "attributions": self.attribution.values.tolist(),
            "rest": self.rest,
            "cut": self.cut,
            **self.details,
        }


class TextExplainer:
    """Explains the answers of a model of texts; what it compiles is kept for further texts.

    Raises:
        RunError: if the model does not say what it reads of a token.
    """

    def __init__(self, trained: Predictor):
        if not isinstance(trained.model, ReadsVectors):
            what = f"model={trained.config.model.kind} does not say what it reads of a token"
            raise RunError(what, where=str(trained.run.path), hint="it has to have look_up and blank, as models/bag.py")
        self.trained, self.features = trained, trained.features
        self.tokenizer: Tokenizer | Ngrams = text_batches.run_tokenizer(trained.run, trained.features)
        self.marks = {} if isinstance(self.tokenizer, Ngrams) else tokenization.special(self.tokenizer)
        self._structure, self.state = nnx.split(trained.model)

    @property
    def baseline(self) -> str:
        """What stands for a token that is left out, in words."""
        if isinstance(self.tokenizer, Ngrams):
            return "no n-grams"
        named = self.tokenizer.id_to_token(self.marks["pad"])
        kept = [str(self.tokenizer.id_to_token(self.marks[name])) for name in ("cls", "sep")]
        return f"{named} in the place of each token of the text, {' and '.join(kept)} kept"

    def methods(self) -> tuple[str, ...]:
        return METHODS if isinstance(self.trained.model, BertClassifier) else METHODS[:-1]

    def explain(
        self, texts: Sequence[Text], method: str = INTEGRATED, wanted: str | None = None
    ) -> list[TextExplanation]:
        """One explanation a text.

        Args:
            texts: texts, or pairs of them.
            method: one of `methods()`.
            wanted: a class; None for the one that is predicted.

        Raises:
            ConfigError: for a class that there is not.
            ValueError: for a text that is empty, or none.
        """
        columns, cut = text_batches.encode_texts(self.tokenizer, texts, self.features, warn=False)
        predictions = self.trained.label_texts(texts)
        outputs = outputs_of(self.trained, wanted, predictions)
        each = zip(texts, outputs, predictions, cut.tolist(), strict=True)
        return [self._explained(self.batch(columns, row), method, *rest) for row, rest in enumerate(each)]

    def batch(self, columns: dict[str, np.ndarray], row: int) -> Columns:
        return text_batches.one_text(columns, row, int(self.features.shape[0]))

    def _explained(
        self, batch: Columns, method: str, text: Text, output: Output, prediction: Record, cut: bool
    ) -> TextExplanation:
        texts = (text,) if isinstance(text, str) else tuple(text)
        size, tokens = int(batch["lengths"][0]), np.asarray(batch["inputs"][0])
        attribution = self.attribute(batch, method, output)
        values, rest = attribution.values, 0.0
        if isinstance(self.tokenizer, Ngrams):
            pieces = text_tokens.words_of(texts)
            values, rest = text_tokens.shared_by_words(self.tokenizer, texts, pieces, tokens[:size], values)
        else:
            rule = (self.features.tokenizer or {})["max_length"], (self.features.tokenizer or {})["truncate"]
            pieces = text_tokens.pieces_of(self.tokenizer, texts, *rule)[1]
        attribution = replace(attribution, values=values)
        if cut:
            longest = int((self.features.tokenizer or {})["max_length"])
            what = f"the text is longer than the model takes, {longest} tokens: it was cut"
            attribution = attribution.with_note(what)
        shown = {name: value for name, value in prediction.items() if name != "cut"}
        return TextExplanation(attribution, shown, texts=texts, pieces=tuple(pieces), rest=float(rest), cut=cut)

    def attribute(self, batch: Columns, method: str, output: Output) -> Attribution:
        """What each token of a batch of one text adds to an output; `values` [tokens]."""
        end, start = self.vectors(batch), self.blank(batch)
        size = int(batch["lengths"][0])
        score, base = (float(value) for value in self.scores(batch, np.stack([end, start]), output.number))
        told = Attribution(method, output, np.empty(0), score, self.baseline, base)

        def along(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
            given = np.asarray(places, np.float32), np.asarray(weights, np.float32)
            return np.asarray(self._along(self.state, batch, start, end, *given, output.number))

        if method == INTEGRATED:
            found = gradients.integrated(along, start, end, score - base)
            return told.integrated(found.values.sum(-1)[:size], found)
        if method == GRADIENT:
            values = (gradients.at_the_end(along) * end).sum(-1)[:size]
            return Attribution(method, output, values, score)
        if method == OCCLUSION:
            without = self.scores_where(batch, ~np.eye(size, dtype=bool), output.number)
            return replace(told, values=score - without)
        weights = np.asarray(self._attention(self.state, batch), np.float64)[:, 0, :, :size, :size]
        values = rolled_out(weights, first=cast(BertClassifier, self.trained.model).pool == "cls")
        return Attribution(method, None, values, score).with_note("attention sees no classes: values have no sign")

    def units(self, example: Text, method: str, output: Output) -> Units:
        """The tokens of a text, or its n-grams, but for those that all texts have."""
        columns, _ = text_batches.encode_texts(self.tokenizer, [example], self.features, warn=False)
        batch = self.batch(columns, 0)
        size = int(batch["lengths"][0])
        own = np.flatnonzero(~np.isin(batch["inputs"][0, :size], self._kept))

        def ask(kept: np.ndarray) -> np.ndarray:
            whole = np.ones((len(kept), size), bool)
            whole[:, own] = kept
            return self.scores_where(batch, whole, output.number)

        return Units(self.attribute(batch, method, output).values[own], ask)

    def randomised(self) -> Self:
        other = copy.copy(self)
        other.trained = self.trained.randomised()
        other.state = nnx.split(other.trained.model)[1]
        return other

    # ------------------------------------------------------------------------------------------------- the model asked

    def vectors(self, batch: Columns) -> Float[np.ndarray, "length width"]:
        return np.asarray(self._looked_up(self.state, batch["inputs"])[0], np.float32)

    def blank(self, batch: Columns) -> Float[np.ndarray, "length width"]:
        """What the model reads where all tokens of the text are left out, but for those that the tokenizer adds."""
        tokens = batch["inputs"]
        blank = np.asarray(self._blank(self.state, tokens)[0], np.float32)
        return np.where(np.isin(tokens[0], self._kept)[:, None], self.vectors(batch), blank)

    @property
    def _kept(self) -> list[int]:
        """Tokens that are never left out: those that all texts have."""
        return [0] if isinstance(self.tokenizer, Ngrams) else [self.marks["cls"], self.marks["sep"]]

    def scores(
        self, batch: Columns, vectors: Float[np.ndarray, "points length width"], number: int
    ) -> Float[np.ndarray, " points"]:
        """The output of a batch of one text where the model reads other vectors, for each of some."""

        def block(rows: Int[np.ndarray, " n"]) -> np.ndarray:
            return np.asarray(self._scores(self.state, batch, vectors[rows], number))

        return gradients.in_blocks(len(vectors), block)

    def scores_where(self, batch: Columns, kept: np.ndarray, number: int) -> Float[np.ndarray, " points"]:
        """The output where some tokens are left out, for each of [points, tokens], True for those that are kept."""
        end, start = self.vectors(batch), self.blank(batch)
        whole = np.ones((len(kept), len(end)), bool)
        whole[:, : kept.shape[1]] = kept

        def block(rows: Int[np.ndarray, " n"]) -> np.ndarray:
            return np.asarray(self._scores(self.state, batch, np.where(whole[rows][..., None], end, start), number))

        return gradients.in_blocks(len(kept), block)

    def _outputs(self, state: Tree, batch: Batch, vectors: Array) -> Array:
        task, model = cast(Any, self.trained.task), nnx.merge(self._structure, state)
        repeated = {name: jnp.repeat(column, len(vectors), 0) for name, column in batch.items()}
        return cast(Array, task.outputs(model, repeated, vectors=vectors))

    @cached_property
    def _scores(self) -> Callable[..., Array]:
        classes = len(self.trained.classes)
        return jax.jit(lambda s, batch, vectors, number: score_of(self._outputs(s, batch, vectors), number, classes))

    @cached_property
    def _along(self) -> Callable[..., Array]:
        classes = len(self.trained.classes)

        def along(
            state: Tree, batch: Batch, start: Array, end: Array, places: Array, weights: Array, number: Array
        ) -> Array:
            def total(vectors: Array) -> Array:
                return jnp.vdot(weights, score_of(self._outputs(state, batch, vectors), number, classes))

            gradient: Array = jax.grad(total)(start + places[:, None, None] * (end - start))
            return gradient.astype(jnp.float32).sum(0)

        return jax.jit(along)

    @cached_property
    def _looked_up(self) -> Callable[..., Array]:
        return jax.jit(lambda state, tokens: cast(ReadsVectors, nnx.merge(self._structure, state)).look_up(tokens))

    @cached_property
    def _blank(self) -> Callable[..., Array]:
        padding = self.marks.get("pad", 0)

        def blank(state: Tree, tokens: Array) -> Array:
            return cast(ReadsVectors, nnx.merge(self._structure, state)).blank(tokens, padding)

        return jax.jit(blank)

    @cached_property
    def _attention(self) -> Callable[..., Array]:
        def attention(state: Tree, batch: Batch) -> Array:
            encoder = cast(BertClassifier, nnx.merge(self._structure, state)).encoder
            return encoder.attention(batch["inputs"], batch["lengths"], batch["segment_start"])

        return jax.jit(attention)


def rolled_out(
    weights: Float[np.ndarray, "layers heads length length"], *, first: bool
) -> Float[np.ndarray, " length"]:
    """Attention rollout (Abnar & Zuidema 2020): the product over layers of the mean attention, half of which is the
    token's own.

    Args:
        weights: of each layer and head; rows add up to 1.
        first: whether the first token alone is read by the output, else the mean of all.
    """
    size = weights.shape[-1]
    flow = np.eye(size)
    for layer in weights.mean(1):
        flow = (0.5 * layer + 0.5 * np.eye(size)) @ flow
    return np.asarray(flow[0] if first else flow.mean(0))
