"""Keys of EfficientNet-Lite."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from bigctl.config.schema.base import STRUCTURAL, key, kind
from bigctl.config.schema.models import Model


@dataclass
class EfficientNet(Model):
    """EfficientNet-Lite: inverted bottlenecks without squeeze and excitation (Tan & Le 2019)."""

    implementation: ClassVar[str] = "bigctl.models.efficientnet:EfficientNet"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^stem/", r"^blocks/(\d+)/", r"^top/")
    kind: str = kind("efficientnet")
    width: float = key(
        1.0, "Channels of the blocks, as a multiple of those of Lite0, rounded to multiples of 8.", drift=STRUCTURAL,
        gt=0, le=16,
    )  # fmt: skip
    depth: float = key(
        1.0, "Blocks of each stage but the first and the last, as a multiple of those of Lite0.", drift=STRUCTURAL,
        gt=0, le=16,
    )  # fmt: skip
    norm: str | None = key(
        None, "Batch normalisation by each batch in training (batch), or always by the running statistics (frozen); "
        "null for frozen with model.init_from, else batch.", choices=("batch", "frozen"),
    )  # fmt: skip
    dropout: float = key(0.0, "Dropout before the head.", traced=True, off=0.0, ge=0, lt=1)
    drop_path: float = key(
        0.0, "How often the topmost block is left out of an example in training, those below it less often in "
        "proportion.", traced=True, off=0.0, ge=0, lt=1,
    )  # fmt: skip

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"

    def with_defaults(self) -> Self:
        usual = "batch" if self.init_from is None else "frozen"
        return dataclasses.replace(self, norm=self.norm or usual)
