"""The page of one run, in whatever state it is: what cannot be read is left out and said."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import BigctlError
from bigctl.files import read_regular
from bigctl.formatting import grouped
from bigctl.reports import compression, federated, history, page, plots, quality, trust
from bigctl.reports import curves as learning
from bigctl.reports.examples import shown
from bigctl.runs import corpora, directory, listing, pace, run_info, untrusted
from bigctl.runs.directory import RunDirectory
from bigctl.terminal import escaped

LOG_LINES = 40
MOST_TEXTS = 12
_LONGEST_OVERRIDES = 20_000
_REACHES_OUT = re.compile(r"\$\{|^[+~]*(hydra\b|\w+(@[^=]*)?=.*/)")
"""In an override: a reference to the environment, Hydra's own settings, an option outside of its group's folder."""
_DAMAGE = (BigctlError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError)


@dataclass(frozen=True)
class Setting:
    """One key of the configuration.

    Attributes:
        value, default: as text; the latter is what its recipe says by itself, None where that is not known.
        origin: where it was set, empty where that is not known.
    """

    key: str
    value: str
    default: str | None = None
    origin: str = ""

    @property
    def changed(self) -> bool:
        if self.default is None or (self.default, self.value) == ("", "null"):  # what another key stands for
            return False
        return self.value != self.default


@dataclass
class _Notes:
    """What could not be read, in sentences."""

    found: list[str] = field(default_factory=list)

    def attempt(self, what: str, build: Callable[[], Any], otherwise: object) -> Any:
        """A part of the page, or what stands for it where the files are not as they should be."""
        try:
            return build()
        except _DAMAGE as error:
            said = str(error) if isinstance(error, BigctlError) else f"{type(error).__name__}: {error}"
            self.found.append(f"{what}: {said}")
            return otherwise


def run_page(run: RunDirectory, *, samples: int = 16, live: str = "", up: tuple[str, str] | None = None) -> str:
    """The page of a run as text.

    Args:
        run: in any state; only its folder need be there.
        samples: how many examples of the validation split to predict; 0 for none.
        live: address of its new points, for a page that is served.
        up: address and name of the page above it, likewise.
    """
    notes = _Notes()
    known: dict[str, Any] = notes.attempt("run.json", lambda: run_info.gather_run_info(run), {})
    known = {"run": str(run.path), "status": listing.UNREADABLE, **known}
    status = known["status"]
    summary = notes.attempt("summary.json", run.summary, {}) if run.summary_file.exists() else {}
    past = history.read_history(run.metrics)
    if past.damaged:
        lines = "1 line" if past.damaged == 1 else f"{past.damaged} lines"
        notes.found.append(f"metrics.jsonl: {lines} cannot be read and are left out")
    figures: dict[str, plots.Figure] = {}
    drawn = _drawn(figures, past, known.get("selected_step"), live=bool(live))
    timings = summary.get("timings")
    bar = notes.attempt("summary.json: timings", lambda: plots.times(timings) if timings else None, None)
    times = _named(figures, "times", [bar] if bar else [])
    matrix, classes = notes.attempt("summary.json: confusion", lambda: _matrix(summary), (None, []))
    confusion = _named(figures, "confusion", [plots.confusion(matrix, classes)] if matrix is not None else [])
    baseline = known.get("baseline")
    predicts = samples > 0 and _predicts(run, status, known, notes)
    examples, mistakes = shown(run, samples, summary, predicts=predicts, lacking=notes.found)
    followed = notes.attempt("summary.json: curves", lambda: quality.figures(summary.get("curves") or {}), [])
    return page.render(
        "run.html",
        figures,
        **_trusted(figures, run, notes, summary),
        live=live,
        live_from=past.end,
        up=up,
        run=known,
        name=run.path.resolve().name,
        status=status,
        summary=summary,
        cards=notes.attempt("summary", lambda: _cards(known, summary), []),
        metrics=_metrics(known.get("metrics"), baseline),
        baseline=baseline,
        next=notes.attempt("run.json", lambda: _next(run, known), []),
        settings=notes.attempt("config.yaml", lambda: _settings(run, known), []),
        overrides=[str(o) for o in known.get("overrides") or []],
        **drawn,
        pace=notes.attempt("run.json", lambda: pace.of_run(run, run.record()), None) if live else None,
        times=times,
        confusion=confusion,
        classes=plots.per_class(matrix, classes) if matrix is not None else [],
        examples=examples,
        mistakes=mistakes,
        quality=_named(figures, "quality", followed),
        texts=_texts(run.samples),
        around=notes.attempt("run.json", lambda: _around(known), []),
        starts=notes.attempt("run.json", lambda: _starts(known), []),
        log=_log(run.log) if status not in (directory.COMPLETE, directory.RUNNING) else [],
        notes=[*known.get("notes", []), *notes.found],
    )


def _drawn(figures: dict[str, plots.Figure], past: history.History, selected: object, *, live: bool) -> dict[str, Any]:
    """What the page shows of `metrics.jsonl`: ids of figures, and metrics that are told as numbers."""
    at = selected if isinstance(selected, int) else None
    return {
        "curves": _named(figures, "curve", learning.figures(past.curves, at, live=live)),
        "constants": learning.constants(past.curves, live=live),
        "rates": _named(figures, "rate", learning.rates(past.curves)),
        "usage": _named(figures, "usage", learning.usage(past.curves)),
    }


def _trusted(
    figures: dict[str, plots.Figure], run: RunDirectory, notes: _Notes, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """What `eval` has found out beyond metrics, `compress` of layers, and a federated training of its clients."""
    told = summary.get("compression") or {}
    layers = notes.attempt("summary.json: compression", lambda: compression.figures(told), [])
    found = notes.attempt("assessment.json", lambda: trust.of_run(run), None)
    shown = {"trust": found, "trusted": _named(figures, "trust", found.figures if found else [])}
    of = summary.get("federated")
    clients, shown["worst"] = notes.attempt("summary.json: federated", lambda: federated.shown(of), ([], None))
    shown["clients"] = _named(figures, "clients", clients)
    return {**shown, "compressed": _named(figures, "compressed", layers)}


def _named(figures: dict[str, plots.Figure], name: str, found: list[plots.Figure]) -> list[str]:
    """Give figures their ids, which are returned."""
    ids = [f"{name}-{number}" for number in range(len(found))]
    figures.update(zip(ids, found, strict=True))
    return ids


# ------------------------------------------------------------------------------------------------------------- summary


def _cards(known: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what matters most."""
    metrics, by = known.get("metrics") or {}, known.get("selected_by")
    cards = []
    if by and by in metrics:
        cards.append((str(by), grouped(metrics[by]), f"selected at step {grouped(known['selected_step'])}"))
    measure = str(by).partition("/")[2] if by else ""
    for name in dict.fromkeys((f"test/{measure}", "test/accuracy", "test/loss")):
        if name in metrics and len(cards) < 3:
            cards.append((name, grouped(metrics[name]), "scored once, with the selected weights"))
    if private := summary.get("privacy"):
        said = f"at delta {float(private['delta']):g}, after {grouped(private['steps'])} steps"
        cards.append(("epsilon", f"{float(private['epsilon']):.4g}", said))
    step, total = known.get("step"), known.get("total")
    if step is not None:
        of = f"of {grouped(total)}" if total else ""
        cards.append(("step", grouped(step), f"{of}, {known['stopped']}".strip(", ") if known["stopped"] else of))
    wall = (summary.get("timings") or {}).get("wall")
    if isinstance(wall, int | float):
        rate = summary.get("tokens_per_s") or summary.get("examples_per_s")
        unit = "tokens/s" if summary.get("tokens_per_s") else "examples/s"
        cards.append(("time", _duration(wall), f"{grouped(round(rate))} {unit}" if rate else ""))
    if (spent := known.get("goodput")) and spent["starts"] > 1:
        lost = f", {_duration(spent['lost'])} lost to restarts" if spent["lost"] else ""
        cards.append(
            ("goodput", f"{spent['share']:.0%}", f"of {_duration(spent['wall'])} in {spent['starts']} starts{lost}")
        )
    if known.get("parameters"):
        cards.append(("parameters", grouped(known["parameters"]), ""))
    return cards


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _metrics(metrics: object, baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a metric, its values on validation and on test beside each other, and those of the baseline."""
    beaten = (baseline or {}).get("metrics") or {}
    rows: dict[str, dict[str, Any]] = {}
    for name, value in sorted(metrics.items()) if isinstance(metrics, dict) else []:
        split, _, measure = str(name).partition("/")
        if (isinstance(value, int | float) or value is None) and split in ("val", "test"):
            row = rows.setdefault(measure, {"name": measure})
            row |= {split: value} | ({f"{split}_baseline": beaten[name]} if name in beaten else {})
    return list(rows.values())


def _matrix(summary: Mapping[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    if not summary.get("confusion"):
        return None, []
    matrix = np.asarray(summary["confusion"], np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise ValueError("is no square of counts")
    names = [str(name) for name in summary.get("classes") or []]
    return matrix, names if len(names) == len(matrix) else [str(number) for number in range(len(matrix))]


def _next(run: RunDirectory, known: Mapping[str, Any]) -> list[str]:
    """The commands that are likely next."""
    status, starts = known["status"], known.get("starts") or []
    if status == directory.COMPLETE:
        return [run_info.next_command(run), f"bigctl eval {run.path}", f"bigctl info {run.path}", "bigctl ui"]
    if status in (directory.PARTIAL, directory.PREEMPTED):
        return [f"bigctl resume {run.path}"]
    if status in (directory.FAILED, directory.DIVERGED):
        again = [shlex.join(map(str, starts[-1]["argv"]))] if starts and starts[-1].get("argv") else []
        return [f"bigctl info {run.path}", *again]
    return []


# ------------------------------------------------------------------------------------------------------- configuration


def _settings(run: RunDirectory, known: Mapping[str, Any]) -> list[Setting]:
    """All keys of the configuration, those that differ from what the recipe says by itself first."""
    from bigctl.config import saved, schema

    tree = saved.values(run.read_config(), where=str(run.config))
    values = {key: page.scalar(value) for key, value in _leaves(tree)}
    defaults = _composed([f"recipe={known.get('recipe')}"])[0]
    given = [str(o) for o in known.get("overrides") or []]
    own, origins = _composed(given) if given else ({}, {})
    if defaults:  # of what the recipe itself does not choose
        defaults = _of_components(values, defaults)
    for key in schema.decided_keys():  # what the start decided is nobody's choice
        if key in values and own.get(key, page.scalar(None)) == defaults.get(key) == page.scalar(None):
            defaults[key] = values[key]
    measured = {key for key, value in own.items() if value == schema.AUTO}
    found = [
        Setting(
            key,
            value,
            defaults.get(key, "" if defaults else None),
            origins.get(key, "") if own.get(key) == value else "measured" if key in measured else "",
        )
        for key, value in values.items()
    ]
    return sorted(found, key=lambda setting: not setting.changed)


def _of_components(values: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The defaults of a recipe; those of the chosen components for keys of others than the recipe has."""
    from bigctl.config import schema

    found = dict(defaults)
    for group in schema.GROUPS:
        if (cls := schema.component(group, values.get(f"{group}.kind", ""))) is not None:
            for dotted, field, hint in schema.walk(cls):
                default = field.default if field.default_factory is MISSING else field.default_factory()
                known = f"{group}.{dotted}" in found and values[f"{group}.kind"] == defaults.get(f"{group}.kind")
                if default not in (MISSING, schema.MISSING) and not (is_dataclass(hint) or known or dotted == "kind"):
                    found[f"{group}.{dotted}"] = page.scalar(default)
    return found


def _leaves(tree: object, prefix: str = "") -> list[tuple[str, object]]:
    if not isinstance(tree, dict) or not tree:
        return [(prefix, tree)] if prefix else []
    return [
        leaf for name, value in tree.items() for leaf in _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    ]


def _composed(overrides: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """What some overrides give here and now, and where from; nothing if they give nothing any more, or would read more
    than presets: they stand in a run that anybody may have written."""
    from bigctl.config import compose, schema

    if sum(map(len, overrides)) > _LONGEST_OVERRIDES or any(map(_REACHES_OUT.search, overrides)):
        return {}, {}
    try:
        found = compose.compose(overrides, plugins=None, partial=True)
    except Exception:  # whatever Hydra makes of texts that it never wrote
        return {}, {}
    values = {key: page.scalar(value) for key, _, value in schema.walk_config(found.config)}
    return values, {key: "default" if origin == "schema" else origin for key, origin in found.origins.items()}


# ------------------------------------------------------------------------------------------------ examples, texts, log


def _predicts(run: RunDirectory, status: str, known: Mapping[str, Any], notes: _Notes) -> bool:
    """Whether a run is not being trained and predicts something."""
    from bigctl.runs import manifest

    if status == directory.RUNNING or not manifest.steps(run.checkpoints):
        return False
    kind = notes.attempt("run.json", lambda: run.record()["data"]["features"]["kind"], "")
    return kind in ("image", "table", "text") and known.get("recipe") != "bert_mlm"


def _texts(path: Path) -> list[dict[str, Any]]:
    """What a language model wrote while it was trained, the last first; of many some, evenly."""
    found = []
    try:
        lines = read_regular(path).split(b"\n")
    except OSError:
        return []
    for line in lines:
        try:
            value = untrusted.mapping(line, {"step": untrusted.COUNT, "prompt": str, "text": str})
            found.append({"step": int(value["step"]), "prompt": str(value["prompt"]), "text": str(value["text"])})
        except (ValueError, KeyError, TypeError):
            continue
    chosen = np.unique(np.linspace(0, max(0, len(found) - 1), min(len(found), MOST_TEXTS)).astype(int))
    return [found[index] for index in reversed(chosen.tolist())]


def _log(path: Path) -> list[str]:
    """The last lines of the log."""
    try:
        content = read_regular(path, start=-65536).decode(errors="replace")
    except OSError:
        return []
    return [escaped(line)[:500] for line in content.splitlines()[-LOG_LINES:]]


# -------------------------------------------------------------------------------------------------------- surroundings


def _around(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run was made with: (name, value)."""
    rows: list[tuple[str, Any]] = [("folder", known["run"])]
    if devices := known.get("devices"):
        mesh = " x ".join(f"{axis} {n}" for axis, n in (devices.get("mesh") or {}).items())
        rows.append(("devices", f"{devices.get('count')} {devices.get('kind')}" + (f" ({mesh})" if mesh else "")))
    code = known.get("code") or {}
    if code.get("commit"):
        dirty = ", with uncommitted changes (the diff is in run.json)" if code.get("dirty") else ""
        rows.append(("code", f"commit {str(code['commit'])[:12]}{dirty}"))
    rows.append(("packages", ", ".join(f"{n} {v}" for n, v in (known.get("packages") or {}).items())))
    rows.append(("machine", ", ".join(f"{n} {v}" for n, v in (known.get("machine") or {}).items() if v)))
    rows.append(("plugins", ", ".join(map(str, known.get("plugins") or []))))
    if data := known.get("data"):
        sizes = ", ".join(f"{split} {grouped(n)}" for split, n in (data.get("sizes") or {}).items())
        info = data.get("info") or {}
        about = "; ".join(str(info[key]) for key in ("title", "source", "licence") if info.get(key))
        rows.append(("data", f"{sizes}; fingerprint {str(data.get('fingerprint'))[:12]}"))
        rows.append(("", about))
        rows += [("", each) for each in corpora.lines(data.get("drawn") or [])]
    saved = [c for c in known.get("checkpoints") or [] if c["committed"]]
    rows.append(("checkpoints", ", ".join(f"step {grouped(c['step'])}" for c in saved)))
    return [(name, str(value)) for name, value in rows if value]


def _starts(known: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(when, from which step, command) of every process that trained the run."""
    return [
        (page.date(start["time"]), int(start["step"]), shlex.join(map(str, start.get("argv") or [])))
        for start in known.get("starts") or []
    ]
