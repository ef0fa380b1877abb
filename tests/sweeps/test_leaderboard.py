"""The answer of a sweep: who is first and who never is, what is written down, and what the terminal says."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from bigctl.sweeps import leaderboard, ledger
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, WAITING, State, Study, Trial
from bigctl.sweeps.view.leaderboard_text import leaderboard_text

FIXED = ("recipe=mlp_cls", "data=breast_cancer")


def study_of(*rows: tuple[dict[str, str], list[Any]], path: Path = Path("sweeps/demo"), **settings: Any) -> Study:
    """A study of points and what came out for each seed: a number, metrics, a status, or a failure's message."""
    axes = [
        {"key": key, "values": list(dict.fromkeys(p[key] for p, _ in rows))} for key in (rows[0][0] if rows else ())
    ]
    seeds = list(range(max((len(results) for _, results in rows), default=1)))
    definition: dict[str, Any] = {"fixed": list(FIXED), "axes": axes, "seeds": seeds, "sweep": {},
                                  "metric": "val/accuracy", "mode": "max", "argv": []}  # fmt: skip
    study = Study(path, {**definition, **settings})
    for point, results in rows:
        for seed, result in zip(seeds, results, strict=False):
            overrides = (*FIXED, *(f"{key}={value}" for key, value in point.items()), f"seed={seed}")
            trial = Trial(len(study.states), overrides, point, seed)
            state = State(trial, COMPLETE, {}, 20, 1.5)
            if isinstance(result, dict):
                state.metrics = result
            elif isinstance(result, float):
                state.metrics = {"val/accuracy": result, "val/loss": 1 - result}
            elif result in (PRUNED, WAITING):
                state.status = result
            else:
                state.status, state.message = FAILED, result
            study.states[trial.id] = state
    return study


def ranks(board: dict[str, Any]) -> dict[str, int | None]:
    return {point["point"]["lr"]: point["rank"] for point in board["points"]}


def test_points_are_ranked_by_their_mean_over_seeds_with_the_sample_standard_deviation() -> None:
    rows = [({"lr": "1"}, [0.5, 0.9]), ({"lr": "2"}, [0.71, 0.73]), ({"lr": "3"}, [0.8, 0.6])]
    board = leaderboard.build_leaderboard(study_of(*rows))
    assert ranks(board) == {"2": 1, "3": 2, "1": 3}  # 1 and 3 have the same mean: the steadier one is before
    assert board["points"][0]["mean"] == pytest.approx(0.72)
    assert board["points"][0]["std"] == pytest.approx(statistics.stdev([0.71, 0.73]))
    assert board["points"][0]["metrics"]["val/loss"]["mean"] == pytest.approx(0.28)
    assert (board["points"][0]["n"], board["points"][0]["seconds"]) == (2, 3.0)
    low = leaderboard.build_leaderboard(study_of(*rows, metric="val/loss", mode="min"))
    assert ranks(low) == {"2": 1, "3": 2, "1": 3}
    single = leaderboard.build_leaderboard(study_of(({"lr": "1"}, [0.5]), ({"lr": "2"}, [0.5])))
    assert ranks(single) == {"1": 1, "2": 2} and single["points"][0]["std"] is None


@pytest.mark.parametrize("bad", [{}, {"val/accuracy": math.nan}, {"val/accuracy": math.inf}, {"val/loss": 0.1}])
def test_a_metric_that_is_missing_or_not_finite_is_never_ranked(bad: dict[str, float]) -> None:
    board = leaderboard.build_leaderboard(
        study_of(({"lr": "1"}, [bad, 0.99]), ({"lr": "2"}, [0.1, 0.2]), ({"lr": "3"}, [bad, bad]))
    )
    assert ranks(board) == {"2": 1, "1": None, "3": None}
    assert board["winner"]["point"] == {"lr": "2"} and board["points"][2]["mean"] is None
    assert "missing or not finite" in leaderboard_text(board)
    none = leaderboard.build_leaderboard(study_of(({"lr": "1"}, [bad])))
    assert none["winner"] is None and "no point has a value of val/accuracy" in leaderboard_text(none)


