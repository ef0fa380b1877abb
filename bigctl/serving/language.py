"""OpenAI's endpoints for language models: models, completions and chat completions, whole or in server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bigctl.errors import BigctlError
from bigctl.generation.generate import LanguageModel, Piece
from bigctl.serving.batching import QueueFull
from bigctl.serving.bodies import BadRequest, read_json
from bigctl.serving.completions import Asked, read
from bigctl.serving.guard import error_body
from bigctl.serving.logprobs import Scores, joined
from bigctl.serving.writing import Writing

_FINISH = {"end": "stop", "stop": "stop", "length": "length"}


class Language:
    """The endpoints of some language models."""

    def __init__(self, models: Sequence[Writing], others: Sequence[str], *, log_contents: bool):
        self._models = {model.name: model for model in models}
        self._others, self._log_contents = others, log_contents
        self._began = int(time.time())

    def routes(self) -> list[Route]:
        found = [
            Route("/v1/models", self._list, methods=["GET"]),
            Route("/v1/models/{name}", self._one, methods=["GET"]),
        ]
        if self._models:
            found += [
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        return found

    async def _list(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self._names]})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names:
            raise BadRequest(f"there is no model {name!r}", status=404, code="model_not_found", param="model")
        return JSONResponse(self._described(name))

    @property
    def _names(self) -> list[str]:
        return [*self._models, *self._others]

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "bigctl"}

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        body = await read_json(request)
        model = self._named(body.get("model") if isinstance(body, dict) else None)
        asked = read(body, chat=chat, context=model.context)
        line = request.state.log
        line |= {"model": model.name, "stream": asked.stream, "n": asked.options.num_samples}
        if self._log_contents:
            line["contents"] = asked.prompts
        with _refusing():
            served = model.model  # another may take its place
            encoded = [await asyncio.to_thread(served.encode, prompt, asked.options) for prompt in asked.prompts]
        writer = _Writer(model, served, asked, chat, encoded, line)
        if not asked.stream:
            with _refusing():
                return JSONResponse(await _unless_gone(request, writer.whole()))
        events = writer.events()
        with _refusing():
            first = await anext(events)  # a queue that is full is said with its own status
        return StreamingResponse(
            _after(first, events), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    def _named(self, name: object) -> Writing:
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if not isinstance(name, str) or name not in self._models:
            said = f"there is no model {name!r} that writes text; one of: {', '.join(self._models)}"
            raise BadRequest(said, status=404, code="model_not_found", param="model")
        return self._models[name]


class _Writer:
    """One request: what it is answered, in either form."""

    def __init__(
        self, model: Writing, served: LanguageModel, asked: Asked, chat: bool, prompts: list[list[int]],
        line: dict[str, Any],
    ):  # fmt: skip
        self._model, self._served, self._asked, self._chat = model, served, asked, chat
        self._prompts, self._line = prompts, line
        self._prompt_tokens = sum(map(len, prompts))
        self._tokens: dict[int, int] = {}
        self._scores: dict[int, Scores] = {}
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if chat and asked.stream else kind,
            "created": int(time.time()),
            "model": model.name,
        }

    async def whole(self) -> dict[str, Any]:
        """The body of an answer in one piece."""
        texts: dict[int, str] = {}
        finish: dict[int, str] = {}
        scores: dict[int, list[dict[str, Any]]] = {}
        async for index, piece in self._pieces():
            texts[index] = texts.get(index, "") + piece.text
            scores.setdefault(index, []).append(self._shaped(index, piece))
            if piece.finish:
                finish[index] = _FINISH[piece.finish]
        choices = []
        for index in sorted(texts):
            said: Mapping[str, Any] = {"text": texts[index]}
            if self._chat:
                said = {"message": {"role": "assistant", "content": texts[index], "refusal": None}}
            logprobs = None if self._asked.top is None else joined(scores[index])
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": finish[index]})
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, the first of which comes as soon as the request has its turn."""
        begun: set[int] = set()
        try:
            async for index, piece in self._pieces():
                said: dict[str, Any] = {"text": piece.text}
                if self._chat:
                    role = {} if index in begun else {"role": "assistant"}
                    said = {"delta": {**role, **({"content": piece.text} if piece.text else {})}}
                begun.add(index)
                finish = None if piece.finish is None else _FINISH[piece.finish]
                logprobs = None if self._asked.top is None else self._shaped(index, piece)
                yield self._event([{"index": index, **said, "logprobs": logprobs, "finish_reason": finish}])
        except BigctlError as error:
            if not begun:
                raise
            yield _sse(error_body(str(error), "server_error"))
            return
        if self._asked.usage:
            yield self._event([], usage=self._usage())
        yield b"data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return _sse({**self._head, "choices": choices, **more})

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        scored = self._asked.top is not None
        found = self._model.pieces(self._served, self._prompts, self._asked.options, logprobs=scored)
        async with contextlib.aclosing(found) as pieces:
            async for piece in pieces:
                index = piece.prompt * self._asked.options.num_samples + piece.sample
                self._model.tokens += piece.tokens - self._tokens.get(index, 0)
                self._tokens[index] = piece.tokens
                self._line["tokens"] = sum(self._tokens.values())
                yield index, piece

    def _shaped(self, index: int, piece: Piece) -> dict[str, Any]:
        if index not in self._scores:
            self._scores[index] = Scores(self._served.tokenizer, self._asked.top or 0, chat=self._chat)
        return self._scores[index].shaped(piece.logprobs)

    def _usage(self) -> dict[str, int]:
        written = sum(self._tokens.values())
        total = self._prompt_tokens + written
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": written, "total_tokens": total}


def _sse(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


async def _after(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in events:
        yield event


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """What is awaited, which ends where the client goes before."""
    working = asyncio.ensure_future(answer)

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            raise BadRequest("the client has gone", status=499, code="gone")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """What a model says of a request that is wrong, as an answer to it."""
    try:
        yield
    except QueueFull:
        raise
    except BigctlError as error:
        code = "context_length_exceeded" if "tokens, the model sees" in error.message else "invalid_prompt"
        hint = "" if error.hint is None or "--" in error.hint else f" ({error.hint})"
        raise BadRequest(f"{error.message}{hint}", code=code, param="prompt") from None
