"""Everything known about a run, in whatever state it is: for `bigctl info` and for reports. Free of jax."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any

from bigctl.config import plugins, saved, schema
from bigctl.errors import BigctlError, RunError
from bigctl.files import disk_size, read_regular
from bigctl.runs import baselines, directory, exports, goodput, listing, provenance
from bigctl.runs.directory import RunDirectory


def gather_run_info(run: RunDirectory) -> dict[str, Any]:
    """What is known about a run in any state; what is missing, because it was killed early, is None or empty.

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
    spent = goodput.of_run(run)
    told = data.get("notes") or (data.get("info") or {}).get("notes") or []  # older runs keep them in the facts alone
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
        "total": _total(run, record, data.get("sizes") or {}, notes),
        "stopped": summary.get("stopped") or progress.get("stopped") or "",
        "selected_step": selected,
        "selected_by": row.metric or None,
        "metrics": summary.get("metrics") or progress.get("best_metrics") or {},
        "baseline": baselines.of_run(record, summary),
        "timings": summary.get("timings"),
        "goodput": None if spent is None else spent.to_json(),
        "checkpoints": [
            {"step": c.step, "bytes": c.bytes, "committed": c.committed, "best": c.step == best, "last": c.step == last}
            for c in saved
        ],
        "bytes": disk_size(run.path),
        "created": record.get("created"),
        "updated": record.get("updated"),
        "derived_from": provenance.derived(record),
        "starts": record.get("starts") or [],
        "overrides": record.get("overrides") or _lines(run.overrides),
        "data": {name: data.get(name) for name in ("fingerprint", "sizes", "info", "drawn")} if data else None,
        "devices": record.get("devices"),
        "code": {k: v for k, v in (record.get("code") or {}).items() if k != "diff"},
        "packages": record.get("packages") or {},
        "plugins": record.get("plugins") or [],
        "machine": record.get("machine") or {},
        "notes": [*notes, *(f"data: {note}" for note in told)],
    }


def _total(run: RunDirectory, record: dict[str, Any], sizes: dict[str, int], notes: list[str]) -> int | None:
    """The length of training [steps], as the last start knew it, else by the configuration; read leniently, because the
    components of a plugin need not be known here."""
    from omegaconf import OmegaConf

    from bigctl.config.cadence import total_steps

    if not run.config.exists() or "train" not in sizes:
        return None
    if isinstance(steps := record.get("steps"), int):
        return steps
    try:
        config: Any = OmegaConf.create(saved.values(run.read_config(), where=str(run.config)))
        return total_steps(config, int(sizes["train"]))
    except Exception as error:  # whatever a YAML parser makes of a damaged file
        notes.append(str(error) if isinstance(error, BigctlError) else f"{run.config}: is not as bigctl writes it")
        return None


def _lines(path: Path) -> list[str]:
    try:
        return read_regular(path).decode().split("\n")[:-1]
    except (OSError, ValueError):
        return []


def encoding_of(name: str) -> str | None:
    """Of the texts that a run, or that of an export, was trained on; None for UTF-8, and where there is no such run."""
    if any((path / "run.json").is_file() for path in (Path(name), directory.ROOT / name)):
        run = directory.locate(name)
        config, where = run.read_config(), str(run.config)
    elif (export := exports.find(name)) is not None and not export.sealed:
        config, where = str(export.settings().get("config", "{}")), str(export.path)
    else:
        return None
    data = saved.values(config, where=where).get("data")
    encoding = data.get("encoding") if isinstance(data, dict) else None
    return encoding if isinstance(encoding, str) and schema.is_encoding(encoding) else None


def plugin_flags(run: RunDirectory) -> str:
    """What a command that uses the run needs besides: its plugins, but for those of installed packages."""
    there = plugins.installed()
    return "".join(f" --plugin {shlex.quote(name)}" for name in run.record().get("plugins") or () if name not in there)


def next_command(run: RunDirectory) -> str:
    """The command that uses what was trained, by what its data looks like. Raises RunError, KeyError without data."""
    return _next_command(run) + plugin_flags(run)


def _next_command(run: RunDirectory) -> str:
    record, path = run.record(), run.path
    features = record["data"]["features"]
    purpose = purpose_of(record["recipe"])
    if purpose == "initialise":
        return f"bigctl train recipe=bert_cls model.init_from={path}"
    if purpose == "generate" or features["kind"] == "stream":
        return f'bigctl generate {path} --prompt "..."'
    if features["kind"] == "text":
        return f'bigctl predict {path} --text "..."' + (' --text-pair "..."' if features.get("pairs") else "")
    return f"bigctl predict {path} {'FILE.csv' if features['kind'] == 'table' else 'FILE.png'}"


def purpose_of(recipe: object) -> str:
    """What models of a recipe are for, see `schema.Recipe`; "predict" for one of a plugin, which is not imported."""
    found = schema.component("recipe", str(recipe))
    return found.purpose if found is not None and issubclass(found, schema.Recipe) else "predict"


def use_commands(run: RunDirectory) -> list[str]:
    """What can be done with a trained run at once; nothing where it has no weights any more, or no record."""
    with contextlib.suppress(RunError, KeyError, TypeError):
        return [next_command(run)] if run.trained() else []
    return []
