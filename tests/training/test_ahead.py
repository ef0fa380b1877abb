"""The host runs ahead of the devices by a bounded amount of work, and quick steps are not waited for one by one."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.training import ahead
from bigctl.training.ahead import LARGEST, Ahead


@pytest.fixture
def gate() -> threading.Event:
    """What the steps of `gated` wait for on the device."""
    return threading.Event()


def test_the_host_stops_before_a_third_slow_step(gate: threading.Event) -> None:
    def wait(step: np.ndarray) -> np.ndarray:
        assert gate.wait(60)
        return step + np.int32(1)

    @jax.jit
    def gated(step: jax.Array) -> jax.Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.int32), step)

    bound, dispatched = Ahead(), []
    bound.dispatched(jnp.int32(0))  # compiles the copy

    def run() -> None:
        step = jnp.int32(0)
        for number in range(5):
            step = gated(step)
            bound.dispatched(step)
            dispatched.append(number)

    host = threading.Thread(target=run, daemon=True)
    host.start()
    host.join(1.0)
    assert host.is_alive() and len(dispatched) <= 1  # the first is under way, and the host waits for it before a third
    gate.set()
    host.join(60)
    assert dispatched == [0, 1, 2, 3, 4]


def test_quick_steps_are_waited_for_once_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = []
    copy = ahead._copy
    monkeypatch.setattr(ahead, "_copy", lambda step: marks.append(step) or copy(step))
    bound, step = Ahead(), jnp.int32(0)
    for _ in range(10 * LARGEST):
        bound.dispatched(step)
    assert bound.group == LARGEST and len(marks) < 20


def test_a_group_shrinks_where_steps_become_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ahead.time, "perf_counter", lambda: now[0])
    bound, step = Ahead(), jnp.int32(0)
    for _ in range(3 * LARGEST):
        bound.dispatched(step)
    assert bound.group == LARGEST
    for _ in range(4 * LARGEST):
        now[0] += 5.0
        bound.dispatched(step)
    assert bound.group == 1


def test_what_is_dispatched_may_be_donated() -> None:
    bound, step = Ahead(), jnp.int32(0)
    donated = jax.jit(lambda step: step + 1, donate_argnums=0)
    for _ in range(10):
        step = donated(step)
        bound.dispatched(step)
    assert int(step) == 10
