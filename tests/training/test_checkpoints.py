"""What may be loaded, what may be deleted, and what a save that fails does: on checkpoints of a few numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bigctl.errors import RunError, TrainingFailed
from bigctl.runs import manifest
from bigctl.training.checkpoints.arrays import read_arrays, shapes
from bigctl.training.checkpoints.store import Checkpoints, Saved
from bigctl.training.state import Progress


def save(store: Checkpoints, *steps: int, best: int | None = None) -> None:
    for step in steps:
        state = {"weights": jnp.full(4, step, jnp.float32)}
        store.save(state, Progress(step=step, best_step=best), {"shapes": shapes(state), "data": "none"})
        store.wait(last=True)


def loaded(saved: Saved) -> float:
    return float(read_arrays(saved.path, ["weights"])["weights"][0])


def spoil(folder: Path, name: str = manifest.META) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(folder: Path, said: list[str]) -> Checkpoints:
    return Checkpoints(folder, keep=2, warn=said.append)


def test_damaged_ones_do_not_count_as_kept(store: Checkpoints, folder: Path, said: list[str]) -> None:
    save(store, 1, 2)
    spoil(folder / "000000002")
    later = Checkpoints(folder, keep=2, warn=said.append)
    save(later, 3)
    assert later.steps() == [1, 2, 3] and "000000002/meta.json has changed" in said[0]
    save(later, 4)
    assert later.steps() == [3, 4]


def test_the_best_is_kept_besides_the_latest(store: Checkpoints) -> None:
    save(store, 1, 2, 3, 4, best=1)
    assert store.steps() == [1, 3, 4]
    assert store.find("best").step == 1


def test_a_cut_off_save_is_removed_and_a_checkpoint_without_manifest_is_not(
    store: Checkpoints, folder: Path, said: list[str]
) -> None:
    save(store, 1, 2)
    (folder / "000000002" / manifest.MANIFEST).unlink()
    manifest.begin(folder / "000000003")
    (folder / "000000003" / "state.orbax-checkpoint-tmp").mkdir()
    (folder / "000000000.removed" / "state").mkdir(parents=True)
    (folder / "000000004").mkdir()
    store.clean()
    assert {p.name for p in folder.iterdir()} == {"000000001", "000000002"}
    assert store.find("last").step == 1
    assert "000000002/manifest-0.json is missing" in said[0] and "step 1 is used instead" in said[0]


def test_without_any_whole_checkpoint_all_are_named_and_none_is_deleted(store: Checkpoints, folder: Path) -> None:
    save(store, 1, 2)
    spoil(folder / "000000001")
    (folder / "000000002" / manifest.MANIFEST).unlink()
    store.clean()
    with pytest.raises(RunError) as caught:
        store.find("last")
    assert "000000001/meta.json" in str(caught.value) and "000000002/manifest-0.json" in str(caught.value)
    assert caught.value.exit_code == 2 and "nothing was deleted" in str(caught.value.hint)
    assert len(list(folder.glob("*/state"))) == 2


def test_what_is_newer_than_the_one_used_is_set_aside_until_it_has_been_made_again(
    store: Checkpoints, folder: Path
) -> None:
    save(store, 1, 2)
    spoil(folder / "000000002")
    store.clean(after=store.find("last").step)
    assert {p.name for p in folder.iterdir()} == {"000000001", "000000002.aside"}
    save(store, 2)
    assert {p.name for p in folder.iterdir()} == {"000000001", "000000002"} and loaded(store.find("last")) == 2


def test_a_damaged_best_is_refused_by_name_and_another_takes_its_place(
    store: Checkpoints, folder: Path, said: list[str]
) -> None:
    save(store, 1, 2, 3, best=1)
    spoil(folder / "000000001")
    later = Checkpoints(folder, warn=said.append)
    with pytest.raises(RunError, match="000000001/meta.json has changed"):
        later.find("best")
    progress = later.without_lost_best(later.find("last").progress)
    assert progress.best_step is None and "the best checkpoint, of step 1, is lost" in said[-1]


def test_another_checkpoint_under_its_name_is_noticed(store: Checkpoints, folder: Path) -> None:
    save(store, 1)
    (folder / "000000001").rename(folder / "000000007")
    with pytest.raises(RunError, match="manifest-0.json is that of step 1"):
        store.find("last")


def test_a_save_that_fails_stops_training_or_is_warned_of(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingFailed, match="Not a directory"):
        save(Checkpoints(tmp_path / "file" / "checkpoints"), 1)
    store = Checkpoints(tmp_path / "file" / "checkpoints", on_failure="warn", warn=said.append)
    state = {"weights": jnp.zeros(4)}
    store.save(state, Progress(step=1), {"shapes": shapes(state)})
    assert not said
    (tmp_path / "file").unlink()
    store.save(state, Progress(step=2), {"shapes": shapes(state)})  # tries again, and says what happened before
    assert len(said) == 1 and "step 1 could not be written: Not a directory" in said[0]
    store.wait(last=True)
    assert store.steps() == [2]


def test_a_write_that_fails_in_the_background_loses_nothing_but_that_save(folder: Path, said: list[str]) -> None:
    """With a real limit on the size of files, which the arrays exceed once Orbax is at writing them."""
    store = Checkpoints(folder, on_failure="warn", warn=said.append)
    save(store, 1)
    state = {f"weights/{n}": jax.random.normal(jax.random.key(n), (5_000,)) for n in range(20)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        store.save(state, Progress(step=2), {"shapes": shapes(state)})
        store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(said) == 1 and "step 2 could not be written: File too large; the one of step 1 is kept" in said[0]
    store.clean()  # as a rewind does, at once: its mark has to stay
    assert store.steps() == [1]
    assert store.find("last").step == 1
    store.save(state, Progress(step=3), {"shapes": shapes(state)})
    store.wait(last=True)
    assert store.find("last").step == 3
    assert sorted(path.name for path in folder.iterdir()) == ["000000001", "000000003"]


def test_what_a_failed_save_writes_late_makes_no_checkpoint_of_it(store: Checkpoints, folder: Path) -> None:
    save(store, 1)
    failed = folder / "000000002"
    manifest.begin(failed)
    (failed / "state").mkdir()
    manifest.abandon(failed)
    assert [path.name for path in failed.iterdir()] == [manifest.UNFINISHED]
    (failed / "state").mkdir()
    (failed / "state" / "late").touch()
    assert store.steps() == [1]
    store.clean()
    assert [path.name for path in folder.iterdir()] == ["000000001"]


def test_the_last_save_must_succeed_whatever_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Checkpoints(tmp_path / "file" / "checkpoints", on_failure="warn")
    store.save({"weights": jnp.zeros(4)}, Progress(step=1), {})
    with pytest.raises(TrainingFailed):
        store.wait(last=True)


# -------------------------------------------------------------------------------------------------------- manifests


def two_processes(folder: Path) -> Path:
    """Files as two processes write them, not committed yet."""
    manifest.begin(folder)
    (folder / manifest.META).write_text('{"step": 5}')
    for name in ("state/manifest.ocdbt", "state/ocdbt.process_0/d/a", "state/ocdbt.process_1/d/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_checkpoint_of_two_processes_needs_both_manifests(tmp_path: Path) -> None:
    folder = two_processes(tmp_path / "000000005")
    manifest.write_manifest(folder, process=0, processes=2)
    manifest.settle(folder)
    assert manifest.interrupted(folder) and not manifest.steps(tmp_path)
    manifest.write_manifest(folder, process=1, processes=2)
    manifest.settle(folder)
    assert not (folder / manifest.UNFINISHED).exists() and manifest.steps(tmp_path) == [5]
    assert manifest.verify_checkpoint(folder) == {"step": 5}
    own = json.loads((folder / "manifest-1.json").read_text())["files"]
    assert list(own) == ["state/ocdbt.process_1/d/b"]
    spoil(folder, "state/ocdbt.process_1/d/b")
    with pytest.raises(RunError, match="process_1/d/b: has changed"):
        manifest.verify_checkpoint(folder)
    (folder / "manifest-1.json").unlink()
    with pytest.raises(RunError, match="manifest-1.json: is missing"):
        manifest.verify_checkpoint(folder)
    assert manifest.steps(tmp_path) == [5]  # it was a checkpoint once: no save that was cut off


def test_names_are_on_the_disk_before_the_manifest_and_its_own_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut keeps what was synchronised, and a file's name only with its folder."""
    folder = tmp_path / "000000005"
    manifest.begin(folder)
    (folder / "state" / "d").mkdir(parents=True)
    (folder / "state" / "d" / "array").write_bytes(b"numbers")
    order: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        order.append((os.readlink(f"/proc/self/fd/{descriptor}"), (folder / manifest.MANIFEST).exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    manifest.write_manifest(folder)
    before = {path for path, committed in order if not committed}
    assert {
        str(path) for path in (folder / "state/d/array", folder / "state/d", folder / "state", folder, tmp_path)
    } < before
    assert order[-1] == (str(folder), True)


def test_a_manifest_of_the_first_schema_is_read(tmp_path: Path) -> None:
    folder = two_processes(tmp_path / "000000005")
    manifest.write_manifest(folder)
    content = json.loads((folder / manifest.MANIFEST).read_text())
    (folder / manifest.MANIFEST).write_text(json.dumps({"schema": 1, "files": content["files"]}))
    assert manifest.verify_checkpoint(folder) == {"step": 5}


def test_a_changed_byte_of_a_manifest_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    folder = two_processes(tmp_path / "000000005")
    manifest.write_manifest(folder)
    expected, content = manifest.listed(folder), (folder / manifest.MANIFEST).read_bytes()
    noticed = 0
    for place in range(0, len(content), 3):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (folder / manifest.MANIFEST).write_bytes(changed)
        try:
            assert manifest.listed(folder) == expected
        except RunError as error:
            noticed += 1
            assert error.where == str(folder / manifest.MANIFEST)
    assert noticed > len(content) / 4


def test_no_kill_makes_a_checkpoint_look_damaged(tmp_path: Path) -> None:
    """Processes that write and delete checkpoints without end are killed at random moments."""
    done = subprocess.run([sys.executable, "-c", _KILLS, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] > 20 and found["cut off"] + found["removed"] > 10, found


_KILLS = """
import collections, json, os, pathlib, random, signal, sys, time
from bigctl.runs import manifest

def write(folder):
    manifest.begin(folder)
    (folder / "meta.json").write_text(json.dumps({"step": int(folder.name)}))
    for i in range(20):
        (folder / "state" / str(i)).mkdir(parents=True)
        (folder / "state" / str(i) / "data").write_bytes(os.urandom(50_000))
    manifest.write_manifest(folder)
    manifest.settle(folder)

os.fsync = lambda file: None  # a kill, unlike a power cut, needs none; without it, all phases are equally likely
counts, rng = collections.Counter(), random.Random(0)
for attempt in range(40):
    folder = pathlib.Path(sys.argv[1]) / str(attempt)
    child = os.fork()
    if child == 0:
        for step in range(10**6):
            write(folder / f"{step:09d}")
            if step:
                manifest.remove(folder / f"{step - 1:09d}")
    while not (folder / f"{1:09d}").exists():
        time.sleep(0.001)
    time.sleep(0.03 * rng.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for step in manifest.steps(folder):
        manifest.verify_checkpoint(folder / f"{step:09d}")
        counts["whole"] += 1
    for left in folder.iterdir() if folder.exists() else []:
        counts["removed"] += left.name.endswith(manifest.REMOVED)
        counts["cut off"] += left.name.isdigit() and manifest.interrupted(left)
print(json.dumps(counts))
"""


# --------------------------------------------------------------------------------------------------------- campaign


def test_corruptions_are_detected_or_harmless(tmp_path: Path) -> None:
    """A few cases of the campaign in scripts/corrupt_checkpoints.py."""
    script: Any = _script("corrupt_checkpoints")
    campaign = script.Campaign(tmp_path)
    rng = random.Random(1)
    assert len(campaign.cases) >= 200
    for kind in rng.sample([*script.KINDS, *script.JSON_KINDS], 12):
        case = rng.choice([case for case in campaign.cases if case.kind == kind])
        campaign.judge(case, rng)
        assert case.outcome in (script.DETECTED, script.HARMLESS), case


def _script(name: str) -> Any:
    path = Path(__file__).resolve().parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
