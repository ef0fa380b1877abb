"""What a composed configuration must satisfy beyond its types: ranges, and keys that must fit each other.

All of it runs before jax is imported; what only the data or the devices can tell is checked where they are known.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.errors import ConfigError

Origins = Mapping[str, str]
Problem = tuple[str, str, str]
"""Key, what is wrong, what to do."""
LORA_TARGETS = ("query", "key", "value", "output", "up", "down")


def check(config: Config, origins: Origins, *, only: str = "") -> None:
    """Raise ConfigError for the first thing that cannot work, naming the key, its origin and the remedy.

    Args:
        config: what was composed.
        origins: where each value comes from.
        only: check only keys that begin with this, such as "data.", where the rest is incomplete.
    """
    for dotted, field, value in schema.walk_config(config):
        if not dotted.startswith(only):
            continue
        choices = field.metadata.get("choices") or ()
        for each in value if isinstance(value, list) else [value]:
            if choices and each is not None and each not in choices:
                raise _error(origins, dotted, f"{dotted} cannot be {each!r}", f"one of: {', '.join(choices)}")
    for dotted, message, hint in _problems(config):
        if not dotted.startswith(only):
            continue
        raise _error(origins, dotted, message, hint)


def cadence(text: str, *, steps_per_epoch: float) -> int:
    """Steps between events for a cadence such as "500", "500 steps", "1 epoch" or "0.5 epochs"; at least 1.

    Raises:
        ValueError: if it is no such text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(steps?|ep|epochs?)?\s*", str(text))
    if not match or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{text!r} is no cadence")
    number, unit = float(match[1]), match[2] or "step"
    if unit.startswith("step"):
        if number != int(number):
            raise ValueError(f"{text!r} is no whole number of steps")
        return int(number)
    return max(1, round(number * steps_per_epoch))


