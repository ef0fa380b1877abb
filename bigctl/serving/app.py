"""The addresses of a server, and what each answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bigctl.errors import BigctlError
from bigctl.formatting import plain
from bigctl.serving import log, openapi
from bigctl.serving.batching import Batcher, QueueFull
from bigctl.serving.bodies import BadRequest, read_examples
from bigctl.serving.delivery import Late
from bigctl.serving.embeddings import Embeddings
from bigctl.serving.guard import Guard, TooLarge, error_body, refusal, too_large
from bigctl.serving.language import Language
from bigctl.serving.loading import Loaded
from bigctl.serving.metrics import Metrics, of_process
from bigctl.serving.predicting import Asked, Predicting
from bigctl.serving.settings import Settings
from bigctl.serving.writing import Writing
from bigctl.training.task import Record

_PAGE = Path(__file__).with_name("page.html")


class Site:
    """Models behind addresses.

    Attributes:
        guard: the ASGI application.
        ready: whether everything is compiled.
    """

    def __init__(self, loaded: Sequence[Loaded], settings: Settings):
        self.settings, self.metrics = settings, Metrics()
        self.ready = False
        self.failed: str | None = None
        models = [each.model for each in loaded]
        self._followers = [each.follower for each in loaded if each.follower is not None]
        self._predicting = {model.name: model for model in models if isinstance(model, Predicting)}
        self._writing = [model for model in models if isinstance(model, Writing)]
        self._batchers: dict[str, Batcher[Asked, Record]] = {
            name: Batcher(partial(self._computed, name), model.most, settings.max_queue)
            for name, model in self._predicting.items()
        }
        self.guard = Guard(self._application(), settings, self.metrics)

    def _application(self) -> Starlette:
        post, get = ["POST"], ["GET"]
        routes = [
            Route("/", self._page, methods=get),
            Route("/docs", self._docs, methods=get),
            Route("/openapi.json", self._openapi, methods=get),
            Route("/health", self._health, methods=get),
            Route("/ready", self._is_ready, methods=get),
            Route("/metrics", self._metrics, methods=get),
            Route("/models", self._models, methods=get),
        ]
        language = Language(self._writing, [*self._predicting], log_contents=self.settings.log_contents)
        routes += language.routes()
        if self._predicting:
            embeddings = Embeddings(self._predicting, [model.name for model in self._writing], self._asked)
            routes += [
                *embeddings.routes(),
                Route("/predict", self._predict, methods=post),
                Route("/models/{name}/predict", self._predict, methods=post),
            ]
        handlers: dict[Any, Any] = {
            BadRequest: _bad, HTTPException: _http, QueueFull: _full, TooLarge: _too_large, Late: _late,
            ClientDisconnect: _gone, Exception: _failed,
        }  # fmt: skip
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        working = [asyncio.create_task(batcher.run()) for batcher in self._batchers.values()]
        working.append(asyncio.create_task(self._follow()))
        warming = asyncio.create_task(asyncio.to_thread(self._warm_up))
        try:
            yield
        finally:
            for task in (*working, warming):
                task.cancel()
            for batcher in self._batchers.values():
                batcher.close()
            for writer in self._writing:
                writer.close()

    def _warm_up(self) -> None:
        try:
            for model in self._predicting.values():
                model.warm_up()
            for writer in self._writing:
                writer.warm_up()
            self.ready = True
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"
            log.failure(error, contents=True, during="warming up")

    async def _follow(self) -> None:
        """Look for newer weights, one run after another. Where there are some, the next batch is computed with them."""
        while self._followers:
            await asyncio.sleep(self.settings.reload)
            for follower in self._followers if self.ready else ():
                found = await asyncio.to_thread(follower.look)
                if isinstance(found, Predicting):
                    self._predicting[follower.name] = found
                elif found is not None:
                    next(model for model in self._writing if model.name == follower.name).model = found

    def _computed(self, name: str, asked: Sequence[Asked]) -> list[list[Record] | Exception]:
        return self._predicting[name].answer(asked)

    # -------------------------------------------------------------------------------------------------------- answers

    async def _predict(self, request: Request) -> Response:
        model = self._named(request.path_params.get("name"))
        examples, single = await read_examples(request)
        asked = Asked(examples, _flag(request, "embeddings"))
        if asked.embeddings and not model.embeds:
            raise BadRequest(f"{model.name} gives no embeddings", param="embeddings")
        records = await self._asked(request, model, asked)
        found = records[0] if single else {"predictions": records}
        if self.settings.log_contents:
            request.state.log["answer"] = found
        return Response(json.dumps(plain(found), ensure_ascii=False), media_type="application/json")

    async def _asked(self, request: Request, model: Predicting, asked: Asked) -> list[Record]:
        """The records of a request's examples. Raises BadRequest and QueueFull."""
        if len(asked) > self.settings.max_instances:
            raise BadRequest(f"{len(asked):,} examples; {self.settings.max_instances:,} may be in one request")
        line = request.state.log
        line |= {"model": model.name, "examples": len(asked)}
        if self.settings.log_contents:
            line["contents"] = [f"{len(e)} bytes" if isinstance(e, bytes) else e for e in asked.examples]
        try:
            return await self._batchers[model.name].ask(asked)
        except QueueFull:
            raise
        except (BigctlError, ValueError) as error:
            message = error.message if isinstance(error, BigctlError) else str(error)
            hint = f" ({error.hint})" if isinstance(error, BigctlError) and error.hint else ""
            raise BadRequest(f"{message}{hint}", code="invalid_example") from None

    def _named(self, name: str | None) -> Predicting:
        if name is None and len(self._predicting) == 1:
            return next(iter(self._predicting.values()))
        known = ", ".join(self._predicting)
        if name is None:
            raise BadRequest(f"several models are served; POST /models/NAME/predict, NAME one of: {known}")
        if name not in self._predicting:
            said = f"there is no model {name!r} that predicts; one of: {known}"
            raise BadRequest(said, status=404, code="model_not_found")
        return self._predicting[name]

    async def _models(self, request: Request) -> Response:
        writing = [{"name": model.name, "kind": "language", "step": model.model.step} for model in self._writing]
        return JSONResponse({"models": plain([model.describe() for model in self._predicting.values()]) + writing})

    async def _health(self, request: Request) -> Response:
        if self.failed is not None:
            return JSONResponse({"status": "failed"}, 500)
        return JSONResponse({"status": "ok"})

    async def _is_ready(self, request: Request) -> Response:
        state = "draining" if self.guard.draining else "ready" if self.ready else "warming up"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    async def _metrics(self, request: Request) -> Response:
        each = [({"model": name}, batcher) for name, batcher in self._batchers.items()]
        texts = [({"model": model.name}, model) for model in self._writing]
        reloads = [({"model": each.name}, each.reloads) for each in self._followers]
        failures = [({"model": each.name}, each.failures) for each in self._followers]
        found = self.metrics.text({
            "bigctl_tokens_total": ("counter", "tokens written", [(of, m.tokens) for of, m in texts]),
            "bigctl_prompt_tokens_reused_total": ("counter", "found in a cache", [(of, m.reused) for of, m in texts]),
            "bigctl_writing": ("gauge", "texts that wait or are written", [(of, m.waiting) for of, m in texts]),
            "bigctl_ready": ("gauge", "1 once everything is compiled", [({}, float(self.ready))]),
            "bigctl_queue_waiting": ("gauge", "requests that wait", [(of, len(b)) for of, b in each]),
            "bigctl_batches_total": ("counter", "batches computed", [(of, b.batches) for of, b in each]),
            "bigctl_examples_total": ("counter", "examples answered", [(of, b.examples) for of, b in each]),
            "bigctl_reloads_total": ("counter", "newer weights taken", reloads),
            "bigctl_reload_failures_total": ("counter", "newer weights that could not be read", failures),
            "bigctl_model_step": ("gauge", "checkpoint that answers", self._steps()),
            **of_process(),
        })  # fmt: skip
        return PlainTextResponse(found, media_type="text/plain; version=0.0.4")

    def _steps(self) -> list[tuple[dict[str, str], float]]:
        found: dict[str, int | None] = {name: model.trained.step for name, model in self._predicting.items()}
        found |= {model.name: model.model.step for model in self._writing}
        return [({"model": name}, float(step)) for name, step in found.items() if step is not None]

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document([model.describe() for model in self._predicting.values()]))

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=SAFE)

    async def _docs(self, request: Request) -> Response:
        document = openapi.document([model.describe() for model in self._predicting.values()])
        return HTMLResponse(openapi.page(document), headers=SAFE)


CLOSED = 499
"""What the log says of a client that left while it sent its request, as that of nginx does."""

SAFE = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
}


def _flag(request: Request, name: str) -> bool:
    """A switch in the query of an address."""
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise BadRequest(f"{name} is true or false", param=name)
    return given == "true"


async def _bad(request: Request, error: BadRequest) -> Response:
    return JSONResponse(error_body(str(error), "invalid_request_error", error.code, error.param), error.status)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code != 404:
        return refusal(error.status_code, error.detail, "http")
    said = f"there is nothing at {request.url.path} here; /docs lists the addresses of the models that are served"
    return refusal(404, said, "not_found")


async def _full(request: Request, error: QueueFull) -> Response:
    return refusal(429, error.message, "queue_full", retry_after=str(error.retry_after))


async def _too_large(request: Request, error: TooLarge) -> Response:
    return too_large(error.most)


async def _late(request: Request, error: Late) -> Response:
    if error.ending:
        return refusal(503, "the server is shutting down", "draining", retry_after="1", connection="close")
    return refusal(408, "the rest of the request has not come", "timeout", connection="close")


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLOSED)  # to nobody: for the log


async def _failed(request: Request, error: Exception) -> Response:
    return refusal(500, "the server failed; its log says why", "failed")
