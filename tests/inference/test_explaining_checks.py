"""Promises of `bigctl explain` for prompts, of `--check` and of `--nearest`."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import bigctl
from bigctl.cli.main import main
from bigctl.inference.explaining import explain, faithfulness
from bigctl.inference.explaining.faithfulness import Units
from bigctl.inference.explaining.language import LanguageExplainer
from bigctl.inference.explaining.neighbours import with_nearest
from bigctl.inference.trained import TrainedRun
from tests import small

pytestmark = pytest.mark.fewer

PROMPT = "It was night 7, and"
GPT = ["recipe=gpt_lm", "data=text", "recipe.tokenizer.type=characters", "recipe.block=32", "model.layers=1"]
GPT += ["model.width=32", "model.heads=2", "train.steps=2", "train.batch_size=8", "train.tensorboard=false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `small` (a table)."""
    return small.trained(tmp_path_factory)


@pytest.fixture(scope="module")
def writer(folder: Path) -> TrainedRun:
    """The run `writer` beside it (a language model)."""
    where = folder
    text = where / "book.txt"
    text.write_text("".join(f"It was night {n}, and the sea was calm.\n" for n in range(200)))
    if not (where / "runs" / "writer").exists():
        bigctl.train([*GPT, f"data.path={text}"], where / "runs" / "writer", quiet=True)
    found = TrainedRun.load(str(folder / "runs" / "writer"))
    return found.with_params(jax.tree.map(lambda p: 3 * p, found.params))  # hardly trained, it would tell little


@pytest.mark.slow
def test_a_prompt_is_explained_by_what_the_model_says_next(writer: TrainedRun) -> None:
    explainer = LanguageExplainer(writer)
    (found,) = explainer.explain([PROMPT])
    ids = jnp.asarray([explainer.tokenizer.encode(PROMPT).ids], jnp.int32)
    logits = writer.model.logits(writer.model(ids))[0, -1]
    chances = np.asarray(jax.nn.log_softmax(logits), np.float64)
    attribution, values = found.attribution, found.attribution.values
    assert attribution.output.number == chances.argmax()
    assert attribution.score == pytest.approx(chances.max(), abs=1e-4)
    assert found.prediction["probability"] == pytest.approx(np.exp(chances.max()), rel=1e-4)
    assert values.sum() == pytest.approx(attribution.score - attribution.baseline_score, abs=1e-3)
    assert abs(values).max() > 0.01 and attribution.completeness <= 1e-3
    assert "".join(PROMPT[p.start : p.end] for p in found.pieces) == PROMPT

    (rough,) = explainer.explain([PROMPT], "gradient_x_input", "t")
    number, vectors = explainer.tokenizer.token_to_id("t"), writer.model.token.embedding[...][ids]

    def score(factor: float) -> float:
        """Where the vector of the fourth token is so many times as long."""
        longer = vectors.at[0, 3].multiply(factor)
        return float(jax.nn.log_softmax(writer.model.logits(writer.model(ids, vectors=longer))[0, -1])[number])

    assert rough.attribution.values[3] == pytest.approx((score(1.02) - score(0.98)) / 0.04, abs=2e-3)


@pytest.mark.slow
def test_prompts_that_cannot_be_explained(
    writer: TrainedRun, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for arguments, said in (
        (["--text", PROMPT, "--class", "two"], "'two' is 3 tokens"),
        (["--split", "test"], "a language model is asked about a prompt"),
        (["--text", PROMPT, "--method", "rollout"], "one of: integrated_gradients"),
        (["--text", PROMPT, "--nearest", "2"], "--nearest"),
    ):
        assert main(["explain", "writer", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") <= 2, error
    assert main(["explain", "writer", "--text", "It was " * 10, "--json"]) == 0
    assert "its last 64 tokens" in json.loads(capsys.readouterr().out)["notes"][0]


# --------------------------------------------------------------------------------------------------------------- checks


class Planted:
    """An answer that is the sum of what each of six parts adds, and an explainer that says so, or says nonsense."""

    worth = np.array([3.0, 2.0, 1.0, -1.0, -2.0, 0.5])

    def __init__(self, values: np.ndarray):
        self.values = values

    def units(self, example: object, method: str, output: object) -> Units:
        return Units(self.values, lambda kept: kept @ self.worth)

    def randomised(self) -> Planted:
        return Planted(np.array([1.0, 2, 3, 4, 5, 6]))


def explanations(folder: Path, count: int) -> tuple[explain.Explainer, explain.Given, list[explain.Explanation]]:
    trained = TrainedRun.load(str(folder / "runs" / "small"))
    explainer = explain.explainer_of(trained, rows=10)
    given = explain.of_split(trained, "test", count)
    return explainer, given, explain.explain(trained, explainer, given)


def test_areas_of_a_sum_are_known(folder: Path) -> None:
    _, given, found = explanations(folder, 3)
    told = faithfulness.check(Planted(Planted.worth), given.inputs, found)
    down = np.concatenate([[3.5], 3.5 - np.cumsum([3, 2, 1, 0.5, -1, -2])])  # the strongest are left out first
    up = np.concatenate([[0], np.cumsum([3, 2, 1, 0.5, -1, -2])])
    for name, curve in (("deletion", down), ("insertion", up)):
        assert told[name]["area"] == pytest.approx(((curve[1:] + curve[:-1]) / 2).mean())
        assert told[name]["gain"] > 1 and told[name]["interval"][0] > 0
    wanted = stats.spearmanr(Planted.worth, np.arange(6)).statistic
    assert told["randomised"]["rank_correlation"] == pytest.approx(wanted)
    wrong = faithfulness.check(Planted(-Planted.worth), given.inputs, found)
    assert wrong["deletion"]["gain"] < -1 and wrong["insertion"]["gain"] < -1


def test_ranks_are_those_of_scipy() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 5, 40).astype(float), draw.normal(size=40)
    wanted = stats.spearmanr(first, second).statistic
    assert faithfulness.rank_correlation(first, second) == pytest.approx(wanted)
    assert faithfulness.rank_correlation(np.zeros(40), second) is None


def test_the_check_of_a_run_finds_its_explanations_better_than_chance(folder: Path) -> None:
    explainer, given, found = explanations(folder, 8)
    told = faithfulness.check(explainer, given.inputs, found)
    assert told["examples"] == 8 and told["deletion"]["gain"] > 0 and told["insertion"]["interval"][0] > 0
    again = faithfulness.check(explainer, given.inputs, found)
    assert told == again and len(faithfulness.sentences(told)) == 4
    other = explainer.randomised()
    assert not np.allclose(other.trained.predict(given.inputs), explainer.trained.predict(given.inputs), atol=1e-3)


def test_a_training_example_is_nearest_to_itself(folder: Path) -> None:
    trained = TrainedRun.load(str(folder / "runs" / "small"))
    given = explain.of_split(trained, "train", 5)
    found = explain.explain(trained, explain.explainer_of(trained, rows=10), given)
    for row, each in enumerate(with_nearest(trained, given.inputs, found, 3)):
        near = each.details["nearest"]
        assert near[0]["cosine"] == pytest.approx(1, abs=1e-5)
        assert near[0]["row"] == row or near[0]["cosine"] - 1e-5 <= near[1]["cosine"]
        assert near[0]["true"] in ("large", "small") and set(near[0]["cells"]) == {"size", "place"}
        assert [one["cosine"] for one in near] == sorted((one["cosine"] for one in near), reverse=True)
