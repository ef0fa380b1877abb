"""Promises of `train.batch_size=auto`: the largest batch that fits or is of use, measured once and kept by the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bigctl
from bigctl import memory
from bigctl.cli.main import main
from bigctl.config import compose
from bigctl.config.schema import Config
from bigctl.engine import batch_size, crash_test, resolve
from bigctl.engine.batch_size import DATA, MEMORY, RATE, Tried
from bigctl.errors import ConfigError
from bigctl.runs.directory import RunDirectory
from tests import small

pytestmark = pytest.mark.fewer

# -------------------------------------------------------------------------------------------------------- the search


class Bench:
    """Sizes as they would be tried."""

    def __init__(self, tried: Callable[[int], Tried]):
        self.sizes: list[int] = []
        self._tried = tried

    def try_size(self, size: int) -> Tried:
        self.sizes.append(size)
        return self._tried(size)


@pytest.fixture
def from_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "START", 8)


def climb(sizes: list[int], tried: Callable[[int], Tried]) -> tuple[Any, list[int], str]:
    bench: Any = Bench(tried)
    best, all_tried, ended = batch_size._climb(bench, sizes)
    assert [each.size for each in all_tried] == sorted(bench.sizes)
    return best and best.size, bench.sizes, ended


def below(most: int) -> Callable[[int], Tried]:
    return lambda size: Tried(size, size, None, "" if size <= most else "too large")


def rates(*found: float) -> Callable[[int], Tried]:
    """Examples a second of 8, 16, ..."""
    return lambda size: Tried(size, size, found[size.bit_length() - 4])


@pytest.mark.usefixtures("from_8")
@pytest.mark.parametrize(
    ("examples", "tried", "size", "seen", "ended"),
    [
        (1000, below(100), 64, [8, 16, 32, 64, 128], MEMORY),
        (100, below(10**9), 64, [8, 16, 32, 64], DATA),
        (1000, below(3), 2, [8, 4, 2], MEMORY),  # downwards where the first is too large already
        (1000, below(0), None, [8, 4, 2, 1], DATA),
        (1000, rates(100, 190, 300, 310, 320, 999), 128, [8, 16, 32, 64, 128], RATE),
        (1000, rates(100, 190, 300, 200, 100, 999), 32, [8, 16, 32, 64, 128], RATE),  # larger ones are slower
        (60, rates(100, 190, 300), 32, [8, 16, 32], DATA),
        (20, rates(100, 80), 8, [8, 16], RATE),
        (5, below(10**9), 4, [4], DATA),
    ],
)
def test_sizes_double_until_one_does_not_fit_or_is_not_faster(
    examples: int, tried: Callable[[int], Tried], size: int | None, seen: list[int], ended: str
) -> None:
    found = climb(batch_size.candidates(1, examples), tried)
    assert found == (size, seen, ended)


def test_sizes_can_be_divided_by_the_mesh_and_within_the_training_split() -> None:
    assert batch_size.candidates(1, 1) == [1]
    assert batch_size.candidates(8, 100) == [8, 16, 32, 64]
    assert batch_size.candidates(6, 50) == [6, 12, 24, 48]
    assert batch_size.candidates(64, 10) == [64]  # as it is for any batch: examples are repeated


# --------------------------------------------------------------------------------------------------------- real runs

AUTO = [*(key for key in small.KEYS if not key.startswith("train.batch_size")), "train.batch_size=auto"]


@pytest.fixture(scope="module", autouse=True)
def few_sizes() -> Iterator[None]:
    """Each is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "START", 32)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and a run on them that has measured its batches."""
    path = tmp_path_factory.mktemp("auto")
    small.write(path / "rows.csv", small.columns(80))
    bigctl.train([*AUTO, *data(path), "train.steps=4"], path / "run")
    return path


def data(folder: Path) -> list[str]:
    return ["data=csv", f"data.path={folder / 'rows.csv'}"]


def config_of(run: Path) -> Config:
    return compose.from_yaml((run / "config.yaml").read_text(), where="config.yaml")


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_what_is_found_is_kept_in_the_run_and_trains_as_if_it_were_typed(folder: Path) -> None:
    size = config_of(folder / "run").train.batch_size
    record = json.loads((folder / "run" / "run.json").read_text())
    assert size in (32, 64) and record["batch_size"]["size"] == size  # of 65 training examples
    assert record["batch_size"]["sentence"].startswith(f"train.batch_size={size}: ")
    assert all(each["bytes"] > 0 and each["rate"] > 0 for each in record["batch_size"]["tried"])
    typed = [*AUTO[:-1], f"train.batch_size={size}", *data(folder), "train.steps=4"]
    bigctl.train(typed, folder / "typed")
    assert losses(folder / "typed") == losses(folder / "run") != []
    assert config_of(folder / "typed") == config_of(folder / "run")


def test_a_resumed_run_measures_nothing_and_keeps_its_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_of(folder / "run")

    def measured(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(batch_size, "measure", measured)
    bigctl.train([*AUTO, *data(folder), "train.steps=4"], folder / "run")  # is complete
    bigctl.train([*AUTO, *data(folder), "train.steps=6"], folder / "run")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["step"] == 6 and summary["resumed_from"] == 4
    assert config_of(folder / "run").train.batch_size == before.train.batch_size


def test_memory_that_is_taken_makes_batches_smaller_or_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bigctl.compose([*AUTO, *data(folder)])
    dataset = resolve.prepare_data(config)
    monkeypatch.setattr(batch_size._Bench, "_run", lambda *_: None)  # any size is as good: memory decides
    largest = batch_size.measure(config, dataset).tried[-1]
    assert largest.size == 64 and largest.bytes is not None
    monkeypatch.setattr(memory, "available", lambda: int(largest.bytes / batch_size.SHARE) - 100)
    found = batch_size.measure(config, dataset)
    assert (
        found.size == 32 and "of 64, its step takes" in found.sentence and "optimizer.lr=0.05 stays" in found.sentence
    )
    monkeypatch.setattr(memory, "available", lambda: 100)
    monkeypatch.setattr(batch_size, "START", 2)
    with pytest.raises(ConfigError, match=r"not even a batch of 1 fits: .* and 100 B are free") as caught:
        batch_size.measure(config, dataset)
    assert caught.value.where == "train.batch_size=auto" and "\n" not in str(caught.value)


def test_a_batch_by_which_training_is_shorter_than_its_warmup_is_too_large(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size._Bench, "_run", lambda *_: None)
    config = bigctl.compose([*AUTO, *data(folder), "train.steps=null", "train.epochs=2", "schedule=cosine",
                             "schedule.warmup=3"])  # fmt: skip
    found = batch_size.measure(config, resolve.prepare_data(config))
    assert found.size == 32 and "of 64, " in found.sentence and "warmup" in found.sentence  # 2 epochs are 2 steps by 64


@pytest.mark.slow
def test_a_dry_run_tells_what_a_run_would_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *AUTO, *data(folder), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch_size"]["size"] == found["batch"]["label"][0]


# ------------------------------------------------------------------------------------------------------ what is typed


@pytest.mark.parametrize("swept", [["optimizer.lr=0.1,0.2", "train.batch_size=auto"], ["train.batch_size=16,auto"]])
def test_a_sweep_is_told_to_take_one_number(
    folder: Path, swept: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert main(["sweep", *AUTO[:-1], *data(folder), *swept]) == 2
    said = capsys.readouterr().err
    assert "auto is measured by each training for itself" in said and "--dry-run` measures it" in said
    assert not (folder / "sweeps").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size=large", "train.batch_size cannot be 'large' (a number of examples, or auto)"),
        ("train.batch_size=1.5", "'1.5' is not a whole number"),
        ("eval.batch_size=auto", "'auto' is not a whole number"),
    ],
)
def test_what_is_no_size_is_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bigctl.compose(["recipe=mlp_cls", override])
    assert said in str(caught.value)


def test_digits_from_a_variable_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "48")
    assert bigctl.compose(["recipe=mlp_cls", "train.batch_size=${oc.env:SIZE}"]).train.batch_size == 48


def test_killed_runs_take_what_the_undisturbed_one_has_measured(folder: Path) -> None:
    test = crash_test.CrashTest(AUTO, folder, kills=1)
    test._keep_measured(RunDirectory(folder / "run"))
    size = config_of(folder / "run").train.batch_size
    assert test.arguments == [f"train.batch_size={size}", *AUTO[:-1]] and len(test.result.notes) == 1
