"""Compiled programs are code: they are kept only where nobody else can put some."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from bigctl.engine.compile_cache import use_compile_cache

as_root = pytest.mark.skipif(os.getuid() != 0, reason="gives files to another user")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    jax.config.update("jax_compilation_cache_dir", before)


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
