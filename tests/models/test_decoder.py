"""Decoders: a token sees those before it alone, and whatever makes them faster or smaller changes no number."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import compose, schema
from bigctl.errors import ConfigError
from bigctl.models import decoder
from bigctl.models.attention import rotated
from bigctl.models.decoder import Decoder

VOCAB = 65
SIZES: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "context": 24}
MODELS: dict[str, schema.Decoder] = {
    "gpt": schema.Gpt(**SIZES),
    "llama": schema.Llama(**SIZES, kv_heads=2),
    "one of all": schema.Gpt(
        **SIZES, kv_heads=1, position="rope", norm="rms", norm_gain=False, activation="relu2", bias=False, tied=False,
        qk_norm=True,
    ),
}  # fmt: skip


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


def abstract(config: schema.Decoder, vocab: int = VOCAB) -> Decoder:
    """Nothing but shapes."""
    return nnx.eval_shape(lambda: Decoder(config, vocab, rngs=rngs()))


def build(config: schema.Decoder, **changes: Any) -> Decoder:
    """With weights large enough for every part to matter; made by numpy, which compiles nothing."""
    config = dataclasses.replace(config, **changes)
    structure, params, rates = nnx.split(abstract(config), nnx.Param, ...)
    draw = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> jax.Array:
        values = 0.15 * draw.normal(size=leaf.shape) + ("scale" in jax.tree_util.keystr(path))
        return jnp.asarray(values, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(drawn, params)
    rates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, config.dropout, leaf.dtype), rates)
    return nnx.merge(structure, params, rates)


def tokens(batch: int = 3, length: int = 20) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, (batch, length)), jnp.int32)


def shapes(model: Decoder) -> dict[str, tuple[int, ...]]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): value.shape for path, value in flat}


@nnx.jit
def logits(model: Decoder, text: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return model.logits(model(text, key=key))


# -------------------------------------------------------------------------------------------------------------- shapes


def test_parameters_are_called_as_documented() -> None:
    found = shapes(abstract(schema.Llama(**SIZES, kv_heads=2, tied=False, bias=True)))
    kernels = {
        "attention/query": (32, 32), "attention/key": (32, 16), "attention/value": (32, 16),
        "attention/output": (32, 32), "gate": (32, 88), "up": (32, 88), "down": (88, 32),
    }  # fmt: skip
    expected = {"token/embedding": (128, 32), "final_norm/scale": (32,), "head/kernel": (32, 128)}
    for i in range(2):
        expected |= {f"layers/{i}/{norm}/scale": (32,) for norm in ("attention_norm", "mlp_norm")}
        expected |= {f"layers/{i}/{name}/kernel": shape for name, shape in kernels.items()}
        expected |= {f"layers/{i}/{name}/bias": shape[1:] for name, shape in kernels.items()}
    assert found == expected
    gpt = shapes(abstract(MODELS["gpt"]))
    assert gpt["position/embedding"] == (24, 32) and gpt["layers/1/up/kernel"] == (32, 128)
    assert {"final_norm/bias", "layers/0/mlp_norm/bias"} < set(gpt) and "head/kernel" not in gpt


@pytest.mark.parametrize(
    "preset, millions",
    [("gpt2", 124.440), ("gpt2_medium", 354.823), ("gpt2_large", 774.030), ("gpt2_xl", 1557.611), ("gpt_nano", 0.804)],
)
def test_presets_have_the_published_numbers_of_parameters(preset: str, millions: float) -> None:
    config = compose.compose(["recipe=gpt_lm", f"model={preset}"]).config.model
    vocab = VOCAB if preset == "gpt_nano" else 50257
    assert isinstance(config, schema.Decoder) and config.layers and config.width

    def count(layers: int) -> int:
        model = abstract(dataclasses.replace(config, layers=layers), vocab)
        return sum(int(np.prod(shape)) for shape in shapes(model).values()) - (model.padded - vocab) * config.width

    one = count(1)  # 48 layers take long, even as shapes
    assert round((one + (config.layers - 1) * (count(2) - one)) / 1e6, 3) == millions


# -------------------------------------------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("name", MODELS)
def test_a_token_is_seen_from_its_place_on(name: str) -> None:
    model, text = build(MODELS[name]), tokens()
    before, after = logits(model, text), logits(model, text.at[:, 11].add(1) % VOCAB)
    np.testing.assert_array_equal(before[:, :11], after[:, :11])
    assert np.abs(before - after)[:, 11:, :VOCAB].max(-1).min() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_texts_of_a_batch_do_not_see_each_other_and_order_matters(name: str) -> None:
    model, text = build(MODELS[name]), tokens()
    np.testing.assert_allclose(logits(model, text)[1:2], logits(model, text[1:2]), atol=1e-4)
    swapped = text.at[:, :2].set(text[:, 1::-1])
    assert np.all(text[:, 0] != text[:, 1])
    assert np.abs(logits(model, text) - logits(model, swapped))[:, -1, :VOCAB].max() > 1e-3


def test_rotated_vectors_tell_distances() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    products = [
        float(jnp.sum(rotated(q, jnp.array([i]), 100.0) * rotated(k, jnp.array([i + 3]), 100.0))) for i in (0, 1, 17)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-4)
    other = float(jnp.sum(rotated(q, jnp.array([0]), 100.0) * rotated(k, jnp.array([4]), 100.0)))
    assert abs(other - products[0]) > 1e-2


def test_normalised_queries_have_no_length() -> None:
    model, text = build(MODELS["one of all"]), tokens()
    before = logits(model, text)
    for layer in model.layers:
        layer.attention.query.kernel[...] *= 3.0
    np.testing.assert_allclose(logits(model, text), before, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("name, batch", [("gpt", 3), ("one of all", 17)])
def test_with_the_cache_as_without(name: str, batch: int) -> None:
    """Prompts of different lengths, then tokens one by one and two by two."""
    model, text = build(MODELS[name]), tokens(batch)
    expected = np.asarray(nnx.jit(lambda m, t: m(t))(model, text))
    extend = nnx.jit(lambda m, *arguments: m.extend(*arguments))
    lengths = np.arange(batch) % 9 + 1
    hidden, cache = extend(model, text[:, :9], model.cache(batch, 24), jnp.zeros(batch, jnp.int32))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(hidden[row, :length], expected[row, :length], atol=2e-4)
    for step in (1, 1, 2, 2, 1):
        places = lengths[:, None] + np.arange(step)
        following = jnp.take_along_axis(text, jnp.asarray(places), axis=1)
        hidden, cache = extend(model, following, cache, jnp.asarray(lengths))
        wanted = np.take_along_axis(expected, places[..., None], axis=1)
        np.testing.assert_allclose(hidden, wanted, atol=2e-4)
        lengths = lengths + step


def test_the_cache_holds_the_shared_heads_alone_in_the_type_of_the_model() -> None:
    graphdef, state = nnx.split(build(MODELS["llama"]))
    cache = nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)).cache(3, 24)
    assert [{name: (a.shape, a.dtype) for name, a in layer.items()} for layer in cache] == [
        dict.fromkeys(("key", "value"), ((3, 2, 24, 8), jnp.bfloat16))
    ] * 2


# ------------------------------------------------------------------------------------------------------------- programs


def slopes(model: Decoder, text: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
    structure, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        net = nnx.merge(structure, params, rest)
        return jnp.sum(jnp.sin(net.logits(net(text, key=key))[..., :VOCAB]))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return value, nnx.to_pure_dict(grads)


@pytest.fixture(scope="module")
def plain() -> tuple[jax.Array, Any]:
    return slopes(build(MODELS["gpt"], dropout=0.3), tokens(), jax.random.key(3))


@pytest.mark.parametrize("options", [{"remat": "full"}, {"remat": "dots", "scan": True}])
def test_scan_and_remat_change_no_number(options: dict[str, Any], plain: tuple[jax.Array, Any]) -> None:
    value, grads = slopes(build(MODELS["gpt"], dropout=0.3, **options), tokens(), jax.random.key(3))
    np.testing.assert_allclose(value, plain[0], rtol=1e-5)
    # The gradient of the keys' biases is nothing but rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * max(np.abs(b).max(), 0.1)), grads, plain[1])


def test_dropout_is_drawn_from_the_key_alone() -> None:
    model, text = build(MODELS["gpt"], dropout=0.5), tokens()
    plain = build(MODELS["gpt"])
    np.testing.assert_array_equal(logits(model, text), logits(plain, text))
    first = logits(model, text, jax.random.key(0))
    np.testing.assert_array_equal(first, logits(model, text, jax.random.key(0)))
    assert np.abs(first - logits(model, text, jax.random.key(1)))[..., :VOCAB].max() > 0.1
    assert np.abs(first - logits(model, text))[..., :VOCAB].max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_vocabulary_is_never_a_guess_and_never_learned(tied: bool) -> None:
    model = build(MODELS["gpt"], tied=tied)
    assert np.all(logits(model, tokens())[..., VOCAB:] <= -1e29)
    assert (model.vocab_size, model.padded, model.head_kernel().shape) == (VOCAB, 128, (32, 128))
    grads = slopes(model, tokens(), None)[1]
    assert np.all(grads["token"]["embedding"][VOCAB:] == 0) and np.any(grads["token"]["embedding"][:VOCAB] != 0)
    if not tied:
        assert np.all(grads["head"]["kernel"][:, VOCAB:] == 0) and np.any(grads["head"]["kernel"][:, :VOCAB] != 0)


@pytest.mark.parametrize("name", ["gpt", "one of all"])
def test_half_precision_is_finite_and_near(name: str) -> None:
    model, text = build(MODELS[name]), tokens()
    expected = logits(model, text)
    nnx.update(model, jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param)))
    found = logits(model, text)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found[..., :VOCAB], expected[..., :VOCAB], atol=0.1 * np.abs(expected[..., :VOCAB]).max()
    )
    half, grads = slopes(model, text, None)
    assert np.isfinite(float(half))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(grads))


def test_zero_init_adds_nothing_and_guesses_evenly() -> None:
    config = dataclasses.replace(MODELS["one of all"], zero_init=True)
    model, text = nnx.jit(lambda: Decoder(config, VOCAB, rngs=rngs()))(), tokens()
    assert np.all(logits(model, text)[..., :VOCAB] == 0)
    hidden, embedded = nnx.jit(lambda m, t: (m(t), decoder.rms_norm(m.token.embedding[...][t], 1e-5)))(model, text)
    np.testing.assert_allclose(hidden, embedded, rtol=1e-5)


@pytest.mark.parametrize("rows", [50, 2000])
def test_the_gradient_of_an_embedding_is_the_plain_one(rows: int) -> None:
    table = jax.random.normal(jax.random.key(0), (rows, 4))
    text = jnp.asarray(np.random.default_rng(0).integers(0, 50, (3, 40)))
    expected = jax.grad(lambda t: jnp.sum(jnp.sin(t[text])))(table)
    np.testing.assert_allclose(jax.grad(lambda t: jnp.sum(jnp.sin(decoder.embed(t, text))))(table), expected, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"layers": None}, ["model.layers is not given", "init_from"]),
        ({"context": None}, ["model.context is not given"]),
        ({"heads": 5}, ["32 is not divisible by 5 heads"]),
        ({"kv_heads": 3}, ["4 heads", "3 heads of keys and values", "divisor"]),
        ({"vocab": 64}, ["the tokenizer has 65 tokens, the embedding 64", "model.vocab"]),
        ({"heads": 32, "position": "rope"}, ["heads of 1 features", "even"]),
    ],
)
def test_sizes_that_do_not_go_together_are_told_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Decoder(dataclasses.replace(MODELS["gpt"], **changes), VOCAB, rngs=rngs())
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_text_longer_than_the_table_of_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="texts of 25 tokens, the model has 24 positions.*model.context"):
        build(MODELS["gpt"])(tokens(length=25))
    assert nnx.eval_shape(lambda m: m(tokens(length=25)), build(MODELS["llama"])).shape == (3, 25, 32)