def test_a_lucky_seed_does_not_win_over_points_with_all_their_seeds() -> None:
    rows = [({"lr": "1"}, [0.99, "out of memory"]), ({"lr": "2"}, [0.7, 0.8]), ({"lr": "3"}, [0.9, PRUNED])]
    board = leaderboard.build_leaderboard(study_of(*rows, ({"lr": "4"}, [WAITING, WAITING])))
    assert ranks(board) == {"2": 1, "1": 2, "3": 3, "4": None}
    assert [point["n"] for point in board["points"]] == [2, 1, 1, 0]
    assert board["status"] == {"complete": 4, "failed": 1, "pruned": 1, "waiting": 2}
    alone = leaderboard.build_leaderboard(study_of(rows[0]))  # no point has all: the best there is, and said so
    assert alone["winner"]["n"] == 1 and "(1 of 2 seeds complete)" in leaderboard_text(alone)


def test_fewer_seeds_in_a_later_command_do_not_put_new_points_behind_old_ones() -> None:
    study = study_of(({"lr": "1"}, [0.5, 0.5, 0.5]), ({"lr": "2"}, [0.9, 0.9]))
    assert ranks(leaderboard.build_leaderboard(study)) == {"1": 1, "2": 2}
    study.definition["seeds"] = [0, 1]
    assert ranks(leaderboard.build_leaderboard(study)) == {"2": 1, "1": 2}


def over_folds(*rows: tuple[dict[str, str], list[Any]]) -> Study:
    """The same of folds in place of seeds."""
    study = study_of(*rows)
    study.definition.update(folds=study.definition["seeds"], seeds=[], fixed=[*FIXED, "data.folds=2"])
    for state in study.states.values():
        trial = state.trial
        overrides = (
            *study.definition["fixed"],
            *(f"{k}={v}" for k, v in trial.point.items()),
            f"data.fold={trial.seed}",
        )
        state.trial = Trial(trial.number, overrides, trial.point, None, trial.seed)
    study.states = {state.trial.id: state for state in study.states.values()}
    return study


def test_points_are_ranked_by_their_mean_over_folds_and_the_winner_is_trained_without() -> None:
    rows = [({"lr": "1"}, [0.5, 0.9]), ({"lr": "2"}, [0.71, 0.73]), ({"lr": "3"}, [0.95, "out of memory"])]
    board = leaderboard.build_leaderboard(over_folds(*rows))
    assert ranks(board) == {"2": 1, "1": 2, "3": 3}
    assert board["folds"] == [0, 1] and [t["fold"] for t in board["trials"]] == [0, 1] * 3
    winner = board["winner"]
    assert (winner["n"], winner["mean"]) == (2, pytest.approx(0.72))
    assert winner["std"] == pytest.approx(statistics.stdev([0.71, 0.73]))
    assert "fold" not in winner["command"] and "lr=2" in winner["command"]
    text = leaderboard_text(board)
    assert "mean ± standard deviation over 2 folds" in " ".join(text.split()) and "data.folds" not in text
    alone = leaderboard.build_leaderboard(over_folds(rows[2]))
    assert "(1 of 2 folds complete)" in leaderboard_text(alone) and "lr=3 fold=1" in leaderboard_text(alone)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """The definition: as large and as small, and not the same. The first metric is to be large, the second small."""
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@pytest.mark.parametrize("seed", range(5))
def test_the_pareto_set_is_what_no_other_point_dominates(seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        ({"lr": str(n)}, [{"val/accuracy": draw.randint(0, 6) / 8, "val/loss": draw.randint(0, 6) / 8}])
        for n in range(25)
    ]
    board = leaderboard.build_leaderboard(study_of(*rows, sweep={"pareto": "val/loss"}))
    values = {p["point"]["lr"]: (p["mean"], p["metrics"]["val/loss"]["mean"]) for p in board["points"]}
    expected = {key for key, value in values.items() if not any(dominates(other, value) for other in values.values())}
    found = [board["points"][index]["point"]["lr"] for index in board["pareto"]["points"]]
    assert set(found) == expected and len(found) == len(expected)
    assert board["pareto"]["metrics"] == ["val/accuracy", "val/loss"]


