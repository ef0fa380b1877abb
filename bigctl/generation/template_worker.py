"""A process of its own that renders chat templates, with bounds on its memory and its time.

A template is a program that comes with the weights. Jinja's sandbox keeps it away from files and from Python; that it
writes a text of ten gigabytes, or counts for ever, only the kernel can keep it from. `chat.render` starts this file as
a script: nothing of bigctl is imported here.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from typing import Any

MEMORY = 2**29
"""Bytes that the process may have."""
SECONDS = 2
"""Of computing, for one conversation."""
LONGEST = 2**22
"""Characters that a conversation may become."""


def main() -> None:
    """Requests and answers are lines of JSON."""
    environment, wrong = _environment()
    _limit(resource.RLIMIT_AS, MEMORY)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + SECONDS)
        try:
            request = json.loads(line)
            text = environment.from_string(request["template"]).render(**request["values"])
            answer = {"text": text} if len(text) <= LONGEST else {"error": f"it writes {len(text):,} characters"}
            del text
        except MemoryError:
            answer = {"error": f"it takes more than {MEMORY >> 20} MiB of memory"}
        except RecursionError:
            answer = {"error": "it calls itself without an end"}
        except wrong as error:
            answer = {"error": str(error)}
        try:
            content = json.dumps(answer)
        except MemoryError:
            content = json.dumps({"error": f"it takes more than {MEMORY >> 20} MiB of memory"})
        del answer
        print(content, flush=True)


def _environment() -> tuple[Any, tuple[type[Exception], ...]]:
    """Jinja as transformers has it, and what a template may raise."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    return environment, (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


def _limit(what: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower one is in force, or there is none on this system
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
