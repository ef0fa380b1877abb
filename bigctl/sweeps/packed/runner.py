"""Packed trials: many small trainings in one process, side by side in one program where that pays.

Each trial is trained by `engine.trainer` like any other run, in a thread of its own: lock, log, metrics, checkpoints,
resuming, early stopping and failures are those of a single run. What the trials of one process share is what costs most
of a small training: start-up, data, and compiled programs; and packs of `width` of them take their steps together (see
`training.packed`).

    python -m bigctl.sweeps.packed.runner JOB.json

trains the trials of a job, {"trials": [{"id", "overrides", "run"}], "config_dirs": [], "plugins": [], "mode": "auto" or
"yes", "extra": [more overrides], "quiet": true}. It writes JOB.verdict.json, how they are trained and why, and in the
end JOB.ends.json, what became of each. A file `prune` in a run directory, with the reason as its text, ends that trial
at the next event, with a checkpoint, as if it had been asked to stop.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config.cadence import in_pack
from bigctl.config.compose import Composed
from bigctl.config.schema import Config
from bigctl.engine import trainer
from bigctl.engine.run import Options, TrialParts
from bigctl.errors import BigctlError, ConfigError, Preempted
from bigctl.runs import directory, provenance
from bigctl.runs.directory import RunDirectory
from bigctl.runs.summary import Summary
from bigctl.sweeps.packed import compatibility, compiling
from bigctl.sweeps.packed import pack_width as width_of
from bigctl.sweeps.packed.pack_width import Verdict
from bigctl.sweeps.packed.trial_stop import TrialStop
from bigctl.training.signals import StopRequest

if TYPE_CHECKING:
    from bigctl.engine.experiment import Experiment
    from bigctl.engine.resolve import Resolved
    from bigctl.training.evaluation import Evaluator
    from bigctl.training.feed import Feed
    from bigctl.training.packed.pack import Pack, PackedSteps
    from bigctl.training.packed.scoring import PackedScoring

TOGETHER, MEMORY = 32, 2**28
"""Trials that are in training at the same time, where their states fit so many bytes; the next ones wait. While some
compute, others start, write or end; at least two packs do so."""


@dataclass(frozen=True)
class PackedTrial:
    """A trial to train: which, what, and where."""

    id: str
    composed: Composed
    path: Path

    @property
    def config(self) -> Config:
        return self.composed.config


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial: its summary, or what ended it before it was complete."""

    job: PackedTrial
    summary: Summary | None = None
    error: Exception | None = None

    def to_json(self) -> dict[str, Any]:
        if self.error is None:
            return {"status": directory.COMPLETE, "message": "", "exit_code": 0}
        status = directory.PREEMPTED if isinstance(self.error, Preempted) else RunDirectory(self.job.path).status()
        code = self.error.exit_code if isinstance(self.error, BigctlError) else 1
        status = directory.FAILED if status in (directory.NEW, directory.RUNNING) else status
        return {"status": status, "message": str(self.error), "exit_code": code}


# --------------------------------------------------------------------------------------------------- what is shared


