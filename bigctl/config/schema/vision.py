"""Keys of the models of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from bigctl.config.schema.base import STRUCTURAL, Problem, Whole, key, kind
from bigctl.config.schema.models import ACTIVATIONS, MOST_LAYERS, POOLS, Model, remat_of_layers, scan_of_layers

LEAST_PHOTOGRAPH = 64
"""Shorter side from which on images are taken for photographs, whose first layers may shrink them [pixels]."""


def _drop_path(part: str) -> float:
    """The key of stochastic depth (Huang et al. 2016), of blocks or layers."""
    found: float = key(
        0.0, f"How often the topmost {part} is left out of an example in training, those below it less often in "
        "proportion.", traced=True, off=0.0, ge=0, lt=1,
    )  # fmt: skip
    return found


def _remat_of_blocks() -> str:
    """The key of what is kept of each block for the backward pass."""
    found: str = key(
        "none", "What is computed anew in the backward pass, to save memory: none, or full for the inside of each "
        "block.", choices=("none", "full"),
    )  # fmt: skip
    return found


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
    inner: list[int] | None = key(
        None, "Channels inside of the blocks of each stage; null for the width, doubled from stage to stage.",
        drift=STRUCTURAL, ge=1,
    )  # fmt: skip
    bottleneck: bool = key(
        False, "Blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide outside; else of two of 3x3.",
        drift=STRUCTURAL,
    )  # fmt: skip
    stem: str = key(
        "auto", "First layers: one 3x3 convolution (cifar), or a 7x7 one and a max-pool, which leave a quarter of each "
        "side (imagenet); auto is cifar for images of less than 64 pixels.",
        drift=STRUCTURAL, choices=("auto", "cifar", "imagenet"),
    )  # fmt: skip
    norm: str = key(
        "batch", "Batch normalisation by each batch in training (batch), or always by the running statistics (frozen), "
        "for pretrained weights and few images.", choices=("batch", "frozen"),
    )  # fmt: skip
    zero_init: bool = key(True, "Start with a factor of zero in the last normalisation of each block.")
    drop_path: float = _drop_path("block")
    remat: str = _remat_of_blocks()

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.inner is not None and len(self.inner) != len(self.blocks):
            message = f"model.blocks tells of {len(self.blocks)} stages, model.inner of {len(self.inner)}"
            yield "model.inner", message, "give one number a stage to each, or leave model.inner out"


@dataclass
class Vit(Model):
    """Vision transformers (Dosovitskiy et al. 2020)."""

    implementation: ClassVar[str] = "bigctl.models.vit:Vit"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {"tensor": ("heads", "intermediate")}
    fixed_size: ClassVar[bool] = True
    levels: ClassVar[tuple[str, ...]] = (r"^(?:embed/|cls$|registers$|position$)", r"^layers/(\d+)/")
    kind: str = kind("vit")
    patch: int = key(16, "Side of the square patches that an image is cut into [pixels].", drift=STRUCTURAL, ge=1)
    layers: int = key(12, "Encoder layers.", drift=STRUCTURAL, ge=1, le=MOST_LAYERS)
    width: int = key(192, "Width of the residual stream.", drift=STRUCTURAL, ge=1)
    heads: int = key(3, "Attention heads.", drift=STRUCTURAL, ge=1)
    head_dim: int | None = key(None, "Features of a head; null for model.width / model.heads.", drift=STRUCTURAL, ge=1)
    intermediate: int = key(768, "Width inside the feed-forward part.", drift=STRUCTURAL, ge=1)
    pool: str = key(
        "cls", "What stands for the image: a token of its own, or the mean of the patches.", drift=STRUCTURAL,
        choices=POOLS,
    )  # fmt: skip
    position: str = key(
        "learned", "How a patch's place is told: a learned table, or fixed sines and cosines of row and column.",
        drift=STRUCTURAL, choices=("learned", "sincos"),
    )  # fmt: skip
    registers: int = key(0, "Further tokens that stand for nothing (Darcet et al. 2024).", drift=STRUCTURAL, ge=0)
    eps: float = key(1e-6, "Added to the variance in layer normalisation.", drift=STRUCTURAL, gt=0)
    dropout: float = key(0.0, "Dropout of the patches and of what each part adds.", traced=True, off=0.0,
                         ge=0, lt=1)  # fmt: skip
    drop_path: float = _drop_path("layer")
    remat: str = remat_of_layers()
    scan: bool = scan_of_layers()

    def head_input(self, *, per_token: bool) -> str:
        return {"cls": "the class token", "mean": "the mean of the patches"}[self.pool]

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.head_dim is None and self.width % self.heads:
            message = f"model.width={self.width} is not divisible by model.heads={self.heads}"
            yield "model.heads", message, "choose a divisor of the width"
        if self.position == "sincos" and self.width % 4:
            message = f"model.width={self.width} cannot hold sines and cosines of row and column"
            yield "model.width", message, "choose a multiple of 4, or model.position=learned"


@dataclass
class Convnext(Model):
    """ConvNeXt (Liu et al. 2022): convolutional networks built as vision transformers are."""

    implementation: ClassVar[str] = "bigctl.models.convnext:Convnext"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^stem(?:_norm)?/", r"^blocks/(\d+)/")
    kind: str = kind("convnext")
    blocks: list[int] = key(
        [3, 3, 9, 3], "Blocks of each stage; each stage has half the size of the one before.", drift=STRUCTURAL, ge=1,
        le=MOST_LAYERS,
    )  # fmt: skip
    widths: list[int] = key([96, 192, 384, 768], "Channels of each stage.", drift=STRUCTURAL, ge=1)
    patch: int = key(
        4, "Side of the cells of pixels that the first layer makes one place of [pixels].", drift=STRUCTURAL, ge=1
    )
    kernel_size: int = key(7, "Side of the depthwise convolutions.", drift=STRUCTURAL, ge=1)
    layer_scale: float = key(
        1e-6, "First factor of what a block adds, one a channel and learned (Touvron et al. 2021); 0 for none.",
        drift=STRUCTURAL, ge=0,
    )  # fmt: skip
    eps: float = key(1e-6, "Added to the variance in the last layer normalisation.", drift=STRUCTURAL, gt=0)
    drop_path: float = _drop_path("block")
    remat: str = _remat_of_blocks()

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"

    def check(self, config: Whole) -> Iterator[Problem]:
        if len(self.blocks) != len(self.widths):
            message = f"model.blocks tells of {len(self.blocks)} stages, model.widths of {len(self.widths)}"
            yield "model.widths", message, "give one number a stage to each"


@dataclass
class Inception(Model):
    """Inception-v3 (Szegedy et al. 2016)."""

    implementation: ClassVar[str] = "bigctl.models.inception:Inception"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^stem/(\d+)/", r"^blocks/(\d+)/")
    kind: str = kind("inception")
    width: float = key(1.0, "Channels, as a multiple of those of the paper.", drift=STRUCTURAL, gt=0, le=16)
    dropout: float = key(0.5, "Dropout before the head.", traced=True, off=0.0, ge=0, lt=1)

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"


@dataclass
class SpeedCnn(Model):
    """The network of airbench94 (Jordan 2024, arXiv 2404.00498), for small photographs and few passes over them."""

    implementation: ClassVar[str] = "bigctl.models.speed_cnn:SpeedCnn"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^whiten/", r"^groups/(\d+)/")
    whitens: ClassVar[int] = 2
    kind: str = kind("speed_cnn")
    widths: list[int] = key(
        [32, 64, 128], "Channels of each group of two convolutions; each group has half the size of the one before.",
        drift=STRUCTURAL, ge=1,
    )  # fmt: skip
    activation: str = key("gelu", "Non-linearity after each layer.", choices=ACTIVATIONS)
    norm_momentum: float = key(
        0.9, "What batch normalisation keeps of its running statistics at each step; they have no factors.", ge=0, lt=1
    )
    output_factor: float = key(1 / 9, "What the output layer is multiplied by.", gt=0)

    def head_input(self, *, per_token: bool) -> str:
        return "the maximum over all places"

    def check(self, config: Whole) -> Iterator[Problem]:
        if not self.widths:
            yield "model.widths", "model.widths names no group of convolutions", "such as model.widths=[32,64,128]"


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
    drop_path: float = _drop_path("block")

    def head_input(self, *, per_token: bool) -> str:
        return "the mean over all places"

    def with_defaults(self) -> Self:
        usual = "batch" if self.init_from is None else "frozen"
        return dataclasses.replace(self, norm=self.norm or usual)
