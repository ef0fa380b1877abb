"""Operations are counted as by hand: loops by their length, branches by the platform, convolutions by their taps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bigctl.planning import flops

ONE = 2 * 8**3
SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def count(function, *arguments, platform: str = "cpu") -> flops.Flops:
    return flops.count(jax.jit(function).trace(*arguments).jaxpr, platform)


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    assert count(loop, SQUARE).total == 5 * ONE
    assert count(jax.grad(lambda x: loop(x).sum()), SQUARE).total == 15 * ONE


def test_of_branches_that_of_the_platform_counts() -> None:
    def chosen(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x @ x)

    assert count(chosen, SQUARE).total == ONE
    assert count(chosen, SQUARE, platform="gpu").total == count(chosen, SQUARE, platform="tpu").total == 2 * ONE


def test_of_other_branches_the_longest_counts() -> None:
    found = count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x), SQUARE)
    assert found.total == 2 * ONE


def test_what_is_computed_again_to_save_memory_counts_again() -> None:
    def f(x):
        return jnp.tanh(jnp.tanh(x @ x) @ x).sum()

    once, again = (count(jax.value_and_grad(g), SQUARE).total for g in (f, jax.checkpoint(f)))
    assert (once, again) == (6 * ONE, 8 * ONE)


def test_rows_of_groups_count_once_each_forward_and_twice_backward() -> None:
    def product(x, groups):
        return jax.lax.ragged_dot(x, groups, jnp.array([3, 5], jnp.int32)).sum()

    groups = jax.ShapeDtypeStruct((2, 8, 7), jnp.float32)
    assert count(product, SQUARE, groups).total == 2 * 8 * 8 * 7
    assert count(jax.value_and_grad(product, argnums=(0, 1)), SQUARE, groups).total == 3 * 2 * 8 * 8 * 7


def test_loops_of_unknown_length_are_told() -> None:
    found = count(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), SQUARE)
    assert found.untold == 1 and found.total == ONE


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_both_its_gradients_take_the_same(stride: int) -> None:
    x, w = jax.ShapeDtypeStruct((4, 17, 17, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), jnp.float32)

    def conv(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        return (jax.lax.conv_general_dilated(x, w, (stride, stride), "VALID", dimension_numbers=layout) ** 2).sum()

    one = 2 * 4 * (15 if stride == 1 else 8) ** 2 * 5 * 9 * 3
    assert count(conv, x, w).by == {"convolution": one}
    assert count(jax.grad(conv, argnums=(0, 1)), x, w).total == 3 * one


def test_what_nothing_needs_is_not_counted() -> None:
    @jax.jit
    def two(x):
        return x @ x, x @ x @ x

    assert count(lambda x: two(x)[0], SQUARE).total == ONE
