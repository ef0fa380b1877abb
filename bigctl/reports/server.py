"""The pages of all runs and sweeps of a folder, served to the browser of the same machine and to nobody else.

    /                              the index
    /runs/NAME                     the page of a run
    /sweeps/NAME                   that of a sweep
    /sweeps/NAME/trials/ID         that of one of its trials
    /overlay?run=NAME&run=SWEEP/ID the curves of some runs and trials over each other
    any of a run + /new?from=N     its points since byte N of metrics.jsonl, as JSON
    any other + bare=1 in its query  the page without scripts, from which one that is open takes what has changed

Files are only ever read, by these addresses alone: every part of one is a plain name, and what it leads to, and all
that lies in it, must lie in the folder that is served, links followed. A request whose Host is not this very server is
refused: a name that someone else's DNS points here would otherwise read along. So is one without the token in the
address that the command prints, in its query or, from the second page on, in a cookie: other users of the machine can
reach its ports too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sys
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from bigctl.errors import BigctlError
from bigctl.files import real_path
from bigctl.formatting import plain
from bigctl.reports import find, history, overlay, page, plots, run, sweep
from bigctl.runs import directory, listing, pace
from bigctl.runs.directory import RunDirectory
from bigctl.sweeps import leaderboard, ledger

LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"\w[\w.=,+-]*")
_MOST_ASKED = 1000
"""Fields of a query."""
_MOST_LISTED = 2000
"""Runs and trials that can be ticked on one page."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
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
        asked = parse_qs(split.query, max_num_fields=_MOST_ASKED)
        bare = asked.get("bare") == ["1"]
        if not parts:
            return "text/html", self._index(bare)
        if parts == ["overlay"]:
            return "text/html", self._overlay(asked.get("run", []), bare)
        if parts[-1] == "new":
            found = self._folder(parts[:-1])
            start = asked.get("from", ["0"])[0]
            if find.is_sweep(found) or not start.isdecimal() or len(start) > 18:
                raise Missing
            return "application/json", json.dumps(new_points(RunDirectory(found), int(start)))
        found = self._folder(parts)
        here = "/" + "/".join(quote(part) for part in parts)
        if find.is_sweep(found):
            trials = f"{here}/trials/"
            return "text/html", sweep.sweep_page(
                found, link=lambda run: trials + quote(run.name), up=("/", "All runs"), here=here, bare=bare
            )
        live = f"{here}/new" if listing.row(RunDirectory(found)).status == directory.RUNNING else ""
        up = ("/", "All runs") if len(parts) == 2 else (here.rsplit("/", 2)[0], parts[1])
        return "text/html", run.run_page(RunDirectory(found), samples=0, live=live, up=up)

    def _folder(self, parts: list[str]) -> Path:
        """The folder of a run or a sweep, inside of those that are served."""
        roots = {"runs": self.runs, "sweeps": self.sweeps}
        named = len(parts) == 2 or (len(parts) == 4 and parts[0] == "sweeps" and parts[2] == "trials")
        if not named or parts[0] not in roots or not all(_NAME.fullmatch(part) for part in parts):
            raise Missing
        root = real_path(roots[parts[0]])
        folder = real_path(root.joinpath(*parts[1:]))
        if not folder.is_relative_to(root) or folder == root or not folder.is_dir():
            raise Missing
        if not (find.is_sweep(folder) if parts[0] == "sweeps" and len(parts) == 2 else listing.maybe_run(folder)):
            raise Missing
        if _leads_out(folder, root):
            raise Missing
        return folder

    def _rows(self) -> list[listing.Row]:
        root = real_path(self.runs)
        return listing.rows(self.runs, only=lambda folder: _served(folder, root))

    def _sweeps(self) -> list[Path]:
        root = real_path(self.sweeps)
        return sorted(path for path in self.sweeps.glob("*") if _served(path, root) and find.is_sweep(path))

    def _index(self, bare: bool) -> str:
        rows = self._rows()
        paces = {row.name: _pace(Path(row.path)) for row in rows if row.status == directory.RUNNING}
        sweeps = [_glance(folder) for folder in self._sweeps()]
        goes_on = paces or any((each["status"] or {}).get("running") for each in sweeps)
        return page.render(
            "index.html",
            {},
            served=True,
            bare=bare,
            again="/?bare=1" if goes_on else "",
            runs=rows,
            paces=paces,
            sweeps=sweeps,
            root=str(self.runs),
        )

    def _overlay(self, names: list[str], bare: bool) -> str:
        """Raises Missing for a run that there is not."""
        chosen = []
        for name in dict.fromkeys(names):
            sweep_name, _, trial = name.partition("/")
            parts = ["sweeps", sweep_name, "trials", trial] if trial else ["runs", name]
            address = "/" + "/".join(map(quote, parts))
            chosen.append(overlay.Chosen(name, address, RunDirectory(self._folder(parts))))
        others = [{"name": row.name, "status": row.status, "recipe": row.recipe} for row in self._rows()]
        for folder in self._sweeps():
            for trial_folder in sorted(path for path in (folder / "trials").glob("*") if _NAME.fullmatch(path.name)):
                others.append({"name": f"{folder.name}/{trial_folder.name}", "status": "trial", "recipe": ""})
        again = "/overlay?" + urlencode([*(("run", each.name) for each in chosen), ("bare", "1")])
        return overlay.overlay_page(chosen, others[:_MOST_LISTED], again=again, bare=bare)


