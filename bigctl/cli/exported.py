"""What commands that take a run do with an export. Nothing heavy at import."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.inference.from_export import FromExport
    from bigctl.inference.scored import Scored
    from bigctl.runs.directory import RunDirectory
    from bigctl.runs.exports import Export


def require_flags(options: argparse.Namespace) -> None:
    """Raises ConfigError for flags of `eval` that an export has nothing for."""
    from bigctl.errors import ConfigError

    run, kept = "or evaluate the run", "`bigctl eval RUN {}` keeps it with the run; export that again"
    nothing = "nothing is kept in an export"
    require_asked(options, "evaluate the run")
    refused = (
        ("--calibration", options.calibration, nothing, kept.format("--calibration")),
        ("--conformal", options.conformal is not None, nothing, kept.format("--conformal LEVEL")),
        ("--ood", options.ood is not None, "is asked of a run, by its embeddings", f"leave it out, {run}"),
        ("--robust", options.robust, "an export gives no gradients", f"leave it out, {run}"),
    )
    for flag, given, what, hint in refused:
        if given:
            raise ConfigError(what, where=flag, hint=hint)


def require_asked(options: argparse.Namespace, instead: str) -> None:
    """Raises ConfigError for another step, views, and a threshold that an export would have to choose or keep."""
    from bigctl.errors import ConfigError

    is_number = options.threshold in (None, "none") or _is_number(options.threshold)
    refused = (
        ("--step", options.step != "best", "an export holds one step", "leave it out"),
        ("--tta", options.tta is not None, "an export computes one view of a picture", "leave it out"),
        ("--threshold", not is_number, "an export takes a number, and keeps none", "0.3, none"),
    )
    for flag, given, what, hint in refused:
        if given:
            raise ConfigError(what, where=flag, hint=f"{hint}, or {instead}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def located(name: str, source: str | None = None) -> RunDirectory | Export:
    """The run or the export of a name, see `exports.find`. Raises RunError where there is neither."""
    from bigctl.runs import directory, exports

    return exports.find(name, source) or directory.locate(name)


def require_source(options: argparse.Namespace, found: Sequence[RunDirectory | Export | None]) -> None:
    """Raises ConfigError for --source where there is no export."""
    from bigctl.errors import ConfigError
    from bigctl.runs.exports import Export

    if options.source is not None and not any(isinstance(each, Export) for each in found):
        hint = "leave it out, or give a folder that `bigctl export` wrote"
        raise ConfigError("is for an export, and there is none", where="--source", hint=hint)


def passphrase_if_given(options: argparse.Namespace, found: Sequence[RunDirectory | Export]) -> str | None:
    """The passphrase of encrypted exports, for who can do without. Raises ConfigError as `common.passphrase` does."""
    from bigctl.inference.exporters import sealed

    folders = [str(each.path) for each in found]
    if options.passphrase_file is None and (
        not os.environ.get(sealed.VARIABLE) or not any(sealed.is_sealed(each.path) for each in found)
    ):
        return None
    return common.passphrase(options.passphrase_file, folders)


@contextlib.contextmanager
def in_clear(found: RunDirectory | Export, secret: str | None) -> Iterator[RunDirectory | Export]:
    """The same, its files in clear as long as this lasts. Raises as `sealed.opened` does."""
    from bigctl.runs.exports import Export

    if not isinstance(found, Export) or not found.sealed:
        yield found
        return
    from bigctl.inference.exporters import sealed

    with sealed.opened(found.path, secret) as clear:
        yield replace(found, path=clear, near=found.path)


@contextlib.contextmanager
def model(
    found: RunDirectory | Export, options: argparse.Namespace, secret: str | None, **asked: str | int | None
) -> Iterator[Scored]:
    """The model of a run or of an export, to be scored; `asked` is for `TrainedRun.load`. Raises as that and
    `artefact.opened` do."""
    from bigctl.runs.exports import Export

    path = found.path
    if not isinstance(found, Export):
        from bigctl.inference.trained import TrainedRun

        yield TrainedRun.load(str(path), plugins=options.plugin, **asked)  # type: ignore[arg-type]
        return
    from bigctl.inference import artefact

    with artefact.opened(found, plugins=options.plugin, passphrase=secret) as exported:
        exported.require_scored()
        yield exported


def facts(scored: Scored) -> dict[str, Any]:
    """What is said of an export besides its scores, as JSON; nothing of a run."""
    from bigctl.inference.from_export import FromExport

    if not isinstance(scored, FromExport):
        return {}
    about = {"format": scored.export.format, "weights": scored.export.weights, "runtime": scored.runtime}
    return {**about, "origin": scored.origin.to_json(), "notes": scored.notes}


def print_facts(scored: Scored, *, named: bool = False) -> None:
    """The same, for people; `named` where it stands beside others."""
    if told := facts(scored):
        from bigctl.inference.from_export import FromExport

        assert isinstance(scored, FromExport)
        render.print_wrapped(
            f"{told['format']}, {told['weights']}, computed by {told['runtime']}; {scored.origin.said}"
        )
        for note in told["notes"]:
            render.print_wrapped(f"note: {note}")


def next_commands(scored: Scored) -> list[str]:
    """What can be done with a run, or an export, that has been scored."""
    from bigctl.config import plugins
    from bigctl.data.target import CLASS, NUMBER
    from bigctl.inference.from_export import FromExport
    from bigctl.runs import run_info

    path = scored.run.path
    if not isinstance(scored, FromExport):
        return [run_info.next_command(scored.run), f"bigctl report {path}", "bigctl ui"]
    there = plugins.installed()
    more = "".join(f" --plugin {shlex.quote(name)}" for name in scored.plugins if name not in there)
    more += " --passphrase-file FILE" if scored.export.near else ""
    origin = scored.origin
    paired = " --significance" if scored.features.target.kind in (CLASS, NUMBER) else ""
    beside = [f"bigctl compare {origin.run.path} {path}{paired}{more}"] if origin.run and origin.same else []
    return [*(f"{line}{more}" for line in _used(scored)), *beside, f"bigctl report {path}{more}"]


def _used(scored: FromExport) -> list[str]:
    from bigctl.runs import export_info

    path, kind = scored.run.path, scored.features.kind
    answer = export_info.answering(scored.export.format, kind, scored.config.recipe.kind)
    if "generate" in answer:
        return [f'bigctl generate {path} --prompt "..."']
    text = '--text "..."' + (' --text-pair "..."' if scored.features.pairs else "")
    given = {"table": "FILE.csv", "image": "FILE.png"}.get(kind, text)
    return [f"bigctl predict {path} {given}"] if "predict" in answer else []
