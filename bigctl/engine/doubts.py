"""What of an experiment does nothing, or hardly what was meant, though nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from bigctl.config import idle_keys, schema
from bigctl.config.schema import Config
from bigctl.data.augmentation import policies
from bigctl.data.dataset import Features


def notes(config: Config, features: Features) -> Iterator[str]:
    """Sentences on keys without effect, and on changes of pictures that leave little of them."""
    yield from idle_keys.notes(config)
    augment: schema.Augment | None = getattr(config.recipe, "augment", None)
    if augment is None:
        return
    size, (height, width) = getattr(config.recipe, "size", None), features.shape[:2]
    if size is not None and not hasattr(config.data, "image_size"):
        yield f"recipe.size={size} is for pictures in files: these stay {height}x{width}"
    if augment.policy == schema.TRIVIALAUGMENT:
        moves = int(policies.ranges(augment.policy, height, width).translate[0])
        if min(height, width) <= moves // 2:
            yield (
                f"recipe.augment.policy=trivialaugment moves pictures by up to {moves} pixels, which leaves nothing of "
                f"many of {height}x{width}; randaugment goes by their size"
            )
