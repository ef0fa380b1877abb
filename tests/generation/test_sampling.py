"""Rules of sampling keep the tokens that they say, and the choice has the odds that the logits say."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.errors import ConfigError
from bigctl.generation import sampling
from bigctl.generation.options import GenerationOptions

PROBABILITIES = [0.4, 0.3, 0.2, 0.06, 0.04]
LOGITS = jnp.log(jnp.array([PROBABILITIES]))


def kept(logits: jax.Array) -> list[int]:
    return np.flatnonzero(np.isfinite(np.asarray(logits)[0])).tolist()


@pytest.mark.parametrize(("k", "left"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])])
def test_top_k_keeps_the_likeliest(k: int, left: list[int]) -> None:
    assert kept(sampling.top_k(LOGITS, k)) == left


@pytest.mark.parametrize(
    ("p", "left"),
    [(1e-50, [0]), (1e-6, [0]), (0.39, [0]), (0.41, [0, 1]), (0.69, [0, 1]), (0.71, [0, 1, 2]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_fewest_that_reach_it(p: float, left: list[int]) -> None:
    assert kept(sampling.top_p(LOGITS, p)) == left


@pytest.mark.parametrize(("p", "left"), [(1.0, [0]), (0.7, [0, 1]), (0.14, [0, 1, 2, 3]), (0.0, [0, 1, 2, 3, 4])])
def test_min_p_is_relative_to_the_likeliest(p: float, left: list[int]) -> None:
    assert kept(sampling.min_p(LOGITS, p)) == left


def test_ties_stay_together_and_signs_are_in_order() -> None:
    logits = jnp.array([[-1.0, 0.0, -0.0, 2.0, 2.0, -3.0, -jnp.inf]])
    assert kept(sampling.top_k(logits, 1)) == [3, 4]
    assert kept(sampling.top_k(logits, 5)) == [0, 1, 2, 3, 4]
    assert kept(sampling.top_k(logits, 7)) == [0, 1, 2, 3, 4, 5]


def test_rows_are_cut_by_themselves() -> None:
    logits = jnp.log(jnp.array([PROBABILITIES, PROBABILITIES[::-1]]))
    found = np.isfinite(np.asarray(sampling.top_p(logits, 0.6)))
    assert found.tolist() == [[True, True, False, False, False], [False, False, False, True, True]]


def test_repetition_makes_less_likely_whatever_the_sign() -> None:
    seen = jnp.array([[True, True, False, False]])
    found = sampling.repetition_penalty(jnp.array([[2.0, -2.0, 2.0, -2.0]]), seen, 2.0)
    assert np.asarray(found).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_choice_has_the_odds_of_the_softmax() -> None:
    settings = GenerationOptions(temperature=1.0, top_k=3)
    count = 20_000
    logits = jnp.tile(LOGITS, (count, 1))
    keys = sampling.row_keys(0, jnp.arange(count))
    chosen = sampling.choose(logits, jnp.zeros((count, 0), bool), keys, sampling.rule_values(settings))
    share = np.bincount(np.asarray(chosen), minlength=5) / count
    np.testing.assert_allclose(share, [4 / 9, 3 / 9, 2 / 9, 0, 0], atol=0.015)  # four standard deviations
    colder = dataclasses.replace(settings, temperature=0.5)
    chosen = sampling.choose(logits, jnp.zeros((count, 0), bool), keys, sampling.rule_values(colder))
    share = np.bincount(np.asarray(chosen), minlength=5) / count
    np.testing.assert_allclose(share, [16 / 29, 9 / 29, 4 / 29, 0, 0], atol=0.015)


def test_no_temperature_is_the_likeliest_token() -> None:
    settings = GenerationOptions(temperature=0, top_k=2, top_p=0.1, repetition_penalty=3.0)
    assert settings.rules == ("repetition_penalty",)
    logits = jnp.array([[1.0, 3.0, 2.0]])
    numbers, keys = sampling.rule_values(settings), sampling.row_keys(0, jnp.arange(1))
    assert int(sampling.choose(logits, jnp.array([[False, False, False]]), keys, numbers)[0]) == 1
    assert int(sampling.choose(logits, jnp.array([[False, True, False]]), keys, numbers)[0]) == 2


def test_randomness_of_a_row_is_its_own() -> None:
    keys = jax.random.key_data(sampling.at(sampling.row_keys(5, jnp.array([3, 4])), jnp.int32(7)))
    alone = jax.random.key_data(sampling.at(sampling.row_keys(5, jnp.array([4])), jnp.int32(7)))
    np.testing.assert_array_equal(keys[1], alone[0])
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("num_samples", 0),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", "end"),
    ],
)
def test_value_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="out of range") as error:
        GenerationOptions(**{name: value})
    assert error.value.where == name


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e-3])
def test_a_temperature_near_zero_takes_the_likeliest(temperature: float) -> None:
    numbers = sampling.rule_values(GenerationOptions(temperature=temperature))
    logits = jnp.array([[50.0, -3.0, 51.0, 0.0]])
    keys = sampling.row_keys(0, jnp.arange(1))
    assert sampling.choose(logits, jnp.zeros((1, 0), bool), keys, numbers).tolist() == [2]


@pytest.mark.parametrize("penalty", [0.0, 1e-40, 1e39, float("nan")])
def test_a_penalty_that_float32_cannot_apply_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        GenerationOptions(repetition_penalty=penalty)
