"""Trials that start at once: one process imports what they need and is forked for each.

A trial of its own process pays two seconds for imports before it does anything. Here one process has imported jax, but
started nothing of it: no device is taken, no program is compiled. Its children are what a fresh process would be at
that point, each with its own session, folder, environment, cores and log, and they live on where it, or the sweep, is
killed.

Linux alone has what it takes (`os.pidfd_open`, and a fork that is safe there); elsewhere, and for commands that are not
ours, `local` starts processes in the plain way.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

COMMANDS = ("bigctl", "bigctl.sweeps.packed.runner")
"""Modules that trials are commands of, see `trial_commands`."""
_IMPORTED = (
    "bigctl.cli.main", "bigctl.cli.train", "bigctl.cli.training", "bigctl.engine.trainer", "bigctl.engine.experiment",
    "bigctl.engine.fit", "bigctl.engine.finish", "bigctl.recipes.classification", "bigctl.config.value_origins",
    "hydra._internal.config_loader_impl", "flax.nnx", "optax", "orbax.checkpoint", "rich.live", "tensorboardX",
)  # fmt: skip
"""What most trials import; the rest is left to them."""
_LOST = -signal.SIGKILL
"""The exit code of a child whose parent was killed, so that nobody has seen how it ended."""


def fits(command: Sequence[str]) -> bool:
    """Whether a command is one that can be forked here."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    return list(command[:3]) == [sys.executable, "-P", "-m"] and command[3] in COMMANDS


class Nursery:
    """The process that is forked. It ends when this object is gone, its children do not."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        self._line.close()

    def start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], cores: Sequence[int], log: int
    ) -> Forked:
        """Run a command that `fits`, its output into an open file.

        Raises:
            OSError: where the process is gone.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"command": list(command[3:]), "folder": str(folder), "environment": dict(environment)}
        with theirs, os.fdopen(os.memfd_create("request"), "w+b", buffering=0) as text:
            text.write(json.dumps({**request, "cores": list(cores)}).encode())
            socket.send_fds(self._line, [b"start"], [theirs.fileno(), log, text.fileno()])
        return Forked(ours)


class Forked:
    """A child: its process id as soon as it has one, and how it ended."""

    def __init__(self, line: socket.socket):
        self._line = line
        self._code: int | None = None
        self.pid: int | None = None
        self._watch: int | None = None

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
            if told:
                self._code = int(told)
            elif told == "" and self._gone():
                self._code = _LOST
        if self._code is not None:
            self._line.close()
            if self._watch is not None:
                os.close(self._watch)
                self._watch = None
        return self._code

    def _told(self, wait: bool) -> str | None:
        """What its parent says; None for nothing yet, "" where it is gone."""
        try:
            return self._line.recv(64, 0 if wait else socket.MSG_DONTWAIT).decode()
        except BlockingIOError:
            return None
        except OSError:
            return ""

    def _gone(self) -> bool:
        if self._watch is None:
            return True
        with selectors.DefaultSelector() as selector:
            selector.register(self._watch, selectors.EVENT_READ)
            return bool(selector.select(0))


# --- The process that is forked ---------------------------------------------------------------------------------------


def _serve(line: socket.socket) -> Callable[[], int] | None:
    """Fork a child for each request; returns in the children with what they are to run, and None at the end."""
    selector = selectors.DefaultSelector()
    selector.register(line, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not line:
                code, told = reaped(selector, key)
                with contextlib.suppress(OSError):  # a sweep that is gone
                    told.send(str(code).encode())
                told.close()
                continue
            said, descriptors, _, _ = socket.recv_fds(line, 16, 3)
            if not said:
                return None
            told, (log, text) = socket.socket(fileno=descriptors[0]), descriptors[1:]
            pid = os.fork()
            if pid == 0:
                selector.close()
                line.close()
                told.close()
                return _become(log, text)
            os.close(log)
            os.close(text)
            with contextlib.suppress(OSError):
                told.send(str(pid).encode())
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told))


def reaped(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> tuple[int, socket.socket]:
    """The exit code of a child whose pidfd is ready, and the socket that its end is told on."""
    pid, told = key.data
    selector.unregister(key.fileobj)
    os.close(key.fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def _become(log: int, text: int) -> Callable[[], int]:
    """Make a fresh process of this one."""
    import runpy
    import time

    os.setsid()
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
    sys.argv = [module, *arguments]

    def run() -> int:
        if (program := sys.modules.get("bigctl.cli.main")) is not None:
            vars(program)["STARTED"] = time.monotonic()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0

    return run


def end_of(command: Callable[[], int]) -> int:
    """What Python does when a program ends, but for freeing what it holds."""
    import atexit
    import threading
    import traceback

    try:
        code = command()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            print(ending.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    return code


def _import_all() -> None:
    import importlib
    import logging

    from bigctl.config.compose import compose

    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(Exception):  # fills what Hydra and the schema remember of themselves
        compose(["recipe=mlp_cls"])
    logging.root.handlers.clear()  # orbax brings one where no command has set up its own


def _main() -> None:
    import gc

    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before what is imported starts a thread; children inherit it
    _import_all()
    gc.freeze()  # what is there is not looked at again, and so not copied, in the children
    command = _serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0 if command is None else end_of(command))  # taking so much apart would cost as much again as the fork


if __name__ == "__main__":
    _main()
