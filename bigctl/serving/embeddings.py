"""OpenAI's /v1/embeddings: what the last layer reads of each text, as `bigctl predict --embeddings` gives it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bigctl.formatting import plain
from bigctl.serving.bodies import BadRequest, read_json
from bigctl.serving.predicting import Asked, Predicting
from bigctl.training.task import Record

_KEYS = ("model", "input", "encoding_format", "user")
_FORMATS = ("float", "base64")
Ask = Callable[[Request, Predicting, Asked], Awaitable[list[Record]]]


class Embeddings:
    """The endpoint.

    Args:
        models: by name; they may be replaced by others.
        others: names of models that give no embeddings.
        ask: puts a question to a model.
    """

    def __init__(self, models: Mapping[str, Predicting], others: Sequence[str], ask: Ask):
        self._models, self._others, self._ask = models, others, ask

    def routes(self) -> list[Route]:
        return [Route("/v1/embeddings", self._embeddings, methods=["POST"])]

    async def _embeddings(self, request: Request) -> Response:
        asked = await read_json(request)
        if not isinstance(asked, dict):
            raise BadRequest("the body is no object")
        if unknown := [name for name in asked if name not in _KEYS]:
            raise BadRequest(f"the key {unknown[0]!r} is unknown, or not to be had here", param=unknown[0])
        form = asked.get("encoding_format", _FORMATS[0])
        if form not in _FORMATS:
            raise BadRequest(f"encoding_format is one of: {', '.join(_FORMATS)}", param="encoding_format")
        model, texts = self._named(asked.get("model")), _texts(asked.get("input"))
        records = await self._ask(request, model, Asked(texts, embeddings=True))
        data = [
            {"object": "embedding", "index": place, "embedding": _written(record["embedding"], form)}
            for place, record in enumerate(records)
        ]
        count = await asyncio.to_thread(model.tokens, texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        found = {"object": "list", "data": data, "model": model.name, "usage": usage}
        if form == _FORMATS[1]:
            return JSONResponse(found)
        return Response(json.dumps(plain(found)), media_type="application/json")

    def _named(self, name: object) -> Predicting:
        if name is None and len(self._models) == 1:
            name = next(iter(self._models))
        if name in self._others:
            raise BadRequest(f"{name} writes text and gives no embeddings", param="model")
        if not isinstance(name, str) or name not in self._models:
            said = f"there is no model {name!r}; one of: {', '.join(self._models)}"
            raise BadRequest(said, status=404, code="model_not_found", param="model")
        model = self._models[name]
        if not model.embeds:
            raise BadRequest(f"{name} gives no embeddings", param="model")
        if model.kind != "text":
            hint = f"POST /models/{name}/predict?embeddings=true"
            raise BadRequest(f"{name} takes no single texts; {hint}", param="model")
        return model


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("input is a text, or a list of texts", param="input")
    if empty := [place for place, text in enumerate(texts) if not text.strip()]:
        raise BadRequest(f"the text at {empty[0]} is empty", param="input")
    return texts


def _written(values: Sequence[float], form: str) -> Sequence[float] | str:
    return values if form == _FORMATS[0] else base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()
