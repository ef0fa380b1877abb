"""The process: a socket, the event loop, and an end that leaves no request unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from bigctl.errors import ConfigError
from bigctl.serving.app import Site
from bigctl.serving.settings import Settings

_LOOK = 0.02  # seconds between two looks whether everything is answered


def listen(settings: Settings) -> socket.socket:
    """A socket that takes connections. Raises ConfigError where there can be none."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
        found.listen(1024)
    except OSError as error:
        found.close()
        where = f"--host {settings.host} --port {settings.port}"
        said = error.strerror or str(error)
        raise ConfigError(f"cannot be used: {said}", where=where, hint="--port 0 takes a free one") from None
    found.setblocking(False)
    return found


def serve(site: Site, listening: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; what is in flight then is answered, a second signal ends it at once."""
    config = uvicorn.Config(
        site.guard, log_config=None, access_log=False, lifespan="on", proxy_headers=False, server_header=False,
        date_header=False, timeout_graceful_shutdown=int(site.settings.drain) + 1,
    )  # fmt: skip
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop's, where it is installed
        runner.run(_run(_Server(config), site, listening))


class _Server(uvicorn.Server):
    """A server that leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield


async def _run(server: _Server, site: Site, listening: socket.socket) -> None:
    loop, draining = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        if site.guard.draining:
            server.should_exit = server.force_exit = True
        site.guard.drain()
        draining.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    ending = asyncio.create_task(_drain(server, site, draining))
    try:
        await server.serve(sockets=[listening])
    finally:
        ending.cancel()


async def _drain(server: _Server, site: Site, draining: asyncio.Event) -> None:
    await draining.wait()
    deadline = asyncio.get_running_loop().time() + site.settings.drain
    while site.metrics.in_flight and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_LOOK)
    server.should_exit = True