class TrialGroup:
    """What all trials of a group have in common: data, programs, evaluators. All of it is made here, once.

    Args:
        jobs: the group; what they share is made from the first.
    """

    def __init__(self, jobs: Sequence[PackedTrial]):
        from bigctl.engine import compile_cache, resolve
        from bigctl.engine import experiment as experiments

        config = jobs[0].config
        self.keeps_programs = config.train.compile_cache and compile_cache.use_compile_cache() is not None
        resolved = resolve.resolve(config, RunDirectory(jobs[0].path).tokenizer)
        self.resolved = dataclasses.replace(resolved, cadence=in_pack(resolved.config, resolved.cadence))
        self.experiment = experiments.build_resolved(self.resolved)
        self.made_with = provenance.made_with(Path.cwd(), diff=config.train.keep_diff)
        self._evaluators: dict[tuple[str, str], Evaluator] = {}
        self._steps: dict[int, PackedSteps] = {}
        self._scoring: dict[int, PackedScoring] = {}
        self._lock = threading.Lock()

    def packs_at_once(self, width: int) -> int:
        """How many packs train at the same time."""
        import jax

        programs = self.experiment.programs
        if programs.mesh.size > 1:
            return 1  # devices that wait for each other must all get their work in the same order
        state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(programs.abstract_state))
        return max(2, min(TOGETHER, MEMORY // max(1, state)) // width)

    def steps(self, width: int) -> PackedSteps:
        """The compiled steps of so many trials side by side."""
        from bigctl.engine import device_memory
        from bigctl.training.packed.pack import PackedSteps

        built = self.experiment
        columns = built.dataset.splits["train"]
        with self._lock:
            if width not in self._steps:
                layout, check = built.dataset.batches, device_memory.check_of_pack(built.programs, width)
                self._steps[width] = PackedSteps(
                    built.programs, layout, columns, built.config, built.cadence, width=width, check=check
                )
            return self._steps[width]

    def scoring(self, width: int) -> PackedScoring:
        """The compiled evaluation of so many trials at once."""
        from bigctl.engine import device_memory
        from bigctl.training.packed.scoring import PackedScoring

        programs, one = self.experiment.programs, self.evaluator("validation", "val")
        with self._lock:
            if width not in self._scoring:
                check = device_memory.check_of_pack(programs, width)
                self._scoring[width] = PackedScoring(programs, one, width=width, check=check)
            return self._scoring[width]

    def compile(self, width: int, folder: Path | None, stop: StopRequest) -> None:
        """Compile what all trials run, so many side by side, before the first of them does; see `compile_all`."""
        steps, scoring = self.steps(width), self.scoring(width)
        compiling.compile_pack(self.experiment, steps, scoring, folder, lambda: stop.exit_code is not None)

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        """For all trials; the data is on the device once."""
        with self._lock:
            if (split, prefix) not in self._evaluators:
                self._evaluators[split, prefix] = self.experiment.evaluator(split, prefix)
                self._evaluators[split, prefix].place()
            return self._evaluators[split, prefix]

    def refusal(self) -> str | None:
        """Why their data or this machine does not let them be packed, if it does not."""
        from bigctl.training.packed import pack

        built = self.experiment
        return pack.refusal(built.programs, built.dataset.batches, built.dataset.splits["train"], built.config)


class _Trial:
    """One trial of a group, which takes its data, programs and evaluators; without a pack its steps are its own."""

    def __init__(self, shared: TrialGroup, pack: Pack | None, lane: int):
        self.shared, self.pack, self.lane = shared, pack, lane
        self._built = shared.experiment

    def build(self, resolved: Resolved) -> Experiment:
        built = self.shared.experiment
        programs = built.programs.with_config(resolved.config)
        self._built = dataclasses.replace(built, config=resolved.config, programs=programs, shared=self)
        return self._built

    def feed(self, experiment: Experiment) -> Feed | None:
        from bigctl.data.layouts.layout import FixedPlan
        from bigctl.training import plans
        from bigctl.training.packed.pack import PackedFeed

        if self.pack is None:
            return None
        data = experiment.dataset
        plan = plans.training_plan(data.batches, data.splits["train"], experiment.config)
        assert isinstance(plan, FixedPlan)  # as `pack.refusal` has seen
        return PackedFeed(self.pack, self.lane, experiment.programs.hparams, plan)

    def evaluator(self, split: str, prefix: str) -> Evaluator:
        from bigctl.training.packed.pack import PackedEvaluator

        if self.pack is None or split != "validation":
            return self.shared.evaluator(split, prefix)
        built = self._built
        return PackedEvaluator(self.pack, self.lane, built.programs, built.dataset.splits[split], built.config)


# ------------------------------------------------------------------------------------------------------- training


def train(
    jobs: Sequence[PackedTrial],
    *,
    stop: StopRequest,
    mode: str = "auto",
    plugins: Sequence[str] = (),
    beside: Path | None = None,
    decided: Callable[[Verdict], None] = lambda verdict: None,
    ended: Callable[[TrialOutcome], None] = lambda end: None,
    trained: Callable[[Experiment], None] = lambda experiment: None,
) -> tuple[list[TrialOutcome], Verdict]:
    """Train trials that are alike but for numbers and seeds, to their ends.

    Args:
        jobs: the trials.
        stop: an entered one.
        mode: "auto" packs where that can be done and pays, "yes" packs.
        plugins: modules the configurations need, for the record.
        beside: a folder that processes which train others like these have in common.
        decided: told how, before training begins.
        ended: told of each trial when it ends.
        trained: told in the end what they shared, where others can use what is compiled of it.

    Raises:
        ConfigError: where they cannot be packed. What ends single trials is in what comes back.
    """
    from bigctl.training.checkpoints.async_checkpoints import of_many

    _require_alike([job.config for job in jobs], mode)
    shared = TrialGroup(jobs)
    verdict = width_of.decide(shared, [job.path for job in jobs], mode)
    decided(verdict)
    width = verdict.width
    folder = beside if shared.keeps_programs and width > 1 else None
    room, ending = threading.Semaphore(shared.packs_at_once(width)), threading.Lock()
    ends: list[TrialOutcome] = []
    note = {"packed": {"trials": len(jobs), "width": width}}

    def one(job: PackedTrial, pack: Pack | None, lane: int) -> None:
        trial = _Trial(shared, pack, lane)
        parts = TrialParts(shared.resolved, shared.made_with, trial.build, of_many, note)
        try:
            end = _to_its_end(job, parts, stop, plugins)
        finally:
            if pack is not None:
                pack.leave(lane)
        with ending:
            ends.append(end)
            ended(end)

    if width > 1:
        shared.compile(width, folder, stop)
    _each_in_a_thread(_side_by_side, [(shared, share, width, room, one) for share in _shares(jobs, width)])
    if folder is not None:
        trained(shared.experiment)
    order = {job.id: number for number, job in enumerate(jobs)}
    return sorted(ends, key=lambda end: order[end.job.id]), verdict


def _require_alike(configs: Sequence[Config], mode: str) -> None:
    refused = compatibility.refusal(configs) if mode == "yes" else compatibility.differences(configs)
    if refused is not None:
        raise ConfigError(refused, where="packed trials", hint="train them one by one, or pack those that are alike")


def _to_its_end(job: PackedTrial, parts: TrialParts, stop: StopRequest, plugins: Sequence[str]) -> TrialOutcome:
    try:
        if stop.exit_code is not None:
            raise Preempted(f"stopped by {stop.reason} before it was started", exit_code=stop.exit_code)
        argv, own = ["train", *job.composed.overrides, "--run-dir", str(job.path)], TrialStop(stop, job.path)
        options = Options(quiet=True, plugins=plugins, argv=argv, stop=own, shared=parts)
        return TrialOutcome(job, trainer.train(job.composed, job.path, options))
    except Exception as error:
        return TrialOutcome(job, error=error)


def _side_by_side(
    shared: TrialGroup,
    share: Sequence[PackedTrial],
    width: int,
    room: threading.Semaphore,
    one: Callable[[PackedTrial, Pack | None, int], None],
) -> None:
    """Train the trials of one pack, each by `one`, when there is room for it."""
    from bigctl.training.packed.pack import Pack

    with room:
        pack = Pack(shared.steps(width), shared.scoring(width), len(share)) if width > 1 else None
        _each_in_a_thread(one, [(job, pack, lane) for lane, job in enumerate(share)])


def _each_in_a_thread(call: Any, arguments: Sequence[tuple[Any, ...]]) -> None:
    threads = [threading.Thread(target=call, args=each, name=f"trial {n}") for n, each in enumerate(arguments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)  # in slices, for signals


def _shares(jobs: Sequence[PackedTrial], width: int) -> list[Sequence[PackedTrial]]:
    """The packs, as equal in size as can be."""
    count = -(-len(jobs) // width)
    bounds = [len(jobs) * number // count for number in range(count + 1)]
    return [jobs[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


# ----------------------------------------------------------------------------------------------------- the process


def main(arguments: Sequence[str]) -> int:
    """Train the trials of a job file; 0 if each of them has ended one way or another, 75 or 130 if asked to stop."""
    if len(arguments) != 1:
        print("usage: python -m bigctl.sweeps.packed.runner JOB.json", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        with StopRequest() as stop:
            return _main(path, stop)
    except BigctlError as error:
        print(f"bigctl: {error}", file=sys.stderr)
        return error.exit_code


def _main(path: Path, stop: StopRequest) -> int:
    from bigctl.config.compose_many import compose_all
    from bigctl.files import write_json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trials = [
            (str(t["id"]), [*t["overrides"], *content.get("extra", [])], Path(t["run"])) for t in content["trials"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"is no job of packed trials: {error!r}", where=str(path)) from error
    plugins, dirs = content.get("plugins", []), [Path(each) for each in content.get("config_dirs", [])]

    def decided(verdict: Verdict) -> None:
        print(verdict.sentence, file=sys.stderr, flush=True)
        verdicts.append(verdict.to_json())
        write_json(path.with_suffix(".verdict.json"), {"groups": verdicts})

    def ended(end: TrialOutcome) -> None:
        if not content.get("quiet"):
            print(f"{end.job.path}: {end.error or 'complete'}", file=sys.stderr, flush=True)

    composed = compose_all([given for _, given, _ in trials], config_dirs=dirs, plugins=plugins)
    jobs = [PackedTrial(name, found, run) for (name, _, run), found in zip(trials, composed, strict=True)]
    ends: list[TrialOutcome] = []
    shared: list[Experiment] = []
    verdicts: list[dict[str, Any]] = []
    groups, mode = compatibility.groups(jobs, lambda job: job.config), content.get("mode", "auto")
    with compiling.among_others(path.parent):
        for group in groups:
            try:
                ends += train(
                    group, stop=stop, mode=mode, plugins=plugins, beside=path.parent, decided=decided, ended=ended,
                    trained=shared.append if len(groups) == 1 else lambda experiment: None,
                )[0]  # fmt: skip
            except Exception as error:  # of data that is missing, say: other groups may have other data
                for job in group:
                    ends.append(TrialOutcome(job, error=error))
                    ended(ends[-1])
    write_json(path.with_suffix(".ends.json"), {"trials": {end.job.id: end.to_json() for end in ends}})
    code = stop.exit_code or 0
    if shared and not code and any(end.error is None for end in ends):
        compiling.compile_test(shared[0], path.parent)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
