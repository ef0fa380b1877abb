"""The chat template of a model: messages to the text that it was trained to answer."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from bigctl.errors import DataError, RunError
from bigctl.generation import template_worker

_PATIENCE = 12 * template_worker.SECONDS  # on a clock: a busy machine gives a process little of its time
_LONGEST = 16 * template_worker.LONGEST  # bytes of JSON for it


def render(template: str, messages: Sequence[Mapping[str, str]], **tokens: str) -> str:
    """The text of a conversation, up to where the answer begins.

    A template comes with the weights and is a program: it runs in Jinja's sandbox, as it does in transformers, with no
    way to files or attributes of Python's own, and in a process of its own that is bounded in memory and time.

    Args:
        template: of Jinja, as in tokenizer_config.json or a GGUF file.
        messages: each with `role` ("system", "user" or "assistant") and `content`.
        tokens: what templates know special tokens by, such as `bos_token`.

    Raises:
        DataError: where the template is broken, refuses the messages, or takes too much memory or time.
        RunError: without the package jinja2.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise RunError("chat templates need the package jinja2", where="--chat", hint="pip install jinja2")
    values = {**tokens, "messages": [dict(message) for message in messages], "add_generation_prompt": True}
    answer = _WORKER.ask({"template": template, "values": values})
    if "text" not in answer:
        raise DataError(f"the chat template of the model fails: {answer['error']}", hint="generate without --chat")
    return answer["text"]


class _Worker:
    """The process that renders: started when it is needed first, ended with this one, and when it takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, object]) -> dict[str, str]:
        """The text, or the error, of a conversation."""
        with self._lock:
            process = self._running()
            try:
                answer: dict[str, str] = json.loads(_exchange(process, json.dumps(request).encode() + b"\n"))
                return answer
            except (OSError, ValueError):
                code = process.poll()
                self._end()
                if code not in (None, -signal.SIGXCPU, -signal.SIGKILL):
                    return {"error": f"the process that renders it has ended ({code})"}
                return {"error": f"it takes more than {template_worker.SECONDS} s, or writes without an end"}
            except BaseException:  # Ctrl-C: the next conversation begins with a process that waits for it
                self._end()
                raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", template_worker.__file__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that answers another one. Raises TimeoutError, or OSError where the process has ended."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request)
    process.stdin.flush()
    deadline, answer = time.monotonic() + _PATIENCE, b""
    while not answer.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or len(answer) > _LONGEST:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 2**16)
        if not part:
            process.wait()
            raise OSError("the process has ended")
        answer += part
    return answer


_WORKER = _Worker()
