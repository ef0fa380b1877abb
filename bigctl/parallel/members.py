"""Who is there to train a run, and who trains in which round: files in a folder that all hosts see. Free of jax.

Each process keeps one file of its own, and replaces it again and again. Another counts as there as long as its file
goes on changing, by the clock of who looks: clocks of hosts are never compared. A round is one start of training by
some of them; its file is made once, by whoever comes first, so all agree on it without a leader. While the folder
cannot be reached nobody is taken for lost.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bigctl.files import read_regular, temporary_name

BEAT = 1.0
"""Between two words of a process [s]."""
SILENT = 20.0
"""Without a new word for so long a process is gone [s]; one of this machine as soon as it has ended."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Of `os.link` where a file system has none."""
COMING, HERE, TRAINING, LEAVING = "coming", "here", "training", "leaving"


@dataclass(frozen=True)
class Member:
    """What a process says of itself.

    Attributes:
        name: of the process, unlike that of any other.
        host, space, pid: where it runs; `space` tells namespaces of process numbers apart.
        address: "host:port" that it can be reached at as the first of a round.
        state: looks who is there (COMING), waits for a round (HERE), trains in one (TRAINING), or was asked to stop
            (LEAVING).
        round: the last one it was in.
        code: how it ended there; None while it trains.
        count: goes up with every word.
        started: a digest of what it was started with, which the folder has.
    """

    name: str
    host: str
    space: str
    pid: int
    address: str
    state: str = COMING
    round: int = 0
    code: int | None = None
    count: int = 0
    started: str = ""

    @property
    def said(self) -> str:
        return f"{self.host} (process {self.pid})"


@dataclass(frozen=True)
class Round:
    """One start of training.

    Attributes:
        number: from 1 on.
        names: of the members that train, in the order of their process numbers.
        hosts: what they are called for people.
        address: of the first of them.
        unfit: numbers of processes that are known not to share the batch or the devices evenly.
    """

    number: int
    names: tuple[str, ...]
    hosts: tuple[str, ...]
    address: str
    unfit: tuple[int, ...] = ()


