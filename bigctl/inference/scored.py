"""A trained model that is scored on the data of its run, whoever computes it: a run by jax, an export in its own
runtime."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp
import numpy as np

from bigctl.config.schema import Config, Data
from bigctl.data import origins
from bigctl.data.dataset import Dataset
from bigctl.data.files import changed_files
from bigctl.engine import device_memory
from bigctl.errors import ConfigError, RunError
from bigctl.generation.generate import Generation, LanguageModel
from bigctl.generation.options import GenerationOptions
from bigctl.inference import confidence, tagging
from bigctl.inference import threshold as thresholds
from bigctl.inference.predictor import Predictor
from bigctl.recipes.classification import positive_scores, sigmoid
from bigctl.runs.directory import RunDirectory
from bigctl.training.evaluation import Batches, Evaluator, Scores, SplitScores
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Weights
from bigctl.training.step import add_places
from bigctl.training.task import ExportedModel, Record, Task


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


class Scored(Predictor):
    """What a `Predictor` does, and scores on data that the model was made with.

    Attributes:
        runtime: what computes it, where that is not bigctl's own jax.
    """

    runtime: str = ""

    def data(self) -> Dataset:
        """The data of the run, prepared. Raises DataError where it cannot be had, RunError if it has changed since."""
        raise NotImplementedError

    @property
    def data_config(self) -> Data:
        """Where that data is, and how it is read."""
        return self.config.data

    def _examined(self, dataset: Dataset, split: str, prefix: str) -> Scores:
        """The examples of a split, each scored once; `prefix` is what names of metrics begin with."""
        raise NotImplementedError

    @property
    def _undecided(self) -> Task:
        """The task without a threshold."""
        raise NotImplementedError

    @property
    def language_model(self) -> LanguageModel:
        """The network with its tokenizer, which can be asked for text piece by piece. Raises as `generate` does."""
        raise NotImplementedError

    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[Generation]:
        """What a language model writes after each prompt.

        Args:
            prompts: one text, or a list of them.
            options: of `GenerationOptions`: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`, ...

        Raises:
            RunError: if the model is of another kind, or its tokenizer is not there any more.
            ConfigError, DataError: for options and prompts that cannot be used.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.language_model.generate(texts, GenerationOptions(**options))

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
        other._task = self._undecided.decided({} if wanted is None else {"threshold": wanted})
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

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Metrics on a split of the run's own data. Raises RunError if that data has changed since."""
        return self.score(split).metrics

    def score(self, split: str = "test", *, errors: int = 0) -> Evaluation:
        """Metrics on a split of the run's own data, and so many of the worst errors. Raises as `evaluate` does."""
        dataset, found = self._scored(split)
        labels = dataset.splits[split].get("label")
        curves = {} if labels is None else self._task.curves(found.examples, np.asarray(labels))
        return Evaluation(found.metrics, self._worst(dataset, split, found.examples, errors), curves)

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
        return dataset, self._examined(dataset, split, {"validation": "val"}.get(split, split))

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


def data_of_run(run: RunDirectory, config: Config) -> Dataset:
    """The data that a run was trained on, prepared.

    Raises:
        DataError: where it cannot be had, saying where it was.
        RunError: if it has changed since.
    """
    from bigctl.engine import resolve  # here: who only predicts prepares no data

    with resolve.from_its_folder(run, config):
        dataset = resolve.prepare_data(config, run.tokenizer)
    begun = run.record()["data"]
    if dataset.fingerprint != begun["fingerprint"]:
        changed = changed_files.told(begun.get("files"), config.data)
        what = f"the data is not what the run was trained on{changed}"
        raise RunError(what, where=str(run.path), hint="bring it back as it was")
    return dataset


def evaluated(
    programs: ModelPrograms, weights: Weights, task: Task, dataset: Dataset, split: str, config: Config, prefix: str
) -> Scores:
    """The examples of a split as bigctl's own model does on them; arguments as those of `Evaluator`."""
    columns, check = dataset.splits[split], device_memory.check_of_evaluation(programs)
    evaluator = Evaluator(programs, dataset.batches, columns, config, prefix=prefix, check=check)
    return evaluator.score(weights.params, weights.variables, task)


def exported_scores(
    model: ExportedModel, task: Task, dataset: Dataset, split: str, config: Config, prefix: str
) -> Scores:
    """The examples of a split as an exported model does on them; arguments as those of `Evaluator`."""
    layout, columns = dataset.batches, dataset.splits[split]
    scored = SplitScores(layout, columns, config, prefix=prefix)

    def batches() -> Batches:
        for indices, mask, length in scored.plan.batches():
            batch: Mapping[str, np.ndarray] = layout.gather(columns, indices, length)
            placed = add_places(
                {name: jnp.asarray(values) for name, values in batch.items()}, len(mask), jnp.asarray(mask)
            )
            yield indices, mask, task.evaluate_exported(model, placed)

    return scored.scores(task, batches())
