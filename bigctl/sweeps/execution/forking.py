"""Trials that start at once: one process imports what they need and is forked for each.

A trial of its own process pays two seconds for imports before it does anything. Here one process has imported jax, but
started nothing of it: no device is taken, no program is compiled. Its children are what a fresh process would be at
that point, each with its own session, folder, environment, cores and log, and they live on where it, or the sweep, is
killed.

Such a child may be asked to stay when its training is complete, and to train the next trial in its place: its programs
are traced and compiled. It is asked only for a trial that differs in numbers and seeds, and one that ended in any other
way than complete, or was killed, is never asked again.

Linux alone has what it takes (`os.pidfd_open`, and a fork that is safe there); elsewhere, and for commands that are not
ours, `local` starts processes in the plain way.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

COMMANDS = ("bigctl", "bigctl.sweeps.packed.runner")
"""Modules that trials are commands of, see `trial_commands`."""
_IMPORTED = (
    "bigctl.cli.main", "bigctl.cli.train", "bigctl.cli.training", "bigctl.engine.trainer", "bigctl.engine.experiment",
    "bigctl.engine.fit", "bigctl.engine.finish", "bigctl.engine.kept", "bigctl.recipes.classification",
    "bigctl.config.value_origins", "hydra._internal.config_loader_impl", "flax.nnx", "optax", "orbax.checkpoint",
    "bigctl.training.tracking.writers", "rich.live",
)  # fmt: skip
"""What most trials import; the rest is left to them."""
_IMPORTED_LATER = ("bigctl.cli.eval", "bigctl.cli.exported", "bigctl.inference.trained")
"""What scores the winner's runs in the end: imported while the first trials run."""
_LATER = 0.3
"""So long after the last request [s]."""
STAYED = "stayed"
"""What a child says whose command is complete."""
_RUN = "--run-dir"
_LOST = -signal.SIGKILL
"""The exit code of a child whose parent was killed, so that nobody has seen how it ended."""


