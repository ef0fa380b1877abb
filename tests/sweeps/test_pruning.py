"""Hopeless trials are stopped, and only they."""

from __future__ import annotations

import math
import random

import pytest

from bigctl.config.schema import Sweep
from bigctl.sweeps.search.choose import make_pruner


def make(pruner: str, mode: str = "min", **settings):
    return make_pruner(Sweep(pruner=pruner, **settings), mode)


def curve(*values: float, every: int = 100) -> dict[int, float]:
    return {every * (i + 1): value for i, value in enumerate(values)}


def test_the_median_of_running_averages_is_the_bar():
    others = [curve(1.0, 0.8, 0.6), curve(1.0, 0.6, 0.2), curve(2.0, 2.0, 2.0)]  # averages 0.8, 0.6, 2.0
    median = make("median", warmup_trials=3, warmup_evaluations=0)
    assert median.judge(curve(1.2, 0.9, 0.81), others) == "median at step 300: 0.81 > 0.8"
    assert median.judge(curve(1.2, 0.9, 0.79), others) is None
    assert median.judge(curve(1.2, 0.79, 0.9), others) is None, "its best so far counts, not its last"


def test_the_median_waits_for_trials_and_for_evaluations():
    others, bad = [curve(0.1, 0.1)] * 4 + [curve(0.1)], curve(9.0, 9.0)
    assert make("median", warmup_trials=5, warmup_evaluations=0).judge(bad, others) is None
    assert make("median", warmup_trials=4, warmup_evaluations=2).judge(bad, others) is None
    assert make("median", warmup_trials=4, warmup_evaluations=1).judge(bad, others) is not None
    assert make("median").judge(bad, []) is None


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_large_is_good_where_the_mode_says_so(pruner):
    settings = {"warmup_trials": 1, "warmup_evaluations": 0}
    others = [curve(value / 10) for value in range(1, 8)]
    best, worst = make(pruner, "max", **settings), make(pruner, "min", **settings)
    assert best.judge(curve(0.9), others) is None and " < " in best.judge(curve(0.05), others)
    assert worst.judge(curve(0.05), others) is None and " > " in worst.judge(curve(0.9), others)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_what_is_not_finite_is_worse_than_any(pruner, mode):
    judge = make(pruner, mode, warmup_trials=1, warmup_evaluations=0).judge
    for bad in (math.nan, math.inf, -math.inf):
        assert "nan" in judge(curve(bad), [curve(5.0)] * 9)
        assert judge(curve(5.0), [curve(bad)] * 9) is None


def test_nothing_is_stopped_without_a_pruner():
    assert make("none").judge(curve(math.nan), [curve(0.1)] * 50) is None


def test_asha_judges_at_its_rungs_alone_and_lets_the_best_third_go_on():
    asha = make("asha", min_resource=2, reduction=3)
    others = [curve(*[value] * 18) for value in range(8)]
    judged = {n: asha.judge(curve(*[2.5] * n), others) for n in range(1, 19)}
    assert {n for n, verdict in judged.items() if verdict} == {2, 6, 18}
    assert judged[6] == "asha at step 600: 2.5 > 2", "of nine the best three go on"
    assert all(asha.judge(curve(*[1.5] * n), others) is None for n in range(1, 19))
    assert asha.judge(curve(*[7.0] * 6), []) is None, "the first one on a rung goes on"


def test_evaluations_that_came_at_once_are_judged_one_by_one():
    asha = make("asha", min_resource=1, reduction=2)
    others = [curve(0.1, 0.1, 0.1)] * 4
    late = curve(0.9, 0.05, 0.05)
    assert asha.judge(late, others) is None
    assert asha.judge(late, others, judged=0) == "asha at step 100: 0.9 > 0.1"


def test_hyperband_deals_trials_to_brackets_that_judge_ever_later():
    band = make("hyperband", reduction=3, brackets=3)
    dealt = [band.bracket(number) for number in range(17 * 4)]
    assert [dealt.count(b) for b in range(3)] == [9 * 4, 5 * 4, 3 * 4]  # Li et al. 2017: 9, ceil(3/2 * 3), 3
    assert set(dealt[:5]) == {0, 1, 2}, "each bracket has one soon"
    first = {b: dealt.index(b) for b in range(3)}
    others = [curve(*[0.1] * 27)] * 9
    for bracket, number in first.items():
        stopped = [n for n in range(1, 28) if band.judge(curve(*[0.9] * n), others, number=number)]
        assert stopped == [3**k for k in range(bracket, 4)]
    numbers = [first[1]] * 9
    assert band.judge(curve(0.9), others, number=first[0], numbers=numbers) is None, "the others are in another bracket"


# --- Optuna's pruners, an independent reference -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_median_is_optunas_where_the_definitions_agree(mode):
    """They do on curves that stand still: Optuna takes the others' values at that step, not their averages."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng, told = random.Random(0), set()
    for _ in range(60):
        others = [dict.fromkeys(range(3), rng.random()) for _ in range(rng.randint(2, 8))]
        direction = {"min": "minimize", "max": "maximize"}[mode]
        study = optuna.create_study(pruner=optuna.pruners.MedianPruner(4, 1), direction=direction)
        for other in others:
            study.add_trial(optuna.trial.create_trial(value=other[2], intermediate_values=other))
        trial, own = study.ask(), {}
        for step in range(3):
            own[step] = rng.random()
            trial.report(own[step], step)
            ours = make("median", mode, warmup_trials=4, warmup_evaluations=1).judge(own, others)
            assert trial.should_prune() == (ours is not None)
            told.add(ours is None)
    assert told == {True, False}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_asha_is_optunas_successive_halving(mode):
    """Trials that run at once; Optuna counts steps from 1, so that its steps are our evaluations."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rng, verdicts = random.Random(1), []
    for reduction in (2, 3, 4):
        study = optuna.create_study(
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=reduction),
            direction={"min": "minimize", "max": "maximize"}[mode],
        )
        asha = make("asha", mode, min_resource=2, reduction=reduction)
        trials = [study.ask() for _ in range(12)]
        curves: list[dict[int, float]] = [{} for _ in trials]
        alive = set(range(12))
        while alive:
            n = rng.choice(sorted(alive))
            step = len(curves[n]) + 1
            curves[n][step] = rng.random()
            trials[n].report(curves[n][step], step)
            theirs = trials[n].should_prune()
            ours = asha.judge(curves[n], [other for i, other in enumerate(curves) if i != n and other])
            assert theirs == (ours is not None), (n, step, ours)
            verdicts.append(theirs)
            if theirs or step == 16:
                alive.discard(n)
    assert 5 < sum(verdicts) < len(verdicts)
