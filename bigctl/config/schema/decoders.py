"""Keys of the models that write text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from bigctl.config.schema.base import STRUCTURAL, Problem, Whole, key, kind
from bigctl.config.schema.models import MOST_LAYERS, Model, remat_of_layers, scan_of_layers

POSITIONS = ("learned", "rope")
DECODER_NORMS = ("layer", "rms")
DECODER_ACTIVATIONS = ("gelu", "gelu_tanh", "relu2", "swiglu")
VOCAB_MULTIPLE = 128
"""A decoder's vocabulary is padded to a multiple of this: of matrix units, and of the devices that share it."""


def decided(
    doc: str,
    choices: tuple[str, ...] = (),
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
) -> Any:
    """A key of an architecture that the weights of `init_from` decide where it is null."""
    return key(None, doc, drift=STRUCTURAL, choices=choices, decided=True, ge=ge, gt=gt, le=le)


@dataclass
class Decoder(Model):
    """What writes text. What is null is as in the weights of `init_from`, without them as `with_defaults` has it."""

    implementation: ClassVar[str] = "bigctl.models.decoder:Decoder"
    inputs: ClassVar[tuple[str, ...]] = ("streams",)
    packs: ClassVar[bool] = True
    stacked: ClassVar[tuple[str, ...]] = (r"(^|/)experts/(up|gate|down)/",)
    wide: ClassVar[tuple[str, ...]] = (r"(^|/)experts/router/",)
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "context": (),
        "tensor": ("heads", "kv_heads", "intermediate"),
        "expert": ("experts",),
    }
    levels: ClassVar[tuple[str, ...]] = (r"^(?:token|position)/", r"^layers/(\d+)/")
    usual: ClassVar[dict[str, Any]] = {}
    layers: int | None = decided("Decoder layers.", ge=1, le=MOST_LAYERS)
    width: int | None = decided("Width of the residual stream.", ge=1)
    heads: int | None = decided("Attention heads.", ge=1)
    kv_heads: int | None = decided(
        "Heads of keys and values, each for heads / kv_heads queries; null for one each.", ge=1
    )
    head_dim: int | None = decided("Features of a head; null for model.width / model.heads.", ge=1)
    intermediate: int | None = decided(
        "Width inside the feed-forward part; null for 4 times the width (swiglu: 8/3).", ge=1
    )
    context: int | None = decided("Longest text the model can take [tokens].", ge=1)
    vocab: int | None = decided("Tokens that the embedding is for; null for the tokenizer's.", ge=1)
    position: str | None = decided(
        "How a token's place is told: a learned table (null in gpt), or rotated queries and keys (null in llama).",
        POSITIONS,
    )
    rope_theta: float | None = decided("Base of the wave lengths of rope; null for 10000.", gt=0)
    norm: str | None = decided("Normalisation before each part; null for layer in gpt, rms in llama.", DECODER_NORMS)
    norm_gain: bool | None = decided("Learn a factor for each normalised feature; null for yes.")
    activation: str | None = decided(
        "Non-linearity of the feed-forward part; relu2 is relu squared; null for gelu_tanh in gpt, swiglu in llama.",
        DECODER_ACTIVATIONS,
    )
    bias: bool | None = decided("Biases in linear layers and layer normalisation; null for yes in gpt, no in llama.")
    tied: bool | None = decided("Use the token embedding as the output's weights; null for yes.")
    qk_norm: bool | None = decided("Normalise queries and keys; null for no.")
    eps: float | None = decided("Added to the variance in normalisation; null for 1e-5.", gt=0)
    experts: int | None = decided(
        "Experts of each feed-forward part, of which a token has a few; 0, and null, for one part that all share.", ge=0
    )
    experts_per_token: int | None = decided("Experts that each token has; null for 2.", ge=1)
    capacity_factor: float | None = key(
        None, "In training an expert takes at most this times its even share of the tokens of a text, the others pass "
        "it by; null to drop none.", gt=0,
    )  # fmt: skip
    load_balance_loss: float = key(
        0.01, "Weight of the loss that spreads tokens evenly over experts.", traced=True, off=0.0, ge=0
    )
    router_z_loss: float = key(
        0.001, "Weight of the loss that keeps the logits of routers small.", traced=True, off=0.0, ge=0
    )
    zero_init: bool = key(False, "Start with zeros in what each part adds to the stream, and in an untied output.")
    dropout: float = key(0.0, "Dropout of the embedding and of what each part adds.", traced=True, off=0.0,
                         ge=0, lt=1)  # fmt: skip
    remat: str = remat_of_layers()
    scan: bool = scan_of_layers()

    def with_defaults(self) -> Self:
        """The same model, with every null that does not ask for a number replaced by what it stands for."""
        usual: dict[str, Any] = {"eps": 1e-5, **self.usual}
        usual |= {"kv_heads": self.heads, "rope_theta": 10000.0, "norm_gain": True, "tied": True, "qk_norm": False}
        usual |= {"experts_per_token": min(2, self.experts)} if self.experts else {"experts": 0}
        given = {name: value for name, value in usual.items() if getattr(self, name) is None}
        result = dataclasses.replace(self, **given)
        if result.intermediate is None and result.width is not None:
            result.intermediate = -(-result.width // 3) * 8 if result.activation == "swiglu" else 4 * result.width
        return result

    def active_share(self, path: str) -> float:
        whole = self.with_defaults()
        if not whole.experts or whole.experts_per_token is None or not re.search(self.stacked[0], path):
            return 1.0
        return whole.experts_per_token / whole.experts

    def check_shared(self, axis: str, size: int) -> Iterator[Problem]:
        if axis != "expert" or self.experts:
            yield from super().check_shared(axis, size)
        elif self.experts == 0 or self.layers is not None:  # else the weights of `init_from` decide
            message = f"mesh.expert={size} is for models of experts, this one has none"
            yield "mesh.expert", message, f"add model.experts={size}, or use mesh=fsdp, which shares any parameters"

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.experts and self.experts_per_token and self.experts_per_token > self.experts:
            message = f"model.experts_per_token={self.experts_per_token} is more than model.experts={self.experts}"
            yield "model.experts_per_token", message, f"{self.experts} or fewer, or more experts"
        if not self.experts and self.init_from is None:
            for name in ("experts_per_token", "capacity_factor"):
                if getattr(self, name) is not None:
                    message = f"model.{name} is for models of experts, this has none"
                    yield f"model.{name}", message, "add model.experts=8, or leave it out"


@dataclass
class Gpt(Decoder):
    """GPT-2 (Radford et al. 2019)."""

    usual: ClassVar[dict[str, Any]] = {
        "position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": True,
    }  # fmt: skip
    kind: str = kind("gpt")


@dataclass
class Llama(Decoder):
    """Llama (Touvron et al. 2023)."""

    usual: ClassVar[dict[str, Any]] = {"position": "rope", "norm": "rms", "activation": "swiglu", "bias": False}
    kind: str = kind("llama")
