"""Runs -> what serves them. Raises, in one line, for what cannot be served here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigctl import memory
from bigctl.errors import RunError
from bigctl.formatting import size
from bigctl.inference.trained import TrainedRun
from bigctl.runs import directory, manifest
from bigctl.serving.predicting import Predicting
from bigctl.serving.settings import Settings
from bigctl.serving.writing import Writing


def load(
    name: str, given: str, settings: Settings, *, step: str | int, plugins: Sequence[str] | None
) -> Predicting | Writing:
    """A model under a name.

    Args:
        name: in addresses and requests.
        given: a run directory, or a name under runs/.
        settings: of the server.
        step: "best", "last" or a number.
        plugins: modules with its components.

    Raises:
        RunError: if it cannot be loaded, or does not fit in memory.
    """
    run = directory.locate(given)
    require_memory(run.checkpoints, memory.available())
    try:
        trained = TrainedRun.load(given, step=step, plugins=plugins)
        if trained.features.kind == "stream":
            return Writing(name, trained.language_model, settings.max_queue)
        return Predicting(name, trained)
    except MemoryError:
        raise _too_large(run.path) from None
    except RuntimeError as error:  # XLA's own
        if "RESOURCE_EXHAUSTED" in str(error):
            raise _too_large(run.path) from None
        raise


def require_memory(checkpoints: Path, free: int) -> None:
    """Raises RunError where a checkpoint takes more bytes than are free: better than to be killed in the middle."""
    for step in reversed(manifest.steps(checkpoints)):
        taken = sum(file.stat().st_size for file in (checkpoints / f"{step:09d}").rglob("*") if file.is_file())
        if taken > free:
            what = f"a checkpoint takes {size(taken)} of memory, and {size(free)} are free"
            raise RunError(what, where=str(checkpoints.parent), hint=_SMALLER)
        return


_SMALLER = "end other programs, serve it on another machine, or make it smaller: bigctl compress"


def _too_large(path: Path) -> RunError:
    return RunError("the model does not fit in memory", where=str(path), hint=_SMALLER)
