"""Work that is done ahead of its use, by threads, and used in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 2  # while the last examples of a batch are read, those of the next one are begun


def prefetched(
    work: Iterator[Callable[[], T]], depth: int = 3, told: Callable[[int, Future[T]], None] = lambda ready, result: None
) -> Generator[T]:
    """The results of `work` in its order, up to `depth` of them made ahead.

    Work is drawn in the thread that asks for results and done in others. Whatever it raises is raised in its place.
    Before each is waited for and given, `told` hears how many are made, and sees it. Closing the generator drops what
    is made, and waits for what is being made.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prefetch")
    ahead: deque[Future[T]] = deque()
    try:
        for each in work:
            ahead.append(pool.submit(each))
            if len(ahead) > depth:
                told(sum(made.done() for made in ahead), ahead[0])
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
