"""The loss of a language model in pieces is the plain one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bigctl.recipes.lm_loss import loss_sums

BATCH, LENGTH, WIDTH, PADDED, VOCAB = 3, 10, 8, 128, 50


def case(dtype: Any = jnp.float32) -> tuple[Any, ...]:
    draw = np.random.default_rng(0)
    hidden = jnp.asarray(draw.normal(size=(BATCH, LENGTH, WIDTH)), dtype)
    kernel = jnp.asarray(draw.normal(size=(WIDTH, PADDED)), dtype)
    targets = jnp.asarray(draw.integers(0, VOCAB, (BATCH, LENGTH)), jnp.int32)
    weights = jnp.asarray(draw.integers(0, 3, (BATCH, LENGTH)), jnp.float32)
    return hidden, kernel, targets, weights


def plain(hidden: Any, kernel: Any, targets: Any, weights: Any, z_loss: float) -> Any:
    logits = (hidden @ kernel)[..., :VOCAB]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(weights * (losses + z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))))


@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_pieces_give_the_plain_loss_and_its_gradients(chunk: int | None, z_loss: float) -> None:
    *inputs, targets, weights = case()

    def loss(*inputs: Any) -> Any:
        sums = loss_sums(*inputs, targets, weights, VOCAB, z_loss, chunk)
        return 2 * sums.total, sums

    @jax.jit
    def both(*inputs: Any) -> Any:
        expected = jax.value_and_grad(plain, (0, 1))(*inputs, targets, weights, z_loss)
        found = jax.value_and_grad(loss, (0, 1), has_aux=True)(*inputs)
        undifferentiated = loss_sums(*inputs, targets, weights, VOCAB, z_loss, chunk)
        return expected, found, undifferentiated, plain(*inputs, targets, weights, 0.0)

    (expected, slopes), ((doubled, sums), found), undifferentiated, cross_entropy = both(*inputs)
    np.testing.assert_allclose(doubled, 2 * expected, rtol=1e-5)
    np.testing.assert_allclose(sums.cross_entropy, cross_entropy, rtol=1e-5)
    assert sums.weight == weights.sum()
    np.testing.assert_allclose(undifferentiated, sums, rtol=1e-5)
    for one, other in zip(found, slopes, strict=True):
        np.testing.assert_allclose(one, 2 * other, rtol=1e-4, atol=1e-4)
    assert np.all(found[1][:, VOCAB:] == 0)


def test_no_array_of_all_logits_is_made() -> None:
    """The largest array of a program for a large vocabulary is one piece, or the kernel."""
    batch, length, width, vocab, chunk = 2, 512, 8, 4096, 16
    shapes = [(batch, length, width), (width, vocab), (batch, length), (batch, length)]
    kinds = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True)]

    def loss(hidden: Any, kernel: Any, targets: Any, weights: Any) -> Any:
        return loss_sums(hidden, kernel, targets, weights, vocab, 0.0, chunk).total

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile()
    logits = 4 * batch * length * vocab
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 4


def test_half_precision_is_finite_and_near() -> None:
    *inputs, targets, weights = case(jnp.bfloat16)
    expected = jax.jit(plain)(*(x.astype(jnp.float32) for x in inputs), targets, weights, 0.0)
    loss = jax.value_and_grad(lambda h, k: loss_sums(h, k, targets, weights, VOCAB).total, (0, 1))
    value, slopes = jax.jit(loss)(*inputs)
    np.testing.assert_allclose(value, expected, rtol=2e-2)
    assert [s.dtype for s in slopes] == [jnp.bfloat16] * 2
    assert all(np.isfinite(np.asarray(s, np.float32)).all() for s in slopes)
