"""Keys of the models of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.base import STRUCTURAL, key, kind
from bigctl.config.schema.models import MOST_LAYERS, Model

LEAST_PHOTOGRAPH = 64
"""Shorter side from which on images are taken for photographs, whose first layers may shrink them [pixels]."""


@dataclass
class Resnet(Model):
    """Residual networks of convolutions (He et al. 2015)."""

    implementation: ClassVar[str] = "bigctl.models.resnet:Resnet"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^stem/", r"^blocks/(\d+)/")
    kind: str = kind("resnet")
    blocks: list[int] = key(
        [2, 2, 2, 2], "Residual blocks of each stage; each stage has half the size and twice the width of the one "
        "before.", drift=STRUCTURAL, ge=1, le=MOST_LAYERS,
    )  # fmt: skip
    width: int = key(64, "Channels of the stem, and inside of the blocks of the first stage.", drift=STRUCTURAL, ge=1)
    bottleneck: bool = key(
        False, "Blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide outside; else of two of 3x3.",
        drift=STRUCTURAL,
    )  # fmt: skip
    stem: str = key(
        "auto", "First layers: one 3x3 convolution (cifar), or a 7x7 one and a max-pool, which leave a quarter of each "
        "side (imagenet); auto is cifar for images of less than 64 pixels.",
        drift=STRUCTURAL, choices=("auto", "cifar", "imagenet"),
    )  # fmt: skip
    zero_init: bool = key(True, "Start with a factor of zero in the last normalisation of each block.")
    drop_path: float = key(
        0.0, "How often the topmost block is left out of an example in training, those below it less often in "
        "proportion.", traced=True, off=0.0, ge=0, lt=1,
    )  # fmt: skip
    remat: str = key(
        "none", "What is computed anew in the backward pass, to save memory: none, or full for the inside of each "
        "block.", choices=("none", "full"),
    )  # fmt: skip

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"
