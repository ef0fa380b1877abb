"""Keys of the models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from bigctl.config.schema.base import STRUCTURAL, Component, key, kind

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid")
NORMS = ("none", "batch", "layer")
HEADS = ("classification", "regression")


@dataclass
class Model(Component):
    group: ClassVar[str] = "model"
    shared: ClassVar[tuple[str, ...]] = ()
    """The numbers that `mesh.tensor` must divide; empty for a model that has no rules for that axis."""
    kind: str = kind("???")
    init_from: str | None = key(
        None,
        "Weights to start from: another run; for bert, gpt and llama also a Hugging Face folder or a name on its hub; "
        "minilm (bert) and smollm2 (llama) are packaged; for llama also a file of GGUF or llama2.c.",
        drift=STRUCTURAL,
    )


@dataclass
class Mlp(Model):
    implementation: ClassVar[str] = "bigctl.models.mlp:MLP"
    kind: str = kind("mlp")
    hidden: list[int] = key([64, 32], "Width of each hidden layer.", drift=STRUCTURAL)
    activation: str = key("relu", "Non-linearity after each hidden layer.", choices=ACTIVATIONS)
    norm: str = key("none", "Normalisation before each activation.", drift=STRUCTURAL, choices=NORMS)
    dropout: float = key(0.5, "Dropout after each hidden layer.", traced=True, off=0.0)
    head: str = key("classification", "What the last layer predicts.", drift=STRUCTURAL, choices=HEADS)


@dataclass
class Cnn(Model):
    implementation: ClassVar[str] = "bigctl.models.cnn:CNN"
    kind: str = kind("cnn")
    channels: list[int] = key([32, 64], "Output channels of each convolution.", drift=STRUCTURAL)
    kernel_size: int = key(3, "Side of the square kernels [pixels].", drift=STRUCTURAL)
    pool: int = key(2, "Side and stride of the max-pool after each convolution [pixels].", drift=STRUCTURAL)
    padding: str = key(
        "auto",
        "Padding of the convolutions; auto is valid where the images are large enough for it, else same.",
        drift=STRUCTURAL,
        choices=("auto", "same", "valid"),
    )
    hidden: list[int] = key([128], "Width of each dense layer before the output.", drift=STRUCTURAL)
    activation: str = key("relu", "Non-linearity after each layer.", choices=ACTIVATIONS)
    norm: str = key("none", "Normalisation before each activation.", drift=STRUCTURAL, choices=NORMS)
    dropout: float = key(0.0, "Dropout after each dense layer.", traced=True, off=0.0)


POOLS = ("cls", "mean")
LSTM_POOLS = ("last", "mean", "max")


@dataclass
class Lora:
    """Low-rank adaptation (Hu et al. 2022): the weights stay as they are, what is trained is added to them."""

    rank: int = key(0, "Rank of what is added; 0 for ordinary training.", drift=STRUCTURAL)
    alpha: float = key(16.0, "What is added is scaled by alpha / rank.")
    targets: list[str] = key(["query", "value"], "Which layers: query, key, value, output, up, down.", drift=STRUCTURAL)


@dataclass
class Bert(Model):
    """An encoder. Its architecture is given here, or null and read from the config.json of `init_from`."""

    implementation: ClassVar[str] = "bigctl.models.bert:BertClassifier"
    shared: ClassVar[tuple[str, ...]] = ("heads", "intermediate")
    kind: str = kind("bert")
    layers: int | None = key(None, "Encoder layers.", drift=STRUCTURAL, decided=True)
    width: int | None = key(None, "Width of the residual stream.", drift=STRUCTURAL, decided=True)
    heads: int | None = key(None, "Attention heads.", drift=STRUCTURAL, decided=True)
    intermediate: int | None = key(None, "Width inside the feed-forward part.", drift=STRUCTURAL, decided=True)
    positions: int | None = key(None, "Longest text the model can take [tokens].", drift=STRUCTURAL, decided=True)
    vocab: int | None = key(
        None, "Rows of the token embedding; null for the tokenizer's.", drift=STRUCTURAL, decided=True
    )
    eps: float = key(1e-12, "Added to the variance in layer normalisation.", drift=STRUCTURAL)
    pool: str = key("cls", "What stands for the text: the first token, or the mean.", drift=STRUCTURAL, choices=POOLS)
    pooler: bool = key(
        False, "Put the dense layer with tanh of the original between pool and output.", drift=STRUCTURAL
    )
    dropout: float = key(
        0.1, "Dropout of embeddings, of each sub-layer's output, and before the head.", traced=True, off=0.0
    )
    attention_dropout: float = key(0.1, "Dropout of attention weights.", traced=True, off=0.0)
    lora: Lora = key(Lora, "Low-rank adaptation.")


@dataclass
class Lstm(Model):
    implementation: ClassVar[str] = "bigctl.models.lstm:LstmClassifier"
    kind: str = kind("lstm")
    embedding: int = key(128, "Width of the token embedding.", drift=STRUCTURAL)
    hidden: int = key(128, "Width of the state, in each direction.", drift=STRUCTURAL)
    layers: int = key(1, "Layers on top of each other.", drift=STRUCTURAL)
    bidirectional: bool = key(True, "Read the text in both directions.", drift=STRUCTURAL)
    pool: str = key(
        "max", "What stands for the text: the last state, or the mean or maximum of all.", drift=STRUCTURAL,
        choices=LSTM_POOLS,
    )  # fmt: skip
    dropout: float = key(0.3, "Dropout of embeddings, between layers and before the head.", traced=True, off=0.0)


POSITIONS = ("learned", "rope")
DECODER_NORMS = ("layer", "rms")
DECODER_ACTIVATIONS = ("gelu", "gelu_tanh", "relu2", "swiglu")
REMATS = ("none", "full", "dots")
VOCAB_MULTIPLE = 128
"""A decoder's vocabulary is padded to a multiple of this: of matrix units, and of the devices that share it."""


