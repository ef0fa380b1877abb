"""Promises of `bigctl.config.checks`: what cannot work is refused before anything starts, by key, with a remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bigctl.config import schema
from bigctl.config.checks import check, key_problems
from bigctl.config.schema import Bounds, Config, Problem, key, steps_of, walk_config
from bigctl.errors import ConfigError
from tests.config.checking import INF, NAN, config, refused


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_a_sound_configuration_passes():
    check(config(), {})
    check(config(recipe=schema.MlpCls(), model=schema.Mlp(hidden=[]), data=schema.Csv(path="x", label="y")), {})


@pytest.mark.parametrize(
    ("dotted", "values"),
    [
        ("optimizer__lr", [0.0, -1e-3, NAN, INF]),
        ("optimizer__weight_decay", [-0.1, NAN]),
        ("optimizer__clip", [0.0, -1.0]),
        ("optimizer__b1", [1.0, -0.1]),
        ("optimizer__b2", [1.0, 1.5]),
        ("train__steps", [0, -5]),
        ("train__epochs", [0.0, -1.0]),
        ("train__batch_size", [0, -1]),
        ("train__accumulate", [0]),
        ("train__log_every", [0]),
        ("train__steps_per_dispatch", [0]),
        ("train__ema", [1.0, -0.5]),
        ("train__precision", ["float16"]),
        ("train__early_stop__patience", [0]),
        ("train__early_stop__min_delta", [-1.0]),
        ("train__divergence__policy", ["ignore"]),
        ("train__divergence__deviations", [0.0, -1.0]),
        ("train__divergence__window", [1]),
        ("train__divergence__limit", [0]),
        ("checkpoint__keep", [0]),
        ("checkpoint__every", ["", "soon", "0", "1.5 steps", "-1 epoch", "1e999"]),
        ("eval__every", ["0 epochs", "two"]),
        ("eval__batch_size", [0]),
        ("eval__mode", ["best"]),
        ("schedule__warmup", [-1.0]),
        ("schedule__horizon", [0]),
        ("schedule__final", [-0.1]),
        ("model__dropout", [1.0, -0.1]),
        ("model__channels", [[8, 0]]),
        ("model__hidden", [[-3]]),
        ("model__kernel_size", [0]),
        ("model__pool", [0]),
        ("model__activation", ["rel"]),
        ("model__norm", ["instance"]),
        ("recipe__label_smoothing", [1.0, -0.1]),
        ("recipe__augment__rotate", [-1.0]),
        ("recipe__augment__shift", [-0.1]),
        ("recipe__augment__scale", [1.0]),
        ("recipe__augment__crop", [-1]),
        ("recipe__augment__flip", ["up"]),
        ("recipe__augment__random_resized_crop", [-0.1, 1.5]),
        ("recipe__augment__brightness", [-0.1]),
        ("recipe__augment__contrast", [-0.1]),
        ("recipe__augment__saturation", [-0.1]),
        ("recipe__augment__hue", [0.6]),
        ("recipe__augment__policy", ["autoaugment"]),
        ("recipe__augment__operations", [0]),
        ("recipe__augment__magnitude", [-1.0, 31.0]),
        ("recipe__augment__erase", [1.5]),
        ("recipe__augment__erase_area", [0.01, 1.0]),
        ("recipe__augment__erase_fill", ["white"]),
        ("recipe__augment__mixup", [-0.1]),
        ("recipe__augment__cutmix", [-0.1]),
        ("recipe__augment__mix", [1.1]),
        ("recipe__augment__repeats", [0]),
        ("recipe__augment__center_crop", [0.0, 1.1]),
        ("recipe__loss", ["hinge"]),
        ("recipe__class_weights", ["even", [1, -1], [1, "a"], [0, 0], 3, {"a": 1}, [NAN, 1]]),
        ("data__validation_fraction", [0.0, 1.0]),
        ("data__test_fraction", [0.0, 1.5]),
        ("data__image_size", [[32], [8, 0], [8, 8, 3]]),
        ("data__split_seed", [-1, 2**32]),
        ("seed", [-1, 2**32, 10**400]),
        ("mesh__dcn", [0, -2]),
        ("mesh__data", [0, -2]),
        ("mesh__fsdp", [0, -2]),
        ("mesh__tensor", [0, -2]),
        ("mesh__context", [0, -2]),
    ],
)
def test_values_out_of_range_are_refused_by_key(dotted, values):
    for value in values:
        error = refused(config(**{dotted: value}), dotted.replace("__", r"\."))
        assert error.hint


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"train__steps": None, "train__epochs": None}, "length of training is not given", "train.epochs=N"),
        ({"train__batch_size": 10, "train__accumulate": 4}, "train.accumulate=4 does not divide", "divisor"),
        ({"schedule__warmup": 101.0}, "schedule.warmup=101 is longer than training .100 steps", "fraction"),
        ({"schedule__warmup": 20.0, "schedule__horizon": 10}, "longer than training .10 steps", "fraction"),
        ({"recipe": schema.MlpCls()}, "model=cnn needs images, recipe=mlp_cls reads tables", "recipe=cnn_cls"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, "both -1", "number"),
        ({"mesh__data": 1, "mesh__tensor": 2}, "mesh.tensor is for .* model=cnn has none", "mesh=fsdp"),
        ({"mesh__data": 1, "mesh__context": 2}, "mesh.context is for .* model=cnn has none", "mesh=fsdp"),
        ({"mesh__data": 3, "train__batch_size": 8}, "cannot be divided evenly over 3 devices", "train.batch_size=6"),
        (
            {"mesh__data": 4, "train__batch_size": 8, "train__accumulate": 4},
            "batch_size=8 in 4 parts cannot be divided evenly over 4 devices",
            "train.batch_size=16",
        ),
        ({"train__batch_size": 1, "recipe__augment__mixup": 0.2}, "mixup mixes .* a batch of 1 does not", "even"),
        (
            {"train__batch_size": 12, "train__accumulate": 4, "recipe__augment__cutmix": 1.0},
            "cutmix mixes .* a batch of 12 in 4 parts does not",
            "even",
        ),
        (
            {"train__batch_size": 8, "recipe__augment__repeats": 8, "recipe__augment__mixup": 1.0},
            "a batch of 8 with 8 of each does not",
            "even",
        ),
        ({"train__batch_size": 10, "recipe__augment__repeats": 4}, "cannot hold each example 4 times", "multiple"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(changed, message, hint):
    refused(config(**changed), message, hint)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (schema.Jsonl(path="x", label="y", separator=";"), "data.separator is for csv and tsv"),
        (schema.Jsonl(path="x", label=None, tokens="w", tags="t", group="who"), "data.group is not for sentences"),
        (schema.Parquet(path="x", label="y", missing=["-"]), "data.missing is for files of text"),
        (schema.Parquet(path="x", label="y", quoting=False), "data.quoting is for files of text"),
        (schema.Parquet(path="x", label="y", image="i", image_size=[5]), r"data.image_size cannot be \[5\]"),
        (schema.Parquet(path="x", label="y", image="i", image_size=[5, 0]), "data.image_size cannot be 0"),
        (schema.ImageFolder(path="x", split="part"), "data.split is of a file of labels"),
        (schema.ImageFolder(path="x", labels_file="f.csv", encoding="latin-9999"), "no encoding 'latin-9999'"),
        (schema.Conll(path="x", encoding="rot13"), "no encoding 'rot13'"),
        (schema.TextFiles(path="x", encoding="a\0b"), "no encoding"),
    ],
)
def test_keys_that_a_kind_of_data_has_no_use_for_are_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        check(config(data=data), {}, only="data.")


@pytest.mark.parametrize(
    "changed",
    [
        {"train__steps": None, "train__epochs": 0.5},
        {"train__batch_size": 12, "train__accumulate": 4},
        {"schedule__warmup": 100.0},
        {"schedule__warmup": 0.5},
        {"model": schema.Mlp()},
        {"mesh__data": 4, "train__batch_size": 8, "train__accumulate": 2},
        {"recipe__class_weights": [0, 1.5]},
        {"recipe__class_weights": "balanced"},
        {"recipe__class_weights": None},
        {"optimizer__clip": None},
        {"data__image_size": [1, 2]},
        {"seed": 2**32 - 1},
        {"eval__every": "0.5 epochs", "checkpoint__every": "1e3"},
    ],
)
def test_the_edges_of_what_is_allowed_pass(changed):
    check(config(**changed), {})


def test_the_hint_for_a_batch_size_is_a_batch_size_that_passes():
    for batch, parts, devices in [(8, 1, 3), (8, 4, 4), (1, 1, 8), (96, 2, 7)]:
        made = config(train__batch_size=batch, train__accumulate=parts, mesh__data=devices)
        hint = str(refused(made, "divided evenly").hint)
        check(dataclasses.replace(made, train=dataclasses.replace(made.train, batch_size=int(hint.split("=")[1]))), {})


def test_simulated_devices_are_counted(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    check(config(train__batch_size=16), {})
    refused(config(train__batch_size=12), "evenly over 8 devices", "train.batch_size=8")
    refused(config(train__batch_size=15, mesh__fsdp=3), "8 devices cannot be shared evenly by 3", "divisor")
    check(config(train__batch_size=12, mesh__data=2, mesh__fsdp=2), {})


@pytest.mark.parametrize(
    ("given", "tensor", "message"),
    [
        ({"heads": 6}, 4, "model.heads=6 cannot be shared out over mesh.tensor=4"),
        ({"heads": 4, "kv_heads": 2}, 4, "model.kv_heads=2 cannot"),
        ({"heads": 3, "width": 15}, 3, "model.intermediate=40 cannot"),
        ({"heads": 4, "kv_heads": 2}, 2, None),
        ({"heads": None}, 7, None),  # not known yet
    ],
)
def test_what_a_tensor_axis_shares_out_must_be_divisible(given, tensor, message):
    made = config(recipe=schema.GptLm(), data=schema.TextFiles(path="x"), model=schema.Llama(**given), mesh__data=1,
                  mesh__tensor=tensor)  # fmt: skip
    if message:
        refused(made, message, "divisor")
    else:
        check(made, {})


def test_windows_that_a_context_axis_cannot_cut_are_refused_with_what_can(monkeypatch):
    made = config(recipe=schema.GptLm(block=96), data=schema.TextFiles(path="x"), model=schema.Llama(), mesh__data=1,
                  mesh__context=5)  # fmt: skip
    refused(made, "windows of 96 tokens cannot be cut over mesh.context=5", "mesh.context=4, or recipe.block=90")
    check(dataclasses.replace(made, mesh=schema.Mesh(data=1, context=3)), {})
    fits = dataclasses.replace(made, mesh=schema.Mesh(data=1, context=32))
    refused(fits, "over mesh.context=32 devices in two parts each", "mesh.context=24, or recipe.block=64, or")
    check(dataclasses.replace(made, mesh=schema.Mesh(data=1, context=32, context_by="ring")), {})
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=64")
    refused(
        fits, "over mesh.context=32 devices", "mesh.context=16, or recipe.block=64, or"
    )  # as 64 devices divide by it
    hidden = dataclasses.replace(made.train, privacy=schema.Privacy(epsilon=3.0))
    refused(dataclasses.replace(made, train=hidden, mesh=schema.Mesh(data=1, context=3)), "not for train.privacy")


def test_devices_of_the_tensor_axis_see_the_same_examples(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    made = config(recipe=schema.GptLm(), data=schema.TextFiles(path="x"), model=schema.Llama(heads=4), mesh__tensor=4)
    check(dataclasses.replace(made, train=schema.Train(steps=100, batch_size=2)), {})
    refused(dataclasses.replace(made, train=schema.Train(steps=100, batch_size=3)), "evenly over 2 devices")


def test_the_error_tells_where_the_value_was_set():
    made = config(optimizer__lr=-1.0)
    for origin, where in (("command line", "command line"), ("schema", None)):
        with pytest.raises(ConfigError) as caught:
            check(made, {"optimizer.lr": origin})
        assert caught.value.where == where


def test_the_error_names_a_key_that_its_sentence_does_not():
    made = config(optimizer__unfreeze=[4.0, 2.0])
    for origin, where in (("command line", "command line, optimizer.unfreeze"), ("schema", "optimizer.unfreeze")):
        with pytest.raises(ConfigError) as caught:
            check(made, {"optimizer.unfreeze": origin})
        assert caught.value.where == where


def test_every_key_with_choices_is_held_to_them():
    choices = {
        dotted: field.metadata["choices"] for dotted, field, _ in walk_config(config()) if field.metadata["choices"]
    }
    assert {"train.precision", "model.activation", "recipe.augment.flip"} <= set(choices)
    for dotted, allowed in choices.items():
        of_itself = allowed[0] if dotted == "recipe.head" else allowed[-1]  # a probe wants pretrained weights
        if dotted != "train.quantize":  # which fine-tunes a model of dense layers that is there
            check(config(**{dotted.replace(".", "__"): of_itself}), {})
        refused(config(**{dotted.replace(".", "__"): "nothing of the sort"}), f"{dotted} cannot be", allowed[0])


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "rule"),
    [
        ({"gt": 0}, [1e-9], [0, NAN, INF], "above 0"),
        ({"ge": 0}, [0, 7], [-1], "0 or more"),
        ({"ge": 2}, [2], [1], "at least 2"),
        ({"ge": 0, "lt": 1}, [0, 0.99], [1, -0.1], "in [0, 1)"),
        ({"gt": 0, "le": 1}, [1, 0.1], [0, 1.1], "above 0, at most 1"),
        ({"gt": 0, "lt": 1}, [0.5], [0, 1], "between 0 and 1"),
        ({"ge": 0, "le": 2**32 - 1}, [0, 2**32 - 1], [2**32, 10**400, -1], "from 0 to 2^32-1"),
        ({"le": 3}, [3, -5], [4], "at most 3"),
        ({"lt": 3}, [2.9], [3], "below 3"),
    ],
)
def test_bounds_say_what_they_hold(bounds, inside, outside, rule):
    made = Bounds(**bounds)
    assert str(made) == rule
    assert all(value in made for value in inside) and not any(value in made for value in outside)


@dataclass
class Inner:
    rate: float = key(0.5, "A share; null for none.", ge=0, lt=1)


@dataclass
class Own(schema.Model):
    """A component as a plugin has one."""

    kind: str = schema.kind("own")
    sizes: list[int] = key([1], "Sizes of what is inside.", ge=1)
    inner: Inner = key(Inner, "More of them.")

    def check(self, config: Config) -> Iterator[Problem]:
        if len(self.sizes) > config.train.batch_size:
            yield "model.sizes", "model.sizes are too many", "fewer"


def test_components_of_plugins_are_held_to_their_bounds_and_checks():
    check(config(model=Own()), {})
    refused(config(model=Own(sizes=[3, 0])), r"model\.sizes cannot be 0", "at least 1")
    refused(config(model=Own(inner=Inner(rate=1.0))), r"model\.inner\.rate cannot be 1", "in [0, 1), or null for none")
    refused(config(model=Own(sizes=[1] * 999)), "too many", "fewer")
    refused(config(model=schema.Vit(head_dim=0)), r"head_dim cannot be 0", "or null for model.width / model.heads")


def test_defaults_of_all_keys_are_within_their_bounds():
    checked = 0
    for cls in (*schema.components(), Config):
        for dotted, field, _ in schema.walk(cls):
            made = field.default if field.default is not dataclasses.MISSING else field.default_factory()
            assert not [*key_problems(dotted, field, made)] or made == schema.MISSING
            checked += field.metadata["bounds"] is not None
    assert checked > 100


# --- Cadences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("500", 500), (" 500 steps ", 500), ("1 step", 1), ("1e3", 1000), ("2.0 steps", 2), ("1 epoch", 40),
        ("1 ep", 40), ("0.5 epochs", 20), ("2.5epochs", 101), ("0.001 epochs", 1),
    ],
)  # fmt: skip
def test_a_cadence_is_a_number_of_steps(text, steps):
    assert steps_of(text, steps_per_epoch=40.3) == steps


@pytest.mark.parametrize(
    "text", ["", "0", "0 epochs", "-1", "1.5", "1.5 steps", "epoch", "1 minute", "1e999", "1e999 epochs", "nan", "1 2"]
)
def test_what_is_no_cadence_is_refused(text):
    with pytest.raises(ValueError, match="cadence|steps"):
        steps_of(text, steps_per_epoch=40)


def test_whole_numbers_that_cannot_be_counted_are_refused():
    refused(config(train__batch_size=10**12), "train.batch_size cannot be 1000000000000", "below 2^31")
    refused(config(schedule__horizon=2**63), "schedule.horizon cannot be 9223372036854775808")
    refused(config(model__hidden=[10**14]), "model.hidden cannot be 100000000000000")
    refused(config(train__steps=10**5000), "train.steps cannot be a number of more than 30 digits")
    refused(config(model__hidden=[1] * 1001), "model.hidden has 1,001 numbers", "at most 1,000")
    check(config(seed=2**32 - 1, train__batch_size=2**20), {})


@pytest.mark.parametrize("model", [schema.Bert, schema.Lstm, schema.Gpt, schema.Llama])
def test_layers_by_the_million_are_refused(model):
    refused(config(model=model(layers=10**6)), "model.layers cannot be 1000000")


@pytest.mark.parametrize("pattern", ["(" * 5000, "a{99999999999999999999}", "["])
def test_a_pattern_that_is_none_is_refused(pattern):
    refused(config(optimizer__freeze=[pattern]), "is no regular expression")
