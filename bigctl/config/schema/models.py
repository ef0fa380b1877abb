"""Keys of the models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from bigctl.config.schema.base import STRUCTURAL, Checked, Component, Problem, Whole, key, kind

if TYPE_CHECKING:
    from flax import nnx


ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "elu", "leaky_relu", "sigmoid")
NORMS = ("none", "batch", "layer")
HEADS = ("classification", "regression")
REMATS = ("none", "full", "dots", "names", "offload")
MOST_LAYERS = 1024
"""Far more than any model has; each of them is made by itself, which takes time before anything is computed."""


@dataclass
class Model(Component):
    group_name: ClassVar[str] = "model"
    inputs: ClassVar[tuple[str, ...]] = ()
    """Kinds of input that it takes, as recipes name them; empty: not told, and never refused for that."""
    stacked: ClassVar[tuple[str, ...]] = ()
    """Patterns of the paths of parameters that hold several in one: each pattern found stands for one leading axis, of
    layers or of experts, that is none of the single parameter's. Optimizers and weight decay look at the single one."""
    wide: ClassVar[tuple[str, ...]] = ()
    """Patterns of the paths of parameters that are float32 in the model too, whatever `train.precision` says."""
    levels: ClassVar[tuple[str, ...]] = ()
    """Patterns of the paths of parameters from the bottom of the network up, for `optimizer.layer_decay` and
    `unfreeze`; the group of a pattern is the layer's number. What none fits is above them all. Empty: not told,
    layers/0/ and the like count."""
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The numbers that the size of an axis of the mesh must divide, by axis; an axis that shares out layers, and is not
    among them, is refused: it has no rules for this model."""
    packs: ClassVar[bool] = False
    """Whether a model of streams takes `segments` and `positions` besides tokens, and keeps documents of a window
    apart (`recipe.packing=documents`); whether one of texts takes rows that hold several (`recipe.bucketing.pack`)."""
    fixed_size: ClassVar[bool] = False
    """Whether weights are for images of one size, that which they were trained with."""
    whitens: ClassVar[int] = 0
    """Side of the patches of images that it begins by whitening, by statistics of the training split; 0 for none. Such
    a network has `whiten.put`, which takes `bigctl.data.whitening.directions` [pixels]."""
    loops_on_cpu: ClassVar[bool] = True
    """Whether several steps in one dispatch are as quick on a CPU as single ones."""
    kind: str = kind("???")
    init_from: str | None = key(
        None,
        "Weights to start from: another run; for bert, gpt, llama, resnet, vit and convnext also a Hugging Face folder "
        "or a name on its hub, for the last three of timm too; "
        "minilm (bert), smollm2 (llama), lite0 (efficientnet) are packaged; for llama also a file of GGUF or llama2.c.",
        drift=STRUCTURAL,
    )

    def frozen(self) -> tuple[str, ...]:
        """Patterns of the paths of parameters that are not trained."""
        return ()

    def build(self, *sizes: Any, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
        """The network, newly initialised.

        Args:
            sizes: what the recipe tells of the data: the shape of an example and the number of outputs; for texts the
                size of the vocabulary and the number of outputs; for streams the size of the vocabulary.
            rngs: where the parameters come from.
            options: `per_token=True` where texts are to have outputs for each token.
        """
        network: nnx.Module = self.implementing()(self, *sizes, rngs=rngs, **options)
        if not callable(network):
            raise self.incomplete(f"must build a module that can be called, not {type(network).__name__}")
        return network

    def input_layer(self) -> str:
        """Path of the linear layer that the features of a table enter, `kernel` [features, ...] and `bias`; empty where
        there is none: then `init_from` takes tables of the same columns only."""
        return ""

    def head_input(self, *, per_token: bool) -> str:
        """What stands for an example before the head; a head is not taken over by a model that has it otherwise."""
        return "each token" if per_token else ""

    def seldom(self) -> tuple[str, float] | None:
        """A pattern of the paths of parameters whose rows are each seldom seen, and the peak learning rate that Adagrad
        trains them with, whatever the optimizer; None where there are none."""
        return None

    def active_share(self, path: str) -> float:
        """Which part of a parameter an example, or a token of a text, is multiplied with: less than 1 of experts."""
        return 1.0

    def with_defaults(self) -> Self:
        """The same model, with nulls replaced by what they stand for where nothing else decides."""
        return self

    def check_shared(self, axis: str, size: int) -> Iterator[Problem]:
        """Why the layers cannot be shared out over an axis of that size."""
        if axis not in self.shared:
            kind = {"expert": "experts", "context": "one long text"}.get(axis, "attention layers")
            message = f"mesh.{axis} is for models of {kind}, model={self.kind} has none"
            yield f"mesh.{axis}", message, "mesh=fsdp shares the parameters of any model"
        whole = self.with_defaults()
        for name in self.shared.get(axis, ()):
            number: int | None = getattr(whole, name)
            if number is not None and number % size:
                message = f"model.{name}={number} cannot be shared out over mesh.{axis}={size} devices"
                near = max(n for n in range(1, size) if number % n == 0)
                remedy = f"choose mesh.{axis} as a divisor, such as mesh.{axis}={near}"
                remedy += "; mesh.data or mesh.fsdp take the others"
                yield f"model.{name}", message, remedy


def remat_of_layers() -> str:
    """The key of what is kept of each transformer layer for the backward pass."""
    found: str = key(
        "none", "What is computed anew in the backward pass, to save memory: none, full for all of a layer, dots for "
        "all but products with weights, names for all but a few arrays; offload keeps these in the host's memory.",
        choices=REMATS,
    )  # fmt: skip
    return found


def scan_of_layers() -> bool:
    """The key of the loop over layers."""
    found: bool = key(False, "Compile one layer and loop over it: large models compile sooner.")
    return found


@dataclass
class Mlp(Model):
    implementation: ClassVar[str] = "bigctl.models.mlp:MLP"
    inputs: ClassVar[tuple[str, ...]] = ("tables", "images")
    levels: ClassVar[tuple[str, ...]] = (r"^(?:layers|norms)/(\d+)/",)
    kind: str = kind("mlp")
    hidden: list[int] = key([64, 32], "Width of each hidden layer.", drift=STRUCTURAL, ge=1)
    activation: str = key("relu", "Non-linearity after each hidden layer.", choices=ACTIVATIONS)
    norm: str = key("none", "Normalisation before each activation.", drift=STRUCTURAL, choices=NORMS)
    dropout: float = key(0.5, "Dropout after each hidden layer.", traced=True, off=0.0, ge=0, lt=1)
    head: str = key("classification", "What the last layer predicts.", drift=STRUCTURAL, choices=HEADS)

    def input_layer(self) -> str:
        return "layers/0" if self.hidden else "head"


@dataclass
class Cnn(Model):
    implementation: ClassVar[str] = "bigctl.models.cnn:CNN"
    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = (r"^convs/(\d+)/", r"^(?:layers|norms)/(\d+)/")
    kind: str = kind("cnn")
    channels: list[int] = key([32, 64], "Output channels of each convolution.", drift=STRUCTURAL, ge=1)
    kernel_size: int = key(3, "Side of the square kernels [pixels].", drift=STRUCTURAL, ge=1)
    pool: int = key(2, "Side and stride of the max-pool after each convolution [pixels].", drift=STRUCTURAL, ge=1)
    padding: str = key(
        "auto",
        "Padding of the convolutions; auto is valid where the images are large enough for it, else same.",
        drift=STRUCTURAL,
        choices=("auto", "same", "valid"),
    )
    hidden: list[int] = key([128], "Width of each dense layer before the output.", drift=STRUCTURAL, ge=1)
    activation: str = key("relu", "Non-linearity after each layer.", choices=ACTIVATIONS)
    norm: str = key("none", "Normalisation before each activation.", drift=STRUCTURAL, choices=NORMS)
    dropout: float = key(0.0, "Dropout after each dense layer.", traced=True, off=0.0, ge=0, lt=1)


POOLS = ("cls", "mean")
LSTM_POOLS = ("last", "mean", "max")
LORA_TARGETS = ("query", "key", "value", "output", "up", "down")


@dataclass
class Lora(Checked):
    """Low-rank adaptation (Hu et al. 2022): the weights stay as they are, what is trained is added to them."""

    rank: int = key(0, "Rank of what is added; 0 for ordinary training.", drift=STRUCTURAL, ge=0)
    alpha: float = key(16.0, "What is added is scaled by alpha / rank.", gt=0)
    targets: list[str] = key(
        ["query", "value"], "Which layers: query, key, value, output, up, down.", drift=STRUCTURAL, choices=LORA_TARGETS
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        if not self.targets:
            yield "model.lora.targets", "model.lora.targets names no layer", f"some of: {', '.join(LORA_TARGETS)}"


@dataclass
class Bert(Model):
    """An encoder. Its architecture is given here, or null and read from the config.json of `init_from`."""

    implementation: ClassVar[str] = "bigctl.models.bert:BertClassifier"
    packs: ClassVar[bool] = True
    loops_on_cpu: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("texts", "masked texts")
    shared: ClassVar[Mapping[str, tuple[str, ...]]] = {"tensor": ("heads", "intermediate")}
    levels: ClassVar[tuple[str, ...]] = (r"^encoder/embeddings/", r"^encoder/layers/(\d+)/")
    kind: str = kind("bert")
    layers: int | None = key(None, "Encoder layers.", drift=STRUCTURAL, decided=True, ge=1, le=MOST_LAYERS)
    width: int | None = key(None, "Width of the residual stream.", drift=STRUCTURAL, decided=True, ge=1)
    heads: int | None = key(None, "Attention heads.", drift=STRUCTURAL, decided=True, ge=1)
    head_dim: int | None = key(
        None, "Features of a head; null for model.width / model.heads.", drift=STRUCTURAL, decided=True, ge=1
    )
    intermediate: int | None = key(None, "Width inside the feed-forward part.", drift=STRUCTURAL, decided=True, ge=1)
    positions: int | None = key(None, "Longest text the model can take [tokens].", drift=STRUCTURAL, decided=True, ge=1)
    vocab: int | None = key(
        None, "Rows of the token embedding; null for the tokenizer's.", drift=STRUCTURAL, decided=True, ge=1
    )
    eps: float = key(1e-12, "Added to the variance in layer normalisation.", drift=STRUCTURAL, gt=0)
    pool: str = key("cls", "What stands for the text: the first token, or the mean.", drift=STRUCTURAL, choices=POOLS)
    pooler: bool = key(
        False, "Put the dense layer with tanh of the original between pool and output.", drift=STRUCTURAL
    )
    dropout: float = key(
        0.1, "Dropout of embeddings, of each sub-layer's output, and before the head.", traced=True, off=0.0,
        ge=0, lt=1,
    )  # fmt: skip
    attention_dropout: float = key(0.1, "Dropout of attention weights.", traced=True, off=0.0, ge=0, lt=1)
    remat: str = remat_of_layers()
    scan: bool = scan_of_layers()
    lora: Lora = key(Lora, "Low-rank adaptation.")

    def head_input(self, *, per_token: bool) -> str:
        if per_token:
            return "each token"
        named = {"cls": "the first token", "mean": "the mean of the tokens"}[self.pool]
        return f"{named} behind the pooler (model.pooler)" if self.pooler else named

    def frozen(self) -> tuple[str, ...]:
        """Of the encoder low-rank adaptation trains only what it adds."""
        return (r"^encoder/(?!.*/lora_[ab]$)",) if self.lora.rank else ()

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.width and self.heads and self.head_dim is None and self.width % self.heads:
            message = f"model.width={self.width} is not divisible by model.heads={self.heads}"
            yield "model.heads", message, "choose a divisor of the width"


@dataclass
class Lstm(Model):
    implementation: ClassVar[str] = "bigctl.models.lstm:LstmClassifier"
    loops_on_cpu: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("texts",)
    levels: ClassVar[tuple[str, ...]] = (r"^embedding/", r"^layers/(\d+)/")
    kind: str = kind("lstm")
    embedding: int = key(128, "Width of the token embedding.", drift=STRUCTURAL, ge=1)
    hidden: int = key(128, "Width of the state, in each direction.", drift=STRUCTURAL, ge=1)
    layers: int = key(1, "Layers on top of each other.", drift=STRUCTURAL, ge=1, le=MOST_LAYERS)
    bidirectional: bool = key(True, "Read the text in both directions.", drift=STRUCTURAL)
    pool: str = key(
        "max", "What stands for the text: the last state, or the mean or maximum of all.", drift=STRUCTURAL,
        choices=LSTM_POOLS,
    )  # fmt: skip
    dropout: float = key(0.3, "Dropout of embeddings, between layers and before the head.", traced=True, off=0.0,
                         ge=0, lt=1)  # fmt: skip
    ngrams: int = key(
        0, "Longest runs of tokens that a linear model beside the LSTM takes; 0 for none. It has no part in tags.",
        drift=STRUCTURAL, ge=0, le=8,
    )  # fmt: skip
    ngram_rows: int = key(131072, "Rows that runs of tokens are hashed to.", drift=STRUCTURAL, ge=1, le=2**28)
    ngram_scale: float = key(
        2.0, "What they add is multiplied by, and so how fast they are learnt.", drift=STRUCTURAL, gt=0
    )
    ngram_share: float = key(0.7, "Their weight in the mean of the logits of both.", ge=0, le=1)
    ngram_lr: float | None = key(
        None, "Peak learning rate of the runs, by Adagrad, as each is seldom seen; null to train them as all else.",
        drift=STRUCTURAL, gt=0,
    )  # fmt: skip
    window: int | None = key(
        None, "Tokens of a text that the LSTM reads, from its beginning; null for all. Runs are of the whole text; "
        "words that are tagged are all read.", drift=STRUCTURAL, ge=1,
    )  # fmt: skip

    def seldom(self) -> tuple[str, float] | None:
        return (r"^head/ngrams$", self.ngram_lr) if self.ngrams and self.ngram_lr else None

    def head_input(self, *, per_token: bool) -> str:
        return "each token" if per_token else f"the {self.pool} of the states"


BAG_POOLS = ("mean", "root", "norm")


@dataclass
class Bag(Model):
    """The pooled embeddings of a text's n-grams (Joulin et al. 2017)."""

    implementation: ClassVar[str] = "bigctl.models.bag:BagClassifier"
    loops_on_cpu: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]] = ("n-grams",)
    levels: ClassVar[tuple[str, ...]] = (r"^embedding/",)
    kind: str = kind("bag")
    width: int = key(
        16, "Width of the embedding; 0 for that of the outputs and no layer behind it, a linear model.",
        drift=STRUCTURAL, ge=0,
    )  # fmt: skip
    pool: str = key(
        "mean", "What the sum of a text's embeddings is divided by: their number (mean), the root of it, or, "
        "weighted by how rare they are, their length, words and pieces apart (norm), as in TF-IDF.",
        drift=STRUCTURAL, choices=BAG_POOLS,
    )  # fmt: skip
    scale: float | None = key(
        1.0, "What scores are multiplied by; null for log2 of the number of outputs, 1 at least, so that those of many "
        "classes grow as fast as those of two.", drift=STRUCTURAL, gt=0,
    )  # fmt: skip
    scale_power: float = key(
        1.0, "Power that this log2 is raised to, where model.scale is null.", drift=STRUCTURAL, ge=0, le=2
    )
    dropout: float = key(0.5, "Share of the n-grams of a text that are left out.", traced=True, off=0.0, ge=0, lt=1)

    def head_input(self, *, per_token: bool) -> str:
        return f"the {self.pool} of the n-grams"
