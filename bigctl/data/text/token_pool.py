"""Blocks of text -> tokens, in order, by several processes or in this one."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

import numpy as np

from bigctl.data.text.stream_encoding import StreamEncoder
from bigctl.data.text.token_process import COUNT, Pieces, read_exactly, write_pieces
from bigctl.data.text.token_writer import Block
from bigctl.errors import DataError

MOST = 32
"""Processes that one that reads and writes keeps busy."""


def usual_workers() -> int:
    """As many processes as there are cores that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def encode_blocks(
    encoder: StreamEncoder, tokenizer_file: Path, blocks: Iterable[Block], workers: int
) -> Iterator[tuple[Block, np.ndarray]]:
    """Each block with its tokens, in order; a few blocks for each process are in memory.

    Args:
        encoder: of the tokenizer, for this process.
        tokenizer_file: its tokenizer.json, for others.
        blocks: of text.
        workers: processes; with 1, it is this one.

    Raises:
        DataError: where a process cannot be started, or ends.
    """
    if workers <= 1:
        yield from ((block, encoder.encode_pieces(block.pieces)) for block in blocks)
        return
    pool = _Processes(tokenizer_file, encoder.dtype, workers)
    waiting: deque[tuple[Block, Future[np.ndarray]]] = deque()
    try:
        for block in blocks:
            waiting.append((block, pool.submit(block.pieces)))
            if len(waiting) > 2 * workers:
                done, tokens = waiting.popleft()
                yield done, tokens.result()
        while waiting:
            done, tokens = waiting.popleft()
            yield done, tokens.result()
    finally:
        pool.close()


class _Processes:
    """Processes that wait for blocks, and a thread for each that speaks to it."""

    def __init__(self, tokenizer_file: Path, dtype: np.dtype, count: int):
        self._dtype, self._idle = dtype, queue.SimpleQueue[subprocess.Popen[bytes]]()
        self._all: list[subprocess.Popen[bytes]] = []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-P", "-m", "bigctl.data.text.token_process", str(tokenizer_file)]
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )  # fmt: skip
                self._all.append(process)
                self._idle.put(process)
        except OSError as error:
            self.close()
            what = f"a process that makes tokens cannot be started: {error.strerror}"
            raise DataError(what, where="data.workers", hint="set data.workers=1") from error
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tokens")

    def submit(self, block: Pieces) -> Future[np.ndarray]:
        return self._threads.submit(self._exchange, block)

    def _exchange(self, block: Pieces) -> np.ndarray:
        process = self._idle.get()
        try:
            write_pieces(cast(IO[bytes], process.stdin), block)
            answers = cast(IO[bytes], process.stdout)
            (count,) = COUNT.unpack(read_exactly(answers, COUNT.size))
            if count < 0:
                (length,) = COUNT.unpack(read_exactly(answers, COUNT.size))
                raise DataError(read_exactly(answers, length).decode(), where="recipe.tokenizer", hint="is it whole?")
            return np.frombuffer(read_exactly(answers, count * self._dtype.itemsize), self._dtype)
        except (OSError, EOFError, ValueError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            how = f"by signal {-process.returncode}" if (process.returncode or 0) < 0 else f"with {process.returncode}"
            hint = "is there enough memory? data.workers=1 needs the least; what was prepared is kept"
            raise DataError(f"a process that makes tokens has ended {how}", where="data", hint=hint) from error
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End all of them at once."""
        for process in self._all:
            process.kill()
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
