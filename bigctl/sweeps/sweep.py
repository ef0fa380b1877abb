"""A whole sweep: open its folder, run what is missing, score the winner, write the leaderboard."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigctl.errors import BigctlError, ConfigError, Preempted, RunError
from bigctl.files import read_regular
from bigctl.runs import directory
from bigctl.sweeps import leaderboard, ledger, trials
from bigctl.sweeps.execution.local import Executor, Job, Local
from bigctl.sweeps.execution.scheduler import Scheduler, SchedulerOptions
from bigctl.sweeps.ledger import Ledger
from bigctl.sweeps.search.space import Plan, choices
from bigctl.sweeps.trials import ENDED, FAILED, Study
from bigctl.sweeps.view.live import LiveView
from bigctl.training.signals import StopRequest

ROOT = Path("sweeps")
_POLL = 0.02  # s
_TRIES = 3  # to score the test split, if the process that does it is killed


@dataclass
class SweepOptions:
    """How to run a sweep, besides what.

    Attributes:
        argv: the command line, for the record.
        quiet: no progress.
    """

    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    argv: Sequence[str] = ()
    quiet: bool = False


def choose_folder(plan: Plan, *, name: str | None, folder: Path | None) -> Path:
    """The folder of a sweep: as given, or under sweeps/ by a name made from what it searches, so that the same command
    finds it. Seeds and the number of trials are not part of that name: more of them extend the same sweep."""
    if folder is not None:
        return folder
    if name is not None:
        return ROOT / directory.checked_name(name)
    recipe = next((o.split("=", 1)[1] for o in plan.fixed if o.startswith("recipe=")), "sweep")
    keys = "-".join(axis.key.rsplit(".", 1)[-1] for axis in plan.space.axes[:3]) or (
        "fold" if plan.space.folds else "seed"
    )
    settings = {key: value for key, value in asdict(plan.sweep).items() if key in ("sampler", "seed", "pruner")}
    spoken = [*plan.fixed, *(str(axis) for axis in plan.space.axes), str(plan.space.zipped), str(settings)]
    return ROOT / re.sub(r"[^\w.+-]", "_", f"{recipe}-{keys}-{trials.identity(spoken)[:6]}")


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """The ledger of a sweep's folder, which is created if necessary and locked meanwhile.

    Raises:
        RunHeld: if another process holds it.
        RunError: if it cannot be written, or holds something other than a sweep.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        strangers = [p.name for p in path.iterdir() if p.name != ".lock"]
        if strangers and not (path / ledger.NAME).exists():
            raise RunError(
                f"is not empty and holds no sweep ({strangers[0]})", where=str(path), hint="choose another --name"
            )
        lock = directory.take_lock(path / ".lock")
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", where=str(path), hint="choose another --name") from error
    try:
        directory.sign(lock)
        book = Ledger(path)
        try:
            yield book
        finally:
            book.close()
    finally:
        lock.close()


