"""Requests that wait -> batches: one worker takes what is there, up to a bound, and never waits for more to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from bigctl.errors import BigctlError

Given = TypeVar("Given", bound=Sized)
Found = TypeVar("Found")
_RETRY = 1


class QueueFull(BigctlError):
    """More requests wait than may; the client is to come again after so many seconds."""

    retry_after = _RETRY


@dataclass
class _Job(Generic[Given, Found]):
    given: Given
    answer: asyncio.Future[list[Found]]


class Batcher(Generic[Given, Found]):
    """A queue in front of a function that runs in a thread of its own, one call at a time.

    Args:
        answer: several requests -> for each what is found of its examples, or what is wrong with it.
        most: examples a call, unless one request alone has more.
        waiting: requests that may wait.
    """

    def __init__(self, answer: Callable[[Sequence[Given]], list[list[Found] | Exception]], most: int, waiting: int):
        self._answer, self._most, self._longest = answer, most, waiting
        self._waiting: deque[_Job[Given, Found]] = deque()
        self._come = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bigctl-serve")
        self.batches = self.examples = 0

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def ask(self, given: Given) -> list[Found]:
        """What is found of each example. Raises QueueFull, or what is wrong with the request."""
        if len(self._waiting) >= self._longest:
            raise QueueFull(f"{len(self._waiting)} requests wait already", hint=f"try again in {_RETRY} s")
        job: _Job[Given, Found] = _Job(given, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._come.set()
        return await job.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._come.wait()
            self._come.clear()
            while jobs := self._taken():
                try:
                    found = await loop.run_in_executor(self._thread, self._answer, [job.given for job in jobs])
                except Exception as error:
                    found = [error] * len(jobs)
                self.batches += 1
                for job, each in zip(jobs, found, strict=True):
                    if job.answer.done():  # the client has gone
                        continue
                    if isinstance(each, Exception):
                        job.answer.set_exception(each)
                    else:
                        self.examples += len(each)
                        job.answer.set_result(each)

    def close(self) -> None:
        """End the thread once its call is over."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _taken(self) -> list[_Job[Given, Found]]:
        jobs: list[_Job[Given, Found]] = []
        count = 0
        while self._waiting and (not jobs or count + len(self._waiting[0].given) <= self._most):
            job = self._waiting.popleft()
            if not job.answer.done():
                jobs.append(job)
                count += len(job.given)
        return jobs
