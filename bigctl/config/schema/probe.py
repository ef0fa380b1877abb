"""Keys of the recipe that solves for the head of a pretrained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.augment import Augment
from bigctl.config.schema.base import Problem, Whole, key, kind
from bigctl.config.schema.recipes import NEW, ImageCls


@dataclass
class Probe(ImageCls):
    """Logistic regression on the features of a pretrained model, which are computed once."""

    implementation: ClassVar[str] = "bigctl.recipes.probe:ProbeTask"
    whole_batch: ClassVar[bool] = True
    taught: ClassVar[bool] = False
    kind: str = kind("probe")
    costs: list[float] = key(
        [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3], "How much a mistake costs beside the size of the weights "
        "(scikit-learn's C); each step is the solution for one of them, validation chooses among them.", gt=0,
    )  # fmt: skip
    iterations: int = key(100, "Steps of L-BFGS for each solution at most.", ge=1)

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if config.model.init_from is None:
            what = f"recipe=probe reads the features of pretrained weights, model={config.model.kind} has none"
            yield "model.init_from", what, "choose model=lite0_pretrained, or give model.init_from=RUN"
        if self.augment != Augment():
            yield "recipe.augment", "recipe=probe computes features once, of pictures as they are", "leave it out"
        if self.head != NEW:
            yield "recipe.head", "recipe=probe solves for its head, whatever it begins as", "leave it out"
        if config.optimizer.unfreeze:
            yield "optimizer.unfreeze", "recipe=probe trains the head alone, and solves for it", "leave it out"
        if not self.costs:
            yield "recipe.costs", "recipe.costs names no cost", "for example recipe.costs=[0.003]"
        for name, usual in (("precision", "float32"), ("accumulate", 1), ("ema", 0.0)):
            if getattr(config.train, name) != usual:
                what = f"recipe=probe solves for its weights, train.{name} is not for that"
                yield f"train.{name}", what, "leave it out"
