"""Whatever stands in the files of one run or sweep, every command that shows them ends as it promises: in a listing
beside all others, or in one line; within bounds of time, and with no error but the project's own."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigctl.cli.main import main
from bigctl.errors import BigctlError
from bigctl.reports import run as page
from bigctl.reports import server
from bigctl.sweeps.ledger import Ledger
from tests.conftest import CHANGED_FILES
from tests.reports import folders

FILES = (
    "runs/a/run.json", "runs/a/summary.json", "runs/a/metrics.jsonl", "runs/a/config.yaml", "runs/a/overrides.txt",
    "runs/a/samples.jsonl", "runs/a/log.txt", "runs/a/.lock", "runs/a/checkpoints/000000020/meta.json",
    "runs/a/checkpoints/000000020/manifest-0.json", "sweeps/s/ledger.jsonl", "sweeps/s/leaderboard.json",
)  # fmt: skip
COMMANDS = (
    "runs", "runs --json", "info a", "info a --json", "compare a b", "compare a b --json", "verify a",
    "verify a --json",
    "report a --samples 0", "report sweeps/s",
    "page /", "page /runs/a", "page /runs/a/new?from=0", "page /sweeps/s",
)  # fmt: skip
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "-0.0", "1e308", "-1e308", "1E-400")
"""Numbers as a file may hold them, which Python's own writer would not write."""
VALUES = (
    None, True, False, -1, 0, 1, 2**53, 2**63 - 1, 2**63, -(2**63), 1e300, 0.5, "", "x", "x" * 5000, "NaN", "../..",
    "/",
    "\ud800", "\x1b[31m", "\u202e", "²", "${oc.env:HOME}", "complete", "running", "diverged", [], {}, [[]], [None],
    [{}],
    {"": None}, {"a": 1}, [1, "a", None],
)  # fmt: skip


def build(folder: Path) -> None:
    """Two runs and a sweep of which the ledger is the newer file."""
    for name in ("a", "b"):
        shutil.copytree(Path(__file__).parents[1] / "fixtures" / "run_v1", folder / "runs" / name)
        (folder / "runs" / name / ".lock").write_text("process 1 on here")
    (folder / "runs" / "a" / "log.txt").write_text("a line\n")
    (folder / "runs" / "a" / "samples.jsonl").write_text('{"step": 5, "prompt": "Once", "text": " upon"}\n')
    folders.study.make(folder / "sweeps" / "s", points=3, seeds=2, length=4)
    book = Ledger(folder / "sweeps" / "s")
    axis = {"key": "optimizer.lr", "values": [], "low": 1e-4, "high": 0.1, "log": True, "integer": False}
    fixed = ["recipe=mlp_cls"]
    book.append("study", definition={"fixed": fixed, "axes": [axis], "zipped": [], "seeds": [0, 1], "sweep": {},
                                     "metric": "val/accuracy", "mode": "max", "argv": ["bigctl", "sweep"]})  # fmt: skip
    for number in range(6):
        name, point = f"{number:012x}", {"optimizer.lr": f"0.0{number // 2 + 1}"}
        book.append("trial", id=name, number=number, overrides=fixed, point=point, seed=number % 2)
        book.append("start", id=name, attempt=1, step=None, place="cores 0", log=f"logs/{number}.txt")
        metrics = {"val/accuracy": 0.5 + number / 20, "val/loss": 1.0}
        status = "failed" if number == 5 else "complete"
        book.append("end", id=name, status=status, metrics=metrics, step=20, seconds=2.0, message="", exit_code=0)
    book.close()


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


def put(value: Any, at: tuple[Any, ...], new: object, remove: bool) -> Any:
    if not at:
        return new
    node = value
    for key in at[:-1]:
        node = node[key]
    if remove:
        del node[at[-1]]
    else:
        node[at[-1]] = new
    return value


def nested(depth: int, kind: str) -> str:
    return "[" * depth + "]" * depth if kind == "list" else '{"a":' * depth + "1" + "}" * depth


def changed_value(draw: Callable[..., Any], text: bytes) -> bytes:
    """One value in one JSON text replaced, or removed."""
    value = json.loads(text)
    at = draw(st.sampled_from([*places(value)]))
    what = draw(st.sampled_from(("value", "raw", "remove", "deep")))
    if what == "raw" or what == "deep":
        raw = draw(st.sampled_from(RAW)) if what == "raw" else nested(draw(st.sampled_from((40, 900, 50_000))), "list")
        mark = "<<here>>"
        return json.dumps(put(value, at, mark, False)).replace(f'"{mark}"', raw).encode()
    return json.dumps(put(value, at, draw(st.sampled_from(VALUES)), what == "remove" and at != ())).encode()


def changed_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    how = draw(st.sampled_from(("cut", "insert", "overwrite", "empty", "twice")))
    some = draw(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"\x00", b"\xff\xfe", b"\n\n", b"\r", b"&a *a", b"{"]))
    )
    if how == "insert":
        return content[:place] + some + content[place:]
    if how == "overwrite":
        return content[:place] + some + content[place + len(some) :]
    return {"cut": content[:place], "empty": b"", "twice": content + content}[how]


