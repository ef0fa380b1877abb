"""What a full or read-only disk does to a run: a clear line, and nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigctl.cli.main import main
from bigctl.training.checkpoints.store import Checkpoints
from tests import forked
from tests.conftest import Cli

pytestmark = pytest.mark.fewer

OVERRIDES = ["recipe=cnn_cls", "data=digits", "model.channels=[16,32]", "train.steps=80", "checkpoint.every=10",
             "eval.every=40", "train.tensorboard=false"]  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_after_it(bigctl: Cli, small_disk: Path) -> None:
    run = ["train", *OVERRIDES, "--run-dir", str(small_disk / "run")]
    done = bigctl(*run, code=1)
    assert "no space left on the device" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("bigctl:")]) == 1
    assert list((small_disk / "run" / "checkpoints").glob("*/manifest-0.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert bigctl.json(*run)["resumed_from"] >= 10


def test_read_only_folder_is_refused_before_anything_starts(bigctl: Cli, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = bigctl("train", *OVERRIDES, "--run-dir", str(small_disk / "run"), code=2).stderr
    assert "Read-only" in message
    assert "Read-only" in bigctl("train", *OVERRIDES, code=2, env={"BIGCTL_CACHE_DIR": str(small_disk)}).stderr


SMALL = ["recipe=mlp_cls", "data=breast_cancer", f"model.hidden={[64] * 16}", "checkpoint.every=10", "eval.every=20",
         "train.tensorboard=false", "train.compile_cache=false", "--quiet", "--name", "small"]  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps, which the tests copy."""
    folder = tmp_path_factory.mktemp("begun")
    Cli(folder)("train", *SMALL, "train.steps=10", "schedule.horizon=30")
    return folder / "runs"


@pytest.fixture
def small(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "runs")) / "small"


def assert_one_line_and_the_checkpoint_before(done: subprocess.CompletedProcess[str], run: Path, reason: str) -> None:
    lines = [line for line in done.stderr.splitlines() if line.startswith("bigctl:")]
    assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"checkpoint of step 20 could not be written: {reason}; the one of step 10 is kept" in lines[0]
    assert main(["verify", str(run), "--deep"]) == 0
    assert Checkpoints(run / "checkpoints").find().step == 10


def test_a_file_that_cannot_grow_ends_the_run_and_the_checkpoint_before_loads(bigctl: Cli, small: Path) -> None:
    """Writing fails in the middle of a file, as it does with a bad disk; here with a limit on file sizes, EFBIG."""
    done = subprocess.run(
        bigctl.command("train", *SMALL, "train.steps=30", "schedule.horizon=30"),
        cwd=bigctl.folder, capture_output=True, text=True, timeout=120, env={**os.environ, **forked.flags(os.environ)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert_one_line_and_the_checkpoint_before(done, small, "File too large")


@pytest.mark.slow
def test_checkpoints_that_become_read_only_end_the_run_and_the_one_before_loads(
    bigctl: Cli, small: Path, small_disk: Path
) -> None:
    shutil.move(small / "checkpoints", small_disk / "checkpoints")
    (small / "checkpoints").symlink_to(small_disk / "checkpoints")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = bigctl("train", *SMALL, "train.steps=30", "schedule.horizon=30", code=1)
    assert_one_line_and_the_checkpoint_before(done, small, "Read-only file system")


def test_a_configuration_that_cannot_start_leaves_no_run_behind(bigctl: Cli) -> None:
    bigctl("train", "recipe=cnn_cls", "data=idx", "data.path=nowhere", code=2)
    bigctl("train", "recipe=cnn_cls", "data=breast_cancer", code=2)
    assert not list((bigctl.folder / "runs").glob("*"))


def test_a_folder_that_holds_something_else_is_not_touched(bigctl: Cli) -> None:
    other = bigctl.folder / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("...")
    assert "holds no run" in bigctl("train", *OVERRIDES, "--run-dir", "thesis", code=2).stderr
    assert [p.name for p in other.iterdir()] == ["chapter.txt"]
