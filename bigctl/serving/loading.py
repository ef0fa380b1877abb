"""Runs -> what serves them. Raises, in one line, for what cannot be served here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigctl import memory
from bigctl.errors import RunError
from bigctl.generation.generate import LanguageModel
from bigctl.inference.artefact import Artefact, is_artefact
from bigctl.inference.trained import TrainedRun
from bigctl.runs import directory
from bigctl.serving import reloading
from bigctl.serving.predicting import Predicting
from bigctl.serving.settings import Settings
from bigctl.serving.writing import Writing


@dataclass(frozen=True)
class Loaded:
    """A model, and what looks for newer weights of it; None where one step alone is served."""

    model: Predicting | Writing
    follower: reloading.Follower[Predicting | LanguageModel] | None = None


def load(name: str, given: str, settings: Settings, *, step: str | int, plugins: Sequence[str] | None) -> Loaded:
    """A model under a name.

    Args:
        name: in addresses and requests.
        given: a run directory, a name under runs/, or a folder that `bigctl export` wrote.
        settings: of the server.
        step: "best", "last" or a number.
        plugins: modules with its components.

    Raises:
        RunError: if it cannot be loaded, or does not fit in memory.
    """
    if is_artefact(folder := Path(given)):
        return Loaded(Predicting(name, Artefact.load(folder, plugins=plugins)))
    run = directory.locate(given)
    reloading.require_memory(run.checkpoints, memory.available())
    seen = reloading.state(run, step) if isinstance(step, str) and settings.reload else None
    try:
        trained = TrainedRun.load(given, step=step, plugins=plugins)
        model = _served(name, trained, settings)
    except MemoryError:
        raise _too_large(str(run.path)) from None
    except RuntimeError as error:  # XLA's own
        if "RESOURCE_EXHAUSTED" in str(error):
            raise _too_large(str(run.path)) from None
        raise
    if seen is None or not isinstance(step, str):
        return Loaded(model)
    return Loaded(model, reloading.Follower(name, trained, step, seen, plugins, lambda fresh: _ready(name, fresh)))


def _served(name: str, trained: TrainedRun, settings: Settings) -> Predicting | Writing:
    if trained.features.kind == "stream":
        return Writing(name, trained.language_model, settings.max_queue, settings.slots)
    return Predicting(name, trained)


def _ready(name: str, trained: TrainedRun) -> Predicting | LanguageModel:
    """What takes the place of a model, everything compiled."""
    if trained.features.kind == "stream":
        return trained.language_model
    found = Predicting(name, trained)
    found.warm_up()
    return found


def _too_large(where: str) -> RunError:
    return RunError("the model does not fit in memory", where=where, hint=reloading.SMALLER)
