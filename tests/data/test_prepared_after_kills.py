"""Promises about a preparation that is killed: the next start goes on where it was, and makes the same files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bigctl.config import schema
from bigctl.data import journal
from bigctl.data.journal import Journal
from bigctl.data.preparation import deduplicate, encode_by_blocks, partial, prepare
from bigctl.data.preparation import rows as prepare_rows
from bigctl.data.sources import arrow, column_blocks, delimited, row_blocks, text_parts
from bigctl.data.text import tokenization
from tests.data.test_column_blocks import BAD, TORN, changed, write
from tests.data.test_rows_by_blocks import EMPTY, JSON, NO_HEADER, reviews, table

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")

_STEPS = 4
"""Steps after which a process is killed."""


@pytest.fixture(autouse=True)
def small_blocks(tmp_path, monkeypatch) -> None:
    """Everything is prepared in many small blocks, each of which is kept."""
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(journal, "_EVERY", -1.0)
    monkeypatch.setattr(text_parts, "_BLOCK", 37)
    monkeypatch.setattr(prepare_rows, "_ROWS", 5)
    for module in (row_blocks, column_blocks, arrow):
        monkeypatch.setattr(module, "_ROWS", 7)
    for module in (encode_by_blocks, deduplicate):
        monkeypatch.setattr(module, "_TEXTS", 8)
    monkeypatch.setattr(delimited, "_LARGE", 0)
    monkeypatch.setattr(column_blocks, "LARGE", 0)


SKIP = {"on_bad": "skip"}
PAIRS = {"text": "text", "text_pair": "other", "label": "stars"}
BAD_CSV = table() + "1,2\n,,,,,,,,,\n\n" + table(9).partition("\n")[2] + "3\n"
GIVEN = "one,two,three\n" + NO_HEADER
CASES: dict[str, tuple[str, str | dict[str, Any], dict[str, Any], bool]] = {
    "csv, bad rows": ("csv", BAD_CSV, {"label": "class", **SKIP}, False),
    "csv, a header that is replaced": ("csv", GIVEN, {"label": "b", "columns": ["a", "b", "y"]}, False),
    "jsonl, bad rows": ("jsonl", f'{JSON}\n{{"a": 1,\n{{"a": [1], "y": "no"}}\n{JSON}', {"label": "y", **SKIP}, False),
    "jsonl, texts": ("jsonl", reviews() + reviews(20), PAIRS | {"deduplicate": True}, True),
    "parquet": ("parquet", changed(area=BAD, code=TORN), {"label": "y", **SKIP}, False),
    "parquet, texts": ("parquet", reviews() + EMPTY * 3, PAIRS | SKIP, True),
    "arrow": ("stream", changed(area=BAD), {"label": "y", **SKIP}, False),
}  # fmt: skip


def given(case: str, folder: Path) -> tuple[schema.Data, dict[str, Any]]:
    """A data set of a case, and what it is prepared with."""
    kind, content, keys, texts = CASES[case]
    file = folder / f"rows.{kind}"
    if kind in ("csv", "jsonl"):
        file.write_text(str(content))
    else:
        if isinstance(content, str):
            read = pa.Table.from_pylist([json.loads(line) for line in content.splitlines()])
            content = {name: read.column(name) for name in read.column_names}
        write(file, content, kind)
    make = {"csv": schema.Csv, "jsonl": schema.Jsonl, "parquet": schema.Parquet, "stream": schema.Arrow}[kind]
    words = tokenization.spec(schema.Tokenizer(type="words", size=12, max_length=16)) if texts else None
    return make(path=str(file), **keys), {"tokenizer": words}


def content_of(folder: Path) -> dict[str, object]:
    """The files of a prepared set, but for when it was prepared."""
    found: dict[str, object] = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "sound.json"}
    return found | {"meta.json": {**json.loads((folder / "meta.json").read_text()), "prepared": 0}}


def started(work: Callable[[], object]) -> int:
    """A process of its own that does some work."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return child


