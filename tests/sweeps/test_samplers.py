"""Samplers propose what they should: in order, by chance, or better and better; and the same again after a crash."""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import sys

import pytest

from bigctl.config import presets
from bigctl.config.compose import Composed, compose
from bigctl.config.schema import Sweep
from bigctl.errors import ConfigError
from bigctl.sweeps.search import space, sweep_syntax
from bigctl.sweeps.search.choose import make_sampler
from bigctl.sweeps.search.samplers import Observation

LR, DROPOUT = "optimizer.lr=tag(log,interval(1e-6,1))", "model.dropout=interval(0,0.9)"
OPTIONS = "optimizer=adamw,sgd"


@functools.cache
def base() -> Composed:
    return compose(["recipe=cnn_cls", "data=digits"])


def plan(sampler: str, *overrides: str, trials: int | None = 40, seed: int = 0, zipped=(), **settings) -> space.Plan:
    """What `space.plan` makes of it, composed once for all tests."""
    found = tuple(sweep_syntax.parse_axis(override, presets.roots()) for override in overrides)
    sweep = Sweep(sampler=sampler, trials=trials, seed=seed, **settings)
    return space.Plan((), space.Space(found, tuple(zipped)), space.directed(sweep, base().config), base())


def needs(sampler: str) -> None:
    for package in {"cmaes": ["cmaes"], "gp": ["optuna", "torch"]}.get(sampler, ["optuna"]):
        pytest.importorskip(package)


def bowl(point) -> float:
    """Smallest, 0, at a learning rate of 10^-2.5 with a dropout of 0.3 and adamw."""
    other = 0 if point.get("optimizer", "adamw") == "adamw" else 1
    return (
        (math.log10(float(point["optimizer.lr"])) + 2.5) ** 2 + 10 * (float(point["model.dropout"]) - 0.3) ** 2 + other
    )


def study(found: space.Plan, count: int, score=bowl, mode: str = "min") -> list[Observation]:
    sampler, history = make_sampler(found, mode), []
    while len(history) < count and (point := sampler.ask(len(history), history)) is not None:
        history.append(Observation(point, score(point)))
    return history


def distinct(points) -> int:
    return len({tuple(sorted(point.items())) for point in points})


# --- Grid and chance --------------------------------------------------------------------------------------------------


def test_a_grid_ends_after_its_last_point():
    found = plan("grid", "optimizer.lr=1,2", "train.epochs=1,2,3", trials=None)
    sampler = make_sampler(found)
    history: list[Observation] = []
    while (point := sampler.ask(len(history), history)) is not None:
        history.append(Observation(point))
    assert [seen.point for seen in history] == space.points(found) and len(history) == 6


def test_of_a_grid_that_was_made_larger_the_new_points_are_proposed():
    history = [Observation({"optimizer.lr": lr}) for lr in ("0.1", "0.3")]
    sampler = make_sampler(plan("grid", "optimizer.lr=0.01,0.1,0.2,0.3", trials=None))
    assert sampler.ask(2, history) == {"optimizer.lr": "0.01"}


def test_random_points_fill_their_intervals_evenly():
    found = plan("random", LR, DROPOUT, "train.batch_size=interval(8,11)", "train.epochs=int(tag(log,interval(1,64)))")
    points = [o.point for o in study(found, 400, score=lambda _: 0.0)]
    assert distinct(points) == 400
    logs = sorted(math.log10(float(p["optimizer.lr"])) for p in points)
    assert -6 <= logs[0] < -5.9 and -0.1 < logs[-1] <= 0 and abs(statistics.median(logs) + 3) < 0.4
    assert abs(statistics.mean(float(p["model.dropout"]) for p in points) - 0.45) < 0.05
    sizes = [p["train.batch_size"] for p in points]
    assert set(sizes) == {"8", "9", "10", "11"} and min(map(sizes.count, set(sizes))) > 60
    epochs = [int(p["train.epochs"]) for p in points]
    assert set(epochs) >= {1, 2, 3} and max(epochs) <= 64 and 5 <= statistics.median(epochs) <= 12
    assert all(len(p["optimizer.lr"].split("e")[0].replace(".", "").strip("0")) <= 6 for p in points)


