"""BERT: the numbers of transformers, and that neither padding nor company changes what is said of a text."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.bert import BertClassifier, BertMaskedLM
from bigctl.models.layers import Hyperparameter, QuickDropout, threefry
from tests.parity import cases

VOCAB = 23


def config(**options: Any) -> schema.Bert:
    sizes = {"layers": 2, "width": 12, "heads": 3, "intermediate": 20, "positions": 16, "dropout": 0.0}
    return schema.Bert(**{**sizes, "attention_dropout": 0.0, **options})


def rngs() -> nnx.Rngs:
    return nnx.Rngs(params=jax.random.key(0))


def classifier(*, spread: float = 0.3, **options: Any) -> BertClassifier:
    """With weights large enough for every part to matter."""
    return _spread(BertClassifier(config(**options), VOCAB, 3, rngs=rngs()), spread)


@nnx.jit
def logits(model: BertClassifier, *columns: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return model(*columns, key=key)


def _spread(model: Any, std: float) -> Any:
    params = nnx.state(model, nnx.Param)
    draw = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda p: p + std * draw.normal(size=p.shape).astype(np.float32), params))
    return model


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): value.shape for path, value in flat}


def texts(length: int = 9) -> tuple[jax.Array, jax.Array, jax.Array]:
    lengths = np.array([9, 1, 5, 7, 0])
    tokens = np.random.default_rng(0).integers(1, VOCAB, (5, length)) * (np.arange(length) < lengths[:, None])
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths), jnp.asarray([4, 1, 5, 3, 0])


# ---------------------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("name", cases.BERT)
def test_classifier_and_its_gradients_are_those_of_transformers(name: str) -> None:
    cases.assert_bert_agrees(cases.BERT[name], cases.load(name))


@pytest.mark.parametrize("name", cases.MASKED_LM)
def test_masked_language_model_and_its_gradients_are_those_of_transformers(name: str) -> None:
    cases.assert_masked_lm_agrees(cases.MASKED_LM[name], cases.load(name))


@pytest.mark.parametrize("pool", schema.POOLS)
def test_more_padding_changes_nothing(pool: str) -> None:
    model, (tokens, lengths, second) = classifier(pool=pool), texts()
    longer = jnp.pad(tokens, ((0, 0), (0, 6)), constant_values=7)  # whatever it is filled with
    real = np.asarray(lengths) > 0
    expected = np.asarray(logits(model, tokens, lengths, second))
    np.testing.assert_allclose(logits(model, longer, lengths, second)[real], expected[real], rtol=1e-5, atol=1e-5)
    assert np.ptp(expected[real], axis=0).min() > 0.1  # the texts are told apart


def packed(lengths: jax.Array, second: jax.Array) -> list[jax.Array]:
    """The same texts in rows of 16 tokens, of three texts each: [9, 0, 5], [7, 1] and none."""
    tokens, rows = np.asarray(texts()[0]), np.full((2, 16), 7)  # padding is whatever it is filled with
    order = [0, 4, 2, 3, 1]
    for row, those in zip(rows, (order[:3], order[3:]), strict=True):
        joined = np.concatenate([tokens[i, : lengths[i]] for i in those])
        row[: len(joined)] = joined
    pad = jnp.zeros(1, lengths.dtype)
    columns = (jnp.concatenate([each[np.array(order)], pad]) for each in (lengths, second))
    return [jnp.asarray(rows, jnp.int32), *columns]


@pytest.mark.parametrize("options", [{"pool": "cls"}, {"pool": "mean"}, {"pooler": True, "scan": True}], ids=str)
def test_texts_that_share_a_row_do_not_see_each_other(options: dict[str, Any]) -> None:
    """Neither in what is said of them nor in the gradients; rows may have more places than the model positions."""
    model, (tokens, lengths, second), order = classifier(positions=9, **options), texts(), np.array([0, 4, 2, 3, 1])
    draw, real = np.random.default_rng(1).normal(size=(5, 3)), (np.asarray(lengths) > 0)[:, None]

    @nnx.jit
    @nnx.grad(has_aux=True)
    def found(model: BertClassifier, columns: list[jax.Array], weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = model(*columns)[: len(weights)]
        return jnp.sum(out * weights), out

    grads, alone = found(model, [tokens, lengths, second], jnp.asarray(draw * real))
    theirs, together = found(model, packed(lengths, second), jnp.asarray((draw * real)[order]))
    back = np.argsort(order)
    np.testing.assert_allclose((together[back] * real), alone * real, rtol=1e-5, atol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", schema.POOLS)
def test_sizes_may_be_symbols_as_where_a_program_is_exported(pool: str) -> None:
    batch, length = jax.export.symbolic_shape("batch, length", constraints=["length <= 16"])
    given = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((batch, length), (batch,), (batch,))]
    traced = jax.jit(classifier(pool=pool)).trace(*given)
    assert traced.out_info.shape == (batch, 3)


def test_company_and_order_of_texts_are_irrelevant() -> None:
    model, columns = classifier(), texts()
    expected = logits(model, *columns)
    turned = logits(model, *(column[::-1] for column in columns))[::-1]
    alone = jnp.concatenate([logits(model, *(column[i : i + 1] for column in columns)) for i in range(5)])
    np.testing.assert_allclose(turned, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pool", "dtype"), [("cls", "bfloat16"), ("mean", "float32"), ("mean", "bfloat16")])
def test_texts_of_no_or_one_token_give_finite_gradients(pool: str, dtype: str) -> None:
    structure, params, rest = nnx.split(
        classifier(pool=pool, dropout=0.1, attention_dropout=0.1, layers=1), nnx.Param, ...
    )
    tokens, _, _ = texts()
    short = jnp.asarray([0, 1, 1, 0, 0])

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
    structure, params, rest = nnx.split(classifier(), nnx.Param, ...)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    exact, near = (logits(nnx.merge(structure, p, rest), *texts()) for p in (params, half))
    np.testing.assert_allclose(near, exact, atol=0.05 * np.abs(exact).max())


def test_second_text_is_told_from_the_first() -> None:
    model, (tokens, lengths, second) = classifier(), texts()
    pairs, whole = (logits(model, tokens, lengths, where) for where in (second, lengths))
    differs = np.abs(pairs - whole).max(axis=1) > 1e-3
    np.testing.assert_array_equal(differs, np.asarray(second < lengths))


# --------------------------------------------------------------------------------------------------------- structure


def test_parameters_have_the_documented_paths() -> None:
    model = BertClassifier(config(layers=1, pooler=True, lora=schema.Lora(rank=2)), VOCAB, 3, rngs=rngs())
    square, layer = (12, 12), "encoder/layers/0"
    expected = {
        "encoder/embeddings/token/embedding": (VOCAB, 12), "encoder/embeddings/position/embedding": (16, 12),
        "encoder/embeddings/segment/embedding": (2, 12),
        "encoder/embeddings/norm/scale": (12,), "encoder/embeddings/norm/bias": (12,),
        f"{layer}/attention_norm/scale": (12,), f"{layer}/attention_norm/bias": (12,),
        f"{layer}/up/kernel": (12, 20), f"{layer}/up/bias": (20,),
        f"{layer}/down/kernel": (20, 12), f"{layer}/down/bias": (12,),
        f"{layer}/output_norm/scale": (12,), f"{layer}/output_norm/bias": (12,),
        "pooler/kernel": square, "pooler/bias": (12,), "head/kernel": (12, 3), "head/bias": (3,),
    }  # fmt: skip
    for name in ("query", "key", "value", "output"):
        expected |= {f"{layer}/attention/{name}/kernel": square, f"{layer}/attention/{name}/bias": (12,)}
    for name in ("query", "value"):
        expected |= {f"{layer}/attention/{name}/lora_a": (12, 2), f"{layer}/attention/{name}/lora_b": (2, 12)}
    assert shapes(model) == expected


def test_masked_language_model_adds_only_what_is_not_tied() -> None:
    model = BertMaskedLM(config(), VOCAB, rngs=rngs())
    assert {name: shape for name, shape in shapes(model).items() if not name.startswith("encoder/")} == {
        "transform/kernel": (12, 12), "transform/bias": (12,), "transform_norm/scale": (12,),
        "transform_norm/bias": (12,), "decoder_bias": (VOCAB,),
    }  # fmt: skip


def test_bert_base_has_its_published_number_of_parameters() -> None:
    sizes = {"layers": 12, "width": 768, "heads": 12, "intermediate": 3072, "positions": 512, "vocab": 30522}
    model = nnx.eval_shape(lambda: BertClassifier(schema.Bert(pooler=True, **sizes), 30522, 2, rngs=rngs()))
    body = {name: math.prod(shape) for name, shape in shapes(model).items() if not name.startswith("head/")}
    assert sum(body.values()) == 109_482_240


def test_new_weights_are_drawn_as_those_of_bert() -> None:
    model = BertClassifier(config(width=48, intermediate=64), 500, 3, rngs=rngs())
    flat = {"/".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    for name, value in flat.items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(value, 1)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(value, 0)
        else:
            assert 0.015 < np.std(value) < 0.025, name


@pytest.mark.parametrize(
    ("options", "vocab", "message"),
    [
        ({"heads": 5}, VOCAB, "a width of 12 is not divisible by 5 heads"),
        ({"vocab": 20}, VOCAB, "the tokenizer has 23 tokens, the embedding 20 rows"),
        ({"layers": None}, VOCAB, "model.layers is not given"),
        ({"lora": schema.Lora(rank=2, targets=["query", "keys"])}, VOCAB, "no layer is called 'keys'"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(options: dict[str, Any], vocab: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BertClassifier(config(**options), vocab, 3, rngs=rngs())


def test_texts_longer_than_the_positions_are_refused() -> None:
    ones = jnp.ones((1,), jnp.int32)
    with pytest.raises(ConfigError, match="texts of 17 tokens, the model has 16 positions"):
        classifier()(jnp.ones((1, 17), jnp.int32), ones, ones)


# ----------------------------------------------------------------------------------------------------- dropout, LoRA


def test_dropout_is_drawn_only_with_a_key() -> None:
    columns = texts()
    exact = logits(classifier(), *columns)
    for rates in ({"dropout": 0.5}, {"attention_dropout": 0.5}):
        model = classifier(**rates)
        np.testing.assert_array_equal(logits(model, *columns), exact)
        first, again, other = (logits(model, *columns, key=jax.random.key(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - exact).max() > 1e-2 and np.abs(first - other).max() > 1e-2
    np.testing.assert_array_equal(logits(classifier(), *columns, key=jax.random.key(0)), exact)


def test_threefry_is_that_of_its_authors_and_of_jax() -> None:
    known = threefry(jnp.uint32([0x13198A2E, 0x03707344]), jnp.uint32(0x243F6A88), jnp.uint32(0x85A308D3))
    assert [int(word) for word in known] == [0xC4923A9C, 0x483DF7A0]  # the vectors published with Random123
    key, count = jax.random.key(7, impl="threefry2x32"), jnp.arange(5, dtype=jnp.uint32)
    a, b = threefry(jax.random.key_data(key), jnp.zeros_like(count), count)
    np.testing.assert_array_equal(a ^ b, jax.random.bits(key, (5,)))


def test_four_activations_of_a_row_share_a_block_of_threefry() -> None:
    """The same in a program, and of several keys at once."""
    keys, x = jax.random.split(jax.random.key(3), 2), jnp.ones((3, 2, 5))
    found = jax.jit(jax.vmap(lambda key: QuickDropout(0.4)(x, key)))(keys)
    for key, masked in zip(keys, found, strict=True):
        count = jnp.arange(9, dtype=jnp.uint32).reshape(3, 3)
        a, b = (np.asarray(word) for word in threefry(jax.random.key_data(key), jnp.zeros_like(count), count))
        bits = np.concatenate([a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16], axis=1)[:, :10].reshape(x.shape)
        np.testing.assert_array_equal(np.asarray(masked) > 0, bits < round(0.6 * 65536))


@pytest.mark.parametrize("last", [128, 3])
def test_masks_have_the_rate_and_no_pattern(last: int) -> None:
    """Shares kept overall, of each position in the last dimension, and of neighbours together: all as independent."""
    shape = (512 * 128 // last, last)
    kept = np.asarray(QuickDropout(0.3)(jnp.ones(shape), jax.random.key(0))) > 0
    assert np.mean(kept) == pytest.approx(0.7, abs=0.01)
    assert np.abs(kept.mean(axis=0) - 0.7).max() < 5 * (0.21 / shape[0]) ** 0.5
    for pairs in (kept[:, 1:] & kept[:, :-1], kept[1:] & kept[:-1]):
        assert pairs.mean() == pytest.approx(0.49, abs=0.015)
    scaled = QuickDropout(0.3)(jnp.full(shape, 7.0), jax.random.key(0))
    np.testing.assert_allclose(np.unique(scaled), [0, 10], rtol=1e-6)


def test_rates_are_arguments_of_the_compiled_step() -> None:
    model = classifier(dropout=0.1, attention_dropout=0.2)
    rates = nnx.to_flat_state(nnx.state(model, Hyperparameter))
    keys = {v.get_metadata()["key"]: float(v[...]) for _, v in rates}
    assert keys == {"model.dropout": pytest.approx(0.1), "model.attention_dropout": pytest.approx(0.2)}


def test_adaptation_starts_at_the_weights_as_they_are() -> None:
    plain = BertClassifier(config(), VOCAB, 3, rngs=rngs())
    adapted = BertClassifier(config(lora=schema.Lora(rank=4)), VOCAB, 3, rngs=rngs())
    nnx.update(adapted, nnx.state(plain, nnx.Param))
    np.testing.assert_allclose(logits(adapted, *texts()), logits(plain, *texts()), rtol=1e-6, atol=1e-7)


def test_adaptation_is_a_change_of_the_kernels() -> None:
    """Adding lora_a @ lora_b * alpha / rank to the kernels gives the same, for every layer that can be adapted."""
    targets = ["query", "key", "value", "output", "up", "down"]
    lora = schema.Lora(rank=2, alpha=3.0, targets=targets)
    adapted = classifier(lora=lora)
    changed = dict(nnx.to_flat_state(nnx.state(adapted, nnx.Param)))
    before = classifier()
    merged = {path: changed[path][...] for path, _ in nnx.to_flat_state(nnx.state(before, nnx.Param))}
    for path in [path for path in changed if path[-1] == "lora_a"]:
        a, b = changed[path][...], changed[(*path[:-1], "lora_b")][...]
        merged[(*path[:-1], "kernel")] += a @ b * (3.0 / 2)
    assert sum(path[-1] == "lora_a" for path in changed) == len(targets) * 2
    for path, value in nnx.to_flat_state(nnx.state(before, nnx.Param)):
        value[...] = merged[path]
    np.testing.assert_allclose(logits(adapted, *texts()), logits(before, *texts()), rtol=1e-4, atol=1e-5)
    assert np.abs(logits(adapted, *texts()) - logits(classifier(), *texts())).max() > 0.1
