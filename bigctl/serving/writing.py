"""A language model that is served: requests one after another in a thread of its own, text in pieces as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

from bigctl.generation.generate import LanguageModel, Piece, Prompt
from bigctl.generation.options import GenerationOptions
from bigctl.serving.batching import QueueFull


class Writing:
    """A language model with a queue before it.

    A request's text is that of `bigctl generate` with the same prompts, options and seed, whatever else is asked.

    Attributes:
        name: in requests.
        waiting: requests that wait or are written.
        tokens: how many were written so far.
    """

    def __init__(self, name: str, model: LanguageModel, longest: int):
        self.name, self.model, self._longest = name, model, longest
        self.waiting = self.tokens = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bigctl-write")

    @property
    def context(self) -> int:
        """Tokens that the model sees at most."""
        return self.model.model.context

    def warm_up(self) -> None:
        """Compile what the first requests will need, with the random choice that most of them ask for."""
        token = self.model.tokenizer.decode([max(0, len(self.model.tokenizer.get_vocab()) // 2)]) or "a"
        self.model.generate([token], GenerationOptions(max_new_tokens=8, truncate=True))

    async def pieces(self, prompts: Sequence[Prompt], options: GenerationOptions) -> AsyncGenerator[Piece, None]:
        """Pieces of all texts as they come; closing the iterator ends the writing.

        Raises:
            QueueFull: where too many requests wait.
            BigctlError: as `LanguageModel.stream`.
        """
        if self.waiting >= self._longest:
            raise QueueFull(f"{self.waiting} requests wait already")
        loop, gone = asyncio.get_running_loop(), threading.Event()
        found: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

        def tell(item: Piece | Exception | None) -> None:
            if not gone.is_set():
                loop.call_soon_threadsafe(found.put_nowait, item)

        def write() -> None:
            try:
                if gone.is_set():
                    return
                for piece in self.model.stream(prompts, options):
                    if gone.is_set():
                        return
                    tell(piece)
            except Exception as error:
                tell(error)
            finally:
                tell(None)

        self.waiting += 1
        working = self._thread.submit(write)
        try:
            while (item := await found.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            gone.set()
            working.cancel()
            self.waiting -= 1

    def close(self) -> None:
        """End the thread once what it writes is written."""
        self._thread.shutdown(wait=False, cancel_futures=True)
