"""Promises of metric directions: they stand with the recipe, plugins add theirs, and none is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest

from bigctl.config import schema
from bigctl.errors import ConfigError


@pytest.mark.parametrize(
    ("recipe", "large", "small"),
    [
        (schema.CnnCls, ["accuracy", "f1", "roc_auc", "map", "macro_f1"], ["loss"]),
        (schema.MlpCls, ["accuracy", "binary_recall"], ["loss", "mse", "mae", "rmse"]),
        (schema.BertMlm, ["accuracy"], ["loss", "perplexity"]),
        (schema.GptLm, ["tokens_per_s", "mfu"], ["loss", "perplexity", "bits_per_byte"]),
    ],
)
def test_every_recipe_says_which_of_its_metrics_should_be_large(
    recipe: type[schema.Recipe], large: list[str], small: list[str]
) -> None:
    for prefix in ("", "val/", "test/", "perf/"):
        assert {recipe.direction(prefix + name) for name in large} == {"max"}
        assert {recipe.direction(prefix + name) for name in small} == {"min"}


def test_a_recipe_adds_to_what_it_derives_from_and_may_say_otherwise() -> None:
    class Own(schema.Classification):
        metrics: ClassVar[Mapping[str, str]] = {"distance": "min", "f1": "min"}

    assert [Own.direction(f"val/{name}") for name in ("distance", "f1", "accuracy")] == ["min", "min", "max"]
    assert schema.Classification.direction("val/distance") is None and schema.known_direction("val/distance") == "min"


def test_an_unknown_direction_is_refused_with_the_key_that_says_it() -> None:
    assert schema.require_direction(schema.GptLm(), "val/bits_per_byte", "eval.mode") == "min"
    with pytest.raises(ConfigError, match="nothing says whether 'val/oddity' should be large or small") as error:
        schema.require_direction(schema.GptLm(), "val/oddity", "sweep.pareto_mode")
    assert error.value.where == "sweep.pareto_mode" and "sweep.pareto_mode=max" in str(error.value.hint)


def test_a_component_of_another_class_is_a_plain_error() -> None:
    assert schema.Classification.require(recipe := schema.CnnCls(), by="mine") is recipe
    with pytest.raises(ConfigError, match="mine does not work with recipe=gpt_lm, which lacks keys that it reads"):
        schema.Classification.require(schema.GptLm(), by="mine")
