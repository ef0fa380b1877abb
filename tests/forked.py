"""Commands in processes of their own without importing jax for each: one process has imported everything and is forked.

A child is what `bigctl ...` is in a fresh process, from the first line of `main` on: its own working directory,
environment, streams, memory, signals and exit code. What acts while Python starts is not seen (`PYTHON*`, `JAX_*`), so
a command with such an environment is run in the plain way, as are all those that a test starts by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigctl.sweeps.execution import forking

FEWER = "JAX_DISABLE_MOST_OPTIMIZATIONS"
"""Compiles in half the time; jax takes it at any time, so that a child has it from its own environment."""
EMITTERS = "xla_cpu_use_fusion_emitters"
PARTS = "xla_cpu_parallel_codegen_split_count"
"""Into how many modules LLVM gets a program cut: for threads that no core is left for, and a seventh of the time."""
LEAVING_OUT = True
"""Not where two programs are compared to the last bit: without emitters they may round differently."""
AT_START = ("PYTHON", "JAX_", "XLA_", "TF_", "OMP_", "LC_", "LANG", "HOME", "XDG_")
"""Variables that begin so are read while something is imported."""
SET_BY_JAX = "TF_CPP_MIN_LOG_LEVEL"
"""Importing jax sets it where it is not set: in a test process that has imported jax nothing would ever fit again."""
IMPORTED = (
    "bigctl.api", "bigctl.cli.train", "bigctl.cli.training", "bigctl.engine.trainer", "bigctl.engine.experiment",
    "bigctl.inference.trained", "bigctl.recipes.text_cls", "bigctl.recipes.gpt_lm", "bigctl.reports.run",
    "bigctl.sweeps.sweep", "bigctl.engine.dry_run", "hydra._internal.config_loader_impl", "orbax.checkpoint",
    "rich.live", "tensorboardX", "plotly.graph_objects", "jinja2", "xml.etree.ElementTree",
)  # fmt: skip
"""What most commands import; what is not found is left to the command."""


def leave_out_emitters() -> None:
    """Where few optimizations are asked for, the CPU's fusions are compiled without a pipeline of their own as well,
    which takes as long again as all else; a jaxlib that has no other way to compile them stays as it is."""
    from jax._src import compiler
    from jaxlib import version

    if not version.__version__.startswith("0.10.") or hasattr(compiler.get_compile_options, "asked"):
        return
    made = compiler.get_compile_options

    def options(*given: Any, env_options_overrides: dict[str, Any] | None = None, **more: Any) -> Any:
        if LEAVING_OUT and compiler._DISABLE_MOST_OPTIMIZATIONS.value:
            env_options_overrides = {**(env_options_overrides or {}), EMITTERS: "False", PARTS: "1"}
        return made(*given, env_options_overrides=env_options_overrides, **more)

    options.asked = True  # type: ignore[attr-defined]
    compiler.get_compile_options = options


def flags(environment: Mapping[str, str]) -> dict[str, str]:
    """What a process that is started in the plain way needs for the same, beside an environment that asks for few
    optimizations."""
    from jaxlib import version

    if environment.get(FEWER) != "1" or not version.__version__.startswith("0.10.") or not LEAVING_OUT:
        return {}
    return {"XLA_FLAGS": f"{environment.get('XLA_FLAGS', '')} --{EMITTERS}=false --{PARTS}=1".strip()}


class Server:
    """Forks a child for each command; ends with the process that made it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bigctl-forked-")
        address = str(Path(self._folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), str(os.getpid())],
                pass_fds=[listener.fileno()],
                cwd="/",
            )
        self._address = address
        atexit.register(self.close)

    def run(self, command: list[str], folder: Path, environment: dict[str, str], timeout: float, given: bytes = b""):
        """As `subprocess.run` with captured text, `given` through a pipe to stdin."""
        with (
            tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, socket.socket(socket.AF_UNIX) as line,
            _pipe_with(given) as stdin,
        ):  # fmt: skip
            line.connect(self._address)
            line.settimeout(timeout)
            request = json.dumps({"command": command, "folder": str(folder), "environment": environment})
            socket.send_fds(line, [len(request).to_bytes(8, "big")], [stdin, out.fileno(), err.fileno()])
            line.sendall(request.encode())
            os.close(stdin)
            pid = int.from_bytes(line.recv(8), "big")
            try:
                answer = line.recv(8)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout, *map(_text, (out, err))) from None
            assert answer, "the process that is forked for each command has ended"
            code = int.from_bytes(answer, "big", signed=True)
            return subprocess.CompletedProcess(command, code, *map(_text, (out, err)))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@contextlib.contextmanager
def _pipe_with(given: bytes) -> Iterator[int]:
    """What is read from a pipe that some bytes are written to; whoever enters closes it."""
    reader, writer = os.pipe()

    def write() -> None:
        with (
            contextlib.suppress(BrokenPipeError),
            open(writer, "wb", buffering=0) as stream,
        ):
            rest = memoryview(given)
            while rest:
                rest = rest[stream.write(rest) :]

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield reader
    thread.join()


def _text(file) -> str:
    file.seek(0)
    return as_text(file.read())


def as_text(written: bytes) -> str:
    return written.decode("utf-8", "backslashreplace").replace("\r\n", "\n")


def fits(environment: dict[str, str]) -> bool:
    """Whether a process would start as this one has."""
    return _at_start(environment) == _FOUND


def _at_start(environment: Mapping[str, str]) -> dict[str, str]:
    left_out = (FEWER, SET_BY_JAX)
    return {name: value for name, value in environment.items() if name.startswith(AT_START) and name not in left_out}


_FOUND = _at_start(os.environ)


# --- The process that is forked ---------------------------------------------------------------------------------------


def serve(listener: socket.socket, parent: int) -> None:
    """Returns in the children only, each ready to run its command; ends with the process that started it, also where
    that had no time to say so."""
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while os.getppid() == parent:
        for key, _ in selector.select(timeout=5):
            if key.fileobj is listener:
                line, _address = listener.accept()
                request, descriptors = _request(line)
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    listener.close()
                    line.close()
                    return _become(request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                line.sendall(pid.to_bytes(8, "big"))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, line))
            else:
                code, line = forking.reaped(selector, key)
                with contextlib.suppress(OSError):  # a test that did not wait
                    line.sendall(code.to_bytes(8, "big", signed=True))
                line.close()
    os._exit(0)


def _request(line: socket.socket):
    length, descriptors, _, _ = socket.recv_fds(line, 8, 3)
    wanted, text = int.from_bytes(length, "big"), b""
    while len(text) < wanted:
        text += line.recv(wanted - len(text))
    return json.loads(text), descriptors


def _become(request, descriptors) -> None:
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.modules["jax"].config.update(FEWER.lower(), os.environ.get(FEWER) == "1")
    os.chdir(request["folder"])
    sys.argv = request["command"]
    sys.path[0] = request["folder"] if sys.argv[1:2] == ["-m"] else str(Path(sys.argv[0]).parent)


def _command() -> int:
    if sys.argv[1:2] == ["-m"]:  # python -m MODULE
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return 0
    from bigctl.cli import main

    main.STARTED = time.monotonic()
    return main.main()


if __name__ == "__main__":
    import gc
    import importlib
    import logging

    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    leave_out_emitters()
    logging.root.handlers.clear()  # orbax brings one where no command has set up its own
    with contextlib.suppress(Exception):  # fills what Hydra and the schema remember of themselves
        sys.modules["bigctl.api"].compose(["recipe=mlp_cls"])
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    os._exit(forking.end_of(_command))  # taking so much apart would cost as much again as the fork
