"""The pages of all runs and sweeps of a folder, served to the browser of the same machine and to nobody else.

    /                              the index
    /runs/NAME                     the page of a run
    /sweeps/NAME                   that of a sweep
    /sweeps/NAME/trials/ID         that of one of its trials
    any of a run + /new?from=N     its points since byte N of metrics.jsonl, as JSON

Files are only ever read, by these addresses alone: every part of one is a plain name, and what it leads to must lie
in the folder that is served, links followed. A request whose Host is not this very server is refused: a name that
someone else's DNS points here would otherwise read along.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bigctl.errors import BigctlError
from bigctl.formatting import plain
from bigctl.reports import find, history, page, plots, run, sweep
from bigctl.runs import directory, listing
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import ledger

LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"\w[\w.=,+-]*")
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Missing(Exception):
    """There is nothing at this address."""


@dataclass(frozen=True)
class Site:
    """What is served.

    Attributes:
        runs, sweeps: the folders; either may not be there, yet.
    """

    runs: Path
    sweeps: Path

    def answer(self, address: str) -> tuple[str, str]:
        """(content type, content) of a path with its query. Raises Missing, or BigctlError for damaged files."""
        split = urlsplit(address)
        parts = [unquote(part) for part in split.path.strip("/").split("/") if part]
        if not parts:
            return "text/html", self._index()
        if parts[-1] == "new":
            found = self._folder(parts[:-1])
            start = parse_qs(split.query).get("from", ["0"])[0]
            if find.is_sweep(found) or not start.isdecimal() or len(start) > 18:
                raise Missing
            return "application/json", json.dumps(new_points(RunDirectory(found), int(start)))
        found = self._folder(parts)
        here = "/" + "/".join(quote(part) for part in parts)
        if find.is_sweep(found):
            trials = f"{here}/trials/"
            return "text/html", sweep.sweep_page(found, link=lambda run: trials + quote(run.name), up=("/", "All runs"))
        live = f"{here}/new" if listing.row(RunDirectory(found)).status == directory.RUNNING else ""
        up = ("/", "All runs") if len(parts) == 2 else (here.rsplit("/", 2)[0], parts[1])
        return "text/html", run.run_page(RunDirectory(found), samples=0, live=live, up=up)

    def _folder(self, parts: list[str]) -> Path:
        """The folder of a run or a sweep, inside of those that are served."""
        roots = {"runs": self.runs, "sweeps": self.sweeps}
        named = len(parts) == 2 or (len(parts) == 4 and parts[0] == "sweeps" and parts[2] == "trials")
        if not named or parts[0] not in roots or not all(_NAME.fullmatch(part) for part in parts):
            raise Missing
        root = roots[parts[0]].resolve()
        folder = root.joinpath(*parts[1:]).resolve()
        if not folder.is_relative_to(root) or folder == root or not folder.is_dir():
            raise Missing
        if not (find.is_sweep(folder) if parts[0] == "sweeps" and len(parts) == 2 else listing.maybe_run(folder)):
            raise Missing
        if any(file.is_file() and not file.resolve().is_relative_to(root) for file in folder.iterdir()):
            raise Missing  # a log that is a link to somebody's secrets
        return folder

    def _index(self) -> str:
        rows = [row for row in listing.rows(self.runs) if _NAME.fullmatch(row.name)]
        folders = sorted(path for path in self.sweeps.glob("*") if _NAME.fullmatch(path.name) and find.is_sweep(path))
        return page.render(
            "index.html", {}, runs=rows, sweeps=[_glance(folder) for folder in folders], root=str(self.runs)
        )


def _glance(folder: Path) -> dict[str, Any]:
    """A sweep in one row: how many trials are in which state, and the best value."""
    study = ledger.Study(folder)
    with contextlib.suppress(BigctlError):
        study = ledger.read_study(folder)
    if not study.states:  # only its answer was kept
        with contextlib.suppress(BigctlError):
            board, _ = sweep.read_study(folder)
            best = (board.get("winner") or {}).get("mean")
            return {"name": folder.name, "status": board.get("status"), "metric": board.get("metric"), "best": best}
    scores = [score for state in study.states.values() if (score := state.score(study.metric)) is not None]
    best = (max if study.mode == "max" else min)(scores, default=None)
    counts = Counter(state.status for state in study.states.values())
    return {"name": folder.name, "status": dict(counts), "metric": study.metric, "best": best}


def new_points(found: RunDirectory, start: int) -> dict[str, Any]:
    """What a page that has read up to some byte lacks; `reload` where lines were taken back meanwhile."""
    status = listing.row(found).status
    size = found.metrics.stat().st_size if found.metrics.exists() else 0
    if size < start:
        return {"status": status, "next": 0, "reload": True, "curves": {}}
    past = history.read_history(found.metrics, start=start)
    curves = {
        name: {"x": plots.numbers(curve.steps), "y": plots.numbers(curve.values)} for name, curve in past.curves.items()
    }
    return {"status": status, "next": max(past.end, start), "reload": False, "curves": plain(curves)}


def listen(site: Site, port: int) -> ThreadingHTTPServer:
    """A server on the loopback interface; 0 for any free port. Raises OSError if the port is taken."""

    class Handler(_Handler):
        pages = site

    return ThreadingHTTPServer((LOOPBACK, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    pages: Site
    timeout = 30
    server_version, sys_version = "bigctl", ""

    def do_GET(self) -> None:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            return self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "this server is for 127.0.0.1 only\n")
        try:
            kind, text = self.pages.answer(self.path)
        except Missing:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", "there is no such page\n")
        except BigctlError as error:
            return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n")
        except Exception as error:  # a run may change or vanish while it is read; the server goes on
            said = f"this page cannot be made: {type(error).__name__}\n"
            return self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", said)
        self._send(HTTPStatus.OK, kind, text)

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        try:
            self.send_response(status)
            headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)), **_HEADERS}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the browser has gone
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        if arguments and str(arguments[1:2]).startswith("('5"):
            print(f"bigctl: {self.path}: {arguments[1]}", file=sys.stderr)
