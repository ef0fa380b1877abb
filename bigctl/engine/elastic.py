"""One process of a run that goes on with fewer, and with more again, without an operator. Free of jax.

An agent is what `bigctl train --elastic 3:4` runs on each host. It finds the others by files (`parallel.members`),
starts its process of each round, and takes part in the next one when that ends because another was lost, stopped, or
came back. Batches are a function of the seed and the position, so a round of another size trains on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bigctl.config.schema import Config
from bigctl.engine.same_start import Started
from bigctl.errors import ConfigError, Preempted, Stuck
from bigctl.parallel import cluster
from bigctl.parallel.members import BEAT, HERE, LEAVING, TRAINING, Member, Members, Round, free_address, in_order
from bigctl.runs import directory, manifest
from bigctl.runs.directory import RunDirectory
from bigctl.training.signals import StopRequest

LAST_CALL = 15.0
"""So long after the last one came a first round begins with fewer than the most, where the least are there [s]."""
SETTLE = 3.0
"""The same for later rounds [s]: who comes back after that is taken in at the next checkpoint."""
LONGEST_PAUSE = 60.0
"""Between two starts that came to nothing [s]; the first follows after one."""
END = 45.0
"""So long after another process of the round has ended its own is ended too, should it not notice [s]."""
_POLL = 0.2  # s
_STOPPED = (75, 130, 143)


@dataclass(frozen=True)
class Size:
    """How many processes may train: at least, and at most."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """From "3:4", or "4" for no fewer than that. Raises ConfigError."""
        found = re.fullmatch(r"(\d+)(?::(\d+))?", text)
        size = cls(int(found[1]), int(found[2] or found[1])) if found else cls(0, 0)
        if not 1 <= size.least <= size.most:
            raise ConfigError(f"{text!r} is no number of processes", where="--elastic", hint="LEAST:MOST, such as 3:4")
        return size

    def fitting(self, there: int, unfit: Sequence[int]) -> int | None:
        """The largest number of processes that so many can give; None where there is none."""
        return max((n for n in range(self.least, min(there, self.most) + 1) if n not in unfit), default=None)

    def __str__(self) -> str:
        return f"{self.least} to {self.most}" if self.least < self.most else str(self.most)


class Agent:
    """Starts and watches one process of a run, until the run ends.

    Args:
        command: what trains, without what makes it elastic.
        config: composed from it.
        path: the run directory.
        size: how many processes may train.
        restarts: how many starts in a row may come to no new checkpoint.
        stop: an entered one.
        say: a line for the user.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: Config,
        path: Path,
        size: Size,
        *,
        restarts: int,
        stop: StopRequest,
        say: Callable[[str], None],
    ):
        self.command, self.path, self.size, self.restarts, self.stop, self.say = (
            list(command), path, size, restarts, stop, say,
        )  # fmt: skip
        self.patience = config.mesh.wait
        self.started = Started.here(config)
        self.members = Members(folder_of(path), json.dumps(self.started.to_json()), self._folder_lost)
        self._base = self._done = self._failures = 0
        self._unfit: set[int] = set()
        self._begun: set[str] = set()
        self._saved = self._newest()

    def run(self) -> int:
        """The exit code of the run.

        Raises:
            ConfigError: if this process was started otherwise than those that are there.
            Stuck: if too few come.
            Preempted: if this process is asked to stop while none trains.
        """
        try:
            self._enter()
            while True:
                found = self._next_round()
                if isinstance(found, int):
                    return found
                with tempfile.TemporaryFile() as out:
                    code = self._train(found, out)
                    self.members.say(state=LEAVING if self._asked else HERE, code=code, address=free_address())
                    self._done = found.number
                    verdict = self._verdict(found, code)
                    if verdict is not None:
                        out.seek(0)
                        shutil.copyfileobj(out, sys.stdout.buffer)
                        sys.stdout.flush()
                        return verdict
        finally:
            self.members.leave()

    # --------------------------------------------------------------------------------------------------- coming in

    def _enter(self) -> None:
        """Say that this process is there, unless it was started otherwise than those that are."""
        since = time.monotonic()
        while not self.members.say():
            self._pause(since)
        before = self._round()
        if before is not None:  # one that has ended is nothing to take part in
            self._base = self._done = before.number - (self.members.marked("end", before.number) is None)
        own = self.members.own
        others = {m.name: m for m in self.members.there() if m.started != own.started and m.count > own.count}
        if others:
            time.sleep(3 * BEAT)  # those that are there say something meanwhile
            self.members.say()
        for other in self.members.there():
            if other.name not in others or other.count == others[other.name].count:
                continue
            with contextlib.suppress(OSError):
                if found := Started(**json.loads(self.members.started(other))).differences(self.started):
                    hint = "start all processes with the same command and the same versions"
                    what = f"this process was started otherwise than that on {other.said}: {', '.join(found)}"
                    raise ConfigError(what, where=str(self.path), hint=hint)

    def _next_round(self) -> Round | int:
        """The round that this process is to train in, or the exit code of a run that has ended meanwhile."""
        began = since = time.monotonic()
        names: list[str] = []
        while True:
            self._pause(began)
            if not self.members.say(state=HERE):
                began = since = time.monotonic()
                continue
            try:
                last = self.members.round()
            except OSError:
                continue
            if last is not None and last.number > self._base:
                if (end := self.members.marked("end", last.number)) is not None:
                    return int(end)
                if self.members.own.name in last.names and last.number > self._done:
                    return last
                if self._goes_on(last):
                    began = since = time.monotonic()
                    continue
            waiting = in_order([member for member in self.members.there() if member.state == HERE], last)
            if names != [member.name for member in waiting]:
                names, since = [member.name for member in waiting], time.monotonic()
            unfit = sorted({*self._unfit, *(last.unfit if last else ())})
            count = self.size.fitting(len(waiting), unfit)
            if self._due(count, last, since, len(waiting)):
                assert count is not None
                self._propose(waiting[:count], last, unfit)
            elif time.monotonic() - began > self.patience and count is None:
                self._give_up(waiting, last, unfit)

    def _due(self, count: int | None, last: Round | None, since: float, waiting: int) -> bool:
        """Whether a round is to begin now with so many of those that wait."""
        if count is None:
            return False
        pause = min(LONGEST_PAUSE, 2.0**self._failures - 1) if last else 0.0
        settle = max(pause, 0.0 if waiting >= self.size.most else SETTLE if last else LAST_CALL)
        return time.monotonic() - since >= settle

    def _propose(self, chosen: Sequence[Member], last: Round | None, unfit: Sequence[int]) -> None:
        if chosen[0].name != self.members.own.name:  # the first does, or is gone soon
            return
        number, hosts = (last.number if last else 0) + 1, tuple(member.host for member in chosen)
        names, address = tuple(member.name for member in chosen), chosen[0].address
        if len({(member.host, member.space) for member in chosen}) == 1:  # whatever networks this machine has
            address = f"127.0.0.1:{address.rpartition(':')[2]}"
        with contextlib.suppress(OSError):
            self.members.propose(Round(number, names, hosts, address, tuple(unfit)))

    def _goes_on(self, found: Round) -> bool:
        """Whether a process of a round may still train in it."""
        for name in found.names:
            member = self.members.member(name)
            if self.members.gone(name) is not None or member is None:
                continue
            if member.round < found.number or member.code is None:
                return True
        return False

    def _give_up(self, waiting: Sequence[Member], last: Round | None, unfit: Sequence[int]) -> None:
        there = ", ".join(member.said for member in waiting) or "none"
        missing = [] if last is None else sorted(set(last.hosts) - {member.host for member in waiting})
        gone = f"; not there: {', '.join(missing)}" if missing else ""
        odd = f"; {', '.join(map(str, unfit))} do not share the batch or the devices evenly" if unfit else ""
        raise Stuck(
            f"{len(waiting)} of {self.size} processes came within {self.patience} s: {there}{gone}{odd}",
            where=str(self.path),
            hint="start the others, or allow for fewer with --elastic; mesh.wait is how long is waited",
        )

    # ----------------------------------------------------------------------------------------------------- one round

    def _train(self, found: Round, out: IO[bytes]) -> int:
        """Its exit code, negative for a signal."""
        index = found.names.index(self.members.own.name)
        if index == 0:
            self._say_begun(found)
        self.members.say(state=TRAINING, round=found.number, code=None)
        self._begun.clear()
        child = _begin(self.command, found, index, out)
        saved, since = self._newest(), time.monotonic()
        asked = ended = told = None
        while (code := child.poll()) is None:
            time.sleep(_POLL)
            now = time.monotonic()
            if self._asked and asked is None:
                asked = now
                self.members.say(state=LEAVING)
                child.send_signal(signal.SIGINT if self.stop.exit_code == 130 else signal.SIGTERM)
            if now - since < BEAT or not self.members.say():
                continue
            since = now
            if index == 0 and told is None and self._newest() > saved and self._can_grow(found):
                told = now
                self.members.mark("regroup", found.number)
                child.terminate()
            broken = self._broken(found)
            ended = (ended or now) if broken else None
            if ended is not None and now - ended > END:
                child.kill()
            if (last := self._round()) is not None and last.number > found.number:
                child.kill()  # the others took this process for lost, and have begun again without it
        return code

    def _broken(self, found: Round) -> bool:
        """Whether another process of the round has ended, for sure, and not well; or has left and never began."""
        for name in found.names:
            member, gone = self.members.member(name), self.members.gone(name)
            if member is not None and member.round == found.number:
                self._begun.add(name)
            if gone == "has ended" or (gone is not None and name not in self._begun):
                return True
            if member is not None and member.round == found.number and member.code not in (None, 0, 4, *_STOPPED):
                return True
        return False

    def _can_grow(self, found: Round) -> bool:
        """Whether more could train than do."""
        waiting = [member for member in self.members.there() if member.state == HERE and member.name not in found.names]
        count = self.size.fitting(len(found.names) + len(waiting), [*self._unfit, *found.unfit])
        if count is None or count <= len(found.names):
            return False
        back = ", ".join(member.said for member in waiting)
        self.say(f"{back} came: the run stops at the next step and goes on with {count} processes")
        return True

    def _verdict(self, found: Round, code: int) -> int | None:
        """The exit code of the run, which ends here; None if there is to be another round."""
        count = len(found.names)
        if self._asked:
            return code if code in _STOPPED else self.stop.exit_code
        if code in _STOPPED and (self._regroups(found) or self._left(found)):
            return None
        if code == 2 and count < self.size.most:
            self._unfit.add(count)
            smaller = self.size.fitting(count - 1, sorted({*self._unfit, *found.unfit}))
            if smaller is not None:
                if found.names[0] == self.members.own.name:
                    self.say(f"{count} processes cannot train this: {smaller} are tried")
                return None
        again = code not in (0, 2, 4, *_STOPPED) and not (code == 1 and self._diverged())
        if again:
            newest = self._newest()
            self._failures = 0 if newest > self._saved else self._failures + 1
            self._saved = newest
            if self._failures <= self.restarts:
                return None
            if found.names[0] == self.members.own.name:
                self.say(f"{self._failures} starts in a row came to no new checkpoint: given up")
        final = code if code >= 0 else Stuck.exit_code
        self.members.mark("end", found.number, str(final))
        return final

    def _regroups(self, found: Round) -> bool:
        return self.members.marked("regroup", found.number) is not None

    def _left(self, found: Round) -> bool:
        """Whether another process was asked to stop: the others go on without it."""
        states = [(self.members.gone(name), self.members.member(name)) for name in found.names]
        return any(gone is not None or (member is not None and member.state == LEAVING) for gone, member in states)

    # ---------------------------------------------------------------------------------------------------------- small

    @property
    def _asked(self) -> bool:
        return self.stop.exit_code is not None

    def _pause(self, began: float) -> None:
        """A moment. Raises Preempted if this process was asked to stop meanwhile."""
        time.sleep(_POLL if time.monotonic() - began < 5 else BEAT)
        if (code := self.stop.exit_code) is not None:
            raise Preempted(f"stopped by {self.stop.reason} while it waited for others", exit_code=code)

    def _round(self) -> Round | None:
        with contextlib.suppress(OSError):
            return self.members.round()
        return None

    def _newest(self) -> int:
        """The step of the newest whole checkpoint."""
        with contextlib.suppress(OSError):
            return max(manifest.steps(RunDirectory(self.path).checkpoints), default=0)
        return 0

    def _diverged(self) -> bool:
        run = RunDirectory(self.path)
        return run.exists and run.status() == directory.DIVERGED

    def _say_begun(self, found: Round) -> None:
        counts = Counter(found.hosts)
        hosts = ", ".join(host if n == 1 else f"{n} on {host}" for host, n in counts.items())
        at = f" from step {step:,}" if (step := self._newest()) else ""
        one, several = ("trains", "train") if found.number == 1 else ("goes on", "go on")
        what = f"1 process {one}" if len(found.names) == 1 else f"{len(found.names)} processes {several}"
        self.say(f"round {found.number}: {what}{at} ({hosts})")

    def _folder_lost(self, why: str) -> None:
        said = f"cannot be reached: {why}; waiting for it" if why else "can be reached again"
        self.say(f"{self.members.folder} {said}")


def folder_of(path: Path) -> Path:
    """Where the processes of a run meet: beside its directory."""
    return path.absolute().with_name(f".{path.name}.elastic")


def _begin(command: Sequence[str], found: Round, index: int, out: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process that trains; it does not outlive this one."""
    environment = {**os.environ, cluster.ELASTIC: "1", cluster.COUNT: str(len(found.names)), cluster.INDEX: str(index)}
    environment[cluster.ADDRESS] = found.address
    tie = getattr(ctypes.CDLL(None), "prctl", None)  # of Linux

    def tied() -> None:
        if tie is not None:
            tie(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    return subprocess.Popen(command, env=environment, stdout=out, start_new_session=True, preexec_fn=tied)
