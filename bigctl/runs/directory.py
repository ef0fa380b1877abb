"""The run directory: its layout, its lock, its status. Free of jax, because the lock is taken before jax is imported.

config.yaml  overrides.txt  run.json  metrics.jsonl  samples.jsonl  checkpoints/  log.txt  summary.json  tensorboard/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError, RunError, RunHeld
from bigctl.files import is_temporary, open_regular, read_regular, write_json, write_text
from bigctl.runs import manifest, untrusted
from bigctl.terminal import escaped

SCHEMA = 1
ROOT = Path("runs")

NEW, RUNNING, PARTIAL, COMPLETE, FAILED, DIVERGED, PREEMPTED = (
    "new", "running", "partial", "complete", "failed", "diverged", "preempted",
)  # fmt: skip


class RunDirectory:
    """One run on disk.

    Args:
        path: the folder.
        writes: whether this process may change it; of several that train together only the first does.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path = path
        self.writes = writes
        self.config = path / "config.yaml"
        self.overrides = path / "overrides.txt"
        self.record_file = path / "run.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer.json"
        self.generation = path / "generation.json"
        self.threshold = path / "threshold.json"
        self.confidence = path / "confidence.json"
        self.assessment = path / "assessment.json"
        self.goodput = path / "goodput.json"
        self.static = path / "int8.onnx"
        self.samples = path / "samples.jsonl"
        self.batches = path / "batches.jsonl"
        self.log = path / "log.txt"
        self.summary_file = path / "summary.json"
        self.tensorboard = path / "tensorboard"
        self.begun = False
        """Whether training has begun here: if not, and there was no run before, `discard` leaves nothing behind."""
        self._lock: Any = None

    # ----------------------------------------------------------------------------------------------------------- lock

    def lock(self) -> None:
        """Make the directory and hold it until the process ends.

        Raises:
            RunHeld: if another process holds it, saying which.
            RunError: if it cannot be written, or holds something else than a run.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunError("is a file", where=str(self.path), hint="choose another --run-dir")
            self.path.mkdir(parents=True, exist_ok=True)
            strangers = [p.name for p in self.path.iterdir() if p.name != ".lock"]
            if strangers and not is_run(self.path):
                if self.exists:
                    self.record()  # says how it is damaged
                raise RunError(
                    f"is not empty and holds no run ({strangers[0]})",
                    where=str(self.path),
                    hint="choose another --run-dir",
                )
            stream = take_lock(self.path / ".lock")
        except BigctlError:
            raise
        except OSError as error:
            raise RunError(
                f"cannot be written: {error.strerror}", where=str(self.path), hint="choose another --run-dir"
            ) from error
        try:
            sign(stream)
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(self.path)) from error
        self._lock = stream
        self.begun = self.config.exists() or self.exists

    @property
    def holds(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def held(self) -> bool:
        """Whether some process holds the lock at this moment."""
        try:
            with open(open_regular(self.path / ".lock"), "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who only look do not see each other
            return False
        except BlockingIOError:
            return True
        except OSError:
            return False

    def discard(self) -> None:
        """Remove what a start that came to nothing has left: configuration, tokenizer, record, log and lock, and no
        more. A folder that has checkpoints is no such thing and stays as it is, as does one that this process does not
        hold."""
        if self._lock is None or self.checkpoints.exists():
            return
        self.writes = False
        files = (self.config, self.overrides, self.tokenizer, self.generation, self.record_file, self.log)
        names = {file.name for file in files}
        with contextlib.suppress(OSError):  # not empty: it held something before
            for _ in range(100):  # Ctrl-C is answered beside a thread that may be writing one of them just then
                left = [file for file in self.path.iterdir() if file.name in names or is_temporary(file, names)]
                if not left:
                    break
                for file in left:
                    file.unlink(missing_ok=True)
                time.sleep(0.01)
            (self.path / ".lock").unlink(missing_ok=True)  # last: who takes it now begins a run of its own
            self.path.rmdir()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # --------------------------------------------------------------------------------------------------------- record

    @property
    def exists(self) -> bool:
        return self.record_file.is_file()

    def record(self) -> dict[str, Any]:
        """run.json. Raises RunError where there is none, or it cannot be read."""
        hint = "`bigctl runs` lists the runs"
        return _read(self.record_file, untrusted.RECORD, hint=hint, damaged=_WITHOUT_RECORD)

    def update_record(self, **values: object) -> None:
        """Change fields of run.json, atomically. Raises RunError if it cannot be written.

        Where it holds uncommitted code, only its owner can read it, and the log, whose tracebacks quote that code.
        """
        if not self.writes:
            return
        record = self.record() if self.exists else {"schema": SCHEMA, "created": time.time()}
        record |= {**values, "updated": time.time()}
        code = record.get("code")
        private = isinstance(code, dict) and bool(code.get("diff"))
        try:
            write_json(self.record_file, record, private=private)
            if private:
                with contextlib.suppress(FileNotFoundError):
                    self.log.chmod(0o600)
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(self.record_file)) from error

    def status(self, record: Mapping[str, Any] | None = None) -> str:
        """What became of the run; `record` is its run.json, if that is read already. One marked running that no process
        holds was killed: partial."""
        if record is None:
            record = self.record() if self.exists else {}
        if not record:
            return NEW
        status = str(record.get("status") or PARTIAL)
        return PARTIAL if status == RUNNING and not self.held() else status

    def trained(self) -> bool:
        """Whether there is a committed checkpoint to go on from."""
        return bool(manifest.steps(self.checkpoints))

    def summary(self) -> dict[str, Any]:
        """summary.json. Raises RunError where there is none, or it cannot be read."""
        return _read(self.summary_file, untrusted.SUMMARY)

    def read_config(self) -> str:
        """config.yaml. Raises RunError if it cannot be read."""
        try:
            return read_regular(self.config).decode()
        except (OSError, ValueError) as error:
            hint = "bring it back, or start a new run with another --name"
            raise RunError(f"cannot be read{_why(error)}", where=str(self.config), hint=hint) from error

    def write_config(self, text: str, overrides: Sequence[str]) -> None:
        """The configuration, whole and as it was asked for. Raises RunError if it cannot be written."""
        if not self.writes:
            return
        try:
            write_text(self.config, text)
            write_text(self.overrides, "".join(f"{o}\n" for o in overrides))
        except OSError as error:
            raise RunError(f"cannot be written: {error.strerror}", where=str(self.config)) from error


_AGAIN = "repeat the command that began the run: what it takes to go on is in the other files"
_REMOVE = "`bigctl runs rm` removes the run"
_WITHOUT_RECORD = f"move it away and {_AGAIN}; or {_REMOVE}"


def without_record(path: Path) -> RunError:
    """What is said of a run whose run.json is gone."""
    return RunError("is missing", where=str(path / "run.json"), hint=f"{_AGAIN}; or {_REMOVE}")


def sign(lock: Any) -> None:
    """Write into a lock who holds it."""
    lock.seek(0)
    lock.truncate()
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def take_lock(path: Path, *, tries: int = 5) -> Any:
    """The lock, opened and taken. Someone who only looks at a run holds it for an instant: try again.

    Raises:
        RunHeld: if another process keeps it, saying which.
    """
    for _ in range(tries):
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        stream = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = escaped(stream.read(200)).strip() or "another process"
            stream.close()
            time.sleep(0.02)
            continue
        with contextlib.suppress(FileNotFoundError):  # a start that came to nothing may have removed it meanwhile
            if os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                return stream
        stream.close()
        holder = "another process"
    raise RunHeld(f"is in use by {holder}", where=str(path.parent), hint="wait for it, or give another --name")


def _read(path: Path, shape: untrusted.Shape, *, hint: str | None = None, damaged: str | None = None) -> dict[str, Any]:
    try:
        return untrusted.read(path, shape)
    except FileNotFoundError as error:
        raise RunError("does not exist", where=str(path), hint=hint) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot be read{_why(error)}", where=str(path), hint=damaged) from error
    except ValueError as error:
        raise RunError(f"is not as bigctl writes it: {error}", where=str(path), hint=damaged) from error


def _why(error: OSError | ValueError) -> str:
    """What keeps a file from being read, to follow a sentence."""
    return f": {error.strerror}" if isinstance(error, OSError) else f" ({type(error).__name__})"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, and not something else that has a `.lock` or a `run.json`.

    What makes one are the fields `schema` and `status` of its run.json; where that is damaged or not there, a `.lock`
    that bigctl has signed. Raises OSError if the folder cannot be read.
    """
    run = RunDirectory(folder)
    if run.exists:
        try:
            return is_record(run.record())
        except RunError:
            pass
    return signed(folder)


