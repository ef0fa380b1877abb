"""Requests of OpenAI's completions and chat completions -> prompts and options; unknown keys are refused."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bigctl.errors import ConfigError
from bigctl.generation.generate import Prompt
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slot_programs import LIKELIEST
from bigctl.serving.bodies import BadRequest

_NUMBERS = {
    "temperature": float, "top_p": float, "seed": int, "n": int, "max_tokens": int, "max_completion_tokens": int,
    "top_k": int, "min_p": float, "repetition_penalty": float,
}  # fmt: skip
"""Numbers that options are made of; the last three are none of OpenAI's."""
_OURS = {"n": "num_samples", "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (None, False), "suffix": (None, ""),
    "best_of": (None, 1), "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}), "tools": (None, []), "tool_choice": (None, "none", "auto"),
    "store": (None, False),
}  # fmt: skip
"""What OpenAI's clients may send and is not supported: with the values that ask for nothing."""
_IGNORED = {"user", "metadata"}
_ROLES = ("system", "user", "assistant")
DEFAULT_TOKENS = {"completion": 16, "chat": 256}
"""Of `max_tokens`."""
_MOST_SAMPLES, _MOST_STOPS = 128, 16


@dataclass(frozen=True)
class Asked:
    """A request that can be answered.

    Attributes:
        prompts: texts, or one conversation.
        options: how to write.
        stream: whether in pieces.
        usage: whether pieces end with the count of tokens.
        top: how many of the likeliest tokens are given beside each token's log-probability; None for no such numbers.
    """

    prompts: list[Prompt]
    options: GenerationOptions
    stream: bool
    usage: bool
    top: int | None = None


def read(body: object, *, chat: bool, context: int) -> Asked:
    """A request of either kind. Raises BadRequest, naming the key that is wrong."""
    if not isinstance(body, dict):
        raise BadRequest("the body is no object")
    known = {"model", "stream", "stream_options", "stop", "logprobs"}
    known |= {"messages", "top_logprobs"} if chat else {"prompt"}
    for name, value in body.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise BadRequest(f"{name} is not supported", code="unsupported_parameter", param=name)
        if name not in known | _NUMBERS.keys() | _NEUTRAL.keys() | _IGNORED:
            raise BadRequest(f"the key {name!r} is unknown", code="unknown_parameter", param=name)
    prompts = [_messages(body.get("messages"))] if chat else _prompts(body.get("prompt"))
    stream, more = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(more, dict):
        raise BadRequest("stream is true or false, and stream_options an object", param="stream")
    return Asked(prompts, _options(body, chat, context), stream, bool(more.get("include_usage")), _top(body, chat))


def _top(body: Mapping[str, Any], chat: bool) -> int | None:
    """`logprobs: N` of completions, `logprobs: true, top_logprobs: N` of chats."""
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    name = "top_logprobs" if chat else "logprobs"
    if chat:
        if wanted not in (None, False, True) or isinstance(wanted, int) and not isinstance(wanted, bool):
            raise BadRequest("logprobs is true or false", param="logprobs")
        if top and not wanted:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        found = (top or 0) if wanted else None
    else:
        found = None if wanted is False else wanted
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= LIKELIEST:
        raise BadRequest(f"{name} is a whole number from 0 to {LIKELIEST}", param=name)
    return found


def _prompts(given: object) -> list[Prompt]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not found or not all(isinstance(text, str) and text for text in found):
        raise BadRequest("prompt is a text that is not empty, or a list of such", param="prompt")
    if len(found) > _MOST_SAMPLES:
        raise BadRequest(f"{len(found)} prompts; {_MOST_SAMPLES} may be in one request", param="prompt")
    return list(found)


def _messages(given: object) -> Prompt:
    if not isinstance(given, list) or not given:
        raise BadRequest("messages is a list of messages", param="messages")
    found = []
    for number, message in enumerate(given):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):  # parts, of which texts alone are read
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(content) else None
        role = "system" if role == "developer" else role
        if role not in _ROLES or not isinstance(content, str):
            said = f"messages[{number}] has no role of {', '.join(_ROLES)}, or no text as its content"
            raise BadRequest(said, param="messages")
        found.append({"role": role, "content": content})
    return found


def _options(body: Mapping[str, Any], chat: bool, context: int) -> GenerationOptions:
    values: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": DEFAULT_TOKENS["chat" if chat else "completion"]}
    asked = {}
    for name, kind in _NUMBERS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise BadRequest(f"{name} is {value!r}, which is no {kind.__name__}", param=name)
        values[_OURS.get(name, name)] = value if kind is int else float(value)
        asked[_OURS.get(name, name)] = name
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest(f"stop is a text, or a list of up to {_MOST_STOPS}, none of them empty", param="stop")
    if not isinstance(values.get("num_samples", 1), int) or values.get("num_samples", 1) > _MOST_SAMPLES:
        raise BadRequest(f"n is {_MOST_SAMPLES} at most", param="n")
    if values["max_new_tokens"] > 64 * context:
        raise BadRequest(f"max_tokens is {64 * context:,} at most", param=asked["max_new_tokens"])
    values.setdefault("seed", secrets.randbits(32))
    try:
        return GenerationOptions(**values, stop=tuple(stops), chat=chat)
    except ConfigError as error:
        wrong = asked.get(error.where or "", error.where)
        raise BadRequest(f"{wrong}: {error.message} ({error.hint})", code="invalid_value", param=wrong) from None
