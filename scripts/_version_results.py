"""What a version of the project leaves of a case, and whether that of two versions is the same, to the last bit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import _version_cases as cases
import numpy as np

SAME = "equal"


class Failed(Exception):
    """A command that should have succeeded did not."""


def forked(work: Callable[[], object], log: Path) -> int:
    """Do something in a process of its own, its output in a file; gives the exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code: Any = 1
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        code = work() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@cache
def arrays(run: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta.json and every array of the last checkpoint; read in a process of its own, for forks must stay possible."""
    last = max((run / "checkpoints").glob("[0-9]*[0-9]"))
    meta = json.loads((last / "meta.json").read_text())

    def work() -> None:
        import orbax.checkpoint as ocp

        names = list(meta["shapes"])
        wanted = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True))
        found = reader.restore(
            last.resolve() / "state",
            args=ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=wanted, partial_restore=True),
        )
        stored = {f"{name.replace('/', '|')}:{np.asarray(a).dtype}": np.asarray(a) for name, a in found.items()}
        np.savez(target, **stored)

    target = run.parent / "arrays.npz"
    if forked(work, run.parent / "reading.txt"):
        raise Failed(f"{last} cannot be read: {run.parent / 'reading.txt'}")
    return meta, dict(np.load(target))


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """The records of a file of JSON lines, without what measures time."""
    if not (run / name).exists():
        return []
    found = map(json.loads, (run / name).read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.startswith("perf/") and k not in ("time", "seconds")} for line in found
    ]


def difference(old: Path, new: Path, *, config: bool, more: bool = False) -> str:
    """The first thing in which two runs differ, or SAME; with `more`, NEW may record what OLD did not."""
    return next(_differences(old, new, config, more), SAME)


def _differences(old: Path, new: Path, config: bool, more: bool) -> Iterator[str]:
    for name in ("metrics.jsonl", "samples.jsonl"):
        yield from differences_of_values(name, lines(old, name), lines(new, name), more=more)
    before, after = (json.loads((run / "summary.json").read_text()) for run in (old, new))
    for key in cases.SUMMARY:
        yield from differences_of_values(f"summary.json {key}", before.get(key), after.get(key), more=more)
    (meta, here), (meta_new, there) = arrays(old), arrays(new)
    yield from differences_of_values("progress", meta["progress"], meta_new["progress"], more=more)
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            if more and not name.startswith("params"):
                continue  # states of optimizers are laid out otherwise since, and read under both names
            yield f"{name} is missing in {'OLD' if name not in here else 'NEW'}"
        elif here[name].tobytes() != there[name].tobytes() or here[name].shape != there[name].shape:
            yield f"{name} {list(here[name].shape)} differs{_how_much(here[name], there[name])}"
    if config:
        import yaml

        before, after = (yaml.safe_load((run / "config.yaml").read_text()) for run in (old, new))
        yield from differences_of_values("config.yaml", before, after, more=True)


def _how_much(a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape or a.dtype.kind not in "fiu":
        return f": {list(a.shape)} and {list(b.shape)}" if a.shape != b.shape else ""
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return f" in {np.count_nonzero(apart):,} places by {apart.max():.3g} at most"


def differences_of_values(where: str, a: Any, b: Any, *, more: bool = False) -> Iterator[str]:
    """Where two values of JSON differ; with `more`, NEW may have keys that OLD has not."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *([] if more else [key for key in b if key not in a])]:
            if key not in a or key not in b:
                yield f"{where}: {key} only in {'OLD' if key in a else 'NEW'}"
            else:
                yield from differences_of_values(f"{where}: {key}", a[key], b[key], more=more)
    elif isinstance(a, list) and isinstance(b, list):
        for number, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences_of_values(f"{where}[{number}]", x, y, more=more)
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} of them"
    elif a != b and not (a != a and b != b):
        yield f"{where}: {a!r} and {b!r}"


def same_caches(old: Path, new: Path) -> str:
    """Whether all data that NEW has prepared was prepared by OLD under the same name with the same content."""
    found = [folder for folder in sorted((new / "data").glob("*-*")) if (folder / "meta.json").is_file()]
    for folder in found:
        before = old / "data" / folder.name
        if not before.is_dir():
            return f"{folder.name} was prepared by NEW alone"
        metas = [json.loads((f / "meta.json").read_text()) | {"prepared": 0} for f in (before, folder)]
        names = [sorted(p.name for p in f.iterdir()) for f in (before, folder)]
        different = next((n for n in names[0] if n != "meta.json" and _bytes(before / n) != _bytes(folder / n)), None)
        problem = next(differences_of_values(folder.name, *names), None) or next(
            differences_of_values("meta.json", *metas), None
        )
        if problem or different:
            return f"{folder.name}: {problem or different}"
    return SAME if found else "nothing was prepared"


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
