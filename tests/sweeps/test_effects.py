"""The importance of a key is its share of the variance, as computed independently; levels are plain means."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from bigctl.sweeps.effects import Scored, effects


def choices(key: str, *values: str) -> dict[str, Any]:
    return {"key": key, "values": values, "low": None, "high": None, "log": False, "integer": False}


def interval(key: str, low: float, high: float, *, log: bool = False, integer: bool = False) -> dict[str, Any]:
    return {"key": key, "values": (), "low": low, "high": high, "log": log, "integer": integer}


def importance(found: list[dict[str, Any]]) -> dict[str, float | None]:
    return {effect["key"]: effect["importance"] for effect in found}


def grid(axes: list[dict[str, Any]], scores: Any) -> list[Scored]:
    rows = itertools.product(*(axis["values"] for axis in axes))
    return [Scored(dict(zip((a["key"] for a in axes), row, strict=True)), scores(*row)) for row in rows]


def test_in_a_full_grid_the_importance_is_eta_squared_of_a_two_way_analysis_of_variance() -> None:
    axes = [choices("lr", "1", "2", "3"), choices("width", "8", "16")]
    table = np.random.default_rng(0).normal(size=(3, 2))
    found = effects({"axes": axes}, grid(axes, lambda lr, width: [float(table[int(lr) - 1, int(width) // 16])]))
    # The textbook's sums of squares, by loops.
    mean = sum(table[i, j] for i in range(3) for j in range(2)) / 6
    total = sum((table[i, j] - mean) ** 2 for i in range(3) for j in range(2))
    rows = sum(2 * (sum(table[i]) / 2 - mean) ** 2 for i in range(3))
    columns = sum(3 * (sum(table[:, j]) / 3 - mean) ** 2 for j in range(2))
    rest = sum((table[i, j] - sum(table[i]) / 2 - sum(table[:, j]) / 3 + mean) ** 2 for i in range(3) for j in range(2))
    assert importance(found) == pytest.approx({"lr": rows / total, "width": columns / total})
    assert rows + columns + rest == pytest.approx(total)  # the sums themselves are right
    assert [level["mean"] for level in found[0]["levels"]] == pytest.approx(list(table.mean(axis=1)))


def test_levels_are_means_over_all_trials_that_have_them_in_the_order_of_the_axis() -> None:
    axes = [choices("lr", "0.01", "0.001", "1"), choices("width", "8", "16")]
    points = [
        Scored({"lr": "0.001", "width": "8"}, [0.5, 0.7]),
        Scored({"lr": "0.001", "width": "16"}, [0.9]),
        Scored({"lr": "0.01", "width": "8"}, [0.2]),
    ]
    lr = effects({"axes": axes}, points)[0]
    assert [(level["value"], level["n"]) for level in lr["levels"]] == [("0.01", 1), ("0.001", 3)]
    assert lr["levels"][1]["mean"] == pytest.approx(0.7) and lr["levels"][1]["std"] == pytest.approx(0.2)
    assert lr["levels"][0]["std"] is None
    assert lr["importance"] is None  # no full grid, and too few points for a forest


def random_points(axes: list[dict[str, Any]], score: Any, count: int) -> list[Scored]:
    rng = np.random.default_rng(1)
    points = []
    for _ in range(count):
        values: list[Any] = []
        for axis in axes:
            if axis["values"]:
                values.append(axis["values"][rng.integers(len(axis["values"]))])
            elif axis["log"]:
                values.append(math.exp(rng.uniform(math.log(axis["low"]), math.log(axis["high"]))))
            elif axis["integer"]:
                values.append(int(rng.integers(axis["low"], axis["high"] + 1)))
            else:
                values.append(rng.uniform(axis["low"], axis["high"]))
        point = {axis["key"]: str(value) for axis, value in zip(axes, values, strict=True)}
        points.append(Scored(point, [float(score(*values))]))
    return points


SPACE = [interval("lr", 1e-5, 1e-1, log=True), interval("dropout", 0.0, 0.5), choices("act", "relu", "tanh", "gelu")]


def score(lr: float, dropout: float, act: str) -> float:
    """A sum of three effects: over the space uniform ones of widths 4 and 2, and one of three levels."""
    return math.log10(lr) + 4 * dropout + {"relu": 0.0, "tanh": 1.0, "gelu": 2.0}[act]


def test_the_forest_finds_the_shares_that_a_known_function_has() -> None:
    variances = {"lr": 4**2 / 12, "dropout": 2**2 / 12, "act": 2 / 3}
    found = importance(effects({"axes": SPACE}, random_points(SPACE, score, 200)))
    expected = {key: variance / sum(variances.values()) for key, variance in variances.items()}
    assert found == pytest.approx(expected, abs=0.08)


def test_the_forest_agrees_with_optunas_fanova_on_intervals_searched_evenly() -> None:
    """Optuna integrates over a log interval by the value itself, so it is given the logarithm."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = [interval("lr", 1e-5, 1e-1, log=True), interval("dropout", 0.0, 0.5), interval("decay", 0.0, 1.0)]
    points = random_points(axes, lambda lr, dropout, decay: math.log10(lr) * (1 + decay) + 4 * dropout, 80)
    ends = {"lr": (-5.0, -1.0), "dropout": (0.0, 0.5), "decay": (0.0, 1.0)}
    distributions = {key: optuna.distributions.FloatDistribution(*pair) for key, pair in ends.items()}
    study = optuna.create_study()
    for each in points:
        params = {key: float(value) for key, value in each.point.items()}
        params["lr"] = math.log10(params["lr"])
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=each.mean))
    theirs = optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study)
    ours = importance(effects({"axes": axes}, points))
    assert ours == pytest.approx(theirs, abs=0.03) and max(theirs.values()) > 0.4


