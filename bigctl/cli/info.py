"""Everything known about a run or an export: its results, what is on disk, and what it was made with."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import time
from typing import Any

from bigctl import formatting, terminal
from bigctl.cli import common, exported, render
from bigctl.errors import RunError
from bigctl.runs import baselines, corpora, directory, export_info, run_info
from bigctl.runs.directory import RunDirectory
from bigctl.runs.exports import Export

EXAMPLES = """\
examples:
  bigctl info runs/cnn_cls
  bigctl info cnn_cls --json
  bigctl info runs/cnn_cls/onnx                    an export
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, a name under runs/, or an export")
    common.add_exported(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    found = exported.located(options.run, options.source)
    exported.require_source(options, [found])
    secret = exported.passphrase_if_given(options, [found])
    if isinstance(found, Export):
        return _of_export(found, options, secret)
    try:
        known = run_info.gather_run_info(found)
        lines = text(known)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"is not as bigctl writes it ({error!r})", where=str(found.record_file)) from error
    if options.json:
        render.print_json(known)
    else:
        print("\n".join(lines))
    return 0


def _of_export(export: Export, options: argparse.Namespace, secret: str | None) -> int:
    found: Export | RunDirectory
    with contextlib.nullcontext(export) if secret is None else exported.in_clear(export, secret) as found:
        assert isinstance(found, Export)
        known = export_info.gather_export_info(found)
    if options.json:
        render.print_json(known)
    else:
        for text in export_text(known):
            render.print_wrapped(text, 13)
    return 0


# -------------------------------------------------------------------------------------------------------- for people


def export_text(known: dict[str, Any]) -> list[str]:
    """The report of an export, one fact a line."""
    stored = f", weights {known['weights']}" if known["weights"] else ""
    lines = [f"{known['export']}: an export, {known['format'] or 'of no known format'}{stored}"]

    def line(name: str, value: object) -> None:
        if value not in (None, "", [], {}):
            lines.append(f"{name:<12} {terminal.one_line(str(value))}")

    line("made from", known["said"].removeprefix("made from "))
    line("recipe", known["recipe"] and f"{known['recipe']}, model {known['model']}, data {known['data']}")
    names = known["classes"] or []
    line("classes", ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else ""))
    line("threshold", known["threshold"])
    line("plugins", ", ".join(known["plugins"] or []))
    line("compared", known["compared"])
    for place, told in enumerate(known["rounded"]):
        line("" if place else "rounded", told)
    line("on disk", formatting.size(known["bytes"]))
    lines += [f"{'':<12} {name:<24} {formatting.size(size):>10}" for name, size in known["files"].items()]
    line("exported by", known["bigctl"] and f"bigctl {known['bigctl']}")
    line("taken by", ", ".join(export_info.taken_by(known)))
    return lines + [f"note: {note}" for note in known["notes"]]


def text(known: dict[str, Any]) -> list[str]:
    """The report, one fact a line."""
    step, total = known["step"], known["total"]
    progress = "no step recorded" if step is None else f"step {step:,}" + (f" of {total:,}" if total else "")
    lines = [f"{known['run']}: {known['status']}, {progress}", *_why(known)]

    def line(name: str, value: object) -> None:
        if value not in (None, "", [], {}):
            lines.append(f"{name:<12} {value}")

    line("recipe", known["recipe"])
    line("made from", known["derived_from"])
    line("parameters", f"{known['parameters']:,}" if known["parameters"] is not None else None)
    line("stopped", known["stopped"])
    if known["selected_step"] is not None:
        line("selected", f"step {known['selected_step']:,} by {known['selected_by'] or 'its last evaluation'}")
    scores = {name: value for name, value in sorted(known["metrics"].items()) if isinstance(value, (int, float))}
    wide = max(map(len, scores), default=0)
    for place, (name, value) in enumerate(scores.items()):
        line("" if place else "metrics", f"{name:<{wide}}  {value:.4f}")
    if known["baseline"]:
        beaten, name = baselines.parts(known["baseline"], known["metrics"], known["selected_by"])
        line("baseline", name)
        lines += [f"{'':<12} {score}" for score in beaten]
    line("on disk", formatting.size(known["bytes"]))
    for saved in known["checkpoints"]:
        marks = [mark for mark in ("best", "last") if saved[mark]] if saved["committed"] else ["unfinished save"]
        line("checkpoint", f"step {saved['step']:,}  {formatting.size(saved['bytes'])}  {', '.join(marks)}".rstrip())
    for start in known["starts"]:
        line("started", f"{_date(start['time'])} from step {start['step']:,}: {shlex.join(start.get('argv') or [])}")
        lines += [f"{'':<12} {note}" for note in start.get("notes") or []]
    line("goodput", (known["goodput"] or {}).get("said"))
    line("overrides", shlex.join(known["overrides"]))
    line("plugins", ", ".join(known["plugins"]))
    if known["data"]:
        line("data", _origin(known["data"]["info"] or {}))
        sizes = ", ".join(f"{split} {n:,}" for split, n in (known["data"]["sizes"] or {}).items())
        line("", f"examples: {sizes}")
        for each in corpora.lines(known["data"]["drawn"] or []):
            line("", each)
        line("", f"fingerprint {str(known['data']['fingerprint'])[:12]}")
    if devices := known["devices"]:
        mesh = " x ".join(f"{axis} {n}" for axis, n in devices.get("mesh", {}).items())
        line("devices", f"{devices['count']} {devices['kind']}" + (f" ({mesh})" if mesh else ""))
    if known["packages"]:  # recorded together with the code; missing if the run ended before
        code = known["code"]
        dirty = ", with uncommitted changes (diff in run.json)" if code.get("dirty") else ""
        line("code", f"commit {code['commit'][:12]}{dirty}" if code.get("commit") else "not in a git checkout")
    line("packages", ", ".join(f"{name} {version}" for name, version in known["packages"].items()))
    line("machine", ", ".join(f"{name} {value}" for name, value in known["machine"].items() if value))
    return lines + [f"note: {note}" for note in known["notes"]]


def _origin(info: dict[str, Any]) -> str:
    """What the data is: its title or kind, the files it was read from, and the licence."""
    files = info.get("files")
    read = ", ".join(f"{split}: {file}" for split, file in files.items()) if isinstance(files, dict) else ""
    said = [str(info[key]) for key in ("title", "source", "licence") if info.get(key)]
    return "; ".join(filter(None, [*said, read])) or "not described"


def _why(known: dict[str, Any]) -> list[str]:
    """Why a run is not complete, and what to do about it."""
    again = shlex.join(known["starts"][-1].get("argv") or []) if known["starts"] else ""
    lines = [f"  {line}" for line in known["message"].splitlines()]
    if known["status"] == directory.RUNNING:
        return [f"  in use by {known['held_by']}"]
    if known["status"] == directory.PARTIAL:
        lines.append("  it was killed" + (f"; to resume: {again}" if again else ""))
    elif known["status"] == directory.PREEMPTED and again:
        lines.append(f"  to resume: {again}")
    if known["status"] in (directory.FAILED, directory.DIVERGED, directory.PARTIAL) and known["log"]:
        lines.append(f"  log: {known['log']}")
    return lines


def _date(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