def decided(doc: str, choices: tuple[str, ...] = ()) -> Any:
    """A key of an architecture that the weights of `init_from` decide where it is null."""
    return key(None, doc, drift=STRUCTURAL, choices=choices, decided=True)


@dataclass
class Decoder(Model):
    """What writes text. What is null is as in the weights of `init_from`, without them as `whole` has it."""

    implementation: ClassVar[str] = "bigctl.models.decoder:Decoder"
    shared: ClassVar[tuple[str, ...]] = ("heads", "kv_heads", "intermediate")
    usual: ClassVar[dict[str, Any]] = {}
    layers: int | None = decided("Decoder layers.")
    width: int | None = decided("Width of the residual stream.")
    heads: int | None = decided("Attention heads.")
    kv_heads: int | None = decided("Heads of keys and values, each for heads / kv_heads queries; null for one each.")
    intermediate: int | None = decided("Width inside the feed-forward part; null for 4 times the width (swiglu: 8/3).")
    context: int | None = decided("Longest text the model can take [tokens].")
    vocab: int | None = decided("Tokens that the embedding is for; null for the tokenizer's.")
    position: str | None = decided(
        "How a token's place is told: a learned table (null in gpt), or rotated queries and keys (null in llama).",
        POSITIONS,
    )
    rope_theta: float | None = decided("Base of the wave lengths of rope; null for 10000.")
    norm: str | None = decided("Normalisation before each part; null for layer in gpt, rms in llama.", DECODER_NORMS)
    norm_gain: bool | None = decided("Learn a factor for each normalised feature; null for yes.")
    activation: str | None = decided(
        "Non-linearity of the feed-forward part; relu2 is relu squared; null for gelu_tanh in gpt, swiglu in llama.",
        DECODER_ACTIVATIONS,
    )
    bias: bool | None = decided("Biases in linear layers and layer normalisation; null for yes in gpt, no in llama.")
    tied: bool | None = decided("Use the token embedding as the output's weights; null for yes.")
    qk_norm: bool | None = decided("Normalise queries and keys; null for no.")
    eps: float | None = decided("Added to the variance in normalisation; null for 1e-5.")
    zero_init: bool = key(False, "Start with zeros in what each part adds to the stream, and in an untied output.")
    dropout: float = key(0.0, "Dropout of the embedding and of what each part adds.", traced=True, off=0.0)
    remat: str = key(
        "none", "What is computed anew in the backward pass, to save memory: none, full for all of it, or dots for all "
        "but products with weights.", choices=REMATS,
    )  # fmt: skip
    scan: bool = key(False, "Compile one layer and loop over it: large models compile sooner.")

    def whole(self) -> Any:
        """The same model, with every null that does not ask for a number replaced by what it stands for."""
        usual: dict[str, Any] = {"eps": 1e-5, **self.usual}
        usual |= {"kv_heads": self.heads, "rope_theta": 10000.0, "norm_gain": True, "tied": True, "qk_norm": False}
        given = {name: value for name, value in usual.items() if getattr(self, name) is None}
        result = dataclasses.replace(self, **given)
        if result.intermediate is None and result.width is not None:
            result.intermediate = -(-result.width // 3) * 8 if result.activation == "swiglu" else 4 * result.width
        return result


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