def is_record(record: Mapping[str, Any]) -> bool:
    """Whether a run.json is one that bigctl wrote."""
    return "schema" in record and "status" in record


def signed(folder: Path) -> bool:
    """Whether bigctl has signed the `.lock` in a folder."""
    try:
        return bool(re.match(rb"process \d+ on ", read_regular(folder / ".lock", most=4096)))
    except OSError:
        return False


def choose(overrides: Sequence[str], *, name: str | None, run_dir: Path | None, fresh: bool) -> Path:
    """Where a run lives: as told, or under runs/ by a name made from its overrides, so that the same command finds it.

    Args:
        overrides: Hydra overrides; their order does not matter.
        name: a name under runs/.
        run_dir: the very folder.
        fresh: take the next free name instead of an existing run.

    Raises:
        RunError: if a fresh run is asked for in a folder that holds one.
    """
    if run_dir is not None or name is not None:
        path = run_dir if run_dir is not None else ROOT / checked_name(str(name))
        if fresh and (path / "run.json").exists():
            raise RunError(
                "holds a run already", where=str(path), hint="choose another, or --resume auto to go on with it"
            )
        return path
    recipe = next((o.split("=", 1)[1] for o in overrides if o.startswith("recipe=")), "run")
    others = sorted({o for o in overrides if not o.startswith("recipe=")})
    label = recipe
    if others:
        label += "-" + hashlib.sha256("\n".join(others).encode()).hexdigest()[:6]
    path, number = ROOT / label, 1
    while fresh and (path / "run.json").exists():
        number += 1
        path = ROOT / f"{label}-{number}"
    return path


def checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w.=,+-]*", name):
        raise RunError(f"{name!r} is no name for a run", where="--name", hint="letters, digits and . _ - only")
    return name


SEALED, SUMS, SETTINGS, SOURCE, CARD = "export.sealed", "SHA256SUMS", "bigctl.json", "source.json", "README.md"
"""Files of an export: all of it, encrypted; the digests of the others; what it is used with; what it was made from; and
for people."""
EXPORT_MODELS = {"model.onnx": "onnx", "model.jax": "jax", "model.gguf": "gguf", "model.safetensors": ""}
"""File of a model -> format of `bigctl export`, where that alone tells."""


def is_export(path: Path) -> bool:
    """Whether a folder is what `bigctl export` wrote, even if a file of it is missing."""
    if (path / SEALED).is_file():
        return True
    ours = [(path / name).is_file() for name in (SETTINGS, SOURCE)]
    return any(ours) and any((path / name).is_file() for name in (SUMS, *EXPORT_MODELS)) or all(ours)


def require_no_export(path: Path) -> None:
    """Raises RunError for the folder of an export, which says what answers with it."""
    if is_export(path):
        used = f"eval, compare, report and verify take it; `bigctl info {path}` says what else does"
        made = f"; it was made from the run {path.parent}" if (path.parent / "run.json").is_file() else ""
        raise RunError("is an export of a run, not a run", where=str(path), hint=used + made)


def locate(run: str) -> RunDirectory:
    """The run that a command names: a folder, or a name under runs/.

    Raises:
        RunError: if there is none, with close matches.
    """
    for path in (Path(run), ROOT / run):
        if (path / "run.json").is_file():
            return _with_record(RunDirectory(path))
        if (path / "config.yaml").is_file() or ((path / "checkpoints").is_dir() and signed(path)):
            raise without_record(path)
        if (path / "ledger.jsonl").is_file():
            hint = f"its runs are in {path / 'trials'}"
            raise RunError("is a sweep, not a run", where=str(path), hint=hint)
        require_no_export(path)
    import difflib

    known = sorted(p.parent.name for p in ROOT.glob("*/run.json") if p.is_file())
    close = difflib.get_close_matches(Path(run).name, known, n=3)
    others = f"there are {', '.join(known[:_NAMED])}{', ...' if len(known) > _NAMED else ''}; `bigctl runs` lists them"
    none = f"there are none in {ROOT}/ here; `bigctl train` makes one"
    hint = f"did you mean {' or '.join(close)}?" if close else others if known else none
    raise RunError("there is no such run", where=run, hint=hint)


_NAMED = 5
"""Runs that are named where another one is asked for."""


def _with_record(run: RunDirectory) -> RunDirectory:
    """The run, unless its run.json can be read and is somebody else's."""
    try:
        ours = is_record(run.record())
    except RunError:
        ours = True  # a damaged one, which whatever reads it names
    if not ours:
        hint = "`bigctl runs` lists the runs"
        raise RunError("is not of bigctl: it has no schema and status", where=str(run.record_file), hint=hint)
    return run