def test_random_points_of_a_finite_space_come_once_until_it_is_used_up():
    pair = ("optimizer.lr", "train.epochs")
    found = plan("random", "optimizer.lr=1,2", "train.epochs=3,4", "train.batch_size=interval(8,10)", zipped=[pair])
    history = study(found, 50, score=lambda _: 0.0)
    assert len(history) == distinct(o.point for o in history) == 6
    assert {(o.point["optimizer.lr"], o.point["train.epochs"]) for o in history} == {("1", "3"), ("2", "4")}
    before = [Observation({"optimizer.lr": "9"}), *history[3:]]  # the space was another, then those were tried
    assert [make_sampler(found).ask(n, before) in [o.point for o in history[:3]] for n in range(9)] == [True] * 9


# --- What they learn --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "count", "share"), [("tpe", 40, 0.5), ("cmaes", 40, 0.5), ("nsga2", 100, 0.8)])
def test_learning_samplers_get_close_to_the_best_and_know_which_way_is_better(sampler, count, share):
    needs(sampler)
    searched = [LR, DROPOUT] if sampler == "cmaes" else [LR, DROPOUT, OPTIONS]
    chance = statistics.mean(o.score for o in study(plan("random", *searched), count))
    late = [o.score for o in study(plan(sampler, *searched, trials=count), count)[-40:][-count // 2 :]]
    assert statistics.mean(late) < chance * share
    negated = study(plan(sampler, *searched, trials=count), count, score=lambda point: -bowl(point), mode="max")
    assert statistics.mean(-o.score for o in negated[-40:][-count // 2 :]) < chance * share


def test_a_gaussian_process_gets_close_to_the_best():
    needs("gp")
    history = study(plan("gp", LR, DROPOUT, OPTIONS, trials=18), 18)
    assert min(o.score for o in history[-8:]) < 0.3


def test_nsga2_searches_for_both_metrics():
    needs("nsga2")

    def both(point) -> tuple[float, float]:  # dropout is good for the one, bad for the other; lr = 1e-3 for both
        cost = (math.log10(float(point["optimizer.lr"])) + 3) ** 2
        return float(point["model.dropout"]) - cost, float(point["model.dropout"]) + cost

    late = []
    for seed in range(3):
        found = plan("nsga2", LR, DROPOUT, pareto="val/loss", trials=80, seed=seed)
        sampler, history = make_sampler(found, "max"), []  # the loss is to be small says the recipe
        for number in range(80):
            point = sampler.ask(number, history)
            history.append(Observation(point, *both(point)))
        late += [observation.point for observation in history[-40:]]
    assert statistics.median(abs(math.log10(float(p["optimizer.lr"])) + 3) for p in late) < 1  # by chance 1.5
    dropouts = sorted(float(p["model.dropout"]) for p in late)
    assert dropouts[12] < 0.25 and dropouts[-12] > 0.65, "neither metric is given up"


# --- The same again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2", "gp"])
def test_a_study_that_is_run_again_gets_the_same_proposals(sampler):
    needs(sampler) if sampler != "random" else None
    searched = [LR, DROPOUT] if sampler == "cmaes" else [LR, DROPOUT, OPTIONS]
    count = 14 if sampler == "gp" else 30
    found = plan(sampler, *searched, trials=count)
    history, old = [], make_sampler(found, "min")
    for number in range(count):
        point = old.ask(number, history)
        assert point == old.ask(number, list(history)), "an ask leaves nothing behind"
        if number % 5 == 4:
            assert point == make_sampler(found, "min").ask(number, history), "nor needs what was before"
        status = ["complete", "complete", "failed", "complete", "pruned", "running"][number % 6]
        curve = {100: bowl(point) + 1, 200: bowl(point)} if status != "failed" else {}
        history.append(Observation(point, bowl(point) if status == "complete" else None, None, status, curve))
    assert distinct(o.point for o in history) == count
    other = make_sampler(plan(sampler, *searched, trials=count, seed=1), "min").ask(count - 1, history[:-1])
    assert other != history[-1].point, "another seed, another proposal"


@pytest.mark.parametrize(
    ("sampler", "pareto"), [("tpe", None), ("cmaes", None), ("nsga2", None), ("nsga2", "val/loss")]
)
def test_what_failed_has_no_number_or_still_runs_is_no_stumbling_block(sampler, pareto):
    needs(sampler)
    found = plan(sampler, LR, DROPOUT, pareto=pareto)
    points = [o.point for o in study(plan("random", LR, DROPOUT), 24)]
    odd = [("failed", None), ("complete", math.nan), ("complete", None), ("running", None), ("waiting", None),
           ("stopped", None), ("pruned", None), ("complete", math.inf)]  # fmt: skip
    history = [Observation(p, value, None, status) for p, (status, value) in zip(points, odd * 3, strict=True)]
    history[6] = Observation(points[6], None, None, "pruned", {1: math.nan, 2: 0.5})
    history += [Observation(o.point, o.score, o.score) for o in study(plan("random", LR, DROPOUT, seed=1), 12)]
    point = make_sampler(found, "min").ask(len(history), history)
    assert 1e-6 <= float(point["optimizer.lr"]) <= 1


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_finite_space_is_learnt_without_trying_a_point_twice(sampler):
    needs(sampler)
    found = plan(sampler, "optimizer.lr=1,0.1,0.01", "train.epochs=int(interval(1,4))", OPTIONS)
    history = study(found, 40, score=lambda p: float(p["optimizer.lr"]) + float(p["train.epochs"]))
    assert len(history) == distinct(o.point for o in history) == 24


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_points_of_a_space_that_was_changed_since_are_no_stumbling_block(sampler):
    needs(sampler) if sampler != "random" else None
    others = [{"optimizer.lr": "5"}, {"optimizer": "adamw"}, {"optimizer.lr": "x"}, {"optimizer.lr": "1", "seed": "1"}]
    old = [Observation(point, 0.1) for point in others * 4]
    assert 1e-6 <= float(make_sampler(plan(sampler, LR), "min").ask(16, old)["optimizer.lr"]) <= 1


def test_zipped_axes_are_one_dimension():
    needs("tpe")
    pair = ("optimizer.lr", "train.epochs")
    found = plan("tpe", "optimizer.lr=1,0.1,0.01", "train.epochs=1,2,3", DROPOUT, zipped=[pair])
    points = [o.point for o in study(found, 25, score=lambda p: float(p["optimizer.lr"]))]
    assert {(p["optimizer.lr"], p["train.epochs"]) for p in points} == {("1", "1"), ("0.1", "2"), ("0.01", "3")}
    assert sum(p["optimizer.lr"] == "0.01" for p in points[-10:]) >= 5


# --- What is refused --------------------------------------------------------------------------------------------------


def test_cma_es_refuses_choices_by_name():
    with pytest.raises(ConfigError, match="searches intervals only, optimizer has choices"):
        make_sampler(plan("cmaes", LR, OPTIONS))


@pytest.mark.parametrize(("sampler", "package"), [("tpe", "optuna"), ("cmaes", "cmaes"), ("gp", "torch")])
def test_a_package_that_is_missing_is_named_with_how_to_get_it(monkeypatch, sampler, package):
    if sampler == "gp" and importlib.util.find_spec("optuna") is None:
        pytest.skip("optuna is missed first")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"the package {package} is not installed.*pip install"):
        make_sampler(plan(sampler, LR))