def test_the_pareto_set_goes_by_the_mode_that_is_given_and_leaves_incomplete_points_out() -> None:
    a, b = {"val/accuracy": 0.9, "size": 1.0}, {"val/accuracy": 0.8, "size": 2.0}
    rows = [({"lr": "1"}, [a, a]), ({"lr": "2"}, [b, b]), ({"lr": "3"}, [{"val/accuracy": 0.7, "size": 9.0}, "killed"])]
    large = leaderboard.build_leaderboard(study_of(*rows, sweep={"pareto": "size", "pareto_mode": "max"}))
    small = leaderboard.build_leaderboard(study_of(*rows, sweep={"pareto": "size", "pareto_mode": "min"}))
    assert leaderboard.build_leaderboard(study_of(*rows, sweep={"pareto": "size"}))["pareto"] is None
    assert (large["pareto"]["points"], small["pareto"]["points"]) == ([0, 1], [0])
    assert leaderboard.build_leaderboard(study_of(*rows))["pareto"] is None


def test_the_winners_command_is_what_a_shell_reads_back_and_its_name_is_its_own() -> None:
    rows = [({"lr": "1", "data.text": "'a b'"}, [0.2, 0.3]), ({"lr": "2", "data.text": "x$y"}, [0.9, 0.8])]
    argv = ["bigctl", "sweep", "lr=1,2", "--plugin", "my.module", "--config-dir=my presets"]
    study = study_of(*rows, path=Path("sweeps/my study"), argv=argv, fixed=[*FIXED, "eval.test=false"])
    winner = leaderboard.build_leaderboard(study)["winner"]
    words = shlex.split(winner["command"])
    assert words[:2] == ["bigctl", "train"] and words[-2] == "--name" and words[-1].startswith("my-study-")
    assert words[2:-2] == [
        *FIXED,
        "lr=2",
        "data.text=x$y",
        "seed=0",
        "--plugin",
        "my.module",
        "--config-dir=my presets",
    ]
    assert len({leaderboard.command(study, state) for state in study.states.values()}) == 4
    assert winner["test"] == {}
    for name, value in zip(winner["trials"], (0.5, 0.7), strict=True):
        study.test[name] = {"test/accuracy": value}
    test = leaderboard.build_leaderboard(study)["winner"]["test"]["test/accuracy"]
    assert test == {"mean": pytest.approx(0.6), "std": pytest.approx(statistics.stdev([0.5, 0.7])), "n": 2}


def test_files_hold_the_board_and_one_row_a_point(tmp_path: Path) -> None:
    rows = [({"lr": "1", "name": 'a,"b'}, [0.5, 0.6]), ({"lr": "2", "name": "c"}, ["no memory", {}])]
    study = study_of(*rows, path=tmp_path)
    board = leaderboard.build_leaderboard(study)
    leaderboard.write_leaderboard(study, board)
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == json.loads(json.dumps(board))
    found = list(csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text())))
    assert list(found[0]) == ["rank", "lr", "name", "mean", "std", "n", "val/loss", "seconds"]
    assert found[0]["name"] == 'a,"b' and float(found[0]["mean"]) == board["points"][0]["mean"]
    assert (found[1]["rank"], found[1]["mean"], found[1]["n"], found[1]["val/loss"]) == ("", "", "0", "")
    assert {path.name for path in tmp_path.iterdir()} == {"leaderboard.json", "leaderboard.csv"}


def test_failures_have_their_cause_and_a_log_that_is_there_and_the_same_cause_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [({"lr": str(n)}, [f"the loss is not finite at step {n}"]) for n in range(5)]
    study = study_of(*rows, ({"lr": "7"}, ["two\nlines"]), ({"lr": "8"}, [0.5]), path=tmp_path / "sweeps" / "demo")
    first, last = (state for state in study.states.values() if state.trial.point["lr"] in ("0", "7"))
    (study.run(first)).mkdir(parents=True)
    (study.run(first) / "log.txt").touch()
    (study.path / "logs").mkdir()
    for state in (first, last):  # the process of the second ended before it had a run directory
        state.log = f"logs/{state.trial.id}.log"
        (study.path / state.log).touch()
    board = leaderboard.build_leaderboard(study)
    logs = {failure["label"]: failure["log"] for failure in board["failures"]}
    assert logs["lr=0 seed=0"] == f"sweeps/demo/trials/{first.trial.id}/log.txt" and Path(logs["lr=0 seed=0"]).exists()
    assert logs["lr=7 seed=0"] == f"sweeps/demo/logs/{last.trial.id}.log" and Path(logs["lr=7 seed=0"]).exists()
    assert board["failures"][-1]["message"] == "two lines"
    text = leaderboard_text(board)
    assert text.count("not finite") == 1 and "5 trials failed: the loss is not finite at step 0" in text
    assert "and 2 more" in text and "1 trial failed: two lines" in text and "--retry-failed" in text


