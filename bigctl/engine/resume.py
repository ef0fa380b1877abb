"""What a start finds in a run directory: whether it may go on there, as what, and whether anything is left to do.

docs/resume.md has the table of states. Free of jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bigctl.config import compose as composing
from bigctl.config import drift, schema
from bigctl.config.compose import Composed
from bigctl.errors import Diverged, RunError
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory


def hold(
    run: RunDirectory, composed: Composed, *, resume: str, allow_drift: Sequence[str]
) -> tuple[Any, list[str], dict[str, Any] | None]:
    """Hold the run: the configuration to go on with, what has changed since, and, where it is complete, its summary."""
    if resume == "must" and not run.exists:
        raise RunError("there is no run to resume", where=str(run.path), hint="--resume auto starts one")
    run.lock()
    config, previous, changed = _reconcile(run, composed, allow_drift)
    if previous == directory.COMPLETE and _is_complete(run, config):
        # the run may have been moved or copied since
        return config, changed, {**run.summary(), "run": str(run.path), "already_complete": True}
    if previous == directory.COMPLETE and run.summary_file.exists() and not run.trained():
        raise RunError(
            "is complete, and its checkpoints are gone: there is nothing to go on from",
            where=str(run.path),
            hint="bring them back, or start a new run with another --name",
        )
    return config, changed, None


def _reconcile(run: RunDirectory, composed: Composed, allow_drift: Sequence[str]) -> tuple[Any, str, list[str]]:
    """The configuration to go on with, the status of what is there, and what has changed since.

    Raises:
        RunError: if that cannot be resumed.
    """
    config = composed.config
    if run.checkpoints.exists() and not run.config.exists():
        raise RunError(
            "is missing, so what the checkpoints belong to is not known",
            where=str(run.config),
            hint="bring it back, or start a new run with another --name",
        )
    if not run.config.exists():
        return config, directory.NEW, []
    status = run.status()
    saved = composing.from_yaml(run.read_config(), where=str(run.config))
    kept = _keep_decided(saved, config)
    found = drift.changes(saved, kept)
    if status == directory.DIVERGED and all(change.drift == schema.FREE for change in found):
        raise Diverged(
            f"the run diverged: {run.record().get('message', '')}",
            where=str(run.path),
            hint="change the configuration (--allow-drift KEY), or use another --name",
        )
    if not run.trained() and status != directory.COMPLETE:
        drift.judge([], allow_drift, where=str(run.path))
        return config, status, [str(change) for change in found]  # it starts again: nothing could go on differently
    found = drift.judge(found, allow_drift, where=str(run.path))
    return kept, status, [str(change) for change in found]


def _keep_decided(saved: Any, config: Any) -> Any:
    """The configuration with what the start of the run decided where it leaves that open: a run that is made longer
    keeps the schedule it began with, one from pretrained weights their architecture."""
    for part in dataclasses.fields(config):
        old, new = getattr(saved, part.name), getattr(config, part.name)
        if not dataclasses.is_dataclass(new) or isinstance(new, type) or type(old) is not type(new):
            continue
        decided = {
            field.name: getattr(old, field.name)
            for field in dataclasses.fields(new)
            if field.metadata.get("decided") and getattr(new, field.name) is None
        }
        if decided:
            config = dataclasses.replace(config, **{part.name: dataclasses.replace(new, **decided)})
    return config


def _is_complete(run: RunDirectory, config: Any) -> bool:
    """Whether nothing is left to do: all steps of this configuration are done, or it stopped by its own rule."""
    from bigctl.config.cadence import total_steps

    try:
        summary = run.summary()
        return bool(summary["stopped"]) or int(summary["step"]) >= total_steps(config, int(summary["data"]["train"]))
    except (RunError, KeyError, TypeError, ValueError):
        return False  # lost or damaged: going on from the last checkpoint, at the end, writes it again