def _problems(config: Config) -> Iterator[Problem]:
    train, model, recipe = config.train, config.model, config.recipe
    in_unit: Callable[[float], bool] = lambda v: 0 <= v < 1  # noqa: E731
    non_negative: Callable[[float], bool] = lambda v: v >= 0  # noqa: E731
    positive: Callable[[float], bool] = lambda v: v > 0  # noqa: E731

    def bad(dotted: str, fits: Callable[[Any], bool], rule: str) -> Iterator[Problem]:
        node: Any = config
        for name in dotted.split("."):
            node = getattr(node, name, None)
        values = node if isinstance(node, list) else [node]
        for value in values:
            if isinstance(value, int | float) and not (abs(value) < math.inf and fits(value)):
                yield dotted, f"{dotted} cannot be {value}", f"it must be {rule}"

    for dotted in ("optimizer.lr", "optimizer.adam_lr", "train.epochs", "train.steps", "train.batch_size",
                   "train.max_minutes"):  # fmt: skip
        yield from bad(dotted, positive, "above 0")
    for dotted in ("train.accumulate", "train.log_every", "checkpoint.keep", "eval.batch_size"):
        yield from bad(dotted, lambda v: v >= 1, "at least 1")
    for dotted in ("train.early_stop.patience", "train.steps_per_dispatch", "optimizer.iterations", "schedule.horizon"):
        yield from bad(dotted, lambda v: v >= 1, "at least 1")
    yield from bad("train.divergence.deviations", positive, "above 0, or null for none")
    yield from bad("train.divergence.window", lambda v: v >= 2, "at least 2")
    yield from bad("train.divergence.limit", lambda v: v >= 1, "at least 1")
    for dotted in ("optimizer.weight_decay", "schedule.warmup", "schedule.final", "train.early_stop.min_delta"):
        yield from bad(dotted, non_negative, "0 or more")
    for dotted in ("optimizer.eps", "schedule.factor", "model.eps", "model.rope_theta"):
        yield from bad(dotted, positive, "above 0")
    for dotted in ("optimizer.initial_accumulator", "mesh.min_shard", "data.resident_mib"):
        yield from bad(dotted, non_negative, "0 or more")
    yield from bad("schedule.at", lambda v: 0 < v < 1, "fractions of the horizon, between 0 and 1")
    yield from bad("optimizer.clip", positive, "above 0, or null for none")
    for dotted in ("optimizer.momentum", "optimizer.b1", "optimizer.b2", "model.dropout", "train.ema"):
        yield from bad(dotted, in_unit, "in [0, 1)")
    yield from bad("model.attention_dropout", in_unit, "in [0, 1)")
    yield from bad("optimizer.layer_decay", lambda v: 0 < v <= 1, "above 0, at most 1")
    yield from bad("recipe.label_smoothing", in_unit, "in [0, 1)")
    yield from bad("data.validation_fraction", lambda v: 0 < v < 1, "between 0 and 1")
    if config.block is None:
        yield from bad("data.test_fraction", lambda v: 0 < v < 1, "between 0 and 1")
    else:
        yield from bad("data.test_fraction", in_unit, "in [0, 1)")
    yield from bad("schedule.hold", in_unit, "in [0, 1)")
    architecture = ("layers", "width", "heads", "kv_heads", "intermediate", "positions", "context", "vocab")
    for dotted in ("model.hidden", "model.channels", "model.kernel_size", "model.pool", "model.embedding",
                   "data.image_size", *(f"model.{name}" for name in architecture)):  # fmt: skip
        yield from bad(dotted, lambda v: v >= 1, "at least 1")
    yield from bad("seed", lambda v: 0 <= v < 2**32, "from 0 to 2^32-1")
    yield from bad("data.split_seed", lambda v: 0 <= v < 2**32, "from 0 to 2^32-1")
    for dotted in ("recipe.augment.rotate", "recipe.augment.shift", "recipe.augment.crop"):
        yield from bad(dotted, non_negative, "0 or more")
    yield from bad("recipe.augment.scale", in_unit, "in [0, 1)")

    if train.steps is None and train.epochs is None:
        yield "train.steps", "the length of training is not given", "add train.steps=N or train.epochs=N"
    if train.batch_size % train.accumulate:
        yield (
            "train.accumulate",
            f"train.accumulate={train.accumulate} does not divide train.batch_size={train.batch_size}",
            "choose a divisor of the batch size",
        )
    for dotted in ("eval.every", "checkpoint.every"):
        text = getattr(config, dotted.split(".")[0]).every
        try:
            cadence(text, steps_per_epoch=1)
        except ValueError:
            yield dotted, f"{dotted} cannot be {text!r}", "write 500, '500 steps' or '1 epoch'"
    if config.eval.mode not in (None, "min", "max"):
        yield "eval.mode", f"eval.mode cannot be {config.eval.mode!r}", "one of: min, max"
    horizon = config.schedule.horizon or train.steps
    if horizon is not None and config.schedule.warmup > horizon:
        yield (
            "schedule.warmup",
            f"schedule.warmup={config.schedule.warmup:g} is longer than training ({horizon} steps)",
            "shorten the warmup; below 1 it is a fraction of the training",
        )
    if recipe.kind == "cnn_cls" and model.kind in ("mlp",):
        pass  # an MLP on flattened images is a fair baseline
    if recipe.kind == "mlp_cls" and model.kind == "cnn":
        yield "model.kind", "model=cnn needs images, recipe=mlp_cls reads tables", "use recipe=cnn_cls, or model=mlp"
    size = getattr(config.data, "image_size", None)
    if size is not None and len(size) != 2:
        yield "data.image_size", f"data.image_size cannot be {size}", "write [HEIGHT,WIDTH]"
    patch = getattr(model, "patch_size", None)
    if size is not None and patch and any(side % patch for side in size):
        yield "model.patch_size", f"model.patch_size={patch} does not divide data.image_size={size}", "choose a divisor"
    yield from _text_problems(config, bad)
    yield from _mesh_problems(config)
    weights = getattr(recipe, "class_weights", "none")
    listed = isinstance(weights, list) and all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights)
    if weights not in (None, "none", "balanced") and not (listed and any(weights)):
        yield (
            "recipe.class_weights",
            f"recipe.class_weights cannot be {weights!r}",
            "none, balanced, or a list of numbers, 0 or more, such as [1,2]",
        )