class Members:
    """The folder, as one process sees it.

    Args:
        folder: seen by all; made where it is not there.
        started: with what this process was started, as text.
        lost: told once when the folder cannot be reached, and why; and with "" when it can again.
        clock: seconds, of this process alone.
    """

    def __init__(
        self,
        folder: Path,
        started: str,
        lost: Callable[[str], None] = lambda why: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder, self._lost, self._clock, self._started = folder, lost, clock, started
        host, pid = socket.gethostname(), os.getpid()
        name = f"{host}-{pid}-{secrets.token_hex(3)}"
        self.own = Member(name, host, _space(), pid, free_address(), started=digest(started))
        self._heard: dict[str, tuple[int, float]] = {}
        self._members: dict[str, Member] = {}
        self._before: float | None = None
        self._reached = True

    def say(self, **changes: object) -> bool:
        """A new word of this process, and hear the others; False where the folder cannot be reached now."""
        self.own = replace(self.own, **changes, count=self.own.count + 1)  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _once(self.folder / f"started-{self.own.started}", self._started)
            _replace(self._file(self.own.name), asdict(self.own))
            found = self._read_all()
        except OSError as error:
            if self._reached:
                self._lost(error.strerror or str(error))
            self._reached = False
            return False
        now = self._clock()
        # this process was stopped, or the folder was gone: what the others have said meanwhile was not to be seen
        missed = not self._reached or (self._before is not None and now - self._before > SILENT / 2)
        if not self._reached:
            self._lost("")
        self._reached, self._before, self._members = True, now, found
        for name, member in found.items():
            count, since = self._heard.get(name, (-1, now))
            self._heard[name] = (member.count, now if missed or member.count != count else since)
        return True

    def there(self) -> list[Member]:
        """All that are there, this one included; by name."""
        return [member for name, member in sorted(self._members.items()) if self.gone(name) is None]

    def gone(self, name: str) -> str | None:
        """Why a process does not count as there; None where it does."""
        if name == self.own.name:
            return None
        member = self._members.get(name)
        if member is None:
            return "has left"
        own = (member.host, member.space) == (self.own.host, self.own.space)
        if own and not _runs(member.pid):
            return "has ended"
        silent = self._clock() - self._heard[name][1]
        return f"has said nothing for {silent:.0f} s" if silent > SILENT else None

    def member(self, name: str) -> Member | None:
        return self._members.get(name)

    def started(self, member: Member) -> str:
        """With what it was started. Raises OSError."""
        return read_regular(self.folder / f"started-{member.started}").decode()

    def leave(self) -> None:
        """Take the own file away; the last that is there takes the folder."""
        with contextlib.suppress(OSError):
            self._file(self.own.name).unlink(missing_ok=True)
            self._members = self._read_all()
            if all(self.gone(name) is not None for name in self._members):
                for file in self.folder.iterdir():
                    file.unlink(missing_ok=True)
                self.folder.rmdir()

    # -------------------------------------------------------------------------------------------------------- rounds

    def round(self) -> Round | None:
        """The last one that was begun. Raises OSError where that cannot be told now."""
        found = sorted(self.folder.glob("round-[0-9]*.json"))
        if not found:
            return None
        try:
            v = json.loads(read_regular(found[-1]))
        except ValueError as error:
            raise OSError("is being written") from error
        return Round(v["number"], tuple(v["names"]), tuple(v["hosts"]), v["address"], tuple(v["unfit"]))

    def propose(self, proposed: Round) -> None:
        """Begin a round, unless another process has begun the same. Raises OSError."""
        _once(self.folder / f"round-{proposed.number:06d}.json", json.dumps(asdict(proposed)))

    def mark(self, what: str, number: int, text: str = "") -> None:
        """Say something of a round once and for all, such as that it was the last. The first word counts."""
        with contextlib.suppress(OSError):
            _once(self.folder / f"{what}-{number:06d}", text)

    def marked(self, what: str, number: int) -> str | None:
        """What was said of it; None where nothing was."""
        try:
            return read_regular(self.folder / f"{what}-{number:06d}").decode()
        except OSError:
            return None

    def _file(self, name: str) -> Path:
        return self.folder / f"member-{name}.json"

    def _read_all(self) -> dict[str, Member]:
        found: dict[str, Member] = {}
        for file in self.folder.glob("member-*.json"):
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):  # it has just left; a half file
                member = Member(**json.loads(read_regular(file)))
                found[member.name] = member
        return found


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def free_address() -> str:
    """ "host:port" at which this machine can be reached, with a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward, contextlib.suppress(OSError):
        outward.connect(("192.0.2.1", 9))  # a documentation address: nothing is sent, the route tells the own one
        return f"{outward.getsockname()[0]}:{port}"
    return f"{socket.gethostname()}:{port}"


def in_order(members: Sequence[Member], before: Round | None) -> list[Member]:
    """Those that were in the round before keep their order; others follow."""
    places = {} if before is None else {name: place for place, name in enumerate(before.names)}
    return sorted(members, key=lambda member: (places.get(member.name, len(places)), member.name))


def _space() -> str:
    """What tells process numbers of this container, boot and machine from those of others with the same host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return secrets.token_hex(8)  # nobody shares it: only silence tells that a process is gone


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


def _once(file: Path, text: str) -> None:
    """Make a file that nobody sees half written, also where the disk is full; one that is there stays. Raises OSError,
    and makes none then."""
    temporary = temporary_name(file)
    try:
        temporary.write_text(text)
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError), open(file, "x") as stream:
            stream.write(text)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(file: Path, values: Mapping[str, object]) -> None:
    """Without waiting for the disk: what counts is that it changes."""
    temporary = temporary_name(file)
    try:
        temporary.write_text(json.dumps(values))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
