"""What a run starts from: the architecture that pretrained weights have, and its data. Free of jax."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bigctl.config import schema
from bigctl.data import prepare
from bigctl.data.dataset import Dataset
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.text import tokenization
from bigctl.errors import ConfigError


def resolve(config: schema.Config) -> schema.Config:
    """The configuration with what `model.init_from` decides of the model's architecture.

    Raises:
        ConfigError, DataError: where that cannot be found or read, or says otherwise.
    """
    if config.model.init_from is None:
        return config
    from bigctl.interop import sources

    return dataclasses.replace(config, model=sources.fill_architecture(config.model))


def prepare_data(config: schema.Config, stored: Path | None = None) -> Dataset:
    """The data of an experiment, texts as tokens; `stored` is the tokenizer.json that a run has already."""
    return prepare.prepare(
        config.data,
        regression=config.is_regression,
        tokenizer=tokenizer_spec(config, stored),
        stored=stored,
        batches=batch_options(config),
    )


def batch_options(config: schema.Config) -> BatchOptions:
    """What an experiment says about batches of texts."""
    options = BatchOptions(config.block or 0, config.train.batch_size)
    bucketing = getattr(config.recipe, "bucketing", None)
    if bucketing is None:
        return options
    return dataclasses.replace(options, shapes=bucketing.shapes, window=bucketing.window)


def tokenizer_spec(config: schema.Config, stored: Path | None = None) -> tokenization.Spec | None:
    """The tokenizer of an experiment's recipe, None without one; `stored` as for `prepare_data`."""
    settings = config.tokenizer
    if settings is None:
        return None
    if stored is not None and stored.is_file() and settings.type in ("pretrained", "file"):
        return tokenization.Spec(settings, stored)
    if settings.type != "pretrained" or config.model.init_from is None:
        return tokenization.spec(settings)
    from bigctl.interop import sources

    source = sources.locate_source(config.model.init_from)
    if source.tokenizer is None:
        raise ConfigError(
            f"{config.model.init_from} has no tokenizer",
            where="model.init_from",
            hint="give recipe.tokenizer.type=file recipe.tokenizer.path=...",
        )
    return tokenization.spec(settings, (source.tokenizer, source.lowercase))
