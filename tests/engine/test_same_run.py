"""Two runs are the same run only to the last bit: every kind of difference is found, and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.engine import same_run
from bigctl.files import write_json
from bigctl.runs import comparison
from bigctl.runs.directory import RunDirectory
from bigctl.training.checkpoints.arrays import shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress

STATE = {
    "params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "half": np.ones(3, jnp.bfloat16)},
    "opt_state": {"mu": np.zeros(3, np.float32)},
    "ema": {"kernel": np.full(2, 0.5, np.float32)},
    "guard": {"skipped": np.int32(0)},
    "step": np.int32(20),
}
LINES = {
    "metrics": [{"step": 10, "train/loss": 0.5, "perf/examples_per_s": 7.0}, {"step": 20, "val/loss": 0.25}],
    "batches": [{"step": step, "sha256": "0a"} for step in range(1, 21)],
    "samples": [{"step": 20, "text": "once"}],
}


def write(folder: Path, state: Any) -> None:
    """A run directory with one checkpoint, which is the last and the best."""
    store = Checkpoints(folder / "checkpoints", best=True)
    store.save(state, Progress(step=20, position=640, best=0.9, best_step=20), {"shapes": shapes(state)})
    store.close()
    for name, lines in LINES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "summary.json", {"metrics": {"test/accuracy": 0.75}, "step": 20, "timings": {"wall": 3.0}})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "run").mkdir()
    write(folder / "run", STATE)
    return folder / "run"


@pytest.fixture
def other(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "other"))


def found(made: Path, other: Path) -> list[comparison.Comparison]:
    """What differs."""
    return [each for each in same_run.compare_runs(RunDirectory(made), RunDirectory(other)) if not each.equal]


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) >= 1
    file.write_text(text.replace(old, new, 1))


def test_a_copy_is_equal_whatever_its_times_are(made: Path, other: Path) -> None:
    edit(other / "metrics.jsonl", "7.0", "9.0")
    edit(other / "summary.json", "3.0", "4.0")
    assert found(made, other) == []
    assert len(same_run.compare_runs(RunDirectory(made), RunDirectory(other))) == 2 * 6 + 4


@pytest.mark.parametrize("path", ["params/kernel", "params/half", "opt_state/mu", "ema/kernel", "guard/skipped"])
def test_one_flipped_bit_in_any_part_of_a_checkpoint_is_found_and_named(made: Path, tmp_path: Path, path: str) -> None:
    part, name = path.split("/")
    leaf = np.array(STATE[part][name])
    bits = np.frombuffer(bytearray(leaf.tobytes()), np.uint8)
    bits[0] ^= 1  # the lowest bit of the first number
    flipped = bits.view(leaf.dtype).reshape(leaf.shape)
    write(tmp_path, {**STATE, part: {**STATE[part], name: flipped}})
    last, best = found(made, tmp_path)
    assert last.what.startswith("last checkpoint") and best.what.startswith("best checkpoint")
    assert last.where == best.where == path and "1 of" in last.difference
    assert last.largest is not None and last.largest > 0


def test_the_sign_of_zero_and_the_bits_of_nan_count() -> None:
    zeros, nan = np.zeros(2, np.float32), np.array([np.nan], np.float32)
    assert not comparison.compare_arrays("", {"a": zeros}, {"a": -zeros}).equal
    other = (nan.view(np.uint32) ^ 1).view(np.float32)
    assert comparison.compare_arrays("", {"a": nan}, {"a": nan.copy()}).equal
    assert not comparison.compare_arrays("", {"a": nan}, {"a": other}).equal
    assert "int32" in comparison.compare_arrays("", {"a": zeros}, {"a": zeros.view(np.int32)}).difference
    assert comparison.compare_arrays("", {"a": zeros}, {}).where == "a"


def test_a_line_that_differs_or_is_lacking_is_found_with_its_step(made: Path, other: Path) -> None:
    edit(other / "metrics.jsonl", "0.25", "0.2500000001")
    edit(other / "batches.jsonl", '"step": 7, "sha256": "0a"', '"step": 7, "sha256": "0b"')
    (other / "samples.jsonl").write_text("")
    metrics, samples, batches = found(made, other)
    assert (metrics.what, metrics.step, metrics.where) == ("metrics.jsonl", 20, "val/loss")
    assert (samples.what, samples.step) == ("samples.jsonl", 20) and "1 and 0 lines" in samples.difference
    assert (batches.what, batches.step) == ("batches.jsonl", 7)


def test_scores_progress_and_lost_checkpoints_differ_too(made: Path, other: Path) -> None:
    edit(other / "summary.json", "0.75", "0.5")
    shutil.rmtree(other / "checkpoints")
    last, best, scores = found(made, other)
    assert "no checkpoint" in last.difference and "none" in best.difference
    assert (scores.what, scores.where, scores.largest) == ("summary.json", "metrics.test/accuracy", 0.25)