@st.composite
def mutations(draw: Any, originals: dict[str, bytes]) -> tuple[str, bytes | str]:
    """A file and its new content, or what stands in its place."""
    name = draw(st.sampled_from(FILES))
    content = originals[name]
    kind = draw(st.sampled_from(("value", "value", "value", "bytes", "other")))
    if kind == "value" and name.endswith(".json"):
        return name, changed_value(draw, content)
    if kind == "value" and name.endswith(".jsonl"):
        lines = content.splitlines()
        place = draw(st.integers(0, len(lines) - 1))
        lines[place] = changed_value(draw, lines[place])
        return name, b"\n".join(lines) + b"\n"
    if kind == "other":
        return name, draw(st.sampled_from(("folder", "pipe", "link", "loop", "gone")))
    return name, changed_bytes(draw, content)


def place_there(path: Path, content: bytes | str) -> None:
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content == "pipe":
        os.mkfifo(path)
    elif content in ("link", "loop"):
        path.symlink_to("/etc/passwd" if content == "link" else path)


def take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def shows(command: str) -> str:
    """Run a command; what it printed. It must end with 0, 1 or 2 and a line, and a page must be a page."""
    if command.startswith("page "):
        with contextlib.suppress(BigctlError, server.Missing):
            return server.Site(Path("runs"), Path("sweeps")).answer(command.removeprefix("page "))[1]
        return ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command.split())
    assert code in (0, 1, 2), (code, err.getvalue())
    assert "traceback" not in err.getvalue().lower(), err.getvalue()
    if "--json" in command:
        json.loads(out.getvalue(), parse_constant=lambda token: pytest.fail(token))
    out.getvalue().encode()
    return out.getvalue()


def remember_composed(patch: pytest.MonkeyPatch) -> None:
    """What a page composes of a run's overrides, once for each: it takes a second, and most changes are elsewhere."""
    original = page._composed
    composed = functools.cache(lambda overrides: original(list(overrides)))
    patch.setattr(page, "_composed", lambda overrides: composed(tuple(overrides)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, bytes]]]:
    folder = tmp_path_factory.mktemp("mutated")
    build(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        remember_composed(patch)
        yield folder, {name: (folder / name).read_bytes() for name in FILES}


def hold(folder: Path, originals: dict[str, bytes], data: Any) -> None:
    name, content = data.draw(mutations(originals))
    command = data.draw(st.sampled_from([c for c in COMMANDS if name.startswith("runs") != ("sweeps" in c)]))
    path = folder / name
    try:
        place_there(path, content)
        began = time.process_time()
        text = shows(command)
        assert time.process_time() - began < 20
        if command in ("runs", "page /"):
            assert "b" in text.split() or "/runs/b" in text  # the other run is there, whatever this one is
    finally:
        take_away(path)
        path.write_bytes(originals[name])
        for page in ("runs/a/report.html", "sweeps/s/report.html"):
            (folder / page).unlink(missing_ok=True)


GENTLE = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=30, derandomize=True, **GENTLE)
@given(data=st.data())
def test_no_file_of_a_run_takes_a_command_down(built: tuple[Path, dict[str, bytes]], data: Any) -> None:
    hold(*built, data)


@pytest.mark.slow
@settings(max_examples=CHANGED_FILES, derandomize=True, **GENTLE)
@given(data=st.data())
def test_thousands_of_changes_take_no_command_down(built: tuple[Path, dict[str, bytes]], data: Any) -> None:
    hold(*built, data)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_what_is_whole(built: tuple[Path, dict[str, bytes]], command: str) -> None:
    assert len(shows(command)) > 10


@pytest.mark.parametrize("name", ["²", "٣", "0" * 200, "9" * 40, "-1", "000000020.txt", " 000000020", "00000002"])
def test_a_folder_that_is_no_step_is_no_checkpoint(built: tuple[Path, dict[str, bytes]], name: str) -> None:
    folder = Path("runs/a/checkpoints", name)
    folder.mkdir()
    try:
        for command in ("runs", "info a", "verify a", "compare a b", "page /runs/a"):
            shows(command)
        assert "000000020"[-2:] in shows("info a") and "all is well" in shows("verify a")
    finally:
        folder.rmdir()


@pytest.mark.parametrize(("low", "high"), [(-1e308, 1.7e308), (1.7e308, 1.7e308), (-5e-324, 5e-324)])
@pytest.mark.parametrize("name", ["sweeps/s/ledger.jsonl", "sweeps/s/leaderboard.json", "runs/a/metrics.jsonl"])
def test_the_largest_numbers_in_all_places_take_no_command_down(
    built: tuple[Path, dict[str, bytes]], name: str, low: float, high: float
) -> None:
    folder, originals = built
    numbers = itertools.cycle((repr(low), repr(high), repr(high)))
    text = re.sub(r"(?<!.time.: )(?<=: )-?\d+\.\d+(?=[,}])", lambda _: next(numbers), originals[name].decode())
    (folder / name).write_text(text)
    try:
        for command in COMMANDS:
            shows(command)
    finally:
        (folder / name).write_bytes(originals[name])