def test_the_text_fits_80_columns_whatever_is_searched() -> None:
    keys = [f"optimizer.some_long_name_{n}" for n in range(9)]
    rows = [
        (dict(zip(keys, values, strict=True)), [random.Random(n).random(), 0.25])
        for n, values in enumerate(itertools.islice(itertools.product("ab", repeat=9), 14))
    ]
    board = leaderboard.build_leaderboard(study_of(*rows, (dict.fromkeys(keys, "x" * 90), ["a cause " * 30, 0.5])))
    lines = leaderboard_text(board).splitlines()
    free = [line for line in lines if not line.startswith("  ") and "failed:" not in line]
    assert max(map(len, free)) <= 80
    assert sum(" ± " in line and "points" not in line for line in lines) == 11  # ten rows, and the winner
    assert any(line.startswith("in leaderboard.csv: 5 more points; ") for line in lines)


def test_the_text_warns_where_seeds_differ_as_much_as_points() -> None:
    noise = leaderboard.build_leaderboard(study_of(({"lr": "1"}, [0.1, 0.9]), ({"lr": "2"}, [0.2, 0.9])))
    clear = leaderboard.build_leaderboard(study_of(({"lr": "1"}, [0.1, 0.11]), ({"lr": "2"}, [0.9, 0.91])))
    assert "may be chance" in leaderboard_text(noise) and "may be chance" not in leaderboard_text(clear)


def test_private_trials_are_said_to_spend_more_than_each_of_them() -> None:
    def private(score: float, epsilon: float) -> dict[str, float]:
        return {"val/accuracy": score, "privacy/epsilon": epsilon}

    rows = [({"lr": "1"}, [private(0.9, 1.5), private(0.8, 1.5)]), ({"lr": "2"}, [private(0.7, 4.0), "failed"])]
    text = leaderboard_text(leaderboard.build_leaderboard(study_of(*rows)))
    assert "The 3 trials together spend 7.0000 at most" in " ".join(text.split())
    plain = [({"lr": "1"}, [0.9, 0.8]), ({"lr": "2"}, [private(0.7, 4.0), "failed"])]
    assert "together spend" not in leaderboard_text(leaderboard.build_leaderboard(study_of(*plain)))


def test_the_text_says_what_each_key_does_the_strongest_first() -> None:
    rows = [({"m.width": w, "o.lr": r, "o.decay": d}, [int(r) + 0.4 * int(w) + 1e-6 * int(d)])
            for w in "12" for r in "123" for d in "12"]  # fmt: skip
    lines = leaderboard_text(leaderboard.build_leaderboard(study_of(*rows))).splitlines()
    at = lines.index("o.lr explains 94 %: best 3 (3.6000), worst 1 (1.6000)")
    assert lines[at + 1] == "m.width explains 6 %: best 2 (2.8000), worst 1 (2.4000)"
    assert lines[at + 2] == "less than 1 %: o.decay"
    holed = leaderboard_text(leaderboard.build_leaderboard(study_of(*rows[:-1])))
    assert "o.lr: best 3" not in holed and "of 4)" in holed and "of 3)" in holed  # levels of unlike points


def test_an_answer_is_given_at_any_time_of_a_sweeps_life(tmp_path: Path) -> None:
    empty = leaderboard.build_leaderboard(ledger.read_study(tmp_path))
    assert (empty["points"], empty["winner"], empty["effects"]) == ([], None, [])
    assert leaderboard_text(empty)
    only_seeds = leaderboard.build_leaderboard(study_of(({}, [0.5, 0.6])))
    assert only_seeds["winner"]["command"].endswith(f"seed=0 --name demo-{only_seeds['winner']['trials'][0][:6]}")
    assert "winner: the only point" in leaderboard_text(only_seeds)
    begun = ledger.Ledger(tmp_path)
    begun.append("study", definition={"fixed": list(FIXED), "axes": [{"key": "lr", "values": ["1"]}], "metric": None})
    trial = Trial(0, (*FIXED, "lr=1"), {"lr": "1"})
    begun.append("trial", id=trial.id, number=0, overrides=trial.overrides, point=trial.point, seed=None, run="")
    begun.close()
    waiting = leaderboard.build_leaderboard(ledger.read_study(tmp_path))
    assert waiting["status"] == {"waiting": 1} and "no trial is complete" in leaderboard_text(waiting)
