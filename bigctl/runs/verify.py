"""Whether everything in a run directory is as it was written. Free of jax: `engine.load_arrays` reads the arrays too.

Damage is what makes a file say something else than was written, or nothing. What a run that was killed leaves behind
(a save that was cut off, half a last line of metrics) is no damage: the next start tidies it up. It is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigctl.config import compose as composing
from bigctl.errors import BigctlError, RunError
from bigctl.files import read_regular, sha256
from bigctl.runs import directory, manifest, untrusted
from bigctl.runs.directory import RunDirectory

LoadArrays = Callable[[Path, Mapping[str, Any]], int]


@dataclass
class Finding:
    """One checkpoint.

    Attributes:
        files, bytes: that its manifests name, themselves not among them.
        problem: the first file that is damaged, and how; empty if all are as they were written.
        arrays: how many were loaded, None if that was not asked for.
    """

    step: int
    files: int = 0
    bytes: int = 0
    problem: str = ""
    arrays: int | None = None


@dataclass
class Report:
    """What was found in a run: `problems` are damage, `notes` are not."""

    run: str
    status: str = ""
    checkpoints: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems and not any(found.problem for found in self.checkpoints)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def verify(run: RunDirectory, *, load: LoadArrays | None = None) -> Report:
    """Read everything in a run directory; never raises for what is wrong in it.

    Args:
        run: in any state; the saves of a process that is using it are passed over.
        load: loads every array of a checkpoint, given its folder and meta.json, and gives their number.
    """
    report = Report(str(run.path))
    record: dict[str, Any] = {}
    try:
        record, report.status = run.record(), run.status()
    except RunError as error:
        report.problems.append(sentence(error))
    begun = bool(record.get("starts")) or not record
    for check in (_config, _metrics, _summary):
        check(run, record, begun, report)
    try:
        found = [_checkpoint(run, step, report, load=load) for step in manifest.steps(run.checkpoints)]
        left = manifest.steps(run.checkpoints)  # a process that uses the run may have deleted one meanwhile
    except RunError as error:
        report.problems.append(sentence(error))
        return report
    report.checkpoints = [one for one in found if one.step in left or not one.problem]
    report.notes += _leftovers(run)
    return report


def _config(run: RunDirectory, record: dict[str, Any], begun: bool, report: Report) -> None:
    if not run.config.exists():
        if begun:
            report.problems.append(f"{run.config} is missing")
        return
    try:
        composing.from_yaml(run.read_config(), where=str(run.config))
    except composing.UnknownComponent as error:  # of a plugin, which is not imported to look at a run
        report.notes.append(f"{run.config} was not checked: {error.message}")
    except BigctlError as error:
        report.problems.append(sentence(error))
    except Exception as error:  # whatever a YAML parser makes of a damaged file
        report.problems.append(f"{run.config} cannot be read ({type(error).__name__})")


def _metrics(run: RunDirectory, record: dict[str, Any], begun: bool, report: Report) -> None:
    if not run.metrics.exists():
        if report.status == directory.COMPLETE or run.checkpoints.is_dir():
            report.problems.append(f"{run.metrics} is missing")
        return
    last = 0
    try:
        lines = read_regular(run.metrics).split(b"\n")
    except OSError as error:
        report.problems.append(f"{run.metrics} cannot be read: {error.strerror}")
        return
    for number, line in enumerate(lines[:-1], start=1):
        values = untrusted.metrics_line(line)
        if values is None:
            report.problems.append(f"{run.metrics} line {number} is no line of metrics")
            return
        step = values["step"]
        if step < last:
            report.problems.append(f"{run.metrics} line {number} is of step {step}, after step {last}")
            return
        last = step
    if lines[-1] and report.status == directory.COMPLETE:
        report.problems.append(f"{run.metrics} ends in half a line")
    elif lines[-1]:
        report.notes.append(f"{run.metrics} ends in half a line, which the next start drops")


def _summary(run: RunDirectory, record: dict[str, Any], begun: bool, report: Report) -> None:
    if report.status != directory.COMPLETE:
        return
    try:
        summary = run.summary()
        selected, known = summary["selected_step"], manifest.steps(run.checkpoints)
        if selected is None or summary.get("metrics") is None:
            raise KeyError
    except RunError as error:
        report.problems.append(sentence(error))
    except KeyError:
        report.problems.append(f"{run.summary_file} is not as bigctl writes it")
    else:
        if selected not in known:
            report.notes.append(f"the selected checkpoint, of step {selected}, is not on disk any more")


def _checkpoint(run: RunDirectory, step: int, report: Report, *, load: LoadArrays | None) -> Finding:
    folder, found = run.checkpoints / f"{step:09d}", Finding(step)
    try:
        files = manifest.listed(folder)
        found.files, found.bytes = len(files), sum(size for size, _ in files.values())
        meta = manifest.verify_checkpoint(folder)
        if "tokenizer" in meta and _sha256(run.tokenizer) != meta["tokenizer"]:
            raise RunError(f"is not the one that step {step} was trained with", where=str(run.tokenizer))
        if load is not None:
            found.arrays = load(folder, meta)
        for name in manifest.unlisted(folder, files):
            report.notes.append(f"{folder / name} does not belong to the checkpoint, and is never read")
    except RunError as error:
        found.problem = sentence(error)
    return found


def _leftovers(run: RunDirectory) -> Iterator[str]:
    for folder in sorted(run.checkpoints.iterdir()) if run.checkpoints.is_dir() else []:
        if manifest.is_step(folder.name) and manifest.interrupted(folder):
            yield f"{folder} is a save under way, or cut off: then the next start removes it"
        elif folder.name.endswith(manifest.REMOVED):
            yield f"{folder} is half removed; the next start removes the rest"
        elif folder.name.endswith(manifest.SET_ASIDE):
            yield f"{folder} was set aside, because an older checkpoint was used instead"


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(path)) from error


def sentence(error: Exception) -> str:
    if isinstance(error, BigctlError):
        return f"{error.where} {error.message}" if error.where else error.message
    return str(error)
