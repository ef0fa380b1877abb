"""What a report is about: a run, a sweep or an export, by its folder or its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bigctl.errors import RunError
from bigctl.reports.sweep import BOARD
from bigctl.runs import directory, exports
from bigctl.runs.directory import RunDirectory
from bigctl.runs.exports import Export
from bigctl.sweeps import ledger

SWEEPS = Path("sweeps")
_OF_A_RUN = ("config.yaml", "metrics.jsonl", "log.txt")


@dataclass(frozen=True)
class Found:
    """A folder, and whether it holds a sweep, an export or a run."""

    path: Path
    sweep: bool
    export: Export | None = None

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.path)


def is_sweep(folder: Path) -> bool:
    return (folder / ledger.NAME).is_file() or (folder / BOARD).is_file()


def locate(name: str, source: str | None = None) -> Found:
    """The run, sweep or export of that name, see `exports.find`; of a run that has lost its record, what is left.

    Raises:
        RunError: if there is none, with close matches.
    """
    if (export := exports.find(name, source)) is not None:
        return Found(export.path, False, export)
    for path in (Path(name), directory.ROOT / name, SWEEPS / name):
        if is_sweep(path):
            return Found(path, True)
        if (path / "run.json").is_file() or any((path / file).is_file() for file in _OF_A_RUN):
            return Found(path, False)
    if Path(name).is_dir():
        hint = "`bigctl runs` lists the runs"
        raise RunError("holds neither a run nor a sweep", where=name, hint=hint)
    return Found(directory.locate(name).path, False)
