"""Which language model a name means: a run, or pretrained weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigctl.errors import ConfigError, DataError
from bigctl.generation.generate import LanguageModel
from bigctl.inference.run_text import require_language_model
from bigctl.runs import directory, exports


def load_language_model(
    name: str, *, step: str | int = "best", plugins: Sequence[str] = (), passphrase: str | None = None
) -> LanguageModel:
    """The language model of a run, or of an export, else that of pretrained weights.

    Args:
        name: a run directory or a name under runs/, an export (jax, hf, gguf), or what `model.init_from` takes.
        step: checkpoint of a run: "best", "last" or a number.
        plugins: modules with components of the run.
        passphrase: of an encrypted export.

    Raises:
        ConfigError: for a step of an export.
        RunError: if the run, or the export, is of another kind, or has no such checkpoint.
        DataError: if there is no such thing, or it cannot be read.
    """
    if any((path / "run.json").is_file() for path in (Path(name), directory.ROOT / name)):
        run = directory.locate(name)
        require_language_model(run, run.record())
        from bigctl.inference.trained import TrainedRun

        return TrainedRun.load(str(run.path), step=step, plugins=plugins).language_model
    export = exports.find(name)
    if export is not None:
        if step != "best":
            raise ConfigError("an export holds one step", where="--step", hint="leave it out")
        if export.kept:
            from bigctl.inference import artefact

            return artefact.writing(export.path, plugins=plugins, passphrase=passphrase)
        name = str(export.path)
    from bigctl.inference.pretrained_text import pretrained_language_model
    from bigctl.interop import sources

    try:
        return pretrained_language_model(sources.locate_source(name))
    except DataError as error:
        if error.where is not None and error.where.startswith("model.init_from"):
            error.where = name
        raise
