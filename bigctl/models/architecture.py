"""The architecture of a text model with nothing left open: what the networks are built from, and what other people's
formats are read into and written from. Free of jax.

`schema.Decoder` and `schema.Bert` leave open what pretrained weights or the tokenizer decide; `decoder_architecture`
and `bert_architecture` are the only places where that ends.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bigctl.config import schema
from bigctl.errors import ConfigError

GPT, LLAMA = "gpt", "llama"


@dataclass(frozen=True)
class DecoderArchitecture:
    """A decoder; attributes as the keys of `schema.Decoder`."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int
    vocab: int
    position: str
    norm: str
    activation: str
    bias: bool
    tied: bool
    eps: float
    rope_theta: float = 10000.0
    norm_gain: bool = True
    qk_norm: bool = False
    zero_init: bool = False
    dropout: float = 0.0
    remat: str = "none"
    scan: bool = False
    experts: int = 0
    experts_per_token: int = 0
    capacity_factor: float | None = None
    head_dim: int | None = None

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a third matrix, whose result is multiplied with that of the first."""
        return self.activation == "swiglu"

    @property
    def depth(self) -> int:
        """Features of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding, of which those from `vocab` on only pad."""
        return -(-self.vocab // schema.VOCAB_MULTIPLE) * schema.VOCAB_MULTIPLE

    def decided(self) -> dict[str, object]:
        """What weights of this architecture decide of `schema.Decoder`, by key."""
        keys = {field.name for field in dataclasses.fields(schema.Decoder) if field.metadata.get("decided")}
        if self.position == "learned":
            keys.remove("rope_theta")
        if not self.experts:
            keys -= {"experts", "experts_per_token"}
        return {name: value for name, value in dataclasses.asdict(self).items() if name in keys}


@dataclass(frozen=True)
class BertArchitecture:
    """An encoder and what stands on it; attributes as the keys of `schema.Bert`, those of its LoRA after `lora_`."""

    layers: int
    width: int
    heads: int
    intermediate: int
    positions: int
    vocab: int
    eps: float
    pool: str = "cls"
    pooler: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    remat: str = "none"
    scan: bool = False
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()
    head_dim: int | None = None

    @property
    def depth(self) -> int:
        """Features of a head."""
        return self.head_dim or self.width // self.heads

    def decided(self) -> dict[str, object]:
        """What weights of this architecture decide of `schema.Bert`, by key."""
        keys = ("layers", "width", "heads", "intermediate", "positions", "vocab", "eps")
        return {name: getattr(self, name) for name in keys}


def decoder_architecture(given: schema.Decoder, vocab_size: int) -> DecoderArchitecture:
    """The architecture of a configured decoder.

    Args:
        given: the configuration, after `init_from` has decided what it decides.
        vocab_size: tokens of the tokenizer, which `model.vocab` may exceed.

    Raises:
        ConfigError: where a size is missing, or two do not go together.
    """
    found = DecoderArchitecture(**_values(given.with_defaults(), DecoderArchitecture, vocab_size, "smollm2"))
    _check_heads(found)
    if found.heads % found.kv_heads:
        raise ConfigError(
            f"{found.heads} heads cannot be shared out over {found.kv_heads} heads of keys and values",
            where="model.kv_heads",
            hint="choose a divisor of model.heads",
        )
    if found.experts_per_token > found.experts:
        raise ConfigError(
            f"a token cannot have {found.experts_per_token} of {found.experts} experts",
            where="model.experts_per_token",
            hint=f"choose {found.experts} or fewer, or a larger model.experts",
        )
    if found.position == "rope" and found.depth % 2:
        own = given.head_dim is not None
        features = "model.head_dim" if own else "model.width / model.heads"
        raise ConfigError(
            f"heads of {found.depth} features cannot be rotated in pairs",
            where="model.head_dim" if own else "model.heads",
            hint=f"choose {features} as an even number, or model.position=learned",
        )
    return found


def bert_architecture(given: schema.Bert, vocab_size: int) -> BertArchitecture:
    """The architecture of a configured BERT; arguments and errors as for `decoder_architecture`."""
    found = BertArchitecture(
        **_values(given, BertArchitecture, vocab_size, "minilm"),
        lora_rank=given.lora.rank,
        lora_alpha=given.lora.alpha,
        lora_targets=tuple(given.lora.targets),
    )
    _check_heads(found)
    for name in found.lora_targets:
        if name not in schema.LORA_TARGETS:
            raise ConfigError(
                f"no layer is called {name!r}",
                where="model.lora.targets",
                hint="known: " + ", ".join(schema.LORA_TARGETS),
            )
    return found


def _values(given: schema.Decoder | schema.Bert, target: type, tokens: int, example: str) -> dict[str, Any]:
    """The configured values of those keys that the architecture has too; null is what the architecture has then."""
    names = {field.name for field in dataclasses.fields(given)}
    usual = {field.name for field in dataclasses.fields(target) if field.default is not dataclasses.MISSING}
    found = {field.name: getattr(given, field.name) for field in dataclasses.fields(target) if field.name in names}
    values = {name: value for name, value in found.items() if value is not None or name not in usual}
    for name, value in values.items():
        if value is None and name != "vocab":
            hint = f"give it, or take an architecture from model.init_from, such as {example}"
            raise ConfigError(f"model.{name} is not given", where=f"model.{name}", hint=hint)
    if given.vocab is not None and given.vocab < tokens:
        raise ConfigError(
            f"the tokenizer has {tokens} tokens, the embedding {given.vocab} rows",
            where="model.vocab",
            hint="use the tokenizer that belongs to the weights, or a larger model.vocab",
        )
    return {**values, "vocab": given.vocab or tokens}


def require_whole_heads(model: schema.Model | DecoderArchitecture | BertArchitecture, what: str, where: str) -> None:
    """Raises ConfigError where what writes a model out has no place for heads that do not make up its width, or for
    blocks that are narrower inside."""
    width, heads, each = (getattr(model, name, None) for name in ("width", "heads", "head_dim"))
    narrower = getattr(model, "inner", None) is not None
    if narrower or (width and heads and each and heads * each != width):
        hint = "bigctl export --format onnx, or jax"
        parts = "blocks are narrower inside" if narrower else f"{heads} heads of {each} features do not make up {width}"
        raise ConfigError(f"{what} has no such model: its {parts}", where=where, hint=hint)


def _check_heads(found: DecoderArchitecture | BertArchitecture) -> None:
    width, heads = found.width, found.heads
    if found.head_dim is None and width % heads:
        raise ConfigError(
            f"a width of {width} is not divisible by {heads} heads",
            where="model.heads",
            hint="choose model.width as a multiple of model.heads",
        )
