"""What each token of a prompt adds to the next one: integrated gradients, or gradient x input, on its embeddings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import ConfigError, DataError, RunError
from bigctl.inference import text_batches
from bigctl.inference.explaining import gradients
from bigctl.inference.explaining.asked import Attribution, Output
from bigctl.inference.explaining.faithfulness import Units
from bigctl.inference.explaining.text_tokens import Piece
from bigctl.inference.explaining.texts import GRADIENT, INTEGRATED, TextExplanation
from bigctl.inference.predictor import Predictor
from bigctl.models.decoder import Decoder
from bigctl.training.state import Tree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MULTIPLE = 16  # of which padded lengths are; what stands behind a text is not seen from within it


class LanguageExplainer:
    """Explains which token a language model puts next.

    Raises:
        RunError: if the model is none of `models/decoder.py`, or its tokenizer is not there.
    """

    baseline = "zeros in the place of each token's embedding, positions kept"

    def __init__(self, trained: Predictor):
        if not isinstance(trained.model, Decoder):
            what = (
                f"a run of recipe={trained.config.recipe.kind} with model={trained.config.model.kind} is not explained"
            )
            raise RunError(what, where=str(trained.run.path), hint="explain runs of gpt_lm, or of a classifier")
        self.trained = trained
        tokenizer = text_batches.run_tokenizer(trained.run, trained.features)
        assert not isinstance(tokenizer, Ngrams)  # which are no text
        self.tokenizer: Tokenizer = tokenizer
        self._structure, self.state = nnx.split(trained.model)

    def methods(self) -> tuple[str, ...]:
        return INTEGRATED, GRADIENT

    def explain(
        self, inputs: Sequence[str], method: str = INTEGRATED, wanted: str | None = None
    ) -> list[TextExplanation]:
        """One explanation a prompt, of the likeliest next token, or of one that is wanted.

        Raises:
            ConfigError: for a next token that is none.
            DataError: for a prompt of no tokens.
        """
        return [self._explained(str(text), method, wanted) for text in inputs]

    def _explained(self, text: str, method: str, wanted: str | None) -> TextExplanation:
        tokens, pieces, cut = self._encoded(text)
        logits = np.asarray(self._logits(self.state, *self._padded(tokens)), np.float64)
        number = int(logits.argmax()) if wanted is None else self._number(wanted)
        chances = np.exp(logits - logits.max())
        output = Output(number, self.tokenizer.decode([number], skip_special_tokens=False), "log-probability")
        likeliest = self.tokenizer.decode([int(logits.argmax())], skip_special_tokens=False)
        attribution = self.attribute(tokens, method, output)
        if cut:
            context = cast(Decoder, self.trained.model).context
            attribution = attribution.with_note(f"the prompt is longer than the model takes: its last {context} tokens")
        told = {"label": likeliest, "probability": float(chances.max() / chances.sum())}
        return TextExplanation(attribution, told, texts=(text,), pieces=tuple(pieces), cut=cut)

    def _encoded(self, text: str) -> tuple[np.ndarray, list[Piece], bool]:
        """Tokens int32 [length], the pieces that they stand for, and whether the prompt was cut at its beginning."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        if not found.ids:
            raise DataError("the prompt has no tokens", where="--text", hint="write one")
        context = cast(Decoder, self.trained.model).context
        placed = zip(found.tokens, found.offsets, strict=True)
        pieces = [Piece(text[start:end] or token, 0, start, end) for token, (start, end) in placed]
        return np.array(found.ids[-context:], np.int32), pieces[-context:], len(found.ids) > context

    def _number(self, wanted: str) -> int:
        numbers = self.tokenizer.encode(wanted, add_special_tokens=False).ids
        if len(numbers) != 1:
            shown = [self.tokenizer.decode([number]) for number in numbers[:5]]
            hint = f"give one token, such as {shown[0]!r}" if shown else "give one token"
            raise ConfigError(f"{wanted!r} is {len(numbers)} tokens", where="--class", hint=hint)
        return int(numbers[0])

    def attribute(self, tokens: np.ndarray, method: str, output: Output) -> Attribution:
        """What each token adds to the log-probability of the next one; `values` [tokens]."""
        padded, last = self._padded(tokens)
        end = np.asarray(self._looked_up(self.state, padded), np.float32)
        start = np.zeros_like(end)
        score, base = (float(v) for v in self._scores(self.state, padded, last, np.stack([end, start]), output.number))

        def along(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
            given = np.asarray(places, np.float32), np.asarray(weights, np.float32)
            return np.asarray(self._along(self.state, padded, last, end, *given, output.number))

        told = Attribution(method, output, np.empty(0), score, self.baseline, base)
        if method == INTEGRATED:
            found = gradients.integrated(along, start, end, score - base)
            return told.integrated(found.values.sum(-1)[: len(tokens)], found)
        values = (gradients.at_the_end(along) * end).sum(-1)[: len(tokens)]
        return replace(told, values=values, baseline=None, baseline_score=None)

    def units(self, example: str, method: str, output: Output) -> Units:
        """The tokens of a prompt."""
        tokens, _, _ = self._encoded(str(example))
        padded, last = self._padded(tokens)
        end = np.asarray(self._looked_up(self.state, padded), np.float32)

        def ask(kept: np.ndarray) -> np.ndarray:
            whole = np.ones((len(kept), len(end)), bool)
            whole[:, : len(tokens)] = kept

            def block(rows: np.ndarray) -> np.ndarray:
                vectors = np.where(whole[rows][..., None], end, np.float32(0))
                return np.asarray(self._scores(self.state, padded, last, vectors, output.number))

            return gradients.in_blocks(len(kept), block)

        return Units(self.attribute(tokens, method, output).values, ask)

    def randomised(self) -> Self:
        other = copy.copy(self)
        other.trained = self.trained.randomised()
        other.state = nnx.split(other.trained.model)[1]
        return other

    # ------------------------------------------------------------------------------------------------- the model asked

    def _padded(self, tokens: np.ndarray) -> tuple[np.ndarray, int]:
        """Tokens at one of few lengths, and the place of the last one."""
        context = cast(Decoder, self.trained.model).context
        length = min(-(-len(tokens) // _MULTIPLE) * _MULTIPLE, max(context, len(tokens)))
        return np.pad(tokens, (0, length - len(tokens))), len(tokens) - 1

    def _next(self, state: Tree, tokens: Array, last: Array, vectors: Array) -> Array:
        """Logits of the next token, float32 [points, vocab]."""
        model = nnx.merge(self._structure, state)
        hidden = model(jnp.broadcast_to(tokens, (len(vectors), len(tokens))), vectors=vectors)
        at = jax.lax.dynamic_index_in_dim(hidden, last, 1, keepdims=False)
        found: Array = model.logits(at)
        return found.astype(jnp.float32)

    def _score(self, state: Tree, tokens: Array, last: Array, vectors: Array, number: Array) -> Array:
        return jnp.take(jax.nn.log_softmax(self._next(state, tokens, last, vectors)), number, axis=1)

    @cached_property
    def _logits(self) -> Callable[..., Array]:
        def logits(state: Tree, tokens: Array, last: Array) -> Array:
            vectors = nnx.merge(self._structure, state).token.embedding[...][tokens]
            return self._next(state, tokens, last, vectors[None])[0]

        return jax.jit(logits)

    @cached_property
    def _looked_up(self) -> Callable[..., Array]:
        return jax.jit(lambda state, tokens: nnx.merge(self._structure, state).token.embedding[...][tokens])

    @cached_property
    def _scores(self) -> Callable[..., Array]:
        return jax.jit(self._score)

    @cached_property
    def _along(self) -> Callable[..., Array]:
        def along(
            state: Tree, tokens: Array, last: Array, end: Array, places: Array, weights: Array, number: Array
        ) -> Array:
            def total(vectors: Array) -> Array:
                return jnp.vdot(weights, self._score(state, tokens, last, vectors, number))

            gradient: Array = jax.grad(total)(places[:, None, None] * end)
            return gradient.astype(jnp.float32).sum(0)

        return jax.jit(along)
