"""Texts that grow side by side have the bits that each has alone."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import random
import threading
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.generation.generate import LanguageModel, Piece
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slots import New, Slots
from bigctl.models.decoder import Decoder
from bigctl.serving.batching import QueueFull
from bigctl.serving.engine import Engine, Job
from bigctl.serving.writing import Writing
from tests.generation.test_generate import decoder as small
from tests.generation.test_generate import of_bytes

CONTEXT = 256


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    tokenizer = of_bytes()
    vocab = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return LanguageModel(small(vocab, layers=1, context=CONTEXT), tokenizer, name="bytes")


@pytest.fixture(scope="module")
def slots(model: LanguageModel) -> Slots:
    found = Slots(model.model, 4, few=True)
    found.prepare()
    return found


def grown(slots: Slots, number: int) -> New:
    tokens, logprobs, finish = [], [], None
    while slots.slots[number].unread:
        slots.read(number)
    while finish is None:
        new = slots.write([number])[number]
        tokens, logprobs, finish = tokens + new.tokens, logprobs + new.logprobs, new.finish
    slots.free(number)
    return New(tokens, finish, logprobs)


def asked(number: int) -> GenerationOptions:
    rules = [{}, {"top_k": 5}, {"top_p": 0.9, "min_p": 0.01}, {"repetition_penalty": 1.3}, {"temperature": 0.0}]
    return GenerationOptions(
        **{"temperature": 1.0, "seed": number, "max_new_tokens": 20 + 7 * number, **rules[number % 5]}
    )


def prompt(number: int) -> list[int]:
    length = (3, 20, 70, 130, 200)[number % 5]
    return np.random.default_rng(number).integers(0, 250, length).tolist()


def test_log_probabilities_are_those_of_the_whole_text_through_the_model(slots: Slots, model: LanguageModel) -> None:
    settings = GenerationOptions(temperature=1.0, top_k=3, max_new_tokens=12)
    slots.begin(0, prompt(2), settings, 0, logprobs=True)
    found = grown(slots, 0)
    text = jnp.array([prompt(2) + found.tokens])
    expected = jax.nn.log_softmax(model.model.logits(model.model(text)))[0, len(prompt(2)) - 1 : -1, : model.vocab]
    for row, token, said in zip(np.asarray(expected), found.tokens, found.logprobs, strict=True):
        np.testing.assert_allclose(said.token, row[token], atol=1e-4)
        np.testing.assert_allclose([value for _, value in said.likeliest], np.sort(row)[::-1][:20], atol=1e-4)
        np.testing.assert_allclose([row[which] for which, _ in said.likeliest], np.sort(row)[::-1][:20], atol=1e-4)


def test_what_a_slot_has_read_serves_the_next_text_without_a_bit_of_difference(slots: Slots) -> None:
    settings = GenerationOptions(temperature=1.0, max_new_tokens=10)
    same, other = prompt(4), [*prompt(4)[:140], 1, 2, 3, 4]
    slots.begin(1, same, settings, 0, logprobs=True)
    first = grown(slots, 1)
    assert slots.begin(1, same, settings, 0, logprobs=True) == 192
    assert grown(slots, 1) == first
    assert slots.begin(2, other, settings, 0, logprobs=True) == 128  # from another slot
    begun = grown(slots, 2)
    for slot in slots.slots:
        slot.kept = []
    assert slots.begin(3, other, settings, 0, logprobs=True) == 0
    assert grown(slots, 3) == begun


@pytest.mark.parametrize("together", [True, False])
def test_company_that_comes_and_goes_changes_no_bit(model: LanguageModel, together: bool) -> None:
    """Texts of all rules arrive at random; each is what `generate` writes, beyond the context too."""
    count = 12
    expected = []
    for number in range(count):
        batch = Slots(model.model, 1, len(prompt(number)) + asked(number).max_new_tokens)
        batch.begin(0, prompt(number), asked(number), 0)
        expected.append(grown(batch, 0).tokens)
    engine = Engine(4)
    engine.warm_up(model)
    assert engine._together  # which holds on every CPU that was tried; where it does not, the other case is used
    engine._together = engine._active[0].slots.together = together
    rng, found = random.Random(0), {}

    async def ask(number: int) -> None:
        await asyncio.sleep(rng.random() / 2)
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()
        tell = lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece)  # noqa: E731
        engine.submit(Job(model, [prompt(number)], asked(number), True, tell))
        said: list[Piece] = []
        while (piece := await pieces.get()) is not None:
            assert not isinstance(piece, Exception), piece
            said.append(piece)
        found[number] = [token for piece in said for token, _ in piece.logprobs]

    async def all_of_them() -> None:
        await asyncio.gather(*map(ask, range(count)))

    asyncio.run(all_of_them())
    engine.close()
    assert [found[number] for number in range(count)] == expected


def test_a_text_is_written_with_the_weights_that_were_served_when_it_was_asked_for(model: LanguageModel) -> None:
    """While others take their place, and whether it had begun or still waited."""
    newer = LanguageModel(perturbed(model.model), model.tokenizer, name="newer")
    options = GenerationOptions(temperature=1.0, seed=1, max_new_tokens=150)
    expected = [each.generate(["to be"], options)[0].text for each in (model, newer)]
    assert expected[0] != expected[1]
    said: list[list[str]] = [[] for _ in range(6)]
    ended = [threading.Event() for _ in said]

    def tell(number: int, piece: Piece | Exception | None) -> None:
        assert not isinstance(piece, Exception)
        said[number] += [] if piece is None else [piece.text]
        if piece is None:
            ended[number].set()

    engine = Engine(2)
    engine.warm_up(model)
    asked_of = [model, model, model, newer, newer, model]
    for number, which in enumerate(asked_of):
        engine.submit(Job(which, [which.encode("to be", options)], options, False, partial(tell, number)))
    assert all(event.wait(60) for event in ended)
    engine.close()
    assert ["".join(text) for text in said] == [expected[which is newer] for which in asked_of]


def perturbed(model: Any) -> Any:
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda each: each * 1.5, state))


def test_a_full_queue_and_a_client_that_leaves(model: LanguageModel) -> None:
    async def check() -> None:
        writing = Writing("bytes", model, 1, 1)
        options = dataclasses.replace(asked(0), max_new_tokens=10_000)
        first = writing.pieces(model, [prompt(0)], options)
        await anext(first)
        second = writing.pieces(model, [prompt(0)], asked(0))
        waits = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0.05)
        with pytest.raises(QueueFull):
            await anext(writing.pieces(model, [prompt(0)], asked(0)))
        await first.aclose()
        assert (await waits).tokens > 0
        await second.aclose()
        assert writing.waiting == 0
        writing.close()

    asyncio.run(check())


def test_where_there_is_no_room_for_slots_everybody_is_told_and_the_next_may_have_better_luck(
    model: LanguageModel,
) -> None:
    class Cramped(Engine):
        full = True

        def _slots(self, model: LanguageModel) -> Slots:
            if self.full:
                raise MemoryError("no room")
            return super()._slots(model)

    told: queue.SimpleQueue[Piece | Exception | None] = queue.SimpleQueue()
    engine = Cramped(2)
    options = GenerationOptions(max_new_tokens=2, temperature=0.0)
    for _ in range(3):
        engine.submit(Job(model, [prompt(0)], options, False, told.put))
    assert all(isinstance(told.get(timeout=60), MemoryError) for _ in range(3))
    engine.full = False
    engine.submit(Job(model, [prompt(0)], options, False, told.put))
    while (found := told.get(timeout=60)) is not None:
        assert isinstance(found, Piece)
    engine.close()


@pytest.mark.parametrize("width", [192, 576])
def test_sums_over_a_wide_row_are_made_row_by_row_too(width: int) -> None:
    """A norm or a softmax of two rows may be summed in another order than one of eight: SmolLM2 was written one text
    after the other for a last bit of its final norm."""
    config = schema.Llama(layers=1, width=width, heads=3, kv_heads=3, intermediate=128, context=64)
    found = Slots(Decoder(config, 5_000, rngs=nnx.Rngs(0)), 8, few=True)
    found.prepare()
    assert found.together


def test_weights_on_the_host_write_the_same(model: LanguageModel) -> None:
    """As samples are written while a training keeps its weights on several devices."""
    graphdef, state = nnx.split(model.model)
    host = dataclasses.replace(model, model=nnx.merge(graphdef, jax.tree.map(np.asarray, state)))
    settings = GenerationOptions(temperature=1.0, max_new_tokens=5)
    assert host.generate(["cat"], settings) == model.generate(["cat"], settings)
