"""Everything known about a run: what came out, what is on disk, and what it was made with."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from bigctl.cli import common
from bigctl.errors import RunError
from bigctl.runs import directory, listing
from bigctl.runs.directory import RunDirectory

EXAMPLES = """\
examples:
  bigctl info runs/cnn_cls
  bigctl info cnn_cls --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    found = directory.locate(options.run)
    try:
        facts = report(found)
        lines = text(facts)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"is not as bigctl writes it ({error!r})", where=str(found.record_file)) from error
    if options.json:
        common.print_json(facts)
    else:
        print("\n".join(lines))
    return 0


def report(run: RunDirectory) -> dict[str, Any]:
    """Facts about a run in any state; what is missing, because it was killed early, is None or empty.

    Raises:
        RunError: if its run.json cannot be read.
    """
    record, status, notes = run.record(), run.status(), []
    summary: dict[str, Any] = {}
    if status == directory.COMPLETE:
        try:
            summary = run.summary()
        except RunError as error:
            notes.append(str(error))
    row, progress, saved = listing.row(run), listing.newest_progress(run), listing.checkpoints(run)
    best, last = progress.get("best_step"), max((c.step for c in saved if c.committed), default=None)
    selected = summary.get("selected_step", best)
    if selected is not None and not any(c.committed and c.step == selected for c in saved):
        notes.append(f"the selected checkpoint, of step {selected}, is not on disk any more")
    data = record.get("data") or {}
    return {
        "run": str(run.path),
        "status": status,
        "message": record.get("message") or "",
        "exit_code": record.get("exit_code"),
        "held_by": listing.holder(run) if status == directory.RUNNING else None,
        "log": str(run.log) if run.log.exists() else None,
        "recipe": record.get("recipe"),
        "parameters": record.get("parameters"),
        "step": row.step,
        "total": _total(run, data.get("sizes") or {}, notes),
        "stopped": summary.get("stopped") or progress.get("stopped") or "",
        "selected_step": selected,
        "selected_by": row.metric or None,
        "metrics": summary.get("metrics") or progress.get("best_metrics") or {},
        "timings": summary.get("timings"),
        "checkpoints": [
            {"step": c.step, "bytes": c.bytes, "committed": c.committed, "best": c.step == best, "last": c.step == last}
            for c in saved
        ],
        "bytes": listing.disk_size(run.path),
        "created": record.get("created"),
        "updated": record.get("updated"),
        "starts": record.get("starts") or [],
        "overrides": record.get("overrides") or _lines(run.overrides),
        "data": {name: data.get(name) for name in ("fingerprint", "sizes", "info")} if data else None,
        "devices": record.get("devices"),
        "code": {k: v for k, v in (record.get("code") or {}).items() if k != "diff"},
        "packages": record.get("packages") or {},
        "plugins": record.get("plugins") or [],
        "machine": record.get("machine") or {},
        "notes": notes,
    }


def _total(run: RunDirectory, sizes: dict[str, int], notes: list[str]) -> int | None:
    """The length of training [steps]; read leniently, because the components of a plugin need not be known here."""
    from omegaconf import OmegaConf

    from bigctl.training.cadence import total_steps

    if not run.config.exists() or "train" not in sizes:
        return None
    try:
        config: Any = OmegaConf.load(run.config)
        return total_steps(config, int(sizes["train"]))
    except Exception as error:  # whatever a YAML parser makes of a damaged file
        notes.append(f"{run.config}: cannot be read ({type(error).__name__})")
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError):
        return []


# -------------------------------------------------------------------------------------------------------- for people


def text(facts: dict[str, Any]) -> list[str]:
    """The report, one fact a line."""
    step, total = facts["step"], facts["total"]
    progress = "no step recorded" if step is None else f"step {step:,}" + (f" of {total:,}" if total else "")
    lines = [f"{facts['run']}: {facts['status']}, {progress}", *_why(facts)]

    def line(name: str, value: Any) -> None:
        if value not in (None, "", [], {}):
            lines.append(f"{name:<12} {value}")

    line("recipe", facts["recipe"])
    line("parameters", f"{facts['parameters']:,}" if facts["parameters"] is not None else None)
    line("stopped", facts["stopped"])
    if facts["selected_step"] is not None:
        line("selected", f"step {facts['selected_step']:,} by {facts['selected_by'] or 'its last evaluation'}")
    for name, value in sorted(facts["metrics"].items()):
        if isinstance(value, (int, float)):
            line("", f"{name:<16} {value:.4f}")
    line("on disk", common.size(facts["bytes"]))
    for saved in facts["checkpoints"]:
        marks = [mark for mark in ("best", "last") if saved[mark]] if saved["committed"] else ["unfinished save"]
        line("checkpoint", f"step {saved['step']:,}  {common.size(saved['bytes'])}  {', '.join(marks)}".rstrip())
    for start in facts["starts"]:
        line("started", f"{_date(start['time'])} from step {start['step']:,}: {shlex.join(start.get('argv') or [])}")
    line("overrides", shlex.join(facts["overrides"]))
    line("plugins", ", ".join(facts["plugins"]))
    if facts["data"]:
        sizes = ", ".join(f"{split} {n:,}" for split, n in (facts["data"]["sizes"] or {}).items())
        line("data", f"{sizes}; fingerprint {str(facts['data']['fingerprint'])[:12]}")
        info = facts["data"]["info"] or {}
        line("", "; ".join(str(info[key]) for key in ("title", "source", "licence") if info.get(key)))
    if devices := facts["devices"]:
        mesh = " x ".join(f"{axis} {n}" for axis, n in devices.get("mesh", {}).items())
        line("devices", f"{devices['count']} {devices['kind']}" + (f" ({mesh})" if mesh else ""))
    if facts["packages"]:  # written together with the code: without them the run did not come so far
        code = facts["code"]
        dirty = ", with uncommitted changes (diff in run.json)" if code.get("dirty") else ""
        line("code", f"commit {code['commit'][:12]}{dirty}" if code.get("commit") else "not in a git checkout")
    line("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    line("machine", ", ".join(f"{name} {value}" for name, value in facts["machine"].items()))
    return lines + [f"note: {note}" for note in facts["notes"]]


def _why(facts: dict[str, Any]) -> list[str]:
    """Why a run is not complete, and what to do about it."""
    again = shlex.join(facts["starts"][-1].get("argv") or []) if facts["starts"] else ""
    lines = [f"  {line}" for line in facts["message"].splitlines()[:3]]
    if facts["status"] == directory.RUNNING:
        return [f"  in use by {facts['held_by']}"]
    if facts["status"] == directory.PARTIAL:
        lines.append("  it was killed" + (f"; to go on: {again}" if again else ""))
    elif facts["status"] == directory.PREEMPTED and again:
        lines.append(f"  to go on: {again}")
    if facts["status"] in (directory.FAILED, directory.DIVERGED, directory.PARTIAL) and facts["log"]:
        lines.append(f"  log: {facts['log']}")
    return lines


def _date(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
