"""What stands before every request: its number, keys, the size of its body, the log line, and the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response

from bigctl.serving import log
from bigctl.serving.delivery import Deliveries
from bigctl.serving.metrics import Metrics
from bigctl.serving.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
"""Paths that need no key: they tell nothing of what is asked."""
LINGER = 2.0
"""Seconds for which the rest of a body is read of a request that is refused."""
_ALWAYS = frozenset({"/health", "/ready", "/metrics"})
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class TooLarge(Exception):
    """The body of a request is larger than the bytes that it may have."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in the shape of OpenAI's, which all endpoints share."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(status: int, message: str, code: str, **headers: str) -> Response:
    """An answer that says why there is no other."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    found = json.dumps(error_body(message, kind, code))
    return Response(
        found, status, {name.replace("_", "-"): value for name, value in headers.items()}, "application/json"
    )


def too_large(most: int) -> Response:
    return refusal(413, f"the request is larger than {most:,} bytes", "too_large", connection="close")


async def _discard(receive: Receive, headers: Mapping[str, str]) -> None:
    """Read for a while what a client still sends, that it may read its answer: a connection that is closed before is
    reset. One that asked first has sent nothing yet."""
    if headers.get("expect", "").lower() == "100-continue":
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while (await receive()).get("more_body", False):
                pass


def _template(scope: Scope) -> str:
    """The path of what answered, its parameters by their names, so that no client can make up new ones."""
    if "endpoint" not in scope:
        return "other"
    path = str(scope["path"])
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return path


class Guard:
    """An ASGI application around another.

    Attributes:
        draining: whether the server is about to end: what is in flight is answered, nothing new is.
    """

    def __init__(self, app: App, settings: Settings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics
        self.draining = False
        self._deliveries = Deliveries()

    def drain(self) -> None:
        """Begin to end: clients that stall in the middle of a body are given up."""
        self.draining = True
        self._deliveries.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["log"] = line = {"request": number}
        start, status, size, whole = time.perf_counter(), 0, 0, False

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
                if self.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        async def receiving() -> Message:
            nonlocal size, whole
            message = await receive() if whole else await self._deliveries.next(receive)
            whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self._settings.max_body:
                if not whole:
                    await _discard(receive, headers)
                raise TooLarge(self._settings.max_body)
            return message

        refused = self._refused(scope["path"], headers)
        self._metrics.in_flight += 1
        try:
            if refused is not None:
                await _discard(receive, headers)
                await refused(scope, receive, sending)
            else:
                await self._answered(scope, receiving, sending, lambda: status)
        finally:
            self._metrics.in_flight -= 1
            seconds = time.perf_counter() - start
            self._metrics.count(_template(scope) if refused is None else "refused", status, seconds)
            if scope["path"] not in _ALWAYS:
                told = {"status": status, "ms": round(1000 * seconds, 2), "bytes": size}
                log.write(**{**line, "method": scope["method"], "path": scope["path"], **told})

    async def _answered(self, scope: Scope, receive: Receive, send: Send, status: Callable[[], int]) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            number = scope["state"]["log"]["request"]
            log.failure(error, contents=self._settings.log_contents, request=number)
            if not status():
                await refusal(500, "the server failed; its log says why", "failed")(scope, receive, send)

    def _refused(self, path: str, headers: dict[str, str]) -> Response | None:
        if not self._settings.answers_to(headers.get("host", "")):
            return refusal(403, "this server does not go by that name: start it with --allow-host NAME", "unknown_host")
        if self.draining and path not in _ALWAYS:
            return refusal(503, "the server is shutting down", "draining", retry_after="1")
        if path not in OPEN and not self._settings.admits(headers.get("authorization", "")):
            return refusal(401, "no valid API key is given", "invalid_api_key", www_authenticate="Bearer")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._settings.max_body:
            return too_large(self._settings.max_body)
        return None