def test_a_grid_with_holes_is_given_to_the_forest_and_zipped_keys_share_one_importance() -> None:
    axes = [choices("a", *"0123"), choices("b", *"5678"), choices("c", *"012")]
    points = grid([axes[0], axes[2]], lambda a, c: [3.0 * int(a) + 0.1 * int(c)])
    points = [Scored({**p.point, "b": str(int(p.point["a"]) + 5)}, p.scores) for p in points]
    whole = importance(effects({"axes": axes, "zipped": [["a", "b"]]}, points))
    assert whole["a"] == whole["b"] == pytest.approx(1.0, abs=0.01) and whole["c"] == pytest.approx(0.0, abs=0.01)
    holed = importance(effects({"axes": axes, "zipped": [["a", "b"]]}, points[1:]))
    assert holed["a"] == holed["b"] and holed["a"] == pytest.approx(whole["a"], abs=0.1)


def test_nothing_is_made_up_where_nothing_can_be_told() -> None:
    axes = [choices("lr", "1", "2")]
    assert effects({"axes": axes}, []) == [{"key": "lr", "importance": None, "levels": []}]
    assert importance(effects({"axes": axes}, grid(axes[:1], lambda lr: [0.5]))) == {"lr": None}  # all the same
    assert importance(effects({"axes": SPACE}, random_points(SPACE, score, 7))) == dict.fromkeys(
        ("lr", "dropout", "act")
    )


def test_intervals_are_cut_into_bins_with_round_edges_that_hold_each_point_once() -> None:
    lr = effects({"axes": SPACE}, random_points(SPACE, score, 60))[0]["levels"]
    assert len(lr) == 6 and sum(level["n"] for level in lr) == 60 and all(level["n"] >= 7 for level in lr)
    edges = [level["value"].split(" .. ") for level in lr]
    assert [a for a, _ in edges[1:]] == [b for _, b in edges[:-1]] and edges[0][0] == "1e-05" and edges[-1][1] == "0.1"
    assert all(len(edge.split("e")[0].replace(".", "").lstrip("0")) <= 3 for pair in edges for edge in pair)
    ratios = [float(b) / float(a) for a, b in edges]
    assert max(ratios) < 20 * min(ratios)  # about even by their logarithm
    few = effects({"axes": [interval("n", 1, 64, log=True, integer=True)]},
                  [Scored({"n": n}, [1.0]) for n in ("1", "64", "8", "8")])  # fmt: skip
    assert [(level["value"], level["n"]) for level in few[0]["levels"]] == [("1", 1), ("8", 2), ("64", 1)]
    many = effects({"axes": [interval("n", 1, 100, integer=True)]},
                   [Scored({"n": str(n)}, [float(n)]) for n in range(1, 101)])  # fmt: skip
    assert [level["value"] for level in many[0]["levels"]][:2] == ["1 .. 17", "18 .. 33"]
    assert sum(level["n"] for level in many[0]["levels"]) == 100
