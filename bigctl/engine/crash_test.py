"""Crash tests: train once undisturbed and again under SIGKILL at random moments, and compare the two bit for bit.

Every start is a true child, `python -m bigctl train ...`, that says through `training.phases` what it is doing. A kill
has an aim: a phase to wait for, from a random step on, and then a random delay within the time that phase took in the
undisturbed run; or it is aimed at nothing and has a random time. What it hit is what the child said last. A run that
ends before all kills have happened is compared, and another one, from the beginning, takes the rest.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bigctl.errors import ConfigError, TrainingFailed
from bigctl.runs.comparison import Comparison
from bigctl.runs.directory import RunDirectory
from bigctl.runs.metrics_file import read_metrics
from bigctl.training import phases

SCHEMA = 1
ANY = "any time"
OWN = ["train.trackers=[]"]
"""The runs of a crash test are nobody's result: no tracker hears of them."""
AIMS = {phases.START: 4, phases.STEP: 3, phases.EVAL: 4, phases.SAVE: 4, phases.END: 1, ANY: 2}
"""What kills are aimed at, and how often."""
_LOOK = 0.001
"""Seconds between two looks at what a child is doing; the most that a kill comes late."""
_compare_one = threading.Lock()


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: what it was aimed at, and what the process was doing, after which step, how long after its start."""

    run: int
    aim: str
    phase: str
    step: int
    seconds: float


@dataclass
class CrashTestResult:
    """What came out, and the undisturbed run's measures.

    Attributes:
        command: the command that was tested, without the run directory.
        kills: every SIGKILL.
        runs: of each killed run, what was compared.
        lost: for each run that could not be finished, why.
        notes: what makes the test worth less.
        seconds: how long it all took.
    """

    command: list[str]
    kills: list[Kill] = field(default_factory=list)
    runs: list[list[Comparison]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0

    @property
    def differences(self) -> list[Comparison]:
        return [found for run in self.runs for found in run if not found.equal]

    @property
    def ok(self) -> bool:
        return not self.lost and not self.differences

    @property
    def phases(self) -> Counter[str]:
        return Counter(kill.phase for kill in self.kills)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "command": self.command,
            "steps": self.steps,
            "phases": {phase: self.phases[phase] for phase in phases.PHASES},
            "kills": [asdict(kill) for kill in self.kills],
            "lost": self.lost,
            "runs": [[found.to_json() for found in run] for run in self.runs],
            "notes": self.notes,
            "environment": self.environment,
            "seconds": round(self.seconds, 1),
        }


class CrashTest:
    """Trains and kills.

    Args:
        arguments: of `bigctl train`: overrides, `--plugin`, `--config-dir`.
        folder: for the runs; an empty one.
        kills: how many.
        seed: of aims and delays.
        aims: phases to aim at and their weights.
        say: told what happens, one line at a time.
        stop: once set, from another thread, ends the children and the test.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        kills: int,
        seed: int = 0,
        aims: dict[str, int] | None = None,
        say: Callable[[str], None] = lambda line: None,
        stop: threading.Event | None = None,
    ):
        self.arguments, self.folder, self.count, self.say = list(arguments), folder, kills, say
        self.aims = dict(AIMS if aims is None else aims)
        self.stop = stop or threading.Event()
        self.random = random.Random(seed)
        self.result = CrashTestResult(["bigctl", "train", *self.arguments])
        self._long: dict[str, float] = {}
        self._end = 0

    def run(self) -> CrashTestResult:
        """All of it.

        Raises:
            ConfigError, TrainingFailed: if not even the undisturbed run comes to its end.
            KeyboardInterrupt: if stopped.
        """
        from bigctl.engine import same_run
        from bigctl.runs import provenance

        clock = time.monotonic()
        result = self.result
        result.environment = {"machine": provenance.machine(), "packages": provenance.packages()}
        straight = self._straight()
        self._keep_measured(straight)
        number = 0
        while len(result.kills) < self.count and not result.lost:
            number += 1
            before = len(result.kills)
            killed = self._killed(number)
            if killed is None:
                break
            with _compare_one:
                result.runs.append(same_run.compare_runs(straight, killed))
            if len(result.kills) == before and number > 20 + 2 * self.count:
                result.notes.append("the run is over too soon to be killed: give it more steps")
                break
        result.seconds = time.monotonic() - clock
        return result

    # -------------------------------------------------------------------------------------------------------- running

    def _straight(self) -> RunDirectory:
        """The undisturbed run, and how long each phase of it took."""
        run = RunDirectory(self.folder / "straight")
        spans: dict[str, list[float]] = defaultdict(list)
        with self._start(run) as child:
            self._watch(child, spans)
            code, said = child.ended()
        if code:
            error = ConfigError if code == 2 else TrainingFailed
            raise error(f"the undisturbed run failed with exit code {code}: {said}", where=str(run.path))
        self._long = {phase: statistics.median(found) for phase, found in spans.items()}
        self._long[ANY] = sum(map(sum, spans.values()))
        summary = run.summary()
        self._end = self.result.steps = int(summary["step"])
        saved = [folder for folder in run.checkpoints.iterdir() if int(folder.name) < self._end]
        if not saved:
            self.result.notes.append("there is no checkpoint before the end: kills only test starting again")
        if not run.batches.exists() or not read_metrics(run.metrics):
            self.result.notes.append("nothing is logged: there is little to compare")
        totals = ", ".join(f"{phase} {sum(spans[phase]):.1f}" for phase in phases.PHASES if spans[phase])
        self.say(f"undisturbed: {self._end:,} steps in {self._long[ANY]:.1f} s: {totals}")
        return run

    def _keep_measured(self, straight: RunDirectory) -> None:
        """What the undisturbed run has measured is that of all: another measurement may come out otherwise."""
        if (size := (straight.record().get("batch_size") or {}).get("size")) is not None:
            others = [each for each in self.arguments if not each.lstrip("+").startswith("train.batch_size=")]
            self.arguments = [f"train.batch_size={size}", *others]
            self.result.notes.append(f"the undisturbed run measured train.batch_size={size}, which the others take")

    def _killed(self, number: int) -> RunDirectory | None:
        """A run from its beginning to its end, with as many kills as happen; None if it is lost."""
        run = RunDirectory(self.folder / f"killed-{number}")
        while True:
            with self._start(run) as child:
                if len(self.result.kills) < self.count and (kill := self._kill(child, number)) is not None:
                    self.result.kills.append(kill)
                    self.say(
                        f"kill {len(self.result.kills)} of {self.count}: {kill.phase} at step {kill.step:,} "
                        f"after {kill.seconds:.1f} s (aim: {kill.aim})"
                    )
                    continue
                self._watch(child)
                code, said = child.ended()
            if code:
                self.result.lost.append(f"{run.path.name}: exit code {code}: {said}")
                self.say(f"LOST: {self.result.lost[-1]}")
                return None
            return run

    def _start(self, run: RunDirectory) -> _Child:
        return _Child(self.arguments, run, self.folder / f"{run.path.name}.phase")

    def _watch(self, child: _Child, spans: dict[str, list[float]] | None = None) -> None:
        """Wait for the end; gather how long each phase was."""
        before, since = phases.START, child.began
        while child.running():
            phase = child.moment().phase
            if phase != before:
                now = time.monotonic()
                if spans is not None:
                    spans[before].append(now - since)
                before, since = phase, now
            self._pause(_LOOK if spans is not None else 0.02)
        if spans is not None:
            spans[before].append(time.monotonic() - since)

    def _kill(self, child: _Child, number: int) -> Kill | None:
        """Aim, wait, kill; None if the process came to its end before."""
        aim = self._aim()
        left = self.count - len(self.result.kills)
        share, delay = self.random.random() / left, self.random.random()
        if aim in (phases.STEP, phases.EVAL, phases.SAVE):
            self._wait_for_start(child, float("inf"))
            first = child.moment().step
            floor = first + share * (self._end - first)
            ceiling = (floor + self._end) / 2  # what does not come until then may not come at all
            while child.running() and (moment := child.moment()).step < ceiling:
                if moment.phase == aim and moment.step >= floor:
                    break
                self._pause(_LOOK)
        elif aim == phases.END:
            while child.running() and child.moment().phase != aim:
                self._pause(_LOOK)
        begun = child.began if aim in (phases.START, ANY) else time.monotonic()
        deadline = begun + delay * self._long.get(aim, 0.0)
        if aim == phases.START:
            self._wait_for_start(child, deadline)
            deadline = 0.0
        while child.running() and time.monotonic() < deadline:
            self._pause(min(_LOOK, max(0.0, deadline - time.monotonic())))
        seconds = time.monotonic() - child.began
        if not child.kill():
            return None
        moment = child.moment()
        return Kill(number, aim, moment.phase, moment.step, round(seconds, 3))

    def _wait_for_start(self, child: _Child, deadline: float) -> None:
        """Until the first step or a time. How long a start takes is learnt: the undisturbed one may have compiled."""
        while child.running() and time.monotonic() < deadline:
            if child.moment().phase != phases.START:
                self._long[phases.START] = min(time.monotonic() - child.began, self._long[phases.START])
                return
            self._pause(_LOOK)

    def _aim(self) -> str:
        """A phase, the likelier the less often it was hit."""
        hit = self.result.phases + Counter(kill.aim for kill in self.result.kills if kill.aim == ANY)
        weights = [weight / (1 + hit[aim]) ** 2 for aim, weight in self.aims.items()]
        return self.random.choices(list(self.aims), weights)[0]

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise KeyboardInterrupt


