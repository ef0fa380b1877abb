"""What of an experiment does nothing, or hardly what was meant, though nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.data.augmentation import policies
from bigctl.data.dataset import Features


def notes(config: Config, features: Features) -> Iterator[str]:
    """Sentences on keys without effect, and on changes of pictures that leave little of them."""
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
    if augment is None:
        return
    yield from (f"recipe.augment.{found}, does nothing here" for found in augment.idle)
    if augment.policy == schema.TRIVIALAUGMENT:
        height, width = features.shape[:2]
        moves = int(policies.ranges(augment.policy, height, width).translate[0])
        if min(height, width) <= moves // 2:
            yield (
                f"recipe.augment.policy=trivialaugment moves pictures by up to {moves} pixels, which leaves nothing of "
                f"many of {height}x{width}; randaugment goes by their size"
            )
