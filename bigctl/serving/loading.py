"""Runs -> what serves them. Raises, in one line, for what cannot be served here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigctl import memory
from bigctl.errors import RunError
from bigctl.formatting import size
from bigctl.generation.generate import LanguageModel
from bigctl.generation.slots import memory_of
from bigctl.inference import artefact
from bigctl.inference.trained import TrainedRun
from bigctl.runs import directory, exports
from bigctl.serving import llama_cpp, naming, reloading
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
        given: a run directory, a name under runs/, a folder that `bigctl export` wrote, or weights of a GPT or a Llama:
            packaged ones, or a Hugging Face folder.
        settings: of the server.
        step: "best", "last" or a number.
        plugins: modules with its components.

    Raises:
        RunError, DataError: if it cannot be loaded, or does not fit in memory.
    """
    try:
        if naming.kind_of(given) == "run":
            return _of_run(name, directory.locate(given), settings, step, plugins)
        return Loaded(_without_run(name, given, settings, plugins))
    except MemoryError:
        raise _too_large(given) from None
    except RuntimeError as error:  # XLA's own
        if "RESOURCE_EXHAUSTED" in str(error):
            raise _too_large(given) from None
        raise


def _of_run(
    name: str, run: directory.RunDirectory, settings: Settings, step: str | int, plugins: Sequence[str] | None
) -> Loaded:
    reloading.require_memory(run.checkpoints, memory.available())
    seen = reloading.state(run, step) if isinstance(step, str) and settings.reload else None
    trained = TrainedRun.load(str(run.path), step=step, plugins=plugins)
    model = _served(name, trained, settings)
    if seen is None or not isinstance(step, str):
        return Loaded(model)
    return Loaded(model, reloading.Follower(name, trained, step, seen, plugins, lambda fresh: _ready(name, fresh)))


def _without_run(name: str, given: str, settings: Settings, plugins: Sequence[str] | None) -> Predicting | Writing:
    export = exports.find(given)
    if export is not None and export.kept:
        folder = export.path
        reloading.require_room(folder, memory.available())
        found = artefact.load(folder, plugins=plugins, passphrase=settings.passphrase)
        if not isinstance(found, LanguageModel):
            return Predicting(name, found)
        if (gguf := naming.gguf_of(folder)) is not None:
            llama_cpp.offer(name, found, llama_cpp.command(gguf))
        return _writing(name, found, settings)
    path = Path(given)
    if given not in naming.PACKAGED:
        if (gguf := naming.gguf_of(path)) is not None:
            hint = f"{llama_cpp.command(gguf)}; or serve the run"
            raise RunError("is llama.cpp's own format, which bigctl does not serve", where=str(gguf), hint=hint)
        reloading.require_room(path, memory.available())
    from bigctl.inference.pretrained_text import pretrained_language_model
    from bigctl.interop import sources

    source = sources.locate_source(given)
    if source.model not in sources.DECODERS:
        if export is not None:
            export.settings()  # which says that it has none
        what = f"holds weights of model={source.model}, and only those of a GPT or a Llama are served without their run"
        raise RunError(what, where=given, hint="serve the run, or what `bigctl export --format onnx` makes of it")
    model = pretrained_language_model(source)
    if source.format == "gguf":
        llama_cpp.offer(name, model, llama_cpp.command(source.path))
    return _writing(name, model, settings)


def _served(name: str, trained: TrainedRun, settings: Settings) -> Predicting | Writing:
    if trained.features.kind == "stream":
        llama_cpp.offer_run(name, trained)
        return _writing(name, trained.language_model, settings)
    return Predicting(name, trained)


def _writing(name: str, model: LanguageModel, settings: Settings) -> Writing:
    """Raises RunError where there is no memory for the texts that are written at once."""
    free, taken = memory.available(), memory_of(model.model, settings.slots)
    if taken > free:
        fits = next((n for n in range(settings.slots, 0, -1) if memory_of(model.model, n) <= free), None)
        what = f"{settings.slots} texts at once take {size(taken)} of memory, and {size(free)} are free"
        raise RunError(what, where=model.name, hint=reloading.SMALLER if fits is None else f"--slots {fits}")
    return Writing(name, model, settings.max_queue, settings.slots)


def _ready(name: str, trained: TrainedRun) -> Predicting | LanguageModel:
    """What takes the place of a model, everything compiled."""
    if trained.features.kind == "stream":
        return trained.language_model
    found = Predicting(name, trained)
    found.warm_up()
    return found


def _too_large(where: str) -> RunError:
    return RunError("the model does not fit in memory", where=where, hint=reloading.SMALLER)
