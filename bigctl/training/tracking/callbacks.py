"""The callbacks of `train.callbacks`, told of events as trackers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from bigctl.config import schema


class Listener(Protocol):
    """What is told of the events of training, until its end."""

    def write(self, step: int, values: dict[str, Any]) -> None:
        """The metrics of an evaluation, or of a log line."""

    def saved(self, step: int) -> None:
        """A checkpoint is on its way to the disk."""

    def cut(self, step: int) -> None:
        """Training went back to this step: what came after it does not count."""

    def result(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Training is complete."""


class Told:
    """One callback, and which event each call stands for."""

    def __init__(self, callback: schema.Callback):
        self.callback = callback

    def write(self, step: int, values: dict[str, Any]) -> None:
        evaluated = any(name.startswith("val/") for name in values)
        (self.callback.after_evaluation if evaluated else self.callback.after_log)(step, values)

    def saved(self, step: int) -> None:
        self.callback.after_save(step)

    def cut(self, step: int) -> None:
        """What was told was told; events after this step are told anew."""

    def result(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.callback.after_end(step, metrics)


def chosen(run: Path, config: schema.Config) -> list[Listener]:
    """One of each, in the order they are named."""
    return [Told(callback(run, config)) for callback in schema.Callback.chosen(config.train.callbacks)]
