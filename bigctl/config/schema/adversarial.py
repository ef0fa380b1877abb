"""Keys of adversarial training: how far training images are moved against the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigctl.config.schema.base import Problem, Whole, key

METHODS = ("pgd", "fast", "trades")


@dataclass
class Adversarial:
    """Images are moved within a ball around each so that the model has them wrong, and it is trained on these."""

    eps: float = key(0.0, "How far, of pixels from 0 to 1: 0.0314 is 8 of 255; 0 for no such training.", ge=0)
    norm: str = key("linf", "How that is measured: each pixel by itself (linf), or all together (l2).",
                    choices=("linf", "l2"))  # fmt: skip
    method: str = key(
        "pgd", "Several steps (Madry et al. 2018); fast, one from a random start (Wong et al. 2020); or trades, the "
        "loss of the images and how far the model's answer moves (Zhang et al. 2019).", choices=METHODS,
    )  # fmt: skip
    steps: int = key(7, "Of pgd and trades, for each batch; training takes as many times longer.", ge=1, le=1000)
    warmup: int = key(
        0, "Over how many steps eps grows to its value; with a large one at once a new model may not begin to learn.",
        ge=0,
    )  # fmt: skip
    beta: float = key(6.0, "Of trades, what the second part counts.", gt=0)

    def problems(self, config: Whole) -> Iterator[Problem]:
        """What of these keys does not go together with the rest of an experiment."""
        place = "train.adversarial"
        if not self.eps:
            return
        recipe = config.recipe
        if recipe.inputs != "images" or recipe.whole_batch:
            what = f"{place} moves the pixels of images, recipe={recipe.kind} trains on none"
            yield f"{place}.eps", what, f"leave out {place}.eps, or use recipe=cnn_cls"
        elif self.norm == "linf" and self.eps > 1:
            what = f"{place}.eps={self.eps:g} lets an image be any other: pixels go from 0 to 1"
            yield f"{place}.eps", what, f"of pixels from 0 to 255 it is {place}.eps={self.eps / 255:.4g}"
        if config.train.steps is not None and self.warmup > config.train.steps:
            yield f"{place}.warmup", *self.warmup_problem(config.train.steps)
        augment = getattr(recipe, "augment", None)
        if augment is not None and augment.mixes:
            name = "mixup" if augment.mixup else "cutmix"
            yield (
                f"{place}.eps",
                f"{place} is for images of one class each, {name} mixes them",
                (f"leave out recipe.augment.{name}"),
            )

    def warmup_problem(self, total: int) -> tuple[str, str]:
        """What to say of a warmup that is longer than the training, and the remedy."""
        message = f"eps grows over {self.warmup:,} steps and would not reach {self.eps:g} in a training of {total:,}"
        return message, f"train.adversarial.warmup={total // 2}{' or less' * (total > 1)}, or train longer"
