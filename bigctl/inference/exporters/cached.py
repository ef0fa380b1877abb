"""A language model that goes on where it was: keys and values of the tokens before are inputs, and those of all of them
outputs, named as Optimum does (`past_key_values.0.key`, `present.0.key`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from bigctl.errors import ConfigError, RunError
from bigctl.generation.decoding import Batch
from bigctl.generation.options import GenerationOptions
from bigctl.inference.exporters.agreement import TOLERANCE
from bigctl.inference.exporters.network import Arrays, Network
from bigctl.inference.trained import TrainedRun
from bigctl.models.decoder import Decoder

PAST, PRESENT = "past_key_values", "present"
TEXT = 64
"""Tokens that are written once more by the copy."""
_PROMPT = 8


def require(trained: TrainedRun) -> None:
    """Raises ConfigError for a run that is no language model."""
    if trained.features.kind != "stream":
        what = f"keys and values are kept by language models, recipe={trained.config.recipe.kind} is none"
        raise ConfigError(what, where="--cache", hint="leave --cache out")


def of(trained: TrainedRun) -> Network:
    """The model of a run, with a cache. Its examples are a token after a window, and windows with nothing before."""
    plain = Network.of(trained)

    def function(weights: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        model = cast(Decoder, plain.model(weights))
        parts = ("key", "value")
        past = [{part: inputs[f"{PAST}.{n}.{part}"] for part in parts} for n in range(len(model.layers))]
        hidden, cache = model.extend(inputs["inputs"], past, None)
        logits = model.logits(hidden)[..., : model.vocab_size].astype(jnp.float32)
        present = {f"{PRESENT}.{n}.{part}": each[part] for n, each in enumerate(cache) for part in parts}
        return {"logits": logits, **present}

    model = cast(Decoder, jax.eval_shape(plain.model, plain.weight_shapes))
    batch, length, past = export.symbolic_shape("batch, length, past")
    inputs = {"inputs": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    for n in range(len(model.layers)):
        for part in ("key", "value"):
            shape = (batch, model.groups, past, model.depth)
            inputs[f"{PAST}.{n}.{part}"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    network = dataclasses.replace(plain, function=function, inputs=inputs, batches=[])
    windows = [network.given(each) for each in plain.batches]
    run = network.copy(network.weights)
    begun = run({**windows[0], "inputs": windows[0]["inputs"][:, :-1]})
    after = {"inputs": windows[0]["inputs"][:, -1:], **as_past(begun)}
    return dataclasses.replace(network, batches=[after, *windows], checked=f"{plain.checked}, with and without a past")


def as_past(outputs: Arrays) -> Arrays:
    """What came out, as what goes in next."""
    return {
        name.replace(PRESENT, PAST, 1): values for name, values in outputs.items() if name.startswith(f"{PRESENT}.")
    }


def require_same_text(trained: TrainedRun, network: Network, run: Callable[[Arrays], Arrays], where: str) -> str:
    """Says that the copy writes what `bigctl generate` does, the likeliest token each time.

    Raises:
        RunError: for another token, where the run's two likeliest are not as good as equal.
    """
    known = trained.language_model
    prompt = [int(token) for token in network.batches[-1]["inputs"][0][:_PROMPT]]
    count = min(TEXT, trained.language_model.model.context - len(prompt))
    if count < 1:
        return f"no text was compared, as the model sees {len(prompt)} tokens"
    settings = GenerationOptions(max_new_tokens=count, temperature=0)
    batch = Batch(known.model, [prompt], settings, end=known.end, vocab=known.vocab, never=known.never)
    while batch.growing:
        batch.advance()
    expected = batch.tokens[0][len(prompt) :]
    given = network.given({"inputs": np.array([prompt], np.int32)})
    for place, token in enumerate(expected):
        outputs = run(given)
        logits = outputs["logits"][0, -1][: known.vocab].copy()
        logits[list(known.never)] = -np.inf
        if logits[token] < logits.max() - 2 * TOLERANCE * np.abs(outputs["logits"]).max():
            what = f"writes another text than `bigctl generate` from token {place + 1} on"
            raise RunError(what, where=where, hint="nothing was written; this is a mistake in bigctl: please report it")
        given = {"inputs": np.array([[token]], np.int32), **as_past(outputs)}
    return f"the same {len(expected)} tokens as `bigctl generate --temperature 0` after {len(prompt)} of validation"
