"""What an audit proves is true as often as it says, and it finds out a model that knows its examples by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import bigctl
from bigctl.cli.main import main
from bigctl.inference import audit
from bigctl.privacy import pld
from bigctl.reports import trust
from bigctl.runs import directory
from tests import small


def halves(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = (rng.permutation(count) < count // 2 for _ in range(2))
    return first, second


@pytest.mark.parametrize("sign", [1, -1])
def test_a_mechanism_of_known_epsilon_is_not_proven_worse(sign: int) -> None:
    """Scores of the Gaussian mechanism: its epsilon is exact, and the bound may be above it in 5% of audits."""
    rng, true, found = np.random.default_rng(0), pld.epsilon(1.2, 1.0, 1, 1e-3), []
    for _ in range(60):
        members, others = sign * rng.normal(1, 1.2, 2000), sign * rng.normal(0, 1.2, 2000)
        pair = (members, others) if sign == 1 else (others, members)
        found.append(audit.proven_by(*pair, *halves(rng, 2000), 1e-3, 0.95)[1].epsilon)
    assert sum(each > true for each in found) <= 7  # P(Binomial(60, 0.05) > 7) = 0.01
    assert 0.5 < np.median(found) < true


def test_scores_that_tell_nothing_prove_nothing() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=(2, 1000)) for _ in range(60)]
    found = [audit.proven_by(a, b, *halves(rng, 1000), 1e-5, 0.95)[1].epsilon for a, b in scores]
    assert sum(each > 0 for each in found) <= 7
    apart = audit.proven_by(rng.normal(20, 1, 1000), rng.normal(0, 1, 1000), *halves(rng, 1000), 1e-5, 0.95)[1]
    assert apart.right > 480 and apart.wrong == 0 and apart.epsilon > 4.5


def test_bounds_are_those_of_exact_intervals() -> None:
    for right, wrong in ((90, 5), (500, 0), (0, 3), (500, 500)):
        tested = [stats.binomtest(k, 500).proportion_ci(0.95, "exact") for k in (right, wrong)]
        expected = max(0.0, np.log(max(tested[0].low - 1e-5, 1e-300) / tested[1].high))
        assert audit.lower_bound(right, 500, wrong, 500, 1e-5, 0.95) == pytest.approx(expected)


def test_the_area_is_that_of_sklearn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)
    members, others = rng.normal(0.3, 1, 400).round(1), rng.normal(0, 1, 300).round(1)  # with ties
    found = audit.attack_of("loss", members, others)
    truth = np.repeat([1, 0], [400, 300])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))
    assert found.roc[0] == (0, 0) and found.roc[-1] == (1, 1) and found.tpr["0.01"] <= 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels drawn by lot: who has them right has learnt them by heart."""
    found = tmp_path_factory.mktemp("audit")
    rng = np.random.default_rng(0)
    rows = {f"x{place}": rng.normal(size=600) for place in range(20)}
    small.write(found / "rows.csv", {**rows, "kind": rng.choice(["a", "b"], 600)})
    keys = [
        "recipe=mlp_cls",
        "data=csv",
        f"data.path={found / 'rows.csv'}",
        "data.label=kind",
        "train.tensorboard=false",
    ]
    keys += [
        "data.validation_fraction=0.4",
        "data.test_fraction=0.1",
        "model.dropout=0",
        "model.hidden=[128]",
        "train.ema=0",
    ]
    keys += [
        "optimizer.lr=0.02",
        "schedule=constant",
        "checkpoint.best=false",
        "train.steps=150",
        "train.batch_size=64",
    ]
    bigctl.train(keys, found / "plain", quiet=True)
    bigctl.train([*keys, "train.privacy.epsilon=1", "train.privacy.accountant=rdp"], found / "private", quiet=True)
    return found


def audited(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main(["audit", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_memory_is_found_out_and_a_promise_is_not_contradicted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, private = (audited(capsys, folder / name, "--step", "last") for name in ("plain", "private"))
    assert plain["promise"] is None and plain["attacks"][0]["auc"] > 0.75 and plain["proven"]["epsilon"] > 0.3
    assert 0.99 < private["promise"]["epsilon"] <= 1 and private["holds"]
    assert private["proven"]["epsilon"] <= 1 and private["attacks"][0]["auc"] < 0.7
    shown = trust.of_run(directory.locate(str(folder / "private")))
    assert shown is not None and "promised" in shown.figures[0].caption


def test_audits_that_cannot_be_meant_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(folder / "plain"), "--confidence", "95"]) == 2
    assert "0.5 or more" in capsys.readouterr().err
    assert main(["audit", str(folder / "plain"), "--split", "test", "--step", "last"]) in (0, 1)
