"""How a run comes to its data and its programs: by itself; `sweeps.packed` has one that runs share. Free of jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import schema
from bigctl.data.dataset import Dataset
from bigctl.engine import resolve
from bigctl.runs import provenance

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.training.checkpoints.store import Checkpoints


class Setup:
    """What `trainer.train` asks for.

    Attributes:
        note: what run.json says of this start besides.
    """

    note: Mapping[str, Any] = {}

    def data(self, config: schema.Config, stored: Path) -> Dataset:
        """The data; `stored` is the tokenizer.json of the run, if there is one."""
        return resolve.prepare_data(config, stored)

    def surroundings(self) -> dict[str, Any]:
        """What the run is made with, for run.json."""
        return {
            "packages": provenance.packages(),
            "code": provenance.code(Path.cwd()),
            "machine": provenance.machine(),
        }

    def checkpoints(self, own: Checkpoints) -> Any:
        """The checkpoints of the run, or what takes their place."""
        return own

    def build(self, config: schema.Config, dataset: Dataset) -> Experiment:
        """The programs, the feed and the evaluators."""
        from bigctl.engine import experiment

        return experiment.build(config, dataset)
