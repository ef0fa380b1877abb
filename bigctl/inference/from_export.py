"""What is the same of every export that is scored: its settings, what it was made from, and the data of its run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from bigctl.config import compose as composing
from bigctl.config.schema import Config, Data
from bigctl.data.dataset import Dataset, Features
from bigctl.engine import experiment
from bigctl.errors import ConfigError, RunError
from bigctl.generation.generate import LanguageModel
from bigctl.inference import exported_data
from bigctl.inference.confidence import Confidence
from bigctl.inference.exporters import sealed
from bigctl.inference.scored import Scored
from bigctl.runs.directory import SETTINGS, RunDirectory
from bigctl.runs.exports import Export, Origin
from bigctl.training.state import Tree
from bigctl.training.task import Task


class FromExport(Scored):
    """A model that `bigctl export` wrote.

    Args:
        export: its folder, in clear.
        settings: what its bigctl.json says.

    Attributes:
        writes: gives what it writes text with; raises RunError where it writes none.
    """

    writes: Callable[[], LanguageModel] | None = None

    def __init__(self, export: Export, settings: Mapping[str, Any]):
        self.export, self._settings = export, settings
        self.run = RunDirectory(export.shown, writes=False)
        where = str(export.shown / SETTINGS)
        self.config = self._used(experiment.on_one_device(composing.from_yaml(settings["config"], where=where)))
        self.features, self.step = Features.from_json(settings["features"]), settings["step"]
        self._plain = experiment.make_task(self.config, self.features)
        self._plain.own_metrics = ()  # which ask the run's own model
        decision = settings["decision"]
        self._task = self._plain if decision is None else self._plain.decided({"threshold": decision})
        if self._task.positive is not None:
            self.threshold = decision
        if (confidence := settings["confidence"]) is not None:
            self.confidence = Confidence(**{**confidence, "cuts": tuple(confidence["cuts"])})
        self._tokenizer_file = RunDirectory(export.path).tokenizer
        if export.near is not None and self.features.tokenizer is not None:
            self.run.tokenizer = self._tokenizer_file
            _ = self.tokenizer  # whose file will be gone

    def _used(self, config: Config) -> Config:
        """The configuration as the model is used."""
        return config

    def choose_threshold(self, objective: str = "f1") -> NoReturn:
        """Raises ConfigError: nothing is kept in an export."""
        hint = "let that of its run be chosen, and export it again; or give a number: with_threshold"
        raise ConfigError("nothing is kept in an export", where=str(self.run.path), hint=hint)

    def with_params(self, params: Tree, variables: Tree | None = None) -> NoReturn:
        """Raises RunError: its weights are what was written."""
        raise RunError("has the weights that were exported", where=str(self.run.path), hint="load the run instead")

    def randomised(self) -> NoReturn:
        """Raises RunError, as `with_params` does."""
        self.with_params({})

    @cached_property
    def language_model(self) -> LanguageModel:
        """Raises RunError for what writes no text, or whose format bigctl does not write with."""
        if self.writes is None:
            raise RunError("labels examples, it writes no text", where=str(self.run.path))
        return self.writes()

    @cached_property
    def known_columns(self) -> frozenset[str] | None:
        columns = self._settings["columns"]
        return None if columns is None else frozenset(columns)

    @property
    def _undecided(self) -> Task:
        return self._plain

    def data(self) -> Dataset:
        """The data of the run that it was made from: as that run has it, or as the configuration that is kept here
        names it.

        Raises:
            DataError: where it cannot be had.
            RunError: where neither that run nor the data is here, or they are not what they were.
        """
        with self._tokenizer_there() as file:
            return exported_data.of(self.export, self.config, self.features, self._settings, file)

    @contextlib.contextmanager
    def _tokenizer_there(self) -> Iterator[Path]:
        """The file of the tokenizer, written anew where an encrypted export's is gone."""
        if self.features.tokenizer is None or self._tokenizer_file.is_file():
            yield self._tokenizer_file
            return
        text = self.tokenizer.to_str(pretty=True)
        with sealed.clear_folder(len(text)) as folder:
            file = folder / self._tokenizer_file.name
            file.write_text(text, encoding="utf-8")
            yield file

    @property
    def data_config(self) -> Data:
        own = exported_data.of_run(self.export, self._settings)
        return (self.config if own is None else own).data

    @property
    def origin(self) -> Origin:
        """What it was made from. Raises RunError where source.json is none."""
        return self.export.origin

    @property
    def plugins(self) -> list[str]:
        """Modules that it was made with."""
        return list(self._settings["plugins"] or [])

    @property
    def notes(self) -> list[str]:
        """In what its scores are not those that its run is told."""
        metrics, found = self._kept_config.eval.metrics, list(self.other_answers)
        found += [f"eval.metrics={list(metrics)}, which ask the run's own model, are left out"] * bool(metrics)
        if self._kept_config.train.adversarial.eps:
            found.append("robust_accuracy, which needs gradients, is left out")
        return found

    @property
    def other_answers(self) -> list[str]:
        """In what its answers are not those of its run."""
        views = self._kept_config.eval.tta
        return [f"the run answers by the views of eval.tta={views}, an export by each picture"] * (views != "none")

    @property
    def _kept_config(self) -> Config:
        return composing.from_yaml(self._settings["config"], where=str(self.run.path / SETTINGS))

    def __repr__(self) -> str:
        return super().__repr__().replace("<bigctl run", f"<bigctl export ({self.export.format})")

    def require_scored(self) -> None:
        """Raises RunError for what cannot be scored."""