def run(plan: Plan, path: Path, executor: Executor, stop: StopRequest, options: SweepOptions) -> dict[str, Any]:
    """Run what is missing of a sweep; gives the leaderboard as JSON has it.

    Raises:
        BigctlError: with the exit code that fits; the ledger keeps what was done.
    """
    with open_ledger(path) as book:
        definition = definition_of(plan, path, options.argv)
        if not any(s.status in ENDED or _has_trained(book.study.run(s)) for s in book.study.states.values()):
            book.clear()  # a study refused before any training, as for an unknown metric, can be corrected
        _reject_another_study(book.study, definition)
        if definition["metric"] is None:  # known since the first trial began
            definition |= {key: book.study.definition.get(key) for key in ("metric", "mode")}
            if (mode := plan.base.config.recipe.direction(definition["metric"] or "")) and not plan.sweep.mode:
                definition["mode"] = plan.base.config.eval.mode or mode
        view = LiveView(book.study, quiet=options.quiet)
        try:
            if book.study.damaged:
                lines = "1 line" if book.study.damaged == 1 else f"{book.study.damaged} lines"
                view.say(f"note: {lines} of {book.path} cannot be read; the run directories tell what is missing")
            book.append("study", definition=definition)
            scheduler = Scheduler(plan, count_points(plan), book, executor, options.scheduler, view, stop)
            try:
                scheduler.run()
            except BigctlError:
                with contextlib.suppress(OSError):  # of the results so far
                    leaderboard.write_leaderboard(book.study, leaderboard.build_leaderboard(book.study))
                raise
            board = leaderboard.build_leaderboard(book.study)
            if (
                not scheduler.halted
                and board["winner"]
                and score_test_split(book, board["winner"]["trials"], view, stop, executor, plan.plugins)
            ):
                board = leaderboard.build_leaderboard(book.study)
        finally:
            view.close()
        try:
            leaderboard.write_leaderboard(book.study, board)
        except OSError as error:
            where = str(path / "leaderboard.json")
            raise RunError(f"cannot be written: {error.strerror}", where=where) from error
        if stop.exit_code is not None:
            raise Preempted(
                f"stopped by {stop.reason} before the test split was scored", exit_code=stop.exit_code,
                where=str(path), hint="run the same command again to continue",
            )  # fmt: skip
        return board


def _has_trained(run: Path) -> bool:
    """Not where the folder is but begun: by a trial that was beside the one that was refused, say, and stopped."""
    found = directory.RunDirectory(run, writes=False)
    return found.metrics.is_file() or found.trained()


def count_points(plan: Plan) -> int:
    """How many points are trained in all, not counting seeds and folds."""
    if any(axis.interval for axis in plan.space.axes):
        return plan.sweep.trials or 0
    size = math.prod(len(choices(dimension)) for dimension in plan.space.dimensions)
    return min(size, plan.sweep.trials or size)


def definition_of(plan: Plan, path: Path, argv: Sequence[str]) -> dict[str, Any]:
    """What the ledger keeps of a plan."""
    return {
        "name": path.name,
        "recipe": next((o.split("=", 1)[1] for o in plan.fixed if o.startswith("recipe=")), ""),
        "fixed": list(plan.fixed),
        "axes": [asdict(axis) for axis in plan.space.axes],
        "zipped": [list(keys) for keys in plan.space.zipped],
        "seeds": list(plan.space.seeds),
        "folds": list(plan.space.folds),
        "sweep": asdict(plan.sweep),
        "metric": plan.sweep.metric,
        "mode": plan.sweep.mode,
        "argv": list(argv),
    }


def _reject_another_study(study: Study, definition: dict[str, Any]) -> None:
    """A folder holds one study: the same fixed overrides and searched keys. Choices and trials may be added.

    Raises:
        ConfigError: naming what differs.
    """
    before = study.definition
    if not before:
        return
    hint = "give this study a --name of its own, or repeat the command that began the other"
    if sorted(before["fixed"]) != sorted(definition["fixed"]):
        differs = sorted(set(before["fixed"]) ^ set(definition["fixed"]))
        raise ConfigError(
            f"is another study: {', '.join(differs)} {'differs' if len(differs) == 1 else 'differ'}",
            where=str(study.path), hint=hint,
        )  # fmt: skip
    keys = [sorted(axis["key"] for axis in found["axes"]) for found in (before, definition)]
    if keys[0] != keys[1]:
        raise ConfigError(f"is another study: it searches {', '.join(keys[0])}", where=str(study.path), hint=hint)


