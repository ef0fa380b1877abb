"""Saves that wait in a queue: training never waits for them, and what is needed in the end is on the disk."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bigctl.errors import TrainingFailed
from bigctl.training.checkpoints import async_checkpoints
from bigctl.training.checkpoints.arrays import shapes
from bigctl.training.checkpoints.async_checkpoints import QueuedCheckpoints
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress


def state(step: int) -> dict[str, jax.Array]:
    return {"weights": jnp.full((4, 3), float(step)), "step": jnp.int32(step)}


def save(checkpoints: QueuedCheckpoints, step: int, best: int | None = None) -> None:
    made = state(step)
    checkpoints.save(made, Progress(step=step, best=0.5, best_step=best), {"shapes": shapes(made)})
    jax.tree.map(lambda leaf: leaf.delete(), made)  # as a step does that takes it


def restored(checkpoints: Any, which: str | int) -> float:
    here = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    return float(checkpoints.restore(checkpoints.find(which), here)["weights"][0, 0])


def test_what_a_later_save_makes_needless_is_left_out_and_the_best_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Semaphore(0)  # busy
    monkeypatch.setattr(async_checkpoints, "_WRITING", disk)
    checkpoints = QueuedCheckpoints(Checkpoints(tmp_path / "checkpoints", keep=2))
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(checkpoints, step, best)
    assert checkpoints.steps() == []
    disk.release()
    checkpoints.wait(last=True)
    assert checkpoints.steps() == [2, 4]
    assert (restored(checkpoints, "best"), restored(checkpoints, "last")) == (2.0, 4.0)
    checkpoints.close()


def test_of_a_run_among_many_that_ends_before_the_pause_is_over_only_the_best_and_the_last_are_written(
    tmp_path: Path,
) -> None:
    checkpoints = QueuedCheckpoints(Checkpoints(tmp_path / "checkpoints", keep=5), pause=3600.0)
    for step, best in ((1, 1), (2, 2), (3, 2), (4, 2)):
        save(checkpoints, step, best)
    assert checkpoints.steps() == []
    checkpoints.wait(last=True)
    assert checkpoints.steps() == [2, 4]
    save(checkpoints, 5, 2)
    assert checkpoints.steps() == [2, 4]
    checkpoints.close()  # as when training fails
    assert checkpoints.steps() == [2, 4, 5]


def test_a_run_among_many_saves_while_it_trains(tmp_path: Path) -> None:
    checkpoints = QueuedCheckpoints(Checkpoints(tmp_path / "checkpoints", keep=5), pause=0.05)
    save(checkpoints, 1)
    until = time.monotonic() + 60
    while checkpoints.steps() != [1] and time.monotonic() < until:
        time.sleep(0.01)
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_many_runs_save_at_the_same_time(tmp_path: Path) -> None:
    runs = [QueuedCheckpoints(Checkpoints(tmp_path / str(number) / "checkpoints", keep=1)) for number in range(6)]

    def train(number: int) -> None:
        for step in range(1, 4):
            save(runs[number], 10 * number + step)
        runs[number].wait(last=True)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [restored(run, "last") for run in runs] == [10.0 * number + 3 for number in range(6)]


def test_a_save_that_failed_stops_the_run_at_its_end_at_the_latest(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = QueuedCheckpoints(Checkpoints(tmp_path / "checkpoints"))
    save(checkpoints, 1)
    with pytest.raises(TrainingFailed, match="checkpoint of step 1 could not be written"):
        checkpoints.wait(last=True)
    warned: list[str] = []
    warning = Checkpoints(tmp_path / "checkpoints", on_failure="warn", warn=warned.append)
    checkpoints = QueuedCheckpoints(warning)
    save(checkpoints, 1)
    checkpoints.wait()
    assert len(warned) == 1 and "step 1" in warned[0]
    save(checkpoints, 2)
    with pytest.raises(TrainingFailed, match="step 2"):
        checkpoints.wait(last=True)
