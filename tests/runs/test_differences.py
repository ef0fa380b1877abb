"""What differs between runs is found and named; what cannot be compared is never called equal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bigctl.errors import ConfigError, RunError
from bigctl.files import write_json
from bigctl.runs import differences
from bigctl.runs.comparison import Comparison, compare_curve
from bigctl.runs.differences import Side, Tolerances
from bigctl.runs.directory import RunDirectory

OLD = Path(__file__).parents[1] / "fixtures" / "run_v1"
LINES: list[dict[str, Any]] = [
    {"step": 10, "epoch": 0.5, "train/loss": 0.5, "perf/examples_per_s": 7.0},
    {"step": 10, "val/loss": 0.75, "val/accuracy": 0.25},
    {"step": 20, "epoch": 1.0, "train/loss": 0.125, "perf/examples_per_s": 9.0},
    {"step": 20, "val/loss": 0.5, "val/accuracy": 0.75},
]
METRICS = {"val/loss": 0.5, "val/accuracy": 0.75, "test/accuracy": 0.8}
SUMMARY = {"metrics": METRICS, "step": 20, "timings": {"wall": 4.0}}


def make(
    folder: Path, lines: list[Any] = LINES, *, summary: Any = SUMMARY, config: str = "seed: 0", **record: Any
) -> Path:
    """A run directory by hand; lines that are no objects are written as they are."""
    folder.mkdir()
    write_json(folder / "run.json", {"schema": 1, "status": "complete" if summary else "partial", **record})
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in text))
    (folder / "config.yaml").write_text(config)
    if summary:
        write_json(folder / "summary.json", summary)
    return folder


def sides(*folders: Path) -> list[Side]:
    return differences.sides([RunDirectory(folder) for folder in folders])


def wrong(a: Path, b: Path, within: Tolerances | None = None, patterns: tuple[str, ...] = ()) -> list[str]:
    found = sides(a, b)
    names = differences.known(found, patterns, where="--metrics")
    results = differences.equality(*found, within or Tolerances(), names)
    return [each.difference for each in results if not each.equal]


def changed(step: int, **values: Any) -> list[dict[str, Any]]:
    """The lines with some metric of a step changed, or taken out where it is ...; `val_loss` is val/loss."""
    named = {name.replace("_", "/", 1): value for name, value in values.items()}
    lines = [{**line, **{k: v for k, v in named.items() if k in line and line["step"] == step}} for line in LINES]
    return [{name: value for name, value in line.items() if value is not ...} for line in lines]


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return make(tmp_path / "first")


# ------------------------------------------------------------------------------------------------------------ equality


def test_equal_runs_are_equal_whatever_their_speed(first: Path, tmp_path: Path) -> None:
    slower = [{**line, **({"perf/examples_per_s": 1.0} if "epoch" in line else {})} for line in LINES]
    assert wrong(first, make(tmp_path / "b", slower, summary={**SUMMARY, "timings": {"wall": 99.0}})) == []


def test_the_last_bit_of_one_step_is_found_and_named_by_step_and_key(first: Path, tmp_path: Path) -> None:
    off = make(tmp_path / "b", changed(10, train_loss=math.nextafter(0.5, 1)))
    (said,) = wrong(first, off)
    assert said == "train/loss at step 10: 0.5 and 0.5000000000000001, 1.1e-16 apart"
    final = make(tmp_path / "c", summary={**SUMMARY, "metrics": {**METRICS, "test/accuracy": 0.9}})
    assert wrong(first, final) == ["final test/accuracy: 0.8 and 0.9, 0.1 apart"]


def test_the_first_differences_come_first(first: Path, tmp_path: Path) -> None:
    later = make(tmp_path / "b", changed(20, train_loss=9.0))
    lines = [{**line, "val/loss": 9.0} if "val/loss" in line else line for line in changed(20, train_loss=9.0)]
    both = make(tmp_path / "c", lines)
    assert [said.split(":")[0] for said in wrong(first, both)] == ["val/loss at step 10", "train/loss at step 20"]
    assert len(wrong(later, both)) == 1


def test_tolerances_are_relative_to_the_larger_value_and_can_be_a_metrics_own(first: Path, tmp_path: Path) -> None:
    off = make(tmp_path / "b", changed(10, train_loss=0.505, val_loss=0.76))
    for tolerance, count in ((0.0, 2), (0.0098, 2), (0.01, 1), (0.0132, 0)):  # 0.005 / 0.505, 0.01 / 0.76
        assert len(wrong(first, off, Tolerances(tolerance))) == count
    assert len(wrong(first, off, Tolerances(0.1, {"val/*": 0.0}))) == 1
    assert wrong(first, off, Tolerances(0.0, {"val/*": 0.1, "train/loss": 0.1})) == []


def test_numbers_that_are_not_finite_are_equal_to_each_other_only() -> None:
    def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
        return compare_curve("x", {1: a}, {1: b}, tolerance=tolerance).equal

    assert equal(None, None) and equal(math.nan, math.nan) and equal(None, math.nan)
    assert not equal(None, 0.5, 1e9) and not equal(0.5, math.nan, 1e9) and not equal(math.inf, 1.0, 1e9)
    assert equal(1, 1.0) and not equal(0.0, -0.0) and not equal(0.0, 1e-30, 0.5) and equal("a", "a")
    assert not equal("a", "b", 1.0) and not equal([1], [2], 1.0) and not equal(True, 1)


def test_curves_of_different_lengths_differ_where_the_shorter_one_ends(first: Path, tmp_path: Path) -> None:
    short = make(tmp_path / "b", LINES[:2])
    assert "train/loss at step 20: is in the first run only" in wrong(first, short)
    assert "val/loss at step 20: is in the other run only" in wrong(short, first)
    lacking = make(tmp_path / "c", changed(20, val_accuracy=...))
    assert wrong(first, lacking) == ["val/accuracy at step 20: is in the first run only"]
    assert wrong(first, lacking, patterns=("*loss",)) == []


def test_a_run_that_is_not_complete_is_not_equal_to_one_that_is(first: Path, tmp_path: Path) -> None:
    partial = make(tmp_path / "b", summary=None)
    assert wrong(first, partial) == ["status: complete and partial"]
    assert wrong(partial, make(tmp_path / "c", summary=None)) == []


def test_damaged_lines_are_no_equality(first: Path, tmp_path: Path) -> None:
    damaged = make(tmp_path / "b", [*LINES, '{"step": 30, "val/l'])
    (said,) = wrong(first, damaged)
    assert "1 line cannot be read" in said
    twin = make(tmp_path / "c", [*LINES, "[1]", '{"step": null}', ""])
    assert "2 lines cannot be read" in wrong(damaged, twin)[1]


def test_nothing_is_equal_to_a_run_without_metrics(first: Path, tmp_path: Path) -> None:
    empty = make(tmp_path / "b", [], summary=None)
    for pair in ((first, empty), (empty, first), (empty, make(tmp_path / "c", [], summary=None))):
        with pytest.raises(RunError, match="no metrics to compare"):
            wrong(*pair)
    found = differences.sides([RunDirectory(first), RunDirectory(empty)])
    assert found[1].metrics == {} and found[1].step is None  # side by side they can stand all the same


def test_every_difference_has_its_largest_amount() -> None:
    found = compare_curve("x", {1: 1.0, 2: 1.0}, {1: 1.5, 2: 3.0}, tolerance=0.0)
    assert found == Comparison("x", 2, "x at step 1: 1.0 and 1.5, 0.5 apart", "x", 1, 2.0)


@pytest.mark.parametrize("text", ["", "much", "nan", "-1", "inf", "=1e-3", "val/loss=", "val/loss=x"])
def test_a_tolerance_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no tolerance"):
        differences.tolerances([text])


def test_a_pattern_that_matches_no_metric_is_refused_with_a_guess(first: Path, tmp_path: Path) -> None:
    found = sides(first, make(tmp_path / "b"))
    with pytest.raises(ConfigError, match="there is no metric 'val/los'") as error:
        differences.known(found, ["val/los"], where="--tolerance")
    assert error.value.hint == "did you mean val/loss?"


# -------------------------------------------------------------------------------------------- configuration, the rest


def test_differing_keys_are_shown_with_both_values_and_equal_ones_are_not(tmp_path: Path) -> None:
    a = make(tmp_path / "a", config="seed: 0\noptimizer: {kind: adamw, lr: 1e-3}\ntrain: {steps: 20}")
    b = make(
        tmp_path / "b", config="seed: 0\noptimizer: {kind: adamw, lr: 3e-3}\ntrain: {steps: 20.0}\nown: {key: [1, 2]}"
    )
    configs = [side.config for side in sides(a, b)]
    assert differences.rows(configs, every=False) == {"optimizer.lr": [1e-3, 3e-3], "own.key": ["-", [1, 2]]}
    assert differences.rows(configs, every=True)["seed"] == [0, 0]


def test_a_key_that_an_older_run_does_not_know_has_its_default(tmp_path: Path) -> None:
    old = make(tmp_path / "a", config="model: {kind: mlp}\nseed: 0")
    new = make(
        tmp_path / "b", config="model: {kind: mlp, dropout: 0.5}\nseed: 0\neval: {test: true}\ntrain: {ema: 0.5}"
    )
    configs = [side.config for side in sides(old, new)]
    assert configs[0]["eval.test"] is True
    assert set(differences.rows(configs, every=False)) <= {"train.ema", "model.dropout"}
    assert differences.rows(configs, every=False)["train.ema"] == [0.0, 0.5]


def test_surroundings_differ_by_package_by_change_of_code_and_by_data(tmp_path: Path) -> None:
    def record(numpy: str, diff: str, data: str | None) -> dict[str, Any]:
        code = {"commit": "ab" * 20, "dirty": True, "diff": diff}
        return {"packages": {"bigctl": "0.1.0", "numpy": numpy}, "code": code, "data": {"fingerprint": data}}

    a = make(tmp_path / "a", **record("2.0", "x", "d1"))
    found = differences.surroundings(sides(a, make(tmp_path / "b", **record("2.1", "y", "d2"))), every=False)
    assert set(found) == {"numpy", "commit", "data"} and found["numpy"] == ["2.0", "2.1"]
    unknown = differences.surroundings(sides(a, make(tmp_path / "c", **record("2.0", "x", None))), every=False)
    assert unknown == {}  # what a run does not know of does not differ


def test_unfinished_damaged_and_old_runs_stand_side_by_side(first: Path, tmp_path: Path) -> None:
    partial = make(tmp_path / "b", LINES[:3], summary=None)
    broken = make(tmp_path / "c", config="a: [", summary=SUMMARY)
    (broken / "summary.json").write_text("{")
    a, b, c, old = sides(first, partial, broken, OLD)
    assert (b.final, b.evaluated, b.metrics["val/loss"], b.metrics["train/loss"]) == (False, 10, 0.75, 0.125)
    assert b.times == {"examples_per_s": 9.0} and a.times["wall"] == 4.0
    assert c.config == {} and not c.final and len(c.notes) == 2
    assert old.final and old.metrics["test/accuracy"] > 0.4 and old.config["eval.test"] is True


def test_runs_need_company_and_a_name_of_their_own(first: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        sides(first)
    with pytest.raises(ConfigError, match="is named twice"):
        sides(first, first / ".." / "first")
    (tmp_path / "other").mkdir()
    twin = make(tmp_path / "other" / "first")
    assert [side.name for side in sides(first, twin)] == [str(first), str(twin)]
    write_json(twin / "run.json", {"status": "complete", "packages": ["no", "mapping"]})
    with pytest.raises(RunError, match="is not as bigctl writes it"):
        sides(first, twin)


def test_a_horizon_that_follows_from_the_length_is_no_difference(tmp_path: Path) -> None:
    a, b, chosen = (
        make(tmp_path / name, config=f"schedule: {{kind: cosine, horizon: {horizon}}}", steps=steps)
        for name, horizon, steps in (("a", 20, 20), ("b", 40, 40), ("c", 20, 40))
    )
    assert "schedule.horizon" not in differences.configuration(sides(a, b), every=False)
    assert differences.configuration(sides(a, b), every=True)["schedule.horizon"] == [20, 40]
    assert differences.configuration(sides(b, chosen), every=False)["schedule.horizon"] == [40, 20]


def test_what_one_kind_leaves_at_its_default_is_no_difference_from_another_without_such_a_key(tmp_path: Path) -> None:
    tables = make(tmp_path / "a", config="data: {kind: csv, path: a.csv, label: y, separator: null, encoding: latin-1}")
    arrays = make(tmp_path / "b", config="data: {kind: memory}")
    found = differences.configuration(sides(tables, arrays), every=False)
    assert found["data.kind"] == ["csv", "memory"] and found["data.encoding"] == ["latin-1", "-"]
    assert found["data.path"] == ["a.csv", "-"] and "data.separator" not in found and "data.decimal" not in found
    assert differences.configuration(sides(tables, arrays), every=True)["data.decimal"] == [None, "-"]
