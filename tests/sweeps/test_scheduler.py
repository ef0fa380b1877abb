"""The loop of a sweep, on its own: what it starts, and when."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from bigctl.errors import ConfigError
from bigctl.runs import directory
from bigctl.sweeps import sweep
from bigctl.sweeps.execution import refusals
from bigctl.sweeps.execution.local import Job
from bigctl.sweeps.execution.scheduler import Scheduler, SchedulerOptions
from bigctl.sweeps.ledger import Ledger
from bigctl.sweeps.search import space
from bigctl.sweeps.view.live import LiveView
from bigctl.training.signals import StopRequest


class Ended:
    """A job that has ended at once, with an exit code."""

    def __init__(self, code: int | None):
        self.place, self._code = "here", code

    def poll(self) -> int | None:
        return self._code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Bench:
    """An executor that trains nothing."""

    look = 0.001

    def __init__(self, slots: int, code: int | None = None):
        self.slots, self._code = slots, code
        self.commands: list[Sequence[str]] = []
        self.avoided: list[Collection[str]] = []

    def start(self, command: Sequence[str], *, folder: Path, log: Path, avoid: Collection[str] = ()) -> Job:
        self.commands.append(command)
        self.avoided.append(avoid)
        return Ended(self._code)

    def rest(self) -> None: ...


def scheduler(folder: Path, bench: Bench, options: SchedulerOptions | None = None, *more: str) -> Scheduler:
    words = ["recipe=mlp_cls", "data=breast_cancer", "optimizer.lr=1e-3,1e-2,1e-1", *more]
    plan = space.plan(words, config_dirs=[], plugins=[])
    ledger = Ledger(folder)
    ledger.append("study", definition=sweep.definition_of(plan, folder, []))
    view = LiveView(ledger.study, quiet=True)
    return Scheduler(plan, sweep.count_points(plan), ledger, bench, options or SchedulerOptions(), view, StopRequest())


def test_trials_that_an_earlier_start_left_running_keep_the_place_of_a_job(tmp_path: Path) -> None:
    first = scheduler(tmp_path, Bench(1))
    first._start()
    (left,) = (s for s in first.study.states.values() if s.attempts)
    first.study.run(left).mkdir(parents=True)
    lock = directory.take_lock(first.study.run(left) / ".lock")

    bench = Bench(1)
    again = scheduler(tmp_path, bench)
    again._recover()
    again._start()
    assert not bench.commands, "--jobs 1 is one at a time, whoever started it"
    bench.slots = 2
    again._start()
    assert len(bench.commands) == 1 and bench.avoided == [{"here"}], "in another place than the one left running"
    lock.close()


@pytest.mark.parametrize("code", [-9, 143])
def test_a_trial_that_is_killed_before_it_gets_anywhere_fails_at_the_third_time(tmp_path: Path, code: int) -> None:
    bench = Bench(3, code)
    loop = scheduler(tmp_path, bench)
    loop.run()
    assert len(bench.commands) == 9 and {s.status for s in loop.study.states.values()} == {"failed"}


@pytest.mark.parametrize(("limit", "started"), [(0, 1), (1, 2), (None, 3)])
def test_a_sweep_stops_when_more_have_failed_than_may(tmp_path: Path, limit: int | None, started: int) -> None:
    bench = Bench(1, 1)
    loop = scheduler(tmp_path, bench, SchedulerOptions(max_failures=limit))
    loop.run()
    assert len(bench.commands) == started and bool(loop.halted) == (limit is not None)


class Refused(Bench):
    """One whose jobs end with an error; `said` has the number of the trial for {}."""

    def __init__(self, said: str, code: int = 2):
        super().__init__(1, code)
        self._said = said

    def start(self, command: Sequence[str], *, folder: Path, log: Path, avoid: Collection[str] = ()) -> Job:
        log.write_text(f"bigctl: {self._said.format(len(self.commands))}\n        do this\n")
        return super().start(command, folder=folder, log=log, avoid=avoid)


TWICE = "model.dropout=0,0.1"


@pytest.mark.parametrize(("axes", "starts"), [((), 2), (("seed=0,1",), 3), ((TWICE,), 3), (("data.fold=range(3)",), 4)])
def test_a_sweep_ends_where_trials_without_a_common_value_are_refused_alike(
    tmp_path: Path, axes: tuple[str, ...], starts: int
) -> None:
    bench = Refused("there is no such file")
    loop = scheduler(tmp_path, bench, None, *axes)
    with pytest.raises(ConfigError, match=r"^no trial can begin: there is no such file \(do this\)$"):
        loop.run()
    assert len(bench.commands) == starts
    assert {s.status for s in loop.study.states.values()} == {"waiting"}, "they have their turn when it is mended"


@pytest.mark.parametrize(
    ("said", "code", "axes"),
    [
        ("optimizer.lr: {} is too large", 2, ()),  # each is refused for its own value
        ("the loss is not finite", 1, ()),  # it had begun
        ("there is no such file", 2, (TWICE, "data.split_seed=0,1", "sweep.sampler=random", "sweep.trials=1")),
    ],
)
def test_an_error_that_may_be_of_one_trial_alone_leaves_the_others_their_turn(
    tmp_path: Path, said: str, code: int, axes: tuple[str, ...]
) -> None:
    bench = Refused(said, code)
    loop = scheduler(tmp_path, bench, None, *axes)
    loop.run()
    assert len(bench.commands) == len(loop.study.states) and {s.status for s in loop.study.states.values()} == {
        "failed"
    }


def test_a_trial_that_was_trained_shows_that_others_can_be(tmp_path: Path) -> None:
    loop = scheduler(tmp_path, Bench(3))
    loop._start()
    states = list(loop.study.states.values())
    for state in states:
        state.status, state.exit_code, state.message = "failed", 2, "there is no such file"
    assert refusals.of_all(loop.study, loop.plan.space) == "there is no such file"
    states[-1].status = "complete"
    assert refusals.of_all(loop.study, loop.plan.space) is None


@pytest.mark.parametrize("orders", [((), ("seed=range(3)",)), (("seed=range(3)",), ())])
def test_a_trial_that_says_nothing_of_seeds_is_that_of_seed_0(
    tmp_path: Path, orders: tuple[tuple[str, ...], ...]
) -> None:
    for more in orders:
        loop = scheduler(tmp_path, Bench(1), None, *more)
        while loop.proposals.propose():
            pass
        for state in list(loop.study.states.values()):
            loop.proposals.enter(state.trial.point)
    seeds = [s.trial.seed or 0 for s in loop.study.states.values() if s.trial.point == {"optimizer.lr": "0.001"}]
    assert sorted(seeds) == [0, 1, 2] and loop.proposals.planned == 9
