"""What canaries prove is true as often as it says. A training without privacy is found out, one with it is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import bigctl
from bigctl.cli.main import main
from bigctl.engine import privacy
from bigctl.errors import ConfigError
from bigctl.inference import audit, canaries
from bigctl.reports import trust
from bigctl.runs import directory
from tests import small


def reference(count: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Term by term, as appendix D of the paper has it."""
    heads = 1 / (1 + math.exp(-epsilon))
    most, total = 0.0, 0.0
    for i in range(1, right + 1):
        total += stats.binom.pmf(right - i, guesses, heads)
        most = max(most, total / i)
    return min(1.0, stats.binom.sf(right - 1, guesses, heads) + 2 * count * delta * most)


@pytest.mark.parametrize(
    "count,guesses,right", [(1000, 100, 75), (100, 100, 75), (500, 500, 500), (50, 9, 1), (50, 9, 0)]
)
def test_probabilities_are_those_of_the_paper(count: int, guesses: int, right: int) -> None:
    for epsilon, delta in ((0.0, 0.0), (math.log(3), 0.0), (1.0, 1e-4), (3.0, 1e-5)):
        expected = reference(count, guesses, right, epsilon, delta)
        assert canaries.p_value(count, guesses, right, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert canaries.p_value(100, 100, 75, math.log(3), 0) == pytest.approx(0.553, abs=1e-3)  # as printed there


def test_the_bound_is_where_the_probability_is_what_was_asked() -> None:
    found = canaries.lower_bound(1000, 100, 90, 1e-5, 0.05)
    assert canaries.p_value(1000, 100, 90, found, 1e-5) == pytest.approx(0.05, rel=1e-6) and 1.5 < found < 2.2
    assert canaries.lower_bound(1000, 100, 50, 1e-5, 0.05) == 0
    assert canaries.lower_bound(500, 500, 500, 1e-5, 0.005) == pytest.approx(4.5, abs=0.05)  # as the docs say
    assert canaries.lower_bound(100, 100, 100, 1e-5, 0.005) == pytest.approx(2.9, abs=0.1)


def test_where_nothing_is_proven_the_most_guesses_are_told() -> None:
    rng = np.random.default_rng(0)
    found = canaries.proven(rng.random(200), rng.random(200) < 0.5, 1e-5, 0.95)
    assert found.epsilon == 0 and found.guesses == 200 and 70 < found.right < 130


@pytest.mark.parametrize("true", [0.0, 1.0])
def test_a_mechanism_of_known_epsilon_is_not_proven_worse(true: float) -> None:
    """Randomised response tells each coin with e^epsilon / (1 + e^epsilon), which is all that epsilon allows."""
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        inside = rng.random(1000) < 0.5
        told = inside ^ (rng.random(1000) > 1 / (1 + math.exp(-true)))
        found.append(canaries.proven(told + rng.random(1000) / 10, inside, 1e-6, 0.95).epsilon)
    assert sum(each > true for each in found) <= 10  # P(Binomial(100, 0.05) > 10) = 0.01
    assert np.median(found) >= 0.6 * true


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain training that learns its canaries by heart, and a private one."""
    found = tmp_path_factory.mktemp("canaries")
    rng = np.random.default_rng(0)
    rows = {f"x{place}": rng.normal(size=1200).round(3) for place in range(20)}
    small.write(found / "rows.csv", {**rows, "kind": np.where(sum(rows.values()) > 0, "a", "b")})
    keys = ["recipe=mlp_cls", "data=csv", f"data.path={found / 'rows.csv'}", "data.label=kind", "model.dropout=0"]
    keys += ["model.hidden=[128]", "train.ema=0", "optimizer.lr=0.02", "schedule=constant", "checkpoint.best=false"]
    keys += ["train.steps=200", "train.batch_size=64", "train.privacy.canaries=300", "train.tensorboard=false"]
    bigctl.train(keys, found / "plain", quiet=True)
    bigctl.train([*keys, "train.privacy.epsilon=1", "train.privacy.accountant=rdp"], found / "private", quiet=True)
    return found


def test_a_run_without_privacy_is_found_out_and_a_promise_holds(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def audited(name: str, code: int = 0) -> dict:
        capsys.readouterr()
        assert main(["audit", str(folder / name), "--step", "last", "--json"]) == code
        return json.loads(capsys.readouterr().out)

    plain, private = audited("plain"), audited("private")
    assert plain["canaries"]["epsilon"] > 0.5 and plain["canaries"]["count"] == 300
    assert plain["members"] + plain["canaries"]["count"] == 972  # canaries are no members
    assert private["canaries"]["epsilon"] <= private["promise"]["epsilon"] <= 1 and private["holds"]
    assert private["canaries"]["inside"] == plain["canaries"]["inside"]
    monkeypatch.setattr(privacy, "spent", lambda *_: {"epsilon": 0.2, "delta": 1e-5})
    assert not audited("plain", code=1)["holds"]  # who promises that has not kept it
    assert main(["audit", str(folder / "plain"), "--step", "last"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN" in said and "by 300 canaries, 1" in said
    monkeypatch.setattr(audit, "LEAST", 5000)  # more than there are: canaries need no others
    few = audited("plain", code=1)
    assert few["proven"] is None and not few["attacks"] and few["canaries"] == plain["canaries"]
    shown = trust.of_run(directory.locate(str(folder / "plain")))
    assert shown is not None and "too few examples; by 300 canaries" in shown.figures[0].caption


def test_canaries_where_there_is_no_place_for_them_are_refused(folder: Path, tmp_path: Path) -> None:
    own = ["recipe=mlp_cls", "data=csv", f"data.path={folder / 'rows.csv'}", "train.privacy.canaries=500"]

    def said(*words: str) -> str:
        with pytest.raises(ConfigError) as error:
            bigctl.train([*words, "train.steps=2"], tmp_path / "run", quiet=True)
        return str(error.value)

    assert "500 canaries are more than half of the 972 training examples" in said(*own, "data.label=kind")
    assert "train.federated" in said(*own, "data.label=kind", "train.federated.clients=4")
    assert "with a label each" in said("recipe=gpt_lm", "train.privacy.canaries=5")
    assert "one class each" in said(*own, "data.label=x0", "model.head=regression")
