"""A language model that is served: what is asked of it goes to its engine, text comes back in pieces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from bigctl.generation.generate import LanguageModel, Piece
from bigctl.generation.options import GenerationOptions
from bigctl.serving.batching import QueueFull
from bigctl.serving.engine import Engine, Job

SLOTS = 8
"""Texts at once."""


class Writing:
    """A language model with a queue before it.

    A request's text is that of `bigctl generate` with the same prompts, options and seed, whatever else is asked.

    Args:
        name: in requests.
        model: what is served; another one may take its place, for later requests.
        longest: requests that may wait for a slot.
        slots: texts that are written at once.

    Attributes:
        waiting: requests that wait or are written.
        tokens: how many were written so far.
    """

    def __init__(self, name: str, model: LanguageModel, longest: int, slots: int = SLOTS):
        self.name, self.model, self._longest = name, model, longest
        self.tokens = 0
        self._jobs: list[Job] = []
        self._engine = Engine(slots)

    @property
    def context(self) -> int:
        """Tokens that the model sees at most."""
        return self.model.model.context

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    @property
    def reused(self) -> int:
        """Tokens of prompts that were in a slot's cache already, so far."""
        return self._engine.reused

    def warm_up(self) -> None:
        """Compile what requests will need."""
        self._engine.warm_up(self.model)

    async def pieces(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        logprobs: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of all texts as they come; closing the iterator ends the writing.

        Args:
            model: what was served when the request came.
            prompts: tokens, from its `encode`.
            options: how to write.
            logprobs: whether pieces have log-probabilities.

        Raises:
            QueueFull: where too many requests wait.
        """
        queued = sum(not job.begun for job in self._jobs)
        if queued >= self._longest:
            raise QueueFull(f"{queued} requests wait already")
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

        def tell(item: Piece | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(found.put_nowait, item)

        job = Job(model, prompts, options, logprobs, tell)
        self._jobs.append(job)
        try:
            self._engine.submit(job)
            while (item := await found.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.gone = True
            self._jobs.remove(job)

    def close(self) -> None:
        """End the thread, after its turn."""
        self._engine.close()