class _Child:
    """One start of `bigctl train`. Leaving the `with` ends it, however it is left."""

    def __init__(self, arguments: Sequence[str], run: RunDirectory, told: Path):
        self.told = told
        told.unlink(missing_ok=True)
        self._errors = told.with_suffix(".stderr")
        environment = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
        command = [sys.executable, "-P", "-m", "bigctl", "train", *arguments, *OWN, "--run-dir", str(run.path)]
        command += ["--quiet", "--json"]
        self.began = time.monotonic()
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                env={**environment, phases.VARIABLE: str(told.resolve())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def running(self) -> bool:
        return self._process.poll() is None

    def moment(self) -> phases.Moment:
        return phases.read_phase(self.told)

    def kill(self) -> bool:
        """SIGKILL; whether that was what ended it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        return self._process.wait() == -signal.SIGKILL

    def ended(self) -> tuple[int, str]:
        """Its exit code, and the last that it said."""
        code = self._process.wait()
        said = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return code, " ".join(line.strip() for line in said[-3:])[:600]


def summary_lines(result: CrashTestResult) -> list[str]:
    """A short summary for people."""
    hit = ", ".join(f"{result.phases[phase]} in {phase}" for phase in phases.PHASES if result.phases[phase])
    runs = f"{len(result.runs)} run{'s' * (len(result.runs) != 1)}"
    lines = [f"{len(result.kills)} kills ({hit or 'none'}) of {runs} of {result.steps:,} steps, {result.seconds:.0f} s"]
    lines += [f"  LOST {said}" for said in result.lost]
    lines += [f"  DIFFERENT {found.what}: {found.difference}" for found in result.differences]
    lines += [f"  note: {note}" for note in result.notes]
    if result.ok:
        compared = result.runs[-1] if result.runs else []
        lines += [f"  equal  {found.what} ({found.count:,})" for found in compared]
    verdict = "not one bit differs" if result.ok and result.runs else "the promise is broken"
    return [*lines, verdict]


def write_report(result: CrashTestResult, path: Path) -> None:
    """Write the JSON report. Raises ConfigError if it cannot be written."""
    from bigctl.files import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result.to_json())
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(path)) from error