def _text_problems(config: Config, bad: Callable[..., Iterator[Problem]]) -> Iterator[Problem]:
    model, tokenizer = config.model, config.tokenizer
    for pattern in config.optimizer.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"{pattern!r} is no regular expression: {error}"
            yield "optimizer.freeze", message, "a plain part of a path will do, such as embeddings"
    if isinstance(model, schema.Bert):
        yield from bad("model.lora.rank", lambda v: v >= 0, "0 or more")
        yield from bad("model.lora.alpha", lambda v: v > 0, "above 0")
        unknown = [name for name in model.lora.targets if name not in LORA_TARGETS]
        if unknown or not model.lora.targets:
            what = f"cannot be {unknown[0]!r}" if unknown else "names no layer"
            yield "model.lora.targets", f"model.lora.targets {what}", f"some of: {', '.join(LORA_TARGETS)}"
        if model.width and model.heads and model.width % model.heads:
            message = f"model.width={model.width} is not divisible by model.heads={model.heads}"
            yield "model.heads", message, "choose a divisor of the width"
    if model.kind not in (None, schema.MISSING):
        yield from _model_problems(config)
    if tokenizer is None:
        return
    yield from bad("recipe.tokenizer.max_length", lambda v: v >= 4, "at least 4")
    yield from _stream_problems(config, bad)
    yield from bad("recipe.tokenizer.size", lambda v: v >= 6, "at least 6")
    yield from bad("recipe.mask_rate", lambda v: 0 < v < 1, "between 0 and 1")
    for dotted in ("recipe.bucketing.shapes", "recipe.bucketing.window"):
        yield from bad(dotted, lambda v: v >= 1, "at least 1")
    if tokenizer.type == "pretrained" and model.init_from is None:
        yield (
            "recipe.tokenizer.type",
            f"recipe.tokenizer.type=pretrained needs pretrained weights, model={model.kind} has none",
            "give model.init_from; or recipe.tokenizer.type=words, bpe, characters, or file with its path",
        )
    if tokenizer.type not in ("pretrained", "file") and model.init_from is not None:
        yield (
            "recipe.tokenizer.type",
            f"recipe.tokenizer.type={tokenizer.type} makes a vocabulary of its own, which the weights do not know",
            "recipe.tokenizer.type=pretrained takes the one that comes with model.init_from",
        )
    if isinstance(config.data, schema.Table) and config.data.text is None:
        yield "data.text", "data.text is not given", "name the column with the text, data.text=COLUMN"
    if tokenizer.type == "file" and not tokenizer.path:
        yield "recipe.tokenizer.path", "recipe.tokenizer.path is not given", "give a vocab.txt or a tokenizer.json"
    if tokenizer.path and tokenizer.type != "file":
        yield (
            "recipe.tokenizer.path",
            f"recipe.tokenizer.path is not used by recipe.tokenizer.type={tokenizer.type}",
            "add recipe.tokenizer.type=file",
        )
    positions = getattr(model, "positions", None)
    if positions and isinstance(tokenizer, schema.Tokenizer) and tokenizer.max_length > positions:
        yield (
            "recipe.tokenizer.max_length",
            f"recipe.tokenizer.max_length={tokenizer.max_length} is more than the model has positions ({positions})",
            f"recipe.tokenizer.max_length={positions} or less",
        )


def _model_problems(config: Config) -> Iterator[Problem]:
    """A model and a recipe that are not for the same kind of data."""
    model, recipe = config.model, config.recipe
    if not _packaged(model):
        return
    reads, writes = isinstance(model, schema.Bert | schema.Lstm), isinstance(model, schema.Decoder)
    if config.block is not None and not writes:
        yield "model.kind", f"model={model.kind} does not write text", "use model=gpt_nano or another gpt or llama"
    elif config.block is None and writes:
        yield "model.kind", f"model={model.kind} writes text, recipe={recipe.kind} does not", "use recipe=gpt_lm"
    elif config.block is None and config.tokenizer is not None and not reads:
        yield "model.kind", f"model={model.kind} does not read text", "use model=lstm or model=minilm"
    elif isinstance(recipe, schema.BertMlm) and isinstance(model, schema.Lstm):
        yield "model.kind", f"recipe=bert_mlm cannot train model={model.kind}", "choose a BERT, such as model=bert_tiny"
    elif config.tokenizer is None and reads:
        yield "model.kind", f"model={model.kind} reads text, recipe={recipe.kind} does not", "use recipe=bert_cls"


