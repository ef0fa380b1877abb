"""bigctl from Python: `compose`, `train`, `baseline`, `load`, `load_export`. The command line calls these."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import checks
from bigctl.config import compose as composing
from bigctl.config.compose import Composed
from bigctl.config.schema import MISSING, Config, Data, Memory
from bigctl.errors import ConfigError, RunError, named_as_arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bigctl.data.sources.frames import Examples
    from bigctl.inference.from_export import FromExport
    from bigctl.reports.loaded import LoadedRun, Page
    from bigctl.runs.baselines import Baseline
    from bigctl.runs.summary import Summary
    from bigctl.training.tracking.callbacks import Listener


def compose(
    overrides: Sequence[str] = (), *, config_dirs: Sequence[str | Path] = (), plugins: Sequence[str] = ()
) -> Config:
    """The typed configuration of an experiment.

    Args:
        overrides: as on the command line: `["recipe=cnn_cls", "optimizer.lr=1e-3"]`.
        config_dirs: folders with presets of your own.
        plugins: modules with components of your own.

    Raises:
        ConfigError: naming the key, where it comes from, and what to write instead.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"{overrides!r} is one text", hint=f"give a list of overrides: [{overrides!r}]")
    with named_as_arguments():
        return composing.compose(overrides, config_dirs=[Path(d) for d in config_dirs], plugins=plugins).config


class Finished(dict[str, Any]):
    """The result of a training: what `summary.json` holds, and the run itself, which is loaded once it is asked for.

    `finished["metrics"]` is of the summary; `predict`, `evaluate`, `classes`, `history`, `plot` and `report` are those
    of the run that `load` gives.
    """

    def __init__(self, summary: Summary, plugins: Sequence[str] = ()):
        super().__init__(summary)
        self._plugins = tuple(plugins)

    @cached_property
    def trained(self) -> LoadedRun:
        """The run with its selected weights."""
        return load(self["run"], plugins=self._plugins)

    @property
    def classes(self) -> list[str]:
        return self.trained.classes

    @property
    def history(self) -> Any:
        """Metrics by step: a DataFrame where pandas is installed, else a list of dicts."""
        return self.trained.history

    def predict(self, inputs: Examples) -> Any:
        return self.trained.predict(inputs)

    def describe(self, inputs: Examples) -> Any:
        return self.trained.describe(inputs)

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        return self.trained.evaluate(split)

    def embed(self, inputs: Examples) -> Any:
        return self.trained.embed(inputs)

    def with_threshold(self, wanted: float | str | Path | None) -> LoadedRun:
        return self.trained.with_threshold(wanted)

    def choose_threshold(self, objective: str = "f1") -> LoadedRun:
        return self.trained.choose_threshold(objective)

    def plot(self) -> Figure:
        return self.trained.plot()

    def report(self, *, samples: int = 16) -> Page:
        return self.trained.report(samples=samples)

    def __repr__(self) -> str:
        names = [name for name in self["metrics"] if name.startswith("test/")] or [*self["metrics"]]
        first = ("test/accuracy", "test/loss", *names)
        shown = [name for name in dict.fromkeys(first) if self["metrics"].get(name) is not None][:3]
        told = ", ".join(f"{name} {self['metrics'][name]:.4g}" for name in shown)
        return f"<bigctl run {self['run']}: {self['recipe']}, step {self['step']:,}{f'; {told}' if told else ''}>"


def train(
    config: Config | Sequence[str],
    run_dir: str | Path | None = None,
    *,
    data: object = None,
    resume: str = "auto",
    allow_drift: Sequence[str] = (),
    quiet: bool = False,
) -> Finished:
    """Train a configuration in a run directory; resumes a run that is there. A notebook shows the curves meanwhile.

    Args:
        config: what `compose` gives, or overrides as on the command line.
        run_dir: the folder of the run; by default one under runs/ that is named after the configuration and the data.
        data: examples to train on, in place of the configuration's: a frame whose column `data.label` is the target, or
            a pair (inputs, labels) of a frame or an array [N, features], of images (an array or pictures of Pillow) or
            of texts; or (train, validation) of such. Splits that are not given are made by rule, as for a file. A run
            that is resumed does with the copy in the cache, or must be given the same again.
        resume: "auto", "never", or "must" if a run is to be there.
        allow_drift: keys that may differ from those of the run that is resumed.
        quiet: no progress.

    Raises:
        BigctlError: what went wrong; its `exit_code` is that of the command line.
    """
    from bigctl.engine.run import Options
    from bigctl.engine.trainer import train

    if resume not in ("auto", "never", "must"):
        raise ConfigError(f"{resume!r} is no way to begin", where="resume", hint='one of: "auto", "never", "must"')
    if isinstance(allow_drift, str):
        raise ConfigError(f"{allow_drift!r} is one text", where="allow_drift", hint=f"give a list: [{allow_drift!r}]")
    with named_as_arguments(), contextlib.ExitStack() as while_held:
        whole = _composed(config, ["data=memory"] if data is not None else [])
        if data is not None:
            whole = dataclasses.replace(whole, data=while_held.enter_context(_held(data, whole)))
        path = _folder(whole, run_dir, resume)
        follow = None if quiet else _follower(path)
        options = Options(
            resume=resume, allow_drift=tuple(allow_drift), quiet=quiet or follow is not None, follow=follow
        )
        return Finished(train(Composed(whole, (), {}), path, options))


