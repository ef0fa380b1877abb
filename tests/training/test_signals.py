"""Promises of `StopRequest`: which signals stop a run, with which exit code, and what a second one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from bigctl.training import signals
from bigctl.training.signals import StopRequest


@pytest.fixture(autouse=True)
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which the process would have been left at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    return codes


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold: the thread that reads signals is given the time that it needs."""
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGHUP, 75)]
)
def test_each_signal_asks_once(number: int, code: int, left: list[int]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.exit_code is None
        send(number)
        assert stop.exit_code == code and stop.reason and not left
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_request_leaves_at_once(number: int, code: int, left: list[int]) -> None:
    with StopRequest():
        send(signal.SIGTERM, number)
    assert eventually(lambda: left == [code])


def test_ctrl_c_while_a_command_starts_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    def leave(code: int) -> None:
        done.append(code)
        stop.orderly()  # the process would be gone

    monkeypatch.setattr(os, "_exit", leave)
    with StopRequest(lambda: done.append("said")) as stop:
        stop.closing = lambda: done.append("closed")
        send(signal.SIGINT)
        assert eventually(lambda: done == ["said", "closed", 130])
    with StopRequest(lambda: done.append("said")) as stop:
        stop.orderly()
        send(signal.SIGINT)
        assert stop.exit_code == 130 and done == ["said", "closed", 130]


def test_a_warning_of_the_batch_system_is_not_the_first_request(left: list[int]) -> None:
    with StopRequest() as stop:
        send(signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM)
        assert stop.exit_code == 75 and stop.reason == "SIGUSR1" and not left
        send(signal.SIGTERM)
    assert eventually(lambda: left == [143])


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert stop.exit_code is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_time_limit_asks_when_it_is_over(left: list[int]) -> None:
    with StopRequest() as stop:
        stop.at(time.monotonic() + 600, "the limit")
        assert stop.exit_code is None
        stop.at(time.monotonic(), "the limit")
        assert stop.exit_code == 75 and stop.reason == "the limit"
        send(signal.SIGTERM)  # the first of its kind
        assert stop.exit_code == 75 and not left


_BUSY = """
import hashlib
from bigctl.training.signals import StopRequest
with StopRequest():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_the_second_request_does_not_wait_for_what_is_computed() -> None:
    """A long call into native code keeps Python's own handlers waiting."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        for _ in range(120):  # a busy machine may take two signals for one that arrives twice
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                break
        assert process.returncode == 143
    finally:
        process.kill()