def score_test_split(
    book: Ledger,
    ids: Sequence[str],
    view: LiveView,
    stop: StopRequest,
    executor: Executor | None = None,
    plugins: Sequence[str] = (),
) -> bool:
    """Score the test split with the winner's trials, each only once; whether anything was scored."""
    scored = False
    waiting = [name for name in ids if name not in book.study.test]
    if waiting:
        view.say(f"scoring the test split with the winner's {len(waiting)} run{'s' * (len(waiting) > 1)}")
    here = executor if isinstance(executor, Local) else Local(1)
    running: list[_Scoring] = []
    try:
        while running or (waiting and stop.exit_code is None):
            while waiting and len(running) < here.alone_at_once and stop.exit_code is None:
                running.append(_Scoring(waiting.pop(0), book.study, here, plugins))
            for each in [each for each in running if each.ended(stop)]:
                running.remove(each)
                numbers = each.numbers()
                if numbers is not None:
                    book.append("test", id=each.name, metrics=numbers)
                    scored = True
                elif stop.exit_code is None:  # else it was killed, or Ctrl-C has reached it
                    label = book.study.states[each.name].trial.label
                    view.say(f"note: the test split is not scored with {label}: {each.why()}")
            time.sleep(_POLL if running else 0)
    finally:
        for each in running:  # the ledger cannot be written, say
            each.kill()
        if here is not executor:
            here.close()
    return scored


class _Scoring:
    """A process that scores the test split with one run; it need not import what trials have."""

    def __init__(self, name: str, study: Study, executor: Local, plugins: Sequence[str]):
        self.name = name
        run = study.run(study.states[name])
        self._command = [sys.executable, "-P", "-m", "bigctl", "eval", str(run), "--json", "--errors", "0"]
        self._command += [word for module in plugins for word in ("--plugin", module)]
        self._log = study.path / "logs" / f"{name}.test.log"
        self._executor = executor
        self._tries = 0
        self._said = ""
        self._code: int | None = None
        self._job: Job | None = None
        self._start()

    def _start(self) -> None:
        self._tries += 1
        try:
            self._log.parent.mkdir(exist_ok=True)
            self._log.unlink(missing_ok=True)
            self._job = self._executor.alone(self._command, folder=Path.cwd(), log=self._log)
        except OSError as error:
            self._fails(error)

    def _fails(self, error: OSError) -> None:
        self._code, self._said = 1, f"bigctl: {self._log}: {error.strerror}"

    def ended(self, stop: StopRequest) -> bool:
        if self._code is not None or self._job is None:
            return True
        if stop.exit_code is not None:
            self._job.kill()  # it writes nothing
        code = self._job.poll()
        if code is None:
            return False
        if code < 0 and stop.exit_code is None and self._tries < _TRIES:  # it was killed
            self._start()
            return self._code is not None
        try:
            self._said = read_regular(self._log).decode("utf-8", "replace")
            if code == 0:
                self._log.unlink()
            self._code = code
        except OSError as error:
            self._fails(error)
        return True

    def kill(self) -> None:
        if self._job is not None and self._code is None:
            self._job.kill()

    def numbers(self) -> dict[str, float] | None:
        """The metrics of the test split; None if it ended without any."""
        try:
            found = _metrics(self._said) if self._code == 0 else None
        except ValueError:
            found = None
        if found is None:
            return None
        return {k: float(v) for k, v in found.items() if isinstance(v, (int, float)) and k.startswith("test/")}

    def why(self) -> str:
        lines = [line.removeprefix("bigctl: ") for line in self._said.splitlines() if line.startswith("bigctl: ")]
        return (lines or ["it failed"])[0]


def _metrics(said: str) -> dict[str, Any]:
    """Out of the JSON among what `eval --json` printed, warnings of libraries perhaps before and after it.

    Raises:
        ValueError: if there is none.
    """
    for start in reversed([i for i, char in enumerate(said) if char == "{" and said[i - 1 : i] in ("", "\n")]):
        try:
            found, _ = json.JSONDecoder().raw_decode(said, start)
            return dict(found["metrics"])
        except (ValueError, KeyError, TypeError):
            continue
    raise ValueError("no metrics")


def exit_code(study_status: dict[str, int]) -> int:
    """3 if some trials failed, 0 otherwise."""
    return 3 if study_status.get(FAILED) else 0
