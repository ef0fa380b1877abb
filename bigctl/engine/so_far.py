"""What the newest checkpoint of a run tells before its arrays are read, and what follows from it. Free of jax."""

from __future__ import annotations

from typing import Any

from bigctl.config.cadence import Done
from bigctl.config.schema import Config
from bigctl.errors import RunError
from bigctl.runs import manifest
from bigctl.runs.directory import RunDirectory
from bigctl.training import early_stop


def progress(run: RunDirectory, *, whole: bool = False) -> dict[str, Any]:
    """The progress that the newest checkpoint holds, with `whole` the newest of which no byte has changed; empty where
    there is none."""
    for step in reversed(manifest.steps(run.checkpoints)):
        folder = run.checkpoints / f"{step:09d}"
        try:
            return dict((manifest.verify_checkpoint if whole else manifest.read_meta)(folder)["progress"])
        except (RunError, KeyError, TypeError, ValueError):
            continue
    return {}


def done(run: RunDirectory, saved: Config, config: Config) -> Done | None:
    """Updates and examples so far; None where that makes no difference, as long as all batches have one size.

    Args:
        run: the run that is resumed.
        saved: its configuration at the start before.
        config: as it goes on.
    """
    found = _counted(progress(run), saved)
    size = (saved if config.train.federated.on else config).train.batch_size  # of a round it is not settled yet
    if found is None or found.examples == found.steps * size:
        return None
    return _counted(progress(run, whole=True), saved)  # of that checkpoint which will be read


def _counted(found: dict[str, Any], saved: Config) -> Done | None:
    if "step" not in found or "position" not in found:
        return None
    steps = int(found["step"])
    if "passed_over" not in found and found.get("rewinds"):  # of an older version, which did not tell
        return Done(steps, steps * saved.train.batch_size)
    return Done(steps, int(found["position"]) - int(found.get("passed_over", 0)))


def stopped(run: RunDirectory, config: Config, why: str) -> str:
    """Why training that ended by its own rule ends there by today's rule too; empty if it goes on.

    Args:
        run: the run.
        config: as it is asked to go on.
        why: why it ended.
    """
    rule = config.train.early_stop
    selection = run.record().get("selection") or {}
    metric, mode = (str(selection.get(key) or "") for key in ("metric", "mode"))
    if (config.eval.metric or metric) != metric or (config.eval.mode or mode) != mode:
        return ""
    found = progress(run)
    if not found:  # its checkpoints are gone: nothing can go on
        return why
    return early_stop.still(rule, metric, mode, why, found.get("best"), int(found.get("stale") or 0))