def possible() -> bool:
    """Whether processes can be forked here."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def fits(command: Sequence[str]) -> bool:
    """Whether a command is one that can be forked here."""
    return possible() and list(command[:3]) == [sys.executable, "-P", "-m"] and command[3] in COMMANDS


def may_stay(command: Sequence[str], numbers: Collection[str]) -> bool:
    """Whether the process of a command can be asked for another like it: a training, where there are such numbers."""
    return bool(numbers) and list(command[3:5]) == ["bigctl", "train"]


def alike(one: Sequence[str], other: Sequence[str], numbers: Collection[str]) -> bool:
    """Whether two commands differ in the values of these keys, and in their run directories, only."""
    if len(one) != len(other):
        return False
    for before, a, b in zip(["", *one[:-1]], one, other, strict=True):
        if a != b and before != _RUN and not (_key(a) == _key(b) and _key(a) in numbers):
            return False
    return True


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


class Nursery:
    """The process that is forked. It ends when this object is gone, its children do not."""

    def __init__(self) -> None:
        self._asked = False
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        self._line.close()
        if not self._asked:  # it may be importing still, for nobody
            self._process.kill()
            self._process.wait()

    def start(self, command: Sequence[str], where: Where, log: int, *, stays: bool = False) -> Forked:
        """Run a command that `fits`, its output into an open file; one that `stays` can be asked for another.

        Raises:
            OSError: where the process is gone.
        """
        self._asked = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            _ask(self._line, command, where, log, stays, theirs.fileno())
        return Forked(ours)


@dataclass(frozen=True)
class Where:
    """Where a command runs: in which folder, with which environment, on which cores."""

    folder: Path
    environment: Mapping[str, str]
    cores: Sequence[int]


def _ask(line: socket.socket, command: Sequence[str], where: Where, log: int, stays: bool, *descriptors: int) -> None:
    request = {"command": list(command[3:]), "folder": str(where.folder), "environment": dict(where.environment)}
    with os.fdopen(os.memfd_create("request"), "w+b", buffering=0) as text:
        text.write(json.dumps({**request, "cores": list(where.cores), "stays": stays}).encode())
        socket.send_fds(line, [b"start"], [log, text.fileno(), *descriptors])


class Forked:
    """A child: its process id as soon as it has one, and how it ended, or that its command did and it has stayed."""

    def __init__(self, line: socket.socket, pid: int | None = None, watch: int | None = None):
        self._line = line
        self._lent = False
        self._code: int | None = None
        self.pid = pid
        self._watch = watch
        self.stayed = False
        """Whether its command is complete and `again` or `close` is to be called."""

    def born(self, *, wait: bool = True) -> bool:
        """Whether there is such a process, or was. Raises OSError where there will be none."""
        if self.pid is None:
            told = self._told(wait)
            if told is None:
                return False
            if told == "":
                raise OSError("the process that trials are forked from has ended")
            self.pid = int(told)
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                self._watch = os.pidfd_open(self.pid)
        return True

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None and self.born(wait=False):
            told = self._told(wait=False)
            if told == STAYED:
                self._code, self.stayed = 0, True
            elif told:
                self._code = int(told)
            elif told == "" and self._gone():
                self._code = _LOST
        if self._code is not None and not self.stayed:
            self.close()
        return self._code

    def again(self, command: Sequence[str], where: Where, log: int) -> Forked:
        """The same process with another command. Raises OSError where it has ended."""
        self.stayed = False
        try:
            if self._gone():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            _ask(self._line, command, where, log, True)
        except OSError:
            self.close()
            raise
        self._lent = True
        return Forked(self._line, self.pid, self._watch)

    def close(self, *, wait: float = 0.0) -> None:
        """Let it go: one that has stayed ends now, which takes `wait` seconds at most."""
        self.stayed = False
        if self._lent:
            return
        self._line.close()
        if self._watch is not None:
            if wait:
                self._gone(wait)
            os.close(self._watch)
            self._watch = None

    def _told(self, wait: bool) -> str | None:
        """What its parent, or itself, says; None for nothing yet, "" where both are gone."""
        try:
            return self._line.recv(64, 0 if wait else socket.MSG_DONTWAIT).decode()
        except BlockingIOError:
            return None
        except OSError:
            return ""

    def _gone(self, wait: float = 0.0) -> bool:
        if self._watch is None:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._watch, selectors.EVENT_READ)
            return bool(selector.select(wait))


# --- The process that is forked ---------------------------------------------------------------------------------------


def _serve(line: socket.socket) -> Callable[[], int] | None:
    """Fork a child for each request; returns in the children with what they are to run, and None at the end."""
    selector = selectors.DefaultSelector()
    selector.register(line, selectors.EVENT_READ)
    patience: float | None = None
    while True:
        ready = selector.select(patience)
        if not ready:
            patience = None
            _import(_IMPORTED_LATER)
        for key, _ in ready:
            if key.fileobj is not line:
                code, told = reaped(selector, key)
                with contextlib.suppress(OSError):  # a sweep that is gone
                    told.send(str(code).encode())
                told.close()
                continue
            said, descriptors, _, _ = socket.recv_fds(line, 16, 3)
            if not said:
                return None
            (log, text), told = descriptors[:2], socket.socket(fileno=descriptors[2])
            alone, others = os.pipe()  # until the child's id is told nothing else is
            pid = os.fork()
            if pid == 0:
                os.close(others)
                _let_go(selector, line)
                os.read(alone, 1)
                os.close(alone)
                os.setsid()
                return partial(_live, told, _become(log, text))
            for each in (log, text, alone):
                os.close(each)
            with contextlib.suppress(OSError):
                told.send(str(pid).encode())
            os.close(others)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told))
            patience = None if _IMPORTED_LATER[0] in sys.modules else _LATER


def _let_go(selector: selectors.BaseSelector, line: socket.socket) -> None:
    """What the parent has open of its other children would outlive them in this one."""
    for key in list(selector.get_map().values()):
        if key.fileobj is not line:
            os.close(key.fd)
            key.data[1].close()
    selector.close()
    line.close()


def reaped(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> tuple[int, socket.socket]:
    """The exit code of a child whose pidfd is ready, and the socket that its end is told on."""
    pid, told = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _become(log: int, text: int) -> _Command:
    """Make a fresh process of this one."""
    os.lseek(text, 0, os.SEEK_SET)
    with os.fdopen(text, "rb") as stream:
        request = json.loads(stream.read())
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request["cores"])
    module, *arguments = request["command"]
    return _Command(module, arguments, request["stays"])


@dataclass(frozen=True)
class _Command:
    module: str
    arguments: Sequence[str]
    stays: bool

    def __call__(self) -> int:
        import runpy
        import time

        sys.argv = [self.module, *self.arguments]
        if (program := sys.modules.get("bigctl.cli.main")) is not None:
            vars(program)["STARTED"] = time.monotonic()
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        return 0


def _live(told: socket.socket, command: _Command) -> int:
    """Run a command, and those that are asked for after it."""
    import gc

    if command.stays:
        from bigctl.config import compose_many
        from bigctl.engine import kept

        kept.keep()
        compose_many.keep()
    while True:
        code = _code_of(command)
        if code or not command.stays:
            return code
        gc.collect()  # nothing of it is there any more when the next one begins
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            told.send(STAYED.encode())
            said, descriptors, _, _ = socket.recv_fds(told, 16, 2)
        except OSError:  # a sweep that is gone
            return code
        if not said:
            return code
        command = _become(*descriptors)


def _code_of(command: Callable[[], int]) -> int:
    """The exit code of a program, which prints what Python would."""
    import traceback

    try:
        return command()
    except SystemExit as ending:
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def end_of(command: Callable[[], int]) -> int:
    """What Python does when a program ends, but for freeing what it holds."""
    import atexit
    import threading

    code = _code_of(command)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    return code


def _import(names: Sequence[str]) -> None:
    import importlib

    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _import_all() -> None:
    import importlib
    import logging

    from bigctl.config.compose import compose

    _import(_IMPORTED)
    with contextlib.suppress(ImportError):
        importlib.import_module("bigctl.training.tracking.writers").events_writer()
    with contextlib.suppress(Exception):  # fills what Hydra and the schema remember of themselves
        compose(["recipe=mlp_cls"])
    logging.root.handlers.clear()  # orbax brings one where no command has set up its own


def _main() -> None:
    from bigctl import imports
    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before what is imported starts a thread; children inherit it
    imports.own_process()
    with imports.kept():  # so it is not looked at, and not copied, in the children either
        _import_all()
    command = _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0 if command is None else end_of(command))  # taking so much apart would cost as much again as the fork


if __name__ == "__main__":
    _main()
