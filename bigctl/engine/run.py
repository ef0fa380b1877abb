"""One start of a run, as every stage of training sees it. Free of jax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from bigctl.config.cadence import Done
from bigctl.config.schema import Config
from bigctl.parallel.distributed import SingleProcess
from bigctl.runs.directory import RunDirectory
from bigctl.runs.gates import Gate
from bigctl.runs.summary import Summary
from bigctl.training.signals import Stop, TimedStop

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.engine.resolve import Resolved
    from bigctl.training.checkpoints.store import Checkpoints
    from bigctl.training.tracking.callbacks import Listener


class Beginning(StrEnum):
    """The four ways a run can begin; docs/resume.md has the table of all states."""

    NEW = "new"
    """Nothing has been trained here: from initialised weights."""
    RESTARTED = "restarted"
    """It was started before and ended without a checkpoint: from initialised weights, with today's configuration."""
    RESUMED = "resumed"
    """It has checkpoints: from the newest whole one."""
    COMPLETE = "complete"
    """Nothing is left to do: its summary is the result."""


@dataclass(frozen=True)
class TrialParts:
    """What a trial takes over from the process that trains many of them, instead of making its own.

    Attributes:
        resolved: data and weights that all trials start from.
        made_with: packages, code and machine, for run.json.
        build: makes the experiment of one trial.
        checkpoints: wraps the checkpoints of one trial.
        note: what run.json says of this start besides.
    """

    resolved: Resolved
    made_with: Mapping[str, Any]
    build: Callable[[Resolved], Experiment]
    checkpoints: Callable[[Checkpoints], Checkpoints]
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """How to train, besides what.

    Attributes:
        resume: "auto" resumes an existing run, "never" starts a new one, "must" fails where there is none.
        allow_drift: keys that may differ from the run that is resumed.
        quiet: no progress on stderr.
        profile: write a profiler trace of a few steps.
        plugins: modules the configuration needs, for the record.
        argv: the command line, for the record.
        began: when the command was started, by `time.monotonic` [s]; None for when `train` is called.
        stop: an entered one, which listens already.
        require: gates on metrics, whose names are checked before anything is trained.
        shared: what a packed trial shares with others.
        follow: makes what is told of the events of training besides, given its length [steps].
    """

    resume: str = "auto"
    allow_drift: Sequence[str] = ()
    quiet: bool = False
    profile: bool = False
    plugins: Sequence[str] = ()
    argv: Sequence[str] = ()
    began: float | None = None
    stop: TimedStop | None = None
    require: Sequence[Gate] = ()
    shared: TrialParts | None = None
    follow: Callable[[int], Listener] | None = None


@dataclass(frozen=True)
class Run:
    """A run directory that this process holds, and what is to be trained in it.

    Attributes:
        directory: where it is; only the first of several processes writes there.
        overrides: as they were given, for the record.
        options: how to train.
        group: the processes that train it together.
        stop: whether someone has asked to stop.
        started: when, [s] since the epoch; `clock` the same by `time.monotonic`.
        config: what to train, with what the first start decided.
        beginning: what was found in the directory.
        changed: what differs from the configuration of the start before.
        summary: of a complete run.
        done: of a run that is resumed, what its newest checkpoint tells.
    """

    directory: RunDirectory
    overrides: tuple[str, ...]
    options: Options
    group: SingleProcess
    stop: Stop
    started: float
    clock: float
    config: Config
    beginning: Beginning
    changed: tuple[str, ...]
    summary: Summary | None
    done: Done | None = None

    @property
    def began(self) -> float:
        """When the command was started, by `time.monotonic` [s]."""
        return self.clock if self.options.began is None else self.options.began

    @property
    def resumes(self) -> bool:
        return self.beginning is Beginning.RESUMED