def _pace(folder: Path) -> pace.Pace | None:
    with contextlib.suppress(BigctlError):
        return pace.of_run(RunDirectory(folder), RunDirectory(folder).record())
    return None


def _served(folder: Path, root: Path) -> bool:
    """Whether a folder has a page, if it is a run or a sweep."""
    inside = folder.is_dir() and real_path(folder).is_relative_to(root)
    return bool(_NAME.fullmatch(folder.name)) and inside and not _leads_out(folder, root)


def _leads_out(folder: Path, root: Path) -> bool:
    """Whether something in a folder of a run or a sweep, its log or a trial, is a link out of what is served."""
    inner = (folder, folder / "checkpoints", folder / "trials")
    entries = (Path(entry) for each in inner if each.is_dir() for entry in os.scandir(each))
    return any(entry.is_symlink() and not real_path(entry).is_relative_to(root) for entry in entries)


def _glance(folder: Path) -> dict[str, Any]:
    """A sweep in one row: how many trials are in which state, and the metric of the winner."""
    study = ledger.Study(folder)
    with contextlib.suppress(BigctlError):
        study = ledger.read_study(folder)
    if not study.states:  # only its answer was kept
        with contextlib.suppress(BigctlError):
            board, _ = sweep.read_study(folder)
            best = (board.get("winner") or {}).get("mean")
            return {"name": folder.name, "status": board.get("status"), "metric": board.get("metric"), "best": best}
    best = leaderboard.best_mean(study)
    counts = Counter(state.status for state in study.states.values())
    return {"name": folder.name, "status": dict(counts), "metric": study.metric, "best": best}


def new_points(found: RunDirectory, start: int) -> dict[str, Any]:
    """What a page that has read up to some byte lacks; `reload` where lines were taken back meanwhile."""
    status = listing.row(found).status
    size = found.metrics.stat().st_size if found.metrics.exists() else 0
    if size < start:
        return {"status": status, "next": 0, "reload": True, "curves": {}, "pace": None}
    past = history.read_history(found.metrics, start=start)
    curves = {
        name: {"x": plots.numbers(curve.steps), "y": plots.numbers(curve.values)} for name, curve in past.curves.items()
    }
    known = _pace(found.path) if status == directory.RUNNING else None
    told = None if known is None else known.to_json()
    return {"status": status, "next": max(past.end, start), "reload": False, "curves": plain(curves), "pace": told}


class Server(ThreadingHTTPServer):
    """Serves pages to those who know its token."""

    token = ""

    @property
    def address(self) -> str:
        """Where a browser begins. Who has it can read all pages."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/?token={self.token}"


def listen(site: Site, port: int) -> Server:
    """A server on the loopback interface; 0 for any free port.

    Raises:
        OSError: if the port is taken.
    """

    class Handler(_Handler):
        pages = site
        token = secrets.token_hex(16)

    serving = Server((LOOPBACK, port), Handler)
    serving.token = Handler.token
    return serving


class _Handler(BaseHTTPRequestHandler):
    pages: Site
    token: str
    timeout = 30
    server_version, sys_version = "bigctl", ""
    _cookie = ""

    def do_GET(self) -> None:
        self._send(*self._answer())

    do_HEAD = do_GET

    def _answer(self) -> tuple[HTTPStatus, str, str]:
        """(status, content type, content) of what is asked for."""
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            return HTTPStatus.MISDIRECTED_REQUEST, "text/plain", "this server is for 127.0.0.1 only\n"
        if not self._knows_token(port):
            return HTTPStatus.FORBIDDEN, "text/plain", "open the address that `bigctl ui` has printed, with its token\n"
        try:
            return HTTPStatus.OK, *self.pages.answer(self.path)
        except Missing:
            return HTTPStatus.NOT_FOUND, "text/plain", "there is no such page\n"
        except BigctlError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n"
        except Exception as error:  # a run may change or vanish while it is read; the server goes on
            said = f"this page cannot be made: {type(error).__name__}\n"
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", said

    def _knows_token(self, port: int) -> bool:
        """Whether the token is in the address, which is then answered with the cookie, or in the cookie. Cookies are
        those of a host, whatever its port: each server has one of its own name."""
        name = f"bigctl-{port}"
        with contextlib.suppress(CookieError):
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(name)
            if cookie is not None and secrets.compare_digest(cookie.value.encode(), self.token.encode()):
                return True
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        known = secrets.compare_digest(given.encode(errors="replace"), self.token.encode())
        if known:
            self._cookie = f"{name}={self.token}; Path=/; HttpOnly; SameSite=Strict"
        return known

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode(errors="replace")
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)
        except OSError:  # the browser has gone
            self.close_connection = True

    def end_headers(self) -> None:
        """The same for every answer, also for those to requests that are not understood."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self._cookie:
            self.send_header("Set-Cookie", self._cookie)
            self._cookie = ""
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        if arguments and str(arguments[1:2]).startswith("('5"):
            print(f"bigctl: {self.path}: {arguments[1]}", file=sys.stderr)
