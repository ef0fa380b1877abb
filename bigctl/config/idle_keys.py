"""Keys that are set and do nothing, or hardly what was meant, though nothing is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator

from bigctl.config import schema
from bigctl.config.schema import Config


def notes(config: Config) -> Iterator[str]:
    """A sentence on each, as far as the configuration alone tells; `engine.doubts` tells what data do besides."""
    if config.train.adversarial.warmup and not config.train.adversarial.eps:
        yield "train.adversarial.warmup has nothing to grow: train.adversarial.eps is 0, no image is moved"
    norm = getattr(config.model, "norm", None)
    if config.train.accumulate > 1 and norm == "batch":
        yield "batch normalisation sees each of the train.accumulate parts by itself, not the whole batch"
    if norm == "frozen" and config.model.init_from is None:
        yield (
            "model.norm=frozen keeps the statistics that pretrained weights bring, and there are none: nothing is "
            "normalised; model.norm=batch is for weights drawn at random"
        )
    augment: schema.Augment | None = getattr(config.recipe, "augment", None)
    yield from (f"recipe.augment.{found}" for found in (augment.idle if augment is not None else ()))
