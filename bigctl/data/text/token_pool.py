"""Blocks of text -> tokens, in order, by several processes or in this one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from bigctl.data.text.stream_encoding import StreamEncoder
from bigctl.data.text.token_process import COUNT, Pieces, read_exactly, write_pieces
from bigctl.data.text.token_writer import Block
from bigctl.errors import DataError

MOST = 32
"""Processes that one that reads and writes keeps busy."""

_AT_ONCE = 2
"""Blocks that a process is given at once: the next one lies there when it is done with one."""

_PIPE = 2**20
"""Bytes that may wait on the way to a process, and from it."""


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
            if len(waiting) > (_AT_ONCE + 1) * workers:
                done, tokens = waiting.popleft()
                yield done, tokens.result()
        while waiting:
            done, tokens = waiting.popleft()
            yield done, tokens.result()
    finally:
        pool.close()


class _Process(NamedTuple):
    """One of them. Whoever writes gets `reading` before letting go of `writing`, so that answers come in order."""

    running: subprocess.Popen[bytes]
    writing: threading.Lock
    reading: threading.Lock

    @classmethod
    def start(cls, command: Sequence[str]) -> _Process:
        """Raises OSError."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends them
        )  # fmt: skip
        for stream in (running.stdin, running.stdout):
            _widen(cast(IO[bytes], stream))
        return cls(running, threading.Lock(), threading.Lock())


class _Processes:
    """Processes that wait for blocks, and threads that speak to them."""

    def __init__(self, tokenizer_file: Path, dtype: np.dtype, count: int):
        self._dtype, self._free = dtype, queue.SimpleQueue[_Process]()
        self._all: list[_Process] = []
        command = [sys.executable, "-P", "-m", "bigctl.data.text.token_process", str(tokenizer_file)]
        try:
            for _ in range(count):
                self._all.append(_Process.start(command))
        except OSError as error:
            self.close()
            what = f"a process that makes tokens cannot be started: {error.strerror}"
            raise DataError(what, where="data.workers", hint="set data.workers=1") from error
        for process in self._all * _AT_ONCE:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(count * _AT_ONCE, thread_name_prefix="tokens")

    def submit(self, block: Pieces) -> Future[np.ndarray]:
        return self._threads.submit(self._exchange, block)

    def _exchange(self, block: Pieces) -> np.ndarray:
        process = self._free.get()
        try:
            with process.writing:
                write_pieces(cast(IO[bytes], process.running.stdin), block)
                process.reading.acquire()
            try:
                return self._answer(cast(IO[bytes], process.running.stdout))
            finally:
                process.reading.release()
        except (OSError, EOFError, ValueError) as error:
            raise _ended(process.running) from error
        finally:
            self._free.put(process)

    def _answer(self, stream: IO[bytes]) -> np.ndarray:
        (count,) = COUNT.unpack(read_exactly(stream, COUNT.size))
        if count < 0:
            (length,) = COUNT.unpack(read_exactly(stream, COUNT.size))
            raise DataError(read_exactly(stream, length).decode(), where="recipe.tokenizer", hint="is it whole?")
        return np.frombuffer(read_exactly(stream, count * self._dtype.itemsize), self._dtype)

    def close(self) -> None:
        """End all of them at once."""
        for process in self._all:
            process.running.kill()
        if hasattr(self, "_threads"):
            self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._all:
            process.running.wait()
            for stream in (process.running.stdin, process.running.stdout):
                with contextlib.suppress(OSError):
                    stream.close()  # type: ignore[union-attr]


def _widen(pipe: IO[bytes]) -> None:
    """Let a block lie in a pipe, where the system can do that."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)


def _ended(process: subprocess.Popen[bytes]) -> DataError:
    """What to say of a process that is gone."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    how = f"by signal {-process.returncode}" if (process.returncode or 0) < 0 else f"with {process.returncode}"
    hint = "is there enough memory? data.workers=1 needs the least; what was prepared is kept"
    return DataError(f"a process that makes tokens has ended {how}", where="data", hint=hint)
