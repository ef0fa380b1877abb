"""What data decides about training with differential privacy: the noise, and whether the budget is enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.data.canaries import Canaries
from bigctl.data.dataset import Dataset
from bigctl.data.layouts import masked, rounds
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError
from bigctl.privacy.accountant import MOST_NOISE, Accountant, noise_for

if TYPE_CHECKING:
    from bigctl.training.programs import Programs

WHERE = "train.privacy"
EPSILON = "privacy/epsilon"
"""The name of what is spent so far, among metrics."""


def settled(config: Config, dataset: Dataset, steps: int, *, rates_differ: bool = False) -> Config:
    """The configuration with its noise, held to its budget; as it is where nothing is promised. Free of jax.

    Args:
        config: of a training of so many `steps`.
        dataset: its data.
        rates_differ: whether steps that are done had batches of another size.

    Raises:
        ConfigError: where these data cannot be drawn one by one, or the budget is too small for the steps.
    """
    private, count, size = config.train.privacy, dataset.size("train"), config.train.batch_size
    if not private.on:
        return config
    if dataset.layout is None or dataset.layout.kind not in masked.KINDS:
        what = "examples that are read while training, or cut out of one text, are not drawn one by one"
        raise ConfigError(what, where=WHERE, hint="use images, tables or texts in memory; data.decoding=memory")
    if size > count and not config.train.federated.on:
        hint = f"train.batch_size={count} or less"
        raise ConfigError(f"{count:,} examples have no batches of {size:,}", where="train.batch_size", hint=hint)
    if rates_differ:
        what = "what is spent is counted by one size of batches, and the run has steps of another"
        raise ConfigError(what, where="train.batch_size", hint="give its own train.batch_size again, or another --name")
    rate = rate_of(config, count)
    if private.noise is None:
        assert private.epsilon is not None
        noise = noise_for(private.epsilon, rate, steps, private.delta, private.accountant)
        if noise is None:
            raise _too_small(private, Accountant(MOST_NOISE, rate, private.delta, private.accountant), steps)
        private = dataclasses.replace(private, noise=noise)
    accountant = Accountant(private.noise or 0.0, rate, private.delta, private.accountant)
    if private.epsilon is not None and accountant.epsilon(steps) > private.epsilon:
        raise _too_small(private, accountant, steps)
    expected = rounds.expected(config.train)
    if private.noise_of_sums(expected) is None:
        what = f"{expected:g} {private.unit}s a step are too few to count those below a quantile with noise="
        hint = f"leave out {WHERE}.quantile, or have more than {10 * (private.noise or 0.0):g} in a step"
        raise ConfigError(f"{what}{private.noise:g}", where=f"{WHERE}.quantile", hint=hint)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, privacy=private))
    recipe = config.recipe
    if isinstance(recipe, schema.ImageCls) and recipe.mean is None:  # else it would be that of the training split
        half = [0.5] * dataset.features.shape[-1]
        config = dataclasses.replace(config, recipe=dataclasses.replace(recipe, mean=half, std=list(half)))
    return config


def planted(config: Config, dataset: Dataset) -> Dataset:
    """The data with the canaries of `train.privacy.canaries`; as it is without such, and where it has them already.
    Free of jax.

    Raises:
        ConfigError: where these data have no place for them.
    """
    count, where = config.train.privacy.canaries, f"{WHERE}.canaries"
    if not count or dataset.canaries is not None:
        return dataset
    target, layout = dataset.features.target, dataset.layout
    if target.kind != CLASS or dataset.streamed or layout is None or layout.kind not in masked.KINDS:
        what = "canaries are examples with one class each, held in memory, and these are none"
        raise ConfigError(what, where=where, hint="leave it out; of pictures data.decoding=memory holds them")
    labels = np.asarray(dataset.splits["train"]["label"])
    if count > len(labels) // 2:
        what = f"{count:,} canaries are more than half of the {len(labels):,} training examples"
        raise ConfigError(what, where=where, hint=f"{len(labels) // 10} or fewer leave the model what to learn")
    drawn = Canaries.drawn(labels, len(target.names), count, config.seed)
    train = drawn.planted(dataset.splits["train"], masked.drawable(layout))
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train}, canaries=drawn)


def _too_small(private: schema.Privacy, accountant: Accountant, steps: int) -> ConfigError:
    assert private.epsilon is not None
    most = accountant.most_steps(private.epsilon, limit=steps)
    fits = f"train.steps={most} fits, and no more" if most else "no step fits"
    what = f"epsilon={private.epsilon:g} is too small for {steps:,} steps with noise={accountant.noise:g}"
    more = "a smaller train.batch_size, a larger train.privacy.noise or epsilon allow more"
    return ConfigError(f"{what}: {fits}", where=f"{WHERE}.epsilon", hint=more)


def rate_of(config: Config, examples: int) -> float:
    """The probability that an example, or a client, takes part in a step."""
    if config.train.privacy.unit == "client":
        draw = rounds.draw_of(config.train)
        return draw.wanted / draw.clients
    return config.train.batch_size / examples


def accountant_of(config: Config, examples: int) -> Accountant | None:
    """The accountant of a settled configuration on so many training examples; None where nothing is promised."""
    private = config.train.privacy
    if private.noise is None:
        return None
    return Accountant(private.noise, rate_of(config, examples), private.delta, private.accountant)


def require_private(config: Config, programs: Programs) -> None:
    """Raises ConfigError where the model or the mesh does not fit what is promised."""
    import jax

    from bigctl.parallel import mesh as meshes

    private = config.train.privacy
    if not private.on:
        return
    if jax.tree.leaves(programs.abstract_state.variables):
        what = f"model={config.model.kind} keeps statistics of batches, as batch normalisation does"
        raise ConfigError(
            f"{what}: an example would count by more than its gradient", where=WHERE,
            hint="choose a model without, such as model=cnn",
        )  # fmt: skip
    shards = meshes.batch_shards(programs.mesh)
    if private.microbatch % shards:
        what = f"train.privacy.microbatch={private.microbatch} cannot be divided evenly over {shards} devices"
        raise ConfigError(what, where=f"{WHERE}.microbatch", hint=f"a multiple of {shards}")


def announcement(config: Config, dataset: Dataset, steps: int) -> Iterator[str]:
    """What is promised and what is not, as sentences."""
    count = dataset.size("train")
    if (planted := dataset.canaries) is not None:
        yield (
            f"canaries: {len(planted.rows):,} training examples have a wrong label; {int(planted.inside.sum()):,} of "
            "them are trained on and the others left out, for bigctl audit"
        )
    accountant = accountant_of(config, count)
    if accountant is None:
        if dataclasses.replace(config.train.privacy, canaries=0) != schema.Privacy():
            yield f"note: nothing is private: {WHERE} has neither epsilon nor noise, and its other keys do nothing"
        return
    spent, unit = accountant.epsilon(steps), config.train.privacy.unit
    count = count if unit == "example" else config.train.federated.clients or 1
    begins = " at first" if config.train.privacy.adapts else ""
    yield (
        f"privacy: epsilon {spent:.4g} at delta {accountant.delta:g} after {steps:,} steps, each with every {unit} at "
        f"probability {accountant.rate:.4g}, clip {config.train.privacy.clip:g}{begins}, noise {accountant.noise:g}"
    )
    if accountant.delta >= 1 / count:
        yield f"note: train.privacy.delta={accountant.delta:g} should be well below 1 / {count:,} {unit}s"
    if dataset.features.encoder:
        yield "note: how columns are encoded, their means and their categories, is of the training split, without noise"
    if config.tokenizer is not None and config.tokenizer.type not in ("pretrained", "file", "gpt2", "bytes"):
        yield (
            "note: the vocabulary is of the training texts, without noise; that of recipe.tokenizer.type=file is not, "
            "and recipe.tokenizer.min_count leaves rare words out"
        )
    if config.model.init_from is not None:
        yield "note: the weights of model.init_from count as public"


def spent(config: Config, dataset: Dataset, steps: int) -> dict[str, Any] | None:
    """What a promise is made of after so many steps, JSON-serialisable; None where nothing is promised."""
    accountant = accountant_of(config, dataset.size("train"))
    if accountant is None:
        return None
    return {**accountant.to_json(steps), "clip": config.train.privacy.clip, "unit": config.train.privacy.unit}