def _composed(given: Config | Sequence[str], first: Sequence[str] = (), *, partial: bool = False) -> Config:
    if isinstance(given, Config):
        return given
    if isinstance(given, str):
        return compose(given)  # which tells what is wrong with it
    return composing.compose([*first, *given], partial=partial).config


def _held(data: object, whole: Config) -> contextlib.AbstractContextManager[Data]:
    """The examples that Python gives, for the time of the training, and the data that stands for them."""
    from bigctl.data.sources import memory

    own = whole.data if isinstance(whole.data, Memory) else Memory(**_rules(whole))
    return memory.held(memory.read(data, own, texts=whole.tokenizer is not None and whole.block is None))


def _rules(config: Config) -> dict[str, Any]:
    """What the data that is replaced says of columns and splits, but not what it is."""
    names = [{field.name for field in dataclasses.fields(kind)} for kind in (Memory, config.data)]
    shared = names[0] & names[1] - {"kind", "digest", "train", "validation", "test"}
    found = {name: getattr(config.data, name) for name in shared}
    return {name: value for name, value in found.items() if value is not MISSING}


def _folder(config: Config, run_dir: str | Path | None, resume: str) -> Path:
    """Where a run goes; without a folder that is given, the same configuration and data find it again."""
    from bigctl.runs import directory

    known = [f"recipe={config.recipe.kind}", composing.to_yaml(config)]
    given = None if run_dir is None else Path(run_dir)
    return directory.choose(known, name=None, run_dir=given, fresh=resume == "never")


def _follower(path: Path) -> Callable[[int], Listener] | None:
    """What shows the training in a notebook; None elsewhere."""
    if "IPython" not in sys.modules:
        return None
    from bigctl.reports import inline

    return (lambda total: inline.Progress(total, path.name)) if inline.in_notebook() else None


def baseline(config: Config | Sequence[str], *, again: bool = False) -> Baseline:
    """The best of the cheap answers to the data of a configuration, scored on the same splits by the same metrics.

    Args:
        config: what `compose` gives, or overrides: `["data=digits"]`.
        again: compute it although it is kept.

    Raises:
        DataError: if there is nothing to predict.
    """
    from bigctl.baselines.baseline import baseline

    with named_as_arguments():
        whole = _composed(config, partial=True)  # data alone is enough
        checks.require_data(whole, 'add "data=NAME"; `bigctl data` lists them')
        return baseline(whole, again=again)


def load(
    run: str | Path, *, step: str | int = "best", plugins: Sequence[str] = (), tta: str | None = None
) -> LoadedRun:
    """The model of a run, with `predict`, `evaluate`, `classes`, `history`, `plot` and `report`.

    Args:
        run: a run directory, or a name under runs/.
        step: "best", "last" or a number.
        plugins: modules with components of your own that the run was made with.
        tta: for images "none", "mirror", "shift" or "translate", in place of what the run has as `eval.tta`.

    Raises:
        ConfigError: for another `tta`, or where the run is not of images.
        RunError: if there is no such run or checkpoint, or it needs plugins that are not given, or for an export.
    """
    from bigctl.reports.loaded import LoadedRun
    from bigctl.runs import exports

    with named_as_arguments():
        if (export := exports.find(str(run))) is not None:
            hint = "`bigctl.load_export` takes it"
            raise RunError("is an export of a run, not a run", where=str(export.path), hint=hint)
        return LoadedRun.load(str(run), step=step, plugins=plugins, tta=tta)


def load_export(folder: str | Path, *, plugins: Sequence[str] = (), passphrase: str | None = None) -> FromExport:
    """The model of a folder that `bigctl export` wrote, with `predict`, `describe`, `evaluate` and `classes`, and of a
    language model `generate`: what a run has but for its training.

    Args:
        folder: of an export; or its name under runs/.
        plugins: modules with components of your own that the run was made with.
        passphrase: of an encrypted export; by default that of the environment, BIGCTL_PASSPHRASE.

    Raises:
        ConfigError: without the package that computes it, or without a passphrase.
        RunError: if it is no export, a file of it is damaged, or it needs plugins that are not given.
    """
    from bigctl.inference import artefact
    from bigctl.inference.exporters import sealed
    from bigctl.runs import directory, exports

    with named_as_arguments():
        export = exports.find(str(folder))
        if export is None:
            there = any(path.exists() for path in (Path(folder), directory.ROOT / folder))
            what = "is no export" if there else "there is no such folder"
            raise RunError(what, where=str(folder), hint="`bigctl export RUN` writes an export; a run has `load`")
        if not export.sealed and passphrase is not None:
            raise ConfigError("the export is not encrypted", where="passphrase", hint="leave it out")
        if export.sealed and passphrase is None and not os.environ.get(sealed.VARIABLE):
            hint = f"give it, or set {sealed.VARIABLE}"
            raise ConfigError("there is no passphrase", where="passphrase", hint=hint)
        secret = None if passphrase is None else unicodedata.normalize("NFC", passphrase)
        with artefact.opened(export, plugins=plugins, passphrase=secret) as model:
            return model
