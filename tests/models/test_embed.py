"""Rows of a table, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.models import embed

VOCAB = 300


@pytest.mark.parametrize("count", [1, 2, 31, 1000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_added_in_order_are_the_sum_of_the_rows_of_each_token(count: int, dtype: jnp.dtype) -> None:
    tokens = jax.random.randint(jax.random.key(count), (count,), 0, VOCAB)
    rows = jax.random.normal(jax.random.key(1), (count, 4), dtype)
    wanted = np.zeros((VOCAB, 4))
    np.add.at(wanted, np.asarray(tokens), np.asarray(rows, np.float64))
    np.testing.assert_allclose(embed._add_in_order(VOCAB, tokens, rows), wanted, atol=1e-5)


def test_parts_of_a_batch_are_added_up_each_for_itself() -> None:
    tokens = jax.random.randint(jax.random.key(0), (4, 64), 0, VOCAB)
    rows = jax.random.normal(jax.random.key(1), (4, 64, 8))
    parts = [jax.vmap(partial(add, VOCAB))(tokens, rows) for add in (embed._add_in_order, embed._add_rows)]
    np.testing.assert_allclose(*parts, atol=1e-5)


@pytest.mark.parametrize("rows", [embed.embed, embed.look_up])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_gpu_that_is_asked_for_a_fixed_order_has_the_same_gradient(
    rows: Callable[..., jax.Array], shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a table too large for a product with one-hot rows, and texts of one batch."""
    table = jax.random.normal(jax.random.key(0), (2 * embed._ONE_HOT, 4))
    tokens = jax.random.randint(jax.random.key(1), (4, 50), 0, len(table)).at[:, :9].set(7)  # one often
    scale = jax.random.normal(jax.random.key(2), (4, 50, 4))
    wanted = jax.grad(lambda table: (table[tokens] * scale).sum())(table)
    asked: list[int] = []

    def in_order(*given: jax.Array, add: Callable[..., jax.Array] = embed._add_in_order) -> jax.Array:
        asked.append(1)
        return add(*given)

    monkeypatch.setattr(embed, "_add_in_order", in_order)
    for name, value in (("platform_in_use", "gpu"), ("deterministic_in_use", True), ("shards_in_use", shards)):
        monkeypatch.setattr(embed.meshes, name, lambda value=value: value)
    np.testing.assert_allclose(jax.grad(lambda table: (rows(table, tokens) * scale).sum())(table), wanted, atol=1e-5)
    assert asked
