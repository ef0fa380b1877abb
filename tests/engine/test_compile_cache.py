"""Compiled programs are code: they are kept only where nobody else can put some."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as of_jax

from bigctl.engine import compile_cache
from bigctl.engine.compile_cache import use_compile_cache
from tests import work

as_root = pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_new_folder_is_for_its_owner_alone(root: Path) -> None:
    folder = use_compile_cache()
    assert folder is not None and folder.parent.parent == root
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


def test_a_folder_of_ours_that_was_open_is_closed(root: Path) -> None:
    folder = use_compile_cache()
    assert folder is not None
    for path in (folder, folder.parent):
        path.chmod(0o755)
    assert use_compile_cache() == folder
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


def test_a_root_that_is_shared_like_tmp_is_used(root: Path) -> None:
    root.mkdir()
    root.chmod(0o1777)
    assert use_compile_cache() is not None


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def given_away(path: Path) -> None:
    os.chown(path, 12345, 12345)


def opened(path: Path) -> None:
    os.chown(path, -1, 54321) if os.getuid() == 0 else None
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("level", "change", "said"),
    [
        (1, linked, "is a link"),
        (2, linked, "is a link"),
        (0, opened, "can be written by other users"),
        pytest.param(0, given_away, "belongs to another user", marks=as_root),
        pytest.param(1, given_away, "belongs to another user", marks=as_root),
        pytest.param(2, given_away, "belongs to another user", marks=as_root),
    ],
)
def test_nothing_is_kept_where_somebody_else_could_put_code(
    root: Path, caplog: pytest.LogCaptureFixture, level: int, change: Callable[[Path], None], said: str
) -> None:
    folder = use_compile_cache()
    assert folder is not None
    change((root, folder.parent, folder)[level])
    with caplog.at_level(logging.WARNING, logger="bigctl"):
        assert use_compile_cache() is None
    assert said in caplog.text


def test_a_root_that_its_group_can_write_is_not_used(root: Path) -> None:
    root.mkdir()
    if os.getuid() == 0:
        os.chown(root, -1, 54321)
    elif root.stat().st_gid == os.getuid():
        pytest.skip("the group is the user's own")
    root.chmod(0o775)
    assert use_compile_cache() is None


def programs(folder: Path, names: list[str], size: int = 100) -> list[Path]:
    """Files as jax keeps them, each used an hour after the one before."""
    paths = [folder / f"jit_{name}-{number:064x}-cache" for number, name in enumerate(names)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(size))
        os.utime(path, (1e9 + 3600 * number,) * 2)
    return paths


def test_programs_that_were_not_used_for_longest_go_once_a_day(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = use_compile_cache()
    assert folder is not None
    of_before = folder.with_name("jaxlib-0.1")
    of_before.mkdir()
    oldest, newest = programs(of_before, ["a", "b"]), programs(folder, [*"cdefgh"])
    for number, path in enumerate(newest):
        os.utime(path, (2e9 + number,) * 2)
    monkeypatch.setattr(compile_cache, "LIMIT", 800)
    looked = folder.parent / ".looked"
    os.utime(looked, (1e9, 1e9))
    use_compile_cache()
    assert all(path.exists() for path in [*oldest, *newest])  # no more than the limit
    monkeypatch.setattr(compile_cache, "LIMIT", 799)
    use_compile_cache()
    assert all(path.exists() for path in oldest)  # looked at today
    os.utime(looked, (1e9, 1e9))
    use_compile_cache()
    assert [path.exists() for path in [*oldest, *newest]] == [False] * 3 + [True] * 5


def test_keeping_a_program_costs_the_same_beside_many(root: Path) -> None:
    folder = use_compile_cache()
    assert folder is not None
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    costs = []
    try:
        of_jax.reset_cache()
        for number in range(3):  # the first one opens the cache
            with work.counted() as calls:
                jax.jit(lambda x, add=number: x * 3 + add)(np.ones(7 + number))
            costs.append(calls.count)
            programs(folder, [f"other{number}"] * (400 * number))
        assert len(list(folder.glob("jit__lambda*-cache"))) == 3
    finally:
        of_jax.reset_cache()
    assert costs[2] < costs[1] + 1000  # to look at each of the 400 others takes several calls
