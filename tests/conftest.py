"""One data cache for the whole test session, and helpers to run the installed command."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked

CHANGED_FILES = int(os.environ.get("BIGCTL_TEST_CHANGED_FILES", 10_000))
"""How many changed files each slow property test reads; `.ci/run` takes fewer."""
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:  # under nohup, or in the background of a script
        signal.signal(_number, _default)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Modules and tests live until the end: the garbage collector looks at none of them, or it would walk through a
    million objects every time jax has traced a program, which was a fifth of the time of the quick set."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and compiled programs of the tests are their own, unless a place is given."""
    if "BIGCTL_CACHE_DIR" not in os.environ:
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one for all workers
        (shared / "cache").mkdir(exist_ok=True)
        os.environ["BIGCTL_CACHE_DIR"] = str(shared / "cache")
    os.environ["COLUMNS"] = "200"


@pytest.fixture(scope="module", autouse=True)
def _memory() -> Iterator[None]:
    """Compiled programs of the tests that are done are let go before they fill a small machine.

    Not all memory comes back, so a module that found most of it taken would throw away its own programs for nothing.
    """
    global _kept
    yield
    if "jax" in sys.modules and _held() > _kept + 3 * 2**29:
        sys.modules["jax"].clear_caches()
        gc.collect()
        _kept = _held()


_kept = 2**29


def _held() -> int:
    """Memory of this process [bytes]; 0 where that is not known."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


@pytest.fixture(scope="session", autouse=True)
def _compilation_of_the_session(pytestconfig: pytest.Config) -> None:
    """What is trained once a session is compiled as the modules of the quick set are."""
    if pytestconfig.option.markexpr == "not slow":
        os.environ[forked.FEWER] = "1"
        _compile_with_few_optimizations(True)


@pytest.fixture(scope="module", autouse=True)
def _compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of the quick set, also those of commands, are compiled with few optimizations: in half the time.

    So are those of the slow tests that are marked for it: they show that commands work, not what they compute.
    """
    marked = request.node.get_closest_marker
    _keep_programs()
    quick = request.config.option.markexpr == "not slow" and not marked("optimized")
    with pytest.MonkeyPatch.context() as patch:
        if quick or marked("fewer"):
            patch.setenv(forked.FEWER, "1")
        else:
            patch.delenv(forked.FEWER, raising=False)
        _compile_with_few_optimizations(forked.FEWER in os.environ)
        yield
    _compile_with_few_optimizations(forked.FEWER in os.environ)


def _keep_programs() -> None:
    """What modules and workers compile alike, the smallest programs too, is compiled once, as by commands."""
    if "jax" in sys.modules:
        from bigctl.engine.compile_cache import use_compile_cache

        use_compile_cache()
        sys.modules["jax"].config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _compile_with_few_optimizations(fewer: bool) -> None:
    if "jax" in sys.modules:
        forked.leave_out_emitters()
        sys.modules["jax"].config.update(forked.FEWER.lower(), fewer)


@functools.cache
def _forked() -> forked.Server:
    return forked.Server()


class Cli:
    """The installed command, run as a user would, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(
        self, *arguments: str, code: int | None = 0, env: dict[str, str] | None = None, timeout: float = 300,
        given: bytes = b"",
    ):  # fmt: skip
        """`given` is what the command reads from stdin."""
        done = self.run(self.command(*arguments), {**os.environ, **(env or {})}, timeout, given)
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(
        self, command: list[str], environment: dict[str, str] | None = None, timeout: float = 300, given: bytes = b""
    ):
        """A command, or `python -m MODULE ...`."""
        environment = dict(os.environ) if environment is None else environment
        if forked.fits(environment):
            return _forked().run(command, self.folder, environment, timeout, given)
        environment = {**environment, **forked.flags(environment)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, timeout=timeout, input=given
        )
        return subprocess.CompletedProcess(command, done.returncode, *map(forked.as_text, (done.stdout, done.stderr)))

    def json(self, *arguments: str, **options: Any) -> Any:
        return json.loads(self(*arguments, "--json", **options).stdout)

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("bigctl")), *arguments]


@pytest.fixture
def bigctl(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture
def exports(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command in a folder with `runs/small`, its export `runs/small/jax`, and `elsewhere`, see `exported.made`."""
    from tests import exported

    return Cli(Path(shutil.copytree(exported.made(tmp_path_factory), tmp_path / "copy")))


@pytest.fixture
def error_line(bigctl: Cli) -> Callable[..., str]:
    """Run a command that must fail with exit code 2; gives its stderr."""

    def run(*arguments: str, code: int = 2, **options: Any) -> str:
        return bigctl(*arguments, code=code, **options).stderr

    return run


@pytest.fixture(scope="session")
def writer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small language model with a chat template, called `writer`."""
    from tests.serving import writer

    return writer.trained(tmp_path_factory)
