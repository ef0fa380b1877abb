"""LSTM: the numbers of torch, and that neither padding nor company changes what is said of a text."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bigctl.config import schema
from bigctl.models.layers import QuickDropout
from bigctl.models.lstm import LstmClassifier, recur
from bigctl.models.ngram_head import hashed_runs
from tests.parity import cases

VOCAB = 17


def classifier(**options: Any) -> LstmClassifier:
    sizes = {"embedding": 6, "hidden": 5, "layers": 2, "dropout": 0.0}
    return LstmClassifier(schema.Lstm(**{**sizes, **options}), VOCAB, 3, rngs=nnx.Rngs(params=jax.random.key(0)))


@nnx.jit
def logits(model: LstmClassifier, *columns: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return model(*columns, key=key)


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): value.shape for path, value in flat}


def texts(length: int = 9) -> tuple[jax.Array, jax.Array, jax.Array]:
    lengths = np.array([9, 1, 5, 7, 0])
    tokens = np.random.default_rng(0).integers(1, VOCAB, (5, length)) * (np.arange(length) < lengths[:, None])
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths), jnp.asarray(lengths)


@pytest.mark.parametrize("name", cases.LSTM)
def test_states_logits_and_gradients_are_those_of_torch(name: str) -> None:
    cases.assert_lstm_agrees(cases.LSTM[name], cases.load(name))


@pytest.mark.parametrize("pool", schema.LSTM_POOLS)
def test_more_padding_changes_nothing(pool: str) -> None:
    model, (tokens, lengths, second) = classifier(pool=pool), texts()
    longer = jnp.pad(tokens, ((0, 0), (0, 6)), constant_values=7)  # whatever it is filled with
    expected = logits(model, tokens, lengths, second)
    np.testing.assert_allclose(logits(model, longer, lengths, second), expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).min() > 1e-2  # the texts are told apart


def test_company_and_order_of_texts_are_irrelevant() -> None:
    model, columns = classifier(), texts()
    expected = logits(model, *columns)
    turned = logits(model, *(column[::-1] for column in columns))[::-1]
    alone = jnp.concatenate([logits(model, *(column[i : i + 1] for column in columns)) for i in range(5)])
    np.testing.assert_allclose(turned, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", schema.LSTM_POOLS)
def test_last_token_read_backwards_is_the_last_real_one(pool: str) -> None:
    """Turning a text around and swapping the directions of a one-layer model swaps the halves of its vector."""
    model = classifier(layers=1, pool=pool)
    tokens, lengths, second = texts()
    turned = jnp.stack([jnp.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(tokens, lengths, strict=True)])
    swapped = classifier(layers=1, pool=pool)
    (layer,), (other,) = model.layers, swapped.layers
    for name in ("input_kernel", "recurrent_kernel", "bias"):
        getattr(other.forward, name)[...] = getattr(layer.backward, name)[...]
        getattr(other.backward, name)[...] = getattr(layer.forward, name)[...]
    swapped.head.kernel[...] = jnp.roll(model.head.kernel[...], 5, axis=0)
    expected = logits(model, tokens, lengths, second)
    np.testing.assert_allclose(logits(swapped, turned, lengths, second), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(logits(model, turned, lengths, second) - expected).max() > 1e-2


@pytest.mark.parametrize(("pool", "dtype"), [("last", "float32"), ("mean", "bfloat16"), ("max", "bfloat16")])
def test_texts_of_no_or_one_token_give_finite_gradients(pool: str, dtype: str) -> None:
    structure, params, rest = nnx.split(classifier(pool=pool, dropout=0.3, layers=1), nnx.Param, ...)
    tokens, short = texts()[0], jnp.asarray([0, 1, 1, 0, 0])

    @jax.jit
    def gradient(params: Any) -> Any:
        def loss(params: Any) -> Any:
            out = nnx.merge(structure, params, rest)(tokens, short, short, key=jax.random.key(0))
            return jnp.square(out.astype(jnp.float32)).sum(), out

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, out), grads = gradient(jax.tree.map(lambda p: p.astype(dtype), params))
    assert out.dtype == dtype
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in [out, *jax.tree.leaves(grads)])


def test_bfloat16_is_near_float32() -> None:
    model, columns = classifier(), texts()
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    half = nnx.merge(structure, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), rest)
    expected = logits(model, *columns)
    np.testing.assert_allclose(logits(half, *columns), expected, atol=0.05 * np.abs(expected).max())


def test_gradient_of_the_loop_is_that_of_autodiff() -> None:
    draw = np.random.default_rng(0)
    time, batch, hidden = 6, 4, 3
    projected, states = draw.normal(size=(time, batch, 4 * hidden)), draw.normal(size=(time, batch, hidden))
    kernel = jnp.asarray(draw.normal(size=(hidden, 4 * hidden)), jnp.float32)
    real = jnp.asarray(draw.random((time, batch)) < 0.7)  # gaps too, not only padding at the end

    def plain(projected: Any, kernel: Any) -> Any:
        def step(carry: Any, now: Any) -> Any:
            (h, c), (added, here) = carry, now
            i, f, g, o = jnp.split(added + h @ kernel, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            h, c = jnp.where(here[:, None], new_h, h), jnp.where(here[:, None], new_c, c)
            return (h, c), h

        zeros = jnp.zeros((batch, hidden))
        return lax.scan(step, (zeros, zeros), (projected, real))[1]

    def gradients(function: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda p, k: jnp.sum(function(p, k) * states), (0, 1)))(
            jnp.asarray(projected, jnp.float32), kernel
        )

    ours, autodiff = gradients(lambda p, k: recur(p, k, real)), gradients(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, autodiff)


def test_kernel_has_its_gradient_outside_of_the_loop() -> None:
    """One product over all steps at once, and none of its shape in the body of a loop."""
    batch, time, hidden = 4, 6, 3
    shapes = [(time, batch, 4 * hidden), (hidden, 4 * hidden)]
    arguments = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    real = jnp.ones((time, batch), bool)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p, k: recur(p, k, real).sum(), (0, 1)))(*arguments)

    def products(jaxpr: Any) -> list[tuple[int, ...]]:
        return [e.outvars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "dot_general"]

    bodies = [e.params["jaxpr"].jaxpr for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan"]
    assert products(jaxpr.jaxpr) == [(hidden, 4 * hidden)]
    assert sorted(sum(map(products, bodies), [])) == [(batch, hidden), (batch, 4 * hidden)]


# --------------------------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("bidirectional", [False, True])
def test_parameters_have_the_documented_paths(bidirectional: bool) -> None:
    expected = {"embedding/embedding": (VOCAB, 6), "head/kernel": (10 if bidirectional else 5, 3), "head/bias": (3,)}
    for i, inputs in enumerate([6, 10 if bidirectional else 5]):
        for direction in ("forward", "backward") if bidirectional else ("forward",):
            place = f"layers/{i}/{direction}"
            expected |= {f"{place}/input_kernel": (inputs, 20), f"{place}/recurrent_kernel": (5, 20)}
            expected |= {f"{place}/bias": (20,)}
    assert shapes(classifier(bidirectional=bidirectional)) == expected


def test_forget_gates_start_open() -> None:
    (layer, _) = classifier().layers
    np.testing.assert_array_equal(layer.backward.bias[...].reshape(4, 5).mean(axis=1), [0, 1, 0, 0])


def test_dropout_is_drawn_only_with_a_key() -> None:
    columns = texts()
    exact, model = logits(classifier(), *columns), classifier(dropout=0.5)
    np.testing.assert_array_equal(logits(model, *columns), exact)
    first, again, other = (logits(model, *columns, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - exact).max() > 1e-2 and np.abs(first - other).max() > 1e-2


# ---------------------------------------------------------------------------------------------------- runs beside it


def filled(**options: Any) -> LstmClassifier:
    model = classifier(ngrams=3, ngram_rows=5000, ngram_scale=2.0, **options)
    model.head.ngrams[...] = jax.random.normal(jax.random.key(1), (5000, 3))
    return model


def test_logits_are_the_mean_of_those_of_the_lstm_and_of_its_runs() -> None:
    """Each distinct run has a row, the same wherever it stands; the sum is divided by the root of their number."""
    model, plain, (tokens, lengths, second) = filled(ngram_share=0.25), classifier(), texts()
    mean, deep = np.asarray(logits(model, tokens, lengths, second)), np.asarray(logits(plain, tokens, lengths, second))
    added = (mean - 0.75 * deep) / 0.25
    table, row = np.asarray(model.head.ngrams[...]), {}
    expected = np.zeros_like(added)
    for text, length, found in zip(np.asarray(tokens), lengths.tolist(), expected, strict=True):
        runs = [tuple(text[i : i + n].tolist()) for n in (1, 2, 3) for i in range(length - n + 1)]
        for run in runs:
            alone = jnp.asarray([run])
            if run not in row:
                rows, real = hashed_runs(alone, jnp.asarray([len(run)]), 3, len(table))
                row[run] = int(rows[0][np.flatnonzero(real[0])[-1]])
            found += 2.0 * table[row[run]] / np.sqrt(len(runs))
    np.testing.assert_allclose(added, expected, rtol=1e-4, atol=1e-5)
    assert len(set(row.values())) > 0.98 * len(row) > 30


def test_apart_are_the_logits_of_the_lstm_and_of_its_runs() -> None:
    """The loss of either teaches that one alone, however good the other is."""
    model, plain, columns = filled(ngram_share=0.25), classifier(), texts()
    deep, wide = model.apart(*columns)
    np.testing.assert_allclose(deep, logits(plain, *columns), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(wide, logits(filled(ngram_share=1.0), *columns), rtol=1e-5, atol=1e-5)
    for part in (0, 1):
        square = nnx.grad(lambda model, part=part: jnp.sum(jnp.square(model.apart(*columns)[part] - 1)))
        flat = nnx.to_flat_state(nnx.state(nnx.jit(square)(model), nnx.Param))
        taught = {"/".join(map(str, path)): bool(np.abs(leaf[...]).max() > 0) for path, leaf in flat}
        assert taught == {name: (name == "head/ngrams") == (part == 1) for name in taught} and len(taught) > 5


def test_the_lstm_reads_a_window_and_runs_are_of_the_whole_text() -> None:
    tokens, lengths, second = texts()
    begun, cut = tokens[:, :4], jnp.minimum(lengths, 4)
    assert (lengths > 4).any()
    deep, wide = filled(window=4).apart(tokens, lengths, second)
    np.testing.assert_allclose(deep, logits(classifier(), begun, cut, second), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(wide, filled().apart(tokens, lengths, second)[1])
    model = filled(window=4)
    looked_up = model(tokens, lengths, second, vectors=model.look_up(tokens))
    np.testing.assert_allclose(looked_up, logits(model, tokens, lengths, second), rtol=1e-5, atol=1e-5)


def test_padding_and_dropout_of_runs() -> None:
    model, (tokens, lengths, second) = filled(ngram_share=1.0), texts()
    longer = jnp.pad(tokens, ((0, 0), (0, 6)), constant_values=7)
    expected = logits(model, tokens, lengths, second)
    np.testing.assert_allclose(logits(model, longer, lengths, second), expected, rtol=1e-5, atol=1e-5)

    leaves_out = filled(dropout=0.5, ngram_share=1.0)
    leaves_out.dropout = QuickDropout(0.0)  # of what the LSTM reads and says
    leaves_out.head.kernel[...] = 0 * leaves_out.head.kernel[...]
    drawn = jnp.stack([logits(leaves_out, tokens, lengths, second, key=jax.random.key(i)) for i in range(400)])
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.5)
    assert len(np.unique(np.asarray(drawn[:, 0]), axis=0)) > 100


def test_runs_are_spread_over_the_rows() -> None:
    """At least as many different rows as balls thrown at random would hit, for pairs of 300 tokens."""
    pairs = np.stack(np.meshgrid(np.arange(300), np.arange(300)), -1).reshape(-1, 2)
    rows, _ = hashed_runs(jnp.asarray(pairs), jnp.full(len(pairs), 2), 2, 131072)
    assert len(np.unique(np.asarray(rows)[:, 2])) > 0.98 * 131072 * (1 - np.exp(-90000 / 131072))


def test_tags_have_no_part_of_runs() -> None:
    model = LstmClassifier(schema.Lstm(ngrams=3), VOCAB, 3, per_token=True, rngs=nnx.Rngs(0))
    assert shapes(model).keys() == shapes(classifier(layers=1)).keys()
