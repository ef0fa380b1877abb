"""A model that was exported, used as its run is: the same records, computed by another runtime.

What turns examples into inputs, and outputs into records, is what the run has: its configuration and what its data
looked like, which `bigctl.json` keeps beside the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from bigctl.config import plugins as loading
from bigctl.data.dataset import Dataset, Features
from bigctl.data.sources.frames import Examples
from bigctl.data.target import NUMBER
from bigctl.engine import compile_cache
from bigctl.errors import ConfigError, DataError, RunError
from bigctl.generation.generate import LanguageModel
from bigctl.inference import exported_text, pretrained_text
from bigctl.inference.exporters import sealed
from bigctl.inference.exporters.settings_file import KEPT, SUMS
from bigctl.inference.forward import Compiled, Forward
from bigctl.inference.from_export import FromExport
from bigctl.inference.scored import exported_scores
from bigctl.interop import sources
from bigctl.runs.directory import EXPORT_MODELS
from bigctl.runs.exports import AGAIN, Export
from bigctl.terminal import one_line
from bigctl.training.evaluation import Scores
from bigctl.training.task import scores_exports

MODELS = {"onnx": "model.onnx", "jax": "model.jax"}
"""Format of `bigctl export` -> its file, of those that have a runtime of their own."""
_HINT = AGAIN
STREAM = "stream"


class Runtime(Protocol):
    """What computes an exported model: inputs -> outputs, by name."""

    @property
    def runtime(self) -> str:
        """Its name and version."""

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


class Artefact(FromExport):
    """A folder that `bigctl export --format onnx`, or jax, wrote."""

    def __init__(self, export: Export, settings: Mapping[str, Any], run: Runtime):
        super().__init__(export, settings)
        self._run, self.runtime = run, run.runtime

    @cached_property
    def _forward(self) -> Forward:
        names = tuple(self._task.exported_inputs(1))
        return _Exported(self._run, names, self.features)

    def require_scored(self) -> None:
        """Raises RunError for a task whose exports are not scored."""
        if not scores_exports(self._plain):
            what = f"recipe={self.config.recipe.kind} does not say how its exports are scored"
            hint = "define Task.evaluate_exported beside Task.evaluate; or score the run"
            raise RunError(what, where=str(self.run.path), hint=hint)

    def _examined(self, dataset: Dataset, split: str, prefix: str) -> Scores:
        self.require_scored()
        names = tuple(self._plain.exported_inputs(1))

        def model(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
            try:
                return self._run({name: np.asarray(batch[name]) for name in names})
            except (MemoryError, KeyboardInterrupt):
                raise
            except Exception as error:  # of either runtime, of many kinds
                raise _refused(error, "does not compute the data's batches", self.run.path) from error

        return exported_scores(model, self._task, dataset, split, self.config, prefix)

    def _require_embeddings(self) -> None:
        what = f"a model exported as {self.export.format} gives no embeddings"
        raise RunError(what, where=str(self.run.path), hint="the run does, and what it is exported to as hf or timm")

    def logits(self, inputs: Examples) -> np.ndarray:
        """Raises RunError, as `model` does."""
        raise self._no_network()

    @property
    def model(self) -> NoReturn:  # type: ignore[override]
        """Raises RunError: there is a program, and no network."""
        raise self._no_network()

    def _no_network(self) -> RunError:
        what = f"is a program in {self.export.format}, not a network with arrays"
        return RunError(what, where=str(self.run.path), hint="load the run, or what it is exported to as hf or timm")

    programs = params = variables = model  # type: ignore[assignment]


class _Exported(Forward):
    """An exported model in place of compiled functions."""

    def __init__(self, run: Runtime, names: Sequence[str], features: Features):
        self._run, self._names, self._features = run, names, features
        self._output = "value" if features.target.kind == NUMBER else "probabilities"

    @cached_property
    def predict(self) -> Compiled:
        return lambda batch: self._run({name: np.asarray(batch[name]) for name in self._names})[self._output]


def labelling(folder: Path, *, plugins: Sequence[str] | None = (), passphrase: str | None = None) -> FromExport:
    """The model of an export, to label examples with.

    Args:
        folder: of an export.
        plugins: modules with its components.
        passphrase: of an encrypted export; by default that of the environment, see `sealed`.

    Raises:
        RunError: for a file that is damaged, cut short or missing, for a language model, and for a wrong passphrase.
        ConfigError: without the package that computes it, or without a passphrase.
    """
    found = load(folder, plugins=plugins, passphrase=passphrase)
    if isinstance(found, LanguageModel):
        hint = f'bigctl generate {folder} --prompt "...", or serve it'
        raise RunError("a language model writes text, it labels none", where=str(folder), hint=hint)
    return found


def writing(folder: Path, *, plugins: Sequence[str] | None = (), passphrase: str | None = None) -> LanguageModel:
    """The model of an export, to write text with. Takes what `labelling` takes; raises as it does, for what writes
    none."""
    found = load(folder, plugins=plugins, passphrase=passphrase)
    if not isinstance(found, LanguageModel):
        raise RunError("writes no text", where=str(folder), hint=f"bigctl info {folder} says what takes it")
    return found


def load(
    folder: Path, *, plugins: Sequence[str] | None = (), passphrase: str | None = None
) -> FromExport | LanguageModel:
    """The model of a folder: what labels examples, or what writes text. Takes and raises what `labelling` does."""
    with sealed.opened(folder, passphrase) as clear, _as_written(clear):
        export = _in_clear(Export(folder), clear)
        found = _kept(clear, plugins, weights_alone=export.format in ("hf", "gguf"))
        if found["features"]["kind"] != STREAM:
            return _scored(export, found)
        if export.format == "onnx":
            hint = "use its run, or export that with --format jax or hf; run.py writes with this one"
            what = "is a language model as ONNX, with which bigctl does not write"
            raise RunError(what, where=str(folder), hint=hint)
        model = exported_text.read(clear, found, hint=_HINT) if export.format == "jax" else _read(clear, folder)
        return dataclasses.replace(model, name=str(folder), step=found["step"])


def _read(clear: Path, folder: Path) -> LanguageModel:
    try:
        return pretrained_text.pretrained_language_model(sources.locate_source(str(clear.absolute())))
    except DataError as error:
        error.where = str(folder)
        raise


@contextlib.contextmanager
def opened(
    export: Export, *, plugins: Sequence[str] | None = (), passphrase: str | None = None
) -> Iterator[FromExport]:
    """The model of an export to be scored, whatever its format, language models too; what is encrypted is in clear as
    long as this lasts. Raises as `labelling` does."""
    with sealed.opened(export.path, passphrase) as clear:
        with _as_written(clear):
            inner, found = _in_clear(export, clear), _kept(clear, plugins)
            _ = inner.format, inner.card, inner.origin  # which are told when the files may be gone
            model = _scored(inner, found)
            if found["features"]["kind"] == STREAM:
                model.writes = lambda: writing(export.path, plugins=plugins, passphrase=passphrase)
        yield model


def _scored(export: Export, settings: Mapping[str, Any]) -> FromExport:
    if export.format in MODELS:
        return Artefact(export, settings, _runtime(export.path, export.format))
    if not export.format:
        raise RunError("holds no model", where=str(export.shown), hint=_HINT)
    from bigctl.inference.read_back import ReadBack

    return ReadBack(export, settings)


def _in_clear(export: Export, clear: Path) -> Export:
    return export if clear == export.path else dataclasses.replace(export, path=clear, near=export.path)


def _kept(folder: Path, plugins: Sequence[str] | None, *, weights_alone: bool = False) -> dict[str, Any]:
    """What `bigctl.json` of a whole folder says, its plugins loaded: but for a language model of which `weights_alone`
    are read, which writes without them."""
    require_whole(folder)
    found = Export(folder).settings()
    if not (weights_alone and found["features"]["kind"] == STREAM):
        loading.load_for_run(found["plugins"], plugins, where=str(folder))
    compile_cache.use_compile_cache()
    return found


@contextlib.contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror}", where=str(folder)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError("is not as bigctl writes it", where=str(folder / KEPT), hint=_HINT) from error


def require_whole(folder: Path) -> None:
    """Raises RunError for a file that is not as the list of digests says."""
    export = Export(folder)
    if damaged := export.damaged():
        what = "is damaged, cut short or missing"
        raise RunError(what, where=str(folder / damaged[0]), hint="copy the folder again")
    listed = export.sums()
    if missing := {name for name in EXPORT_MODELS if (folder / name).exists()} - listed.keys():
        raise RunError(f"does not list {min(missing)}", where=str(folder / SUMS), hint=_HINT)


def _runtime(folder: Path, kind: str) -> Runtime:
    if kind == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError("onnxruntime is not installed", where=str(folder), hint="pip install 'bigctl[onnx]'")
    try:
        if kind == "jax":
            from bigctl.inference.exporters import stablehlo

            return stablehlo.Loaded(folder)
        from bigctl.inference.exporters import onnx_session

        return onnx_session.Loaded((folder / "model.onnx").read_bytes())
    except OSError:
        raise
    except Exception as error:  # of either runtime, of many kinds
        raise _refused(error, "cannot be loaded", folder / MODELS[kind]) from error


def _refused(error: Exception, what: str, where: Path) -> RunError:
    """A model with which its runtime can do nothing."""
    lines = str(error).splitlines() or [type(error).__name__]
    return RunError(f"{what}: {one_line(lines[0])[:200]}", where=str(where), hint=_HINT)
