"""Bodies that are still coming in: a client that stalls in the middle of one is given up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]

STALL = 60.0
"""Seconds that a client may send nothing of a body that it has begun."""
GRACE = 2.0
"""Seconds that bodies have to come in once the server is told to end."""


class Late(Exception):
    """A body has not come in in time.

    Attributes:
        ending: whether that is because the server ends.
    """

    def __init__(self, ending: bool):
        super().__init__()
        self.ending = ending


class Deliveries:
    """The bodies that are coming in; of the event loop's thread alone."""

    def __init__(self) -> None:
        self._coming: set[asyncio.Timeout] = set()
        self._last = math.inf

    async def next(self, receive: Callable[[], Awaitable[Message]]) -> Message:
        """The next part of a body. Raises Late."""
        until = min(asyncio.get_running_loop().time() + STALL, self._last)
        try:
            async with asyncio.timeout_at(until) as waiting:
                self._coming.add(waiting)
                try:
                    return await receive()
                finally:
                    self._coming.discard(waiting)
        except TimeoutError:
            raise Late(math.isfinite(self._last)) from None

    def end(self) -> None:
        """The server ends: what has not come in soon is given up."""
        self._last = asyncio.get_running_loop().time() + GRACE
        for waiting in self._coming:
            waiting.reschedule(min(self._last, waiting.when() or math.inf))