def _stream_problems(config: Config, bad: Callable[..., Iterator[Problem]]) -> Iterator[Problem]:
    """What cannot be in a recipe for one long text."""
    model, recipe = config.model, config.recipe
    if not isinstance(recipe, schema.GptLm):
        return
    yield from bad("recipe.block", lambda v: v >= 1, "at least 1, or null for the model's context")
    yield from bad("recipe.loss_chunk", lambda v: v >= 1, "at least 1, or null to choose")
    for dotted in ("recipe.z_loss", "recipe.sample_tokens"):
        yield from bad(dotted, lambda v: v >= 0, "0 or more")
    context = getattr(model, "context", None)
    if recipe.block and context and recipe.block > context:
        message = f"recipe.block={recipe.block} is longer than the model's context ({context})"
        yield "recipe.block", message, f"recipe.block={context} or less, or a larger model.context"
    if recipe.sample_every is not None:
        try:
            cadence(recipe.sample_every, steps_per_epoch=1)
        except ValueError:
            message = f"recipe.sample_every cannot be {recipe.sample_every!r}"
            yield "recipe.sample_every", message, "write 500, '500 steps', '1 epoch', or null for at each evaluation"


def _packaged(component: schema.Component) -> bool:
    return component.implementation.startswith("bigctl.")


def _mesh_problems(config: Config) -> Iterator[Problem]:
    axes = config.mesh.axes
    for name, size in axes.items():
        if size == 0 or size < -1:
            yield f"mesh.{name}", f"mesh.{name} cannot be {size}", "a number of devices, or -1 for all that are left"
            return
    rest = [name for name, size in axes.items() if size == -1]
    if len(rest) > 1:
        which = " and ".join(f"mesh.{name}" for name in rest)
        yield f"mesh.{rest[0]}", f"{which} are both -1", "give all but one of them a number"
        return
    devices = _devices_without_jax()
    fixed = math.prod(size for size in axes.values() if size != -1)
    if rest:
        if devices is not None and devices % fixed:
            yield "mesh.fsdp", f"{devices} devices cannot be shared evenly by {fixed}", "choose a divisor"
            return
        axes[rest[0]] = devices // fixed if devices is not None else 1
    if config.mesh.tensor != 1:
        yield from tensor_problems(config.model, axes["tensor"])
    shards = axes["data"] * axes["fsdp"]
    micro = config.train.batch_size // config.train.accumulate
    if micro % shards:
        part = f"train.batch_size={config.train.batch_size}"
        if config.train.accumulate > 1:
            part += f" in {config.train.accumulate} parts"
        low = max(1, micro // shards) * shards * config.train.accumulate
        yield (
            "train.batch_size",
            f"{part} cannot be divided evenly over {shards} devices",
            f"for example train.batch_size={low}",
        )


def tensor_problems(model: schema.Model, tensor: int) -> Iterator[Problem]:
    """Why the layers of a model cannot be shared out over the `tensor` axis of that size."""
    if not model.shared:
        message = f"mesh.tensor is for models of attention layers, model={model.kind} has none"
        yield "mesh.tensor", message, "mesh=fsdp shares the parameters of any model"
    whole = model.whole() if isinstance(model, schema.Decoder) else model
    for name in model.shared:
        size = getattr(whole, name)
        if size is not None and size % tensor:
            message = f"model.{name}={size} cannot be shared out over mesh.tensor={tensor} devices"
            yield f"model.{name}", message, "choose mesh.tensor as a divisor; mesh.data or mesh.fsdp take the others"


def _devices_without_jax() -> int | None:
    """The number of devices where the environment alone tells it: simulated ones, or a masked GPU list."""
    match = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(match[1]) if match else None


def _error(origins: Origins, dotted: str, message: str, hint: str) -> ConfigError:
    origin = origins.get(dotted)
    return ConfigError(message, where=None if origin in (None, "schema") else origin, hint=hint)


def field_doc(cls: type, name: str) -> str:
    return next((str(f.metadata.get("doc", "")) for f in dataclasses.fields(cls) if f.name == name), "")
