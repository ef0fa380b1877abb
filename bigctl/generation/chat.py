"""The chat template of a model: messages to the text that it was trained to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigctl.errors import DataError, RunError


def render(template: str, messages: Sequence[Mapping[str, str]], **tokens: str) -> str:
    """The text of a conversation, up to where the answer begins.

    A template comes with the weights and is a program: it runs in Jinja's sandbox, as it does in transformers, with no
    way to files or attributes of Python's own.

    Args:
        template: of Jinja, as in tokenizer_config.json or a GGUF file.
        messages: each with `role` ("system", "user" or "assistant") and `content`.
        tokens: what templates know special tokens by, such as `bos_token`.

    Raises:
        DataError: where the template is broken, or refuses the messages.
        RunError: without the package jinja2.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise RunError("chat templates need the package jinja2", where="--chat", hint="pip install jinja2") from error

    def refuse(message: str) -> Any:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(messages=messages, add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"the chat template of the model fails: {error}", hint="generate without --chat") from error
