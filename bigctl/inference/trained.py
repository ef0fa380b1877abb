"""A trained model and what is done with it: evaluate, predict and generate."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from bigctl.config import compose as composing
from bigctl.config import plugins as loading
from bigctl.config.schema import TTA, Config
from bigctl.data import origins
from bigctl.data.dataset import Dataset, Features
from bigctl.data.files import changed_files
from bigctl.engine import compile_cache, device_memory, experiment
from bigctl.errors import ConfigError, RunError
from bigctl.generation.generate import Generation, LanguageModel
from bigctl.generation.options import GenerationOptions
from bigctl.inference import confidence, tagging
from bigctl.inference import threshold as thresholds
from bigctl.inference.predictor import Predictor
from bigctl.inference.run_text import run_language_model
from bigctl.recipes.classification import positive_scores, sigmoid
from bigctl.runs import directory
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.evaluation import Evaluator, Scores
from bigctl.training.programs import ModelPrograms
from bigctl.training.task import Record

log = logging.getLogger("bigctl")


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a split.

    Attributes:
        metrics: by name, `test/accuracy` for one.
        errors: the examples with the largest loss among those of which the wrong class was predicted, see
            `Task.errors`, with what was to be classified, if text.
        curves: see `Task.curves`.
    """

    metrics: Record
    errors: list[Record]
    curves: Record = field(default_factory=dict)


class TrainedRun(Predictor):
    """A run with the weights of one of its checkpoints: what a `Predictor` does, and what needs the run's own data."""

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

    def with_threshold(self, wanted: float | str | Path | None) -> Self:
        """The same model with another threshold for the positive class, by which labels and metrics go.

        Args:
            wanted: a probability; a file that `choose_threshold` wrote; None to predict the likelier class.

        Raises:
            ConfigError: for no such number or file, one of another run, or where there are not two classes.
        """
        positive = self._task.positive
        if positive is None:
            hint = "it is for two classes, one an example"
            raise ConfigError("this run has no positive class", where=str(self.run.path), hint=hint)
        chosen = None
        if isinstance(wanted, str | Path):
            chosen = thresholds.read(Path(wanted))
            thresholds.require(chosen, self.run, self.step, positive, Path(wanted))
            wanted = chosen.threshold
        elif wanted is not None:
            wanted = thresholds.checked(wanted)
        other = copy.copy(self)
        other.threshold = wanted if chosen is None else chosen
        task = self._programs.task
        other._task = task.decided({} if wanted is None else {"threshold": wanted})
        return other

    def choose_threshold(self, objective: str = "f1") -> Self:
        """The same model with the threshold that is best on the validation split, which is kept in the run: it is
        loaded with that threshold from then on.

        Args:
            objective: "f1", "accuracy", "balanced_accuracy", "precision>=0.9" or "recall>=0.9".

        Raises:
            ConfigError: for another objective, or where there are not two classes.
            RunError: if the data has changed, or the run cannot be written.
        """
        plain = self.with_threshold(None)
        dataset, found = plain._scored("validation")
        positive = self.classes.index(str(plain._task.positive))
        probability = sigmoid(positive_scores(found.examples["score"], positive))
        truth = np.asarray(dataset.splits["validation"]["label"]) == positive
        value, reached = thresholds.choose(objective, probability, truth)
        key, name = thresholds.key_of(self.run), self.classes[positive]
        thresholds.Threshold(key, self.step, name, objective, value, reached).save(self.run.threshold)
        return self.with_threshold(self.run.threshold)

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

    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[Generation]:
        """What a language model writes after each prompt.

        Args:
            prompts: one text, or a list of them.
            options: of `GenerationOptions`: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`, ...

        Raises:
            RunError: if the run is of another kind, or its tokenizer is not there any more.
            ConfigError, DataError: for options and prompts that cannot be used.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.language_model.generate(texts, GenerationOptions(**options))

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Metrics on a split of the run's own data. Raises RunError if that data has changed since."""
        return self.score(split).metrics

    def score(self, split: str = "test", *, errors: int = 0) -> Evaluation:
        """Metrics on a split of the run's own data, and so many of the worst errors. Raises as `evaluate` does."""
        dataset, found = self._scored(split)
        labels = dataset.splits[split].get("label")
        curves = {} if labels is None else self._task.curves(found.examples, np.asarray(labels))
        return Evaluation(found.metrics, self._worst(dataset, split, found.examples, errors), curves)

    def data(self) -> Dataset:
        """The run's own data, prepared. Raises DataError where it cannot be had, RunError if it has changed since."""
        if self.features.tokenizer is not None:
            _ = self._tokenizer  # rather than to make another one
        from bigctl.engine import resolve  # here: who only predicts prepares no data

        with resolve.from_its_folder(self.run, self.config):
            dataset = resolve.prepare_data(self.config, self.run.tokenizer)
        begun = self.run.record()["data"]
        if dataset.fingerprint != begun["fingerprint"]:
            what = (
                f"the data is not what the run was trained on{changed_files.told(begun.get('files'), self.config.data)}"
            )
            raise RunError(what, where=str(self.run.path), hint="bring it back as it was")
        return dataset

    def probabilities(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [N, classes] of a split as the model gives them, before any calibration, and its labels [N].

        Raises:
            ConfigError: for a run that predicts no single class.
            RunError: if the data has changed.
        """
        if split not in self._probabilities:
            dataset, found = self._scored(split)
            told = confidence.probabilities_of(found.examples, str(self.run.path))
            self._probabilities[split] = told, np.asarray(dataset.splits[split]["label"])
        return self._probabilities[split]

    @cached_property
    def _probabilities(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {}

    def _scored(self, split: str) -> tuple[Dataset, Scores]:
        dataset = self.data()
        if split not in dataset.splits:
            raise ValueError(f"there is no split {split!r}; one of: {', '.join(dataset.splits)}")
        prefix = {"validation": "val"}.get(split, split)
        columns, check = dataset.splits[split], device_memory.check_of_evaluation(self._programs)
        evaluator = Evaluator(self._programs, dataset.batches, columns, self.config, prefix=prefix, check=check)
        return dataset, evaluator.score(self.params, self.variables, self._task)

    def _worst(self, dataset: Dataset, split: str, examples: dict[str, np.ndarray], count: int) -> list[Record]:
        labels = dataset.splits[split].get("label")
        if labels is None or not count:
            return []
        records = self._task.errors(examples, labels, count)
        if self._tags:
            tagging.add_tags(records, dataset, split, self._tag)
        places = origins.read(dataset.path, split, [record["row"] for record in records])
        for record, place in zip(records, places, strict=True):
            record |= {"origin": place} if place is not None else {}
            texts = (each[record["row"]] for each in dataset.texts.get(split, ()))
            record |= dict(zip(("text", "text_pair"), texts, strict=False))
        return records


def _with_tta(config: Config, tta: str, where: str) -> Config:
    """The configuration with another test-time augmentation. Raises ConfigError where there can be none."""
    import dataclasses

    if tta not in TTA:
        raise ConfigError(f"there is no test-time augmentation {tta!r}", where="tta", hint=f"one of: {', '.join(TTA)}")
    if tta != "none" and config.recipe.inputs != "images":
        hint = "leave it out"
        raise ConfigError("test-time augmentation is for images, this run is of none", where=where, hint=hint)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, tta=tta))
