"""Points that cannot be composed are not trials: another one is proposed in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigctl.errors import ConfigError
from bigctl.sweeps.execution import proposals
from bigctl.sweeps.execution.monitor import Monitors
from bigctl.sweeps.execution.proposals import Proposals
from bigctl.sweeps.ledger import Ledger, read_study
from bigctl.sweeps.search import space

BASE = ["recipe=mlp_cls", "train.steps=10"]
UNEVEN = ["train.batch_size=int(interval(16,32))", "train.accumulate=2,4"]


def proposed(folder: Path, *overrides: str, count: int = 4) -> list[dict[str, str]]:
    """The points of a new sweep in a folder, all of them proposed."""
    folder.mkdir()
    plan = space.plan([*BASE, *overrides, f"sweep.trials={count}"])
    ledger = Ledger(folder)
    ledger.append("study", definition={"sweep": {}})
    found = Proposals(plan, count, ledger, Monitors(ledger.study))
    while found.propose():
        pass
    ledger.close()
    return [dict(state.trial.point) for state in ledger.study.states.values()]


def test_folds_that_were_proposed_are_found_again_after_a_crash(tmp_path: Path) -> None:
    plan = space.plan([*BASE, "data=breast_cancer", "data.fold=range(3)", "optimizer.lr=1e-3,1e-2"])
    for _ in range(2):
        ledger = Ledger(tmp_path)
        ledger.append("study", definition={"sweep": {}})
        found = Proposals(plan, 2, ledger, Monitors(ledger.study))
        found.propose()
        ledger.close()
    trials = [state.trial for state in read_study(tmp_path).states.values()]
    assert [(t.point["optimizer.lr"], t.fold, t.seed) for t in trials] == [
        (lr, fold, None) for lr in ("0.001", "0.01") for fold in range(3)
    ]
    assert found.planned == 6


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_point_that_cannot_be_composed_is_drawn_again(tmp_path: Path, sampler: str) -> None:
    if sampler == "tpe":
        pytest.importorskip("optuna")
    points = proposed(tmp_path / "a", *UNEVEN, f"sweep.sampler={sampler}")
    assert len(points) == 4
    assert all(int(p["train.batch_size"]) % int(p["train.accumulate"]) == 0 for p in points)
    assert points == proposed(tmp_path / "b", *UNEVEN, f"sweep.sampler={sampler}"), "the same again after a crash"


def test_a_finite_space_ends_where_no_other_point_can_be_composed(tmp_path: Path) -> None:
    points = proposed(tmp_path / "a", "train.batch_size=6,8,10", "train.accumulate=2,4", "sweep.sampler=random")
    found = sorted((p["train.batch_size"], p["train.accumulate"]) for p in points)
    assert found == [("10", "2"), ("6", "2"), ("8", "2"), ("8", "4")]


def test_a_space_without_any_point_that_can_be_composed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "MOST_REFUSED", 3)
    monkeypatch.setattr(space.Composable, "problem", lambda self, point: ConfigError("does not fit", where="a=1"))
    with pytest.raises(ConfigError, match="does not fit"):
        proposed(tmp_path / "a", *UNEVEN, "sweep.sampler=random")
