"""A trained model and what is done with it: evaluate, predict and generate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Self

from bigctl.config import compose as composing
from bigctl.config import plugins as loading
from bigctl.config.schema import TTA, Config
from bigctl.data.dataset import Dataset, Features
from bigctl.engine import compile_cache, experiment
from bigctl.errors import ConfigError, RunError
from bigctl.generation.generate import LanguageModel
from bigctl.inference import confidence
from bigctl.inference.run_text import run_language_model
from bigctl.inference.scored import Scored, data_of_run, evaluated
from bigctl.runs import directory
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.evaluation import Scores
from bigctl.training.programs import ModelPrograms
from bigctl.training.task import Task

log = logging.getLogger("bigctl")


class TrainedRun(Scored):
    """A run with the weights of one of its checkpoints: it predicts, is scored on its own data, and writes."""

    @classmethod
    def load(
        cls, name: str, *, step: str | int = "best", plugins: Sequence[str] | None = (), tta: str | None = None
    ) -> Self:
        """The model of a run.

        Args:
            name: a run directory, or a name under runs/.
            step: "best", "last" or a number.
            plugins: modules with its components; None to import none, not even what is installed.
            tta: another `eval.tta` than that of the run.

        Raises:
            ConfigError: for a `tta` that there is not, or that is not for this run.
            RunError: if there is no such run or checkpoint, it is damaged, or needs plugins that are not given.
        """
        run = directory.locate(name)
        record = run.record()
        loading.load_for_run(record.get("plugins"), plugins, where=str(run.path))
        config = composing.from_yaml(run.read_config(), where=str(run.config))
        if "data" not in record:
            raise RunError("the run has not started training", where=str(run.path))
        try:
            features = Features.from_json(record["data"]["features"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"is not as bigctl writes it: data.features ({type(error).__name__})"
            raise RunError(said, where=str(run.record_file)) from error
        if config.train.compile_cache:
            compile_cache.use_compile_cache()
        config = experiment.on_one_device(config)
        if tta is not None:
            config = _with_tta(config, tta, str(run.path))
        programs = experiment.rebuild(config, features)
        return cls._at(step, run, config, features, programs)

    def at(self, step: str | int = "best") -> Self:
        """The same run with the weights of another checkpoint, and what is kept with the run now; what has been
        compiled is shared. Raises as `load` does."""
        found = self._at(step, self.run, self.config, self.features, self._programs)
        found.top, found.embeddings = self.top, self.embeddings
        if "_forward" in self.__dict__:
            found.__dict__["_forward"] = self._forward.with_weights(found._weights)
        return found

    @classmethod
    def _at(
        cls, step: str | int, run: directory.RunDirectory, config: Config, features: Features, programs: ModelPrograms
    ) -> Self:
        checkpoints = Checkpoints(run.checkpoints, best=config.checkpoint.best)
        if isinstance(step, str) and step not in ("best", "last") and not step.isdecimal():
            hint = "best, last, or a step such as 400"
            raise ConfigError(f"{step!r} is no checkpoint", where="--step", hint=hint)
        if step == "best" and not checkpoints.has_best():
            step = "last"
            if config.checkpoint.best:
                log.warning("the best checkpoint is not there any more, or not yet; using the last one")
        saved = checkpoints.find(step)
        weights = checkpoints.restore_weights(saved, programs.weights, averaged=bool(config.train.ema))
        checkpoints.close()
        found = cls(run, config, features, programs, weights, saved.step)
        if run.confidence.is_file():
            found._use_kept_confidence()
        return found._with_kept_threshold() if run.threshold.is_file() else found

    def _with_kept_threshold(self) -> Self:
        try:
            return self.with_threshold(self.run.threshold)
        except ConfigError as error:
            log.warning("the kept threshold is not used: %s", error)
            return self

    def _use_kept_confidence(self) -> None:
        try:
            self.confidence = confidence.Confidence.of(self.run, self.step, self.config.eval.tta)
        except ConfigError as error:
            log.warning("the kept calibration is not used: %s", error)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The network with its tokenizer, which can be asked for text piece by piece. Raises as `generate` does."""
        return run_language_model(self.run, self.features, lambda: self.model, self.step)

    @property
    def _undecided(self) -> Task:
        return self._programs.task

    def data(self) -> Dataset:
        if self.features.tokenizer is not None:
            _ = self.tokenizer  # rather than to make another one
        return data_of_run(self.run, self.config)

    def _examined(self, dataset: Dataset, split: str, prefix: str) -> Scores:
        return evaluated(self._programs, self._weights, self._task, dataset, split, self.config, prefix)


def _with_tta(config: Config, tta: str, where: str) -> Config:
    """The configuration with another test-time augmentation. Raises ConfigError where there can be none."""
    import dataclasses

    if tta not in TTA:
        raise ConfigError(f"there is no test-time augmentation {tta!r}", where="tta", hint=f"one of: {', '.join(TTA)}")
    if tta != "none" and config.recipe.inputs != "images":
        hint = "leave it out"
        raise ConfigError("test-time augmentation is for images, this run is of none", where=where, hint=hint)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, tta=tta))