def process(work: Callable[[], object]) -> int:
    """What is left of it once it has ended: its status."""
    return os.waitpid(started(work), 0)[1]


def dying(monkeypatch, steps: int, *, kept: bool) -> None:
    """Kill this process at a step, once it is `kept` on the disk or just before."""
    save, count = Journal.save, [0]

    def counted(self: Journal, *given: Any) -> None:
        count[0] += bool(self._new)
        if count[0] == steps and not kept:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, *given)
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Journal, "save", counted)


@pytest.mark.parametrize("case", CASES)
def test_every_start_goes_on_where_the_one_before_was_killed(case: str, tmp_path, monkeypatch) -> None:
    """No more is made anew than the step that was not finished, and the files are the same to the byte."""
    config, options = given(case, tmp_path)
    saves: list[int] = []
    with monkeypatch.context() as patched:
        save = Journal.save
        patched.setattr(Journal, "save", lambda self, *given: (self._new and saves.append(1)) or save(self, *given))
        made = prepare.prepare(config, **options)
    expected, folder = content_of(Path(made.path)), Path(made.path)
    shutil.rmtree(folder)

    def one(kept: bool) -> None:
        with monkeypatch.context() as patched:
            dying(patched, _STEPS, kept=kept)
            prepare.prepare(config, **options)

    starts = 0
    while status := process(lambda kept=starts % 2 == 0: one(kept)):
        starts += 1
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert partial.partial_folder(folder).is_dir() and not folder.exists()
        # every second start is killed just before the step that it would have finished
        assert starts <= len(saves) / (_STEPS - 0.5)
    assert starts > 3 and content_of(folder) == expected
    assert not partial.partial_folder(folder).exists()


def test_two_processes_that_go_on_at_once_make_it_once(tmp_path, monkeypatch) -> None:
    config, options = given("csv, bad rows", tmp_path)
    expected = prepare.prepare(config, **options)
    content, folder = content_of(Path(expected.path)), Path(expected.path)
    shutil.rmtree(folder)

    def killed() -> None:
        dying(monkeypatch, 12, kept=True)
        prepare.prepare(config, **options)

    def noted() -> None:
        made = prepare_rows._made
        monkeypatch.setattr(prepare_rows, "_made", lambda *a: (tmp_path / f"{os.getpid()}.made").touch() or made(*a))
        assert prepare.prepare(config, **options).fingerprint == expected.fingerprint

    assert os.WIFSIGNALED(process(killed))

    children = [started(noted) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert len([*tmp_path.glob("*.made")]) == 1 and content_of(folder) == content


def test_what_another_version_has_left_is_not_gone_on_with(tmp_path, monkeypatch) -> None:
    config, options = given("csv, bad rows", tmp_path)
    expected = prepare.prepare(config, **options)

    def killed() -> None:
        monkeypatch.setattr(prepare_rows, "_VERSION", 0)
        dying(monkeypatch, 20, kept=True)
        prepare.prepare(config, rebuild=True, **options)

    assert os.WIFSIGNALED(process(killed))
    assert partial.partial_folder(Path(expected.path)).is_dir()
    appended = []
    append = row_blocks.TextColumns.append
    monkeypatch.setattr(row_blocks.TextColumns, "append", lambda *a, **k: appended.append(1) or append(*a, **k))
    assert prepare.prepare(config, rebuild=True, **options).fingerprint == expected.fingerprint
    assert len(appended) > 8


def test_a_set_that_another_process_makes_whole_between_two_looks_is_not_made_again(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "set"
    make = Path.mkdir

    def overtaken(self: Path, *given: Any, **options: Any) -> None:
        if self == partial.partial_folder(folder) and not folder.exists():
            make(folder)
        make(self, *given, **options)

    monkeypatch.setattr(Path, "mkdir", overtaken)
    with partial.alone_in(folder) as work:
        assert work is None
    assert not partial.partial_folder(folder).exists()
