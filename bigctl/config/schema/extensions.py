"""What a plugin adds that is chosen by a name alone: metrics of evaluations, and callbacks of the training loop.

A subclass with a `name` is known as soon as its module is imported. Free of jax, as all of the schema is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigctl.config.schema.base import Problem, Whole, place_of
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    import jax
    import numpy as np


class Named:
    """What is chosen by its name."""

    name: ClassVar[str] = ""
    key: ClassVar[str] = ""
    """The key of the configuration that lists the names."""

    @classmethod
    def known(cls) -> dict[str, type[Self]]:
        """Those of imported plugins, by name."""
        found: dict[str, type[Self]] = {}
        for child in cls.__subclasses__():
            found |= {child.name: child} if child.name else {}
            found |= child.known()
        return found

    @classmethod
    def problems(cls, names: Sequence[str]) -> Iterator[Problem]:
        """Names that nothing has."""
        known, what = cls.known(), cls.key.rpartition(".")[2].rstrip("s")
        for name in names:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                guess = f"; did you mean {close[0]}?" if close else ""
                hint = f"one of: {', '.join(known)}" if known else "those of a module come with --plugin MODULE"
                yield cls.key, f"there is no {what} named {name!r}{guess}", hint

    @classmethod
    def chosen(cls, names: Sequence[str]) -> list[type[Self]]:
        """The classes of these names.

        Raises:
            ConfigError: for one that nothing has.
        """
        for where, message, hint in cls.problems(names):
            raise ConfigError(message, where=where, hint=hint)
        return [cls.known()[name] for name in dict.fromkeys(names)]


class Metric(Named):
    """A metric of evaluations, besides those of the recipe: `eval.metrics=[NAME]` reports val/NAME and test/NAME.

    Attributes:
        direction: whether it should be large ("max") or small ("min"), for selection and sweeps.
    """

    key = "eval.metrics"
    direction: ClassVar[str] = ""

    def each(self, prediction: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """A value, or an array of values, for each example: [batch, ...]. Runs on the device, traced by jax.

        Args:
            prediction: what the recipe's task predicts; of a classification the probabilities, [batch, classes].
            batch: the columns of the batch, `label` for one.
        """
        raise self.incomplete("has no method `each(prediction, batch)`")

    def measure(self, task: Any, model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The same from the model itself, for tasks that predict nothing, or where more is needed."""
        return self.each(task.predict(model, batch), batch)

    def compute(self, values: np.ndarray) -> float:
        """The metric, from the values of all examples of the split; by default their mean."""
        return float(values.mean())

    @classmethod
    def no_direction(cls) -> tuple[str, str]:
        return f"metric {cls.name!r} of {place_of(cls)} has no direction", 'give the class direction = "max" or "min"'

    @classmethod
    def incomplete(cls, what: str) -> ConfigError:
        return ConfigError(f"metric {cls.name!r} {what}", where=place_of(cls))


class Callback(Named):
    """What is told of the events of training: `train.callbacks=[NAME]`.

    One object is made a run, on the first of several processes. After a step the order is: evaluation, log, save. A
    resumed run tells again what came after its checkpoint. An error ends the run.

    Args:
        run: the run directory.
        config: the whole configuration.
    """

    key = "train.callbacks"

    def __init__(self, run: Path, config: Whole):
        self.run, self.config = run, config

    def after_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The validation split was scored: val/loss, ..."""

    def after_log(self, step: int, metrics: Mapping[str, float]) -> None:
        """The means since the last log line are there: train/loss, lr, perf/examples_per_s, ..."""

    def after_save(self, step: int) -> None:
        """A checkpoint is on its way to the disk."""

    def after_end(self, step: int, metrics: Mapping[str, float]) -> None:
        """Training is complete and the test split scored: what summary.json has as metrics."""
