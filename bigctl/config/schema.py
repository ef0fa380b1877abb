"""Every key a user can set: its type, default, meaning, and what a change of it does to a run that is resumed.

The dataclasses are the schema of the Hydra tree under `conf/`. This module is imported by completion and by `--help`,
so it imports nothing but the standard library. A component (a model, an optimizer, ...) is a dataclass with a
read-only `kind`; the class that implements it is named here, in code, as a lazy "module:Class" string.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

MISSING: Any = "???"
"""OmegaConf's mark for a value that must be given."""

STRUCTURAL = "structural"
"""A resumed run cannot differ in this: parameters or examples would no longer fit."""
TRAJECTORY = "trajectory"
"""A resumed run may differ in this only where it is allowed by name: the results would be another run's."""
FREE = "free"
"""A resumed run may differ in this: it changes nothing that is computed."""


def key(
    default: Any,
    doc: str,
    *,
    drift: str = TRAJECTORY,
    choices: tuple[str, ...] = (),
    traced: bool = False,
    decided: bool = False,
) -> Any:
    """One key of the schema.

    Args:
        default: the value where nothing else sets one; a list or dict is copied.
        doc: one sentence; ends with the unit in brackets where there is one.
        drift: STRUCTURAL, TRAJECTORY or FREE, see above.
        choices: the values allowed, where they are few.
        traced: whether the compiled step takes the value as an argument, so that another value needs no new compile.
        decided: null leaves the value to the start of a run, which then keeps it.
    """
    metadata = {"doc": doc, "drift": drift, "choices": choices, "traced": traced, "decided": decided}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def kind(name: str) -> Any:
    return key(name, "Names the component; read-only, choose another by its group.", drift=STRUCTURAL)


class Component:
    """Something chosen by name from a group: `model=cnn` picks the dataclass whose `kind` is "cnn"."""

    group: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    kind: str


# ---------------------------------------------------------------------------------------------------------- recipes


@dataclass
class Augment:
    """Random changes of training images, drawn for every example and step, composed in the order listed here."""

    rotate: float = key(0.0, "Largest rotation either way [degrees].")
    scale: float = key(0.0, "Largest relative change of size, 0.1 for 0.9 to 1.1.")
    shift: float = key(0.0, "Largest shift along each axis [fraction of the image].")
    flip: str = key("none", "Mirror half of the images.", choices=("none", "horizontal", "vertical", "both"))
    crop: int = key(0, "Pad by this many pixels, then crop back at random [pixels].")


@dataclass
class Recipe(Component):
    """What is trained, and how its loss and metrics are made."""

    group: ClassVar[str] = "recipe"
    kind: str = kind("???")


@dataclass
class Classification(Recipe):
    label_smoothing: float = key(0.0, "Share of the target spread evenly over all classes.", traced=True)
    class_weights: Any = key(
        "none", "Weight of each class in the loss: none, balanced (inverse to its frequency), or a list of numbers."
    )


@dataclass
class CnnCls(Classification):
    implementation: ClassVar[str] = "bigctl.recipes.cnn_cls:CnnCls"
    kind: str = kind("cnn_cls")
    augment: Augment = key(Augment, "Changes of the training images.")


@dataclass
class MlpCls(Classification):
    implementation: ClassVar[str] = "bigctl.recipes.mlp_cls:MlpCls"
    kind: str = kind("mlp_cls")


TOKENIZERS = ("pretrained", "file", "bpe", "bytes", "words", "characters")
STREAM_TOKENIZERS = (*TOKENIZERS, "gpt2")
TRUNCATIONS = ("head", "tail", "head_tail")


@dataclass
class StreamTokenizer:
    """How one long text becomes numbers. What is made here is made of the training split, once, and stored with the
    run."""

    type: str = key(
        "characters",
        "The one that comes with model.init_from (pretrained), that of tokenizer.path (file), that of GPT-2 (gpt2), "
        "the 256 bytes, or one made of the training split: byte-level bpe, words, or characters.",
        drift=STRUCTURAL,
        choices=STREAM_TOKENIZERS,
    )
    path: str | None = key(None, "A vocab.txt (WordPiece) or a tokenizer.json.", drift=STRUCTURAL)
    size: int = key(10000, "Largest vocabulary of a tokenizer made here [tokens].", drift=STRUCTURAL)
    lowercase: bool = key(False, "Fold case, in a tokenizer made here or from a vocab.txt.", drift=STRUCTURAL)


@dataclass
class Tokenizer(StreamTokenizer):
    """How texts, each an example of its own, become numbers."""

    type: str = key(
        "words",
        "The one that comes with model.init_from (pretrained), that of tokenizer.path (file), the 256 bytes, or one "
        "made of the training split: byte-level bpe, the most frequent words, or characters.",
        drift=STRUCTURAL,
        choices=TOKENIZERS,
    )
    lowercase: bool = key(True, "Fold case, in a tokenizer made here or from a vocab.txt.", drift=STRUCTURAL)
    max_length: int = key(128, "What is longer is cut, marks of beginning and end included [tokens].", drift=STRUCTURAL)
    truncate: str = key(
        "head",
        "What is kept of a long text: its beginning, its end, or both (a quarter and three quarters).",
        drift=STRUCTURAL,
        choices=TRUNCATIONS,
    )


@dataclass
class Bucketing:
    """Batches of texts of like length, so that little is padding."""

    shapes: int = key(4, "Padded lengths in use, each a program to compile.")
    window: int = key(64, "Batches drawn at once and sorted by length among themselves; 1 for plain order.")


@dataclass
class TextCls(Classification):
    """What the recipes of text classification share."""

    implementation: ClassVar[str] = "bigctl.recipes.text_cls:TextCls"
    tokenizer: Tokenizer = key(Tokenizer, "How text becomes numbers.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")


@dataclass
class BertCls(TextCls):
    kind: str = kind("bert_cls")


@dataclass
class LstmCls(TextCls):
    kind: str = kind("lstm_cls")


@dataclass
class BertMlm(Recipe):
    """Masked language modelling (Devlin et al. 2019): labels are not used."""

    implementation: ClassVar[str] = "bigctl.recipes.bert_mlm:BertMlm"
    kind: str = kind("bert_mlm")
    tokenizer: Tokenizer = key(Tokenizer, "How text becomes numbers.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")
    mask_rate: float = key(0.15, "Share of tokens to be guessed; of them 80% are masked, 10% replaced, 10% kept.")


@dataclass
class GptLm(Recipe):
    """Language modelling: each token is predicted from those before it."""

    implementation: ClassVar[str] = "bigctl.recipes.gpt_lm:GptLm"
    kind: str = kind("gpt_lm")
    tokenizer: StreamTokenizer = key(StreamTokenizer, "How text becomes numbers.")
    block: int | None = key(
        None, "Length of a training window; null for the model's context, 1024 at most [tokens].", drift=STRUCTURAL
    )
    z_loss: float = key(
        0.0, "Weight of the squared logarithm of the normaliser, which keeps logits small.", traced=True
    )
    loss_chunk: int | None = key(None, "Places of each window whose logits are made at once; null chooses [tokens].")
    sample_every: str | None = key(
        None, "Cadence of samples of text, such as '500 steps'; null for at each evaluation.", drift=FREE
    )
    sample_tokens: int = key(100, "Length of each sample; 0 for no samples [tokens].", drift=FREE)
    prompt: str | None = key(
        None, "What samples begin with; null for the first words of the validation text.", drift=FREE
    )


# ----------------------------------------------------------------------------------------------------------- models

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
    dropout: float = key(0.5, "Dropout after each hidden layer.", traced=True)
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
    dropout: float = key(0.0, "Dropout after each dense layer.", traced=True)


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
    dropout: float = key(0.1, "Dropout of embeddings, of each sub-layer's output, and before the head.", traced=True)
    attention_dropout: float = key(0.1, "Dropout of attention weights.", traced=True)
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
    dropout: float = key(0.3, "Dropout of embeddings, between layers and before the head.", traced=True)


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
    dropout: float = key(0.0, "Dropout of the embedding and of what each part adds.", traced=True)
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


# ------------------------------------------------------------------------------------------- optimizers, schedules


@dataclass
class Optimizer(Component):
    group: ClassVar[str] = "optimizer"
    kind: str = kind("???")
    lr: float = key(1e-3, "Peak learning rate.", traced=True)
    weight_decay: float = key(
        0.0, "Decoupled weight decay, times the learning rate; never on biases and norms.", traced=True
    )
    clip: float | None = key(None, "Largest global norm of the gradient; null for none.", traced=True)
    layer_decay: float = key(
        1.0, "What the learning rate is multiplied by from each layer to the one below; 1 for the same.", traced=True
    )
    freeze: list[str] = key(
        [], "Patterns of parameters that are not trained, such as embeddings or 'layers/[0-3]/'.", drift=STRUCTURAL
    )


@dataclass
class Sgd(Optimizer):
    kind: str = kind("sgd")
    lr: float = key(0.1, "Peak learning rate.", traced=True)
    momentum: float = key(0.9, "Decay of the momentum; 0 for plain gradient descent.")
    nesterov: bool = key(False, "Use Nesterov's look-ahead momentum.")


@dataclass
class Adagrad(Optimizer):
    kind: str = kind("adagrad")
    lr: float = key(1e-2, "Peak learning rate.", traced=True)
    initial_accumulator: float = key(0.1, "Starting value of the sum of squared gradients.")
    eps: float = key(1e-7, "Added to the denominator.")


@dataclass
class Adam(Optimizer):
    kind: str = kind("adam")
    b1: float = key(0.9, "Decay of the first moment.")
    b2: float = key(0.999, "Decay of the second moment.")
    eps: float = key(1e-8, "Added to the denominator.")


@dataclass
class AdamW(Adam):
    kind: str = kind("adamw")
    weight_decay: float = key(
        0.01, "Decoupled weight decay, times the learning rate; never on biases and norms.", traced=True
    )


@dataclass
class Lion(Optimizer):
    kind: str = kind("lion")
    lr: float = key(1e-4, "Peak learning rate.", traced=True)
    b1: float = key(0.9, "Mix of momentum and gradient in the update.")
    b2: float = key(0.99, "Decay of the momentum.")


@dataclass
class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside a network (Jordan et al. 2024), Adam for all else."""

    kind: str = kind("muon")
    lr: float = key(
        0.02, "Peak learning rate of the matrices inside: of kernels, but not of the output layer.", traced=True
    )
    adam_lr: float = key(
        1e-3, "Peak learning rate of what Adam trains: embeddings, the output layer (head), biases and other vectors.",
        traced=True,
    )  # fmt: skip
    momentum: float = key(0.95, "Decay of the momentum.")
    iterations: int = key(5, "Newton-Schulz iterations.")


@dataclass
class Schedule(Component):
    """The learning rate over the course of training, as a multiple of `optimizer.lr`."""

    group: ClassVar[str] = "schedule"
    kind: str = kind("???")
    warmup: float = key(0.0, "Linear warmup from zero [steps; below 1: fraction of the horizon].")
    horizon: int | None = key(
        None, "Length the schedule is laid out for; null for the whole training [steps].", decided=True
    )


@dataclass
class Constant(Schedule):
    kind: str = kind("constant")


@dataclass
class Cosine(Schedule):
    kind: str = kind("cosine")
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].")


@dataclass
class Linear(Schedule):
    kind: str = kind("linear")
    hold: float = key(0.0, "How long the peak is kept after the warmup, before the line [fraction of what is left].")
    final: float = key(0.0, "Learning rate at the end [fraction of the peak].")


@dataclass
class Step(Schedule):
    kind: str = kind("step")
    at: list[float] = key([0.5, 0.75], "When the rate drops [fractions of the horizon].")
    factor: float = key(0.1, "What the rate is multiplied by at each drop.")


# ------------------------------------------------------------------------------------------------------------- data


@dataclass
class Data(Component):
    """Where examples come from, and which of them are for training, selection and the final score."""

    group: ClassVar[str] = "data"
    kind: str = kind("???")
    split_seed: int = key(0, "Seed of the splits that are made by rule; separate from `seed`.", drift=STRUCTURAL)
    train: str | None = key(None, "Training split as an expression, such as train[:90%].", drift=STRUCTURAL)
    validation: str | None = key(None, "Validation split as an expression.", drift=STRUCTURAL)
    test: str | None = key(None, "Test split as an expression.", drift=STRUCTURAL)
    validation_fraction: float = key(
        0.1, "Share held out of the training split where the source has no validation split.", drift=STRUCTURAL
    )
    test_fraction: float = key(0.1, "Share held out where the source has no test split.", drift=STRUCTURAL)
    deduplicate: bool = key(
        False, "Keep each text once: copies are dropped, from training before they are from the test split.",
        drift=STRUCTURAL,
    )  # fmt: skip
    resident_mib: int = key(2048, "Largest training split kept on the device [MiB].", drift=FREE)


@dataclass
class Images(Data):
    image_size: list[int] | None = key(
        None, "Resize to [height, width]; null keeps what the images have [pixels].", drift=STRUCTURAL
    )


@dataclass
class Packaged(Data):
    """A set that is shipped inside a Python package."""

    kind: str = kind("packaged")
    name: str = key(MISSING, "Which packaged set.", drift=STRUCTURAL)


@dataclass
class Tfds(Images):
    kind: str = kind("tfds")
    dataset: str = key(
        MISSING, "Name in the TensorFlow Datasets registry, such as mnist or mnist:3.0.1.", drift=STRUCTURAL
    )
    manual_dir: str | None = key(None, "Folder with the original archives, where they are not downloaded.", drift=FREE)
    text: str | None = key(None, "The feature with the text, where there are several.", drift=STRUCTURAL)
    text_pair: str | None = key(None, "The feature with a second text.", drift=STRUCTURAL)


@dataclass
class ImageFolder(Images):
    kind: str = kind("image_folder")
    path: str = key(
        MISSING, "Folder with one sub-folder a class, or train/, validation/ and test/ of such.", drift=STRUCTURAL
    )
    validation_path: str | None = key(None, "Folder of the validation split.", drift=STRUCTURAL)
    test_path: str | None = key(None, "Folder of the test split.", drift=STRUCTURAL)
    channels: int | None = key(None, "1 for grey, 3 for colour; null to follow the images.", drift=STRUCTURAL)


@dataclass
class Idx(Data):
    kind: str = kind("idx")
    path: str = key(MISSING, "Folder with MNIST-style idx files, gzipped or not.", drift=STRUCTURAL)


@dataclass
class Table(Data):
    """Rows of a file; `label` names the target column."""

    kind: str = kind("???")
    path: str = key(MISSING, "The file with the training rows.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "File with the validation rows.", drift=STRUCTURAL)
    test_path: str | None = key(None, "File with the test rows.", drift=STRUCTURAL)
    label: str | None = key(MISSING, "The target column; null for texts without one.", drift=STRUCTURAL)
    text: str | None = key(
        None, "The column with the text to classify; without one the columns are a table.", drift=STRUCTURAL
    )
    text_pair: str | None = key(None, "The column with a second text, where pairs are classified.", drift=STRUCTURAL)
    columns: list[str] | None = key(
        None, "Names of the columns, for a file whose first line does not name them.", drift=STRUCTURAL
    )
    quoting: bool = key(True, "Whether quotes may enclose a field; false where they are plain characters.",
                        drift=STRUCTURAL)  # fmt: skip
    drop: list[str] = key([], "Columns to leave out.", drift=STRUCTURAL)


@dataclass
class TextFiles(Data):
    """Text to learn to write: files of plain text, or of JSON objects with the text in one field.

    Splits are made by place: the beginning of the text is for training, its end for validation and test.
    """

    kind: str = kind("text")
    path: str = key(MISSING, "A file, a folder, or a pattern such as 'books/**/*.txt'.", drift=STRUCTURAL)
    validation_path: str | None = key(None, "The same for the validation split.", drift=STRUCTURAL)
    test_path: str | None = key(None, "The same for the test split.", drift=STRUCTURAL)
    field: str | None = key(None, "The field of each JSON object that holds the text.", drift=STRUCTURAL)
    boundaries: bool = key(True, "Put the tokenizer's end token between two files or objects.", drift=STRUCTURAL)
    validation_fraction: float = key(
        0.05, "Share held out at the end of the text where there is no validation split.", drift=STRUCTURAL
    )
    test_fraction: float = key(
        0.05, "Share held out after that; 0 to have the validation text stand for the test split.", drift=STRUCTURAL
    )


@dataclass
class Csv(Table):
    kind: str = kind("csv")


@dataclass
class Tsv(Table):
    kind: str = kind("tsv")


@dataclass
class Jsonl(Table):
    kind: str = kind("jsonl")


# ------------------------------------------------------------------------------------------------------------- mesh


@dataclass
class Mesh(Component):
    """How many devices along each axis; -1 takes all that are left."""

    group: ClassVar[str] = "mesh"
    kind: str = kind("mesh")
    data: int = key(-1, "Devices that share the batch, each with all parameters.", drift=FREE)
    fsdp: int = key(1, "Devices that share the batch and the parameters.", drift=FREE)
    tensor: int = key(
        1, "Devices that share the work of each layer on the same examples: heads, MLP width, vocabulary.", drift=FREE
    )
    wait: int = key(300, "How long several processes wait for each other at the start [s].", drift=FREE)
    min_shard: int = key(2**14, "Smallest parameter worth sharding over fsdp [elements].", drift=FREE)

    @property
    def axes(self) -> dict[str, int]:
        """Sizes by name, those that share the batch first."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


# -------------------------------------------------------------------------------------- what every experiment has

PRECISIONS = ("float32", "bfloat16")


@dataclass
class EarlyStop:
    patience: int | None = key(None, "Stop after this many evaluations without a better one; null for never.")
    min_delta: float = key(0.0, "What counts as better: an improvement by more than this.")
    target: float | None = key(None, "Stop when the selection metric reaches this.")


@dataclass
class Divergence:
    """What becomes of steps whose loss, gradient or update is not finite, or spikes."""

    policy: str = key(
        "stop",
        "At such a step stop the run, skip the update, or rewind: go back to the last checkpoint of checkpoint.every "
        "and past the batches since.",
        choices=("stop", "skip", "rewind"),
    )
    deviations: float | None = key(
        None,
        "A loss or gradient norm this far above the mean of the window is a spike; null to judge by finiteness alone "
        "[standard deviations].",
    )
    window: int = key(128, "How many of the latest good steps that mean is of; nothing spikes in half of that [steps].")
    limit: int = key(10, "Steps skipped in a row, or rewinds to one checkpoint, that are not yet too many.")


@dataclass
class Train:
    steps: int | None = key(None, "Length of training; wins over epochs [steps].", drift=FREE)
    epochs: float | None = key(None, "Length of training [passes over the training split].", drift=FREE)
    max_minutes: float | None = key(
        None, "Save and exit with code 75 so long after the start; null for no limit [minutes].", drift=FREE
    )
    batch_size: int = key(128, "Global batch size [examples].")
    accumulate: int = key(1, "Parts the batch is computed in, to save memory; the result is that of the whole batch.")
    precision: str = key(
        "float32", "Type that activations are computed in; master weights stay float32.", choices=PRECISIONS
    )
    ema: float = key(
        0.0, "Decay of the averaged weights, which are then evaluated and exported; 0 for none.", drift=STRUCTURAL
    )
    early_stop: EarlyStop = key(EarlyStop, "When to stop before the end.")
    divergence: Divergence = key(Divergence, "What to do when training goes wrong.")
    overfit_one_batch: bool = key(False, "Train on the first batch only: a model that cannot learn it is broken.")
    log_every: int = key(50, "Cadence of training metrics [steps].", drift=FREE)
    steps_per_dispatch: int | None = key(None, "Steps per call of the compiled program; null chooses.", drift=FREE)
    deterministic: bool = key(True, "Use only deterministic kernels on GPU, which bit-exact resume needs.")
    tensorboard: bool = key(True, "Write TensorBoard events.", drift=FREE)
    compile_cache: bool = key(True, "Keep compiled programs between starts.", drift=FREE)


@dataclass
class Eval:
    every: str = key("1 epoch", "Cadence of validation, such as 500, '500 steps' or '1 epoch'.")
    batch_size: int | None = key(None, "Batch size of evaluation; null for up to 512 [examples].", drift=FREE)
    metric: str | None = key(None, "What selects the best checkpoint; null for the recipe's own choice.")
    mode: str | None = key(None, "Whether that metric should be max or min; null to know by its name.")


@dataclass
class Checkpoint:
    every: str = key("1 epoch", "Cadence of checkpoints, such as 500, '500 steps' or '1 epoch'.", drift=FREE)
    keep: int = key(2, "How many of the latest to keep.", drift=FREE)
    best: bool = key(True, "Also save and keep the best by the selection metric.", drift=FREE)
    on_failure: str = key(
        "stop", "Whether a save that fails stops training, or is warned of.", drift=FREE, choices=("stop", "warn")
    )


@dataclass
class Config:
    """One experiment."""

    recipe: Recipe = key(MISSING, "What is trained.")
    model: Model = key(MISSING, "The network.")
    optimizer: Optimizer = key(MISSING, "The update rule.")
    schedule: Schedule = key(MISSING, "The learning rate over time.")
    data: Data = key(MISSING, "The examples.")
    mesh: Mesh = key(MISSING, "The devices.")
    train: Train = key(Train, "The loop.")
    eval: Eval = key(Eval, "Validation.")
    checkpoint: Checkpoint = key(Checkpoint, "What is kept.")
    seed: int = key(0, "Seed of parameters, order, dropout and augmentation.")

    @property
    def is_regression(self) -> bool:
        """Whether the target is real-valued."""
        return getattr(self.model, "head", "classification") == "regression"

    @property
    def tokenizer(self) -> StreamTokenizer | None:
        """How text becomes numbers, in recipes of text."""
        return getattr(self.recipe, "tokenizer", None)

    @property
    def block(self) -> int | None:
        """Length of a training window of one long text [tokens]; None in recipes of examples."""
        if not isinstance(self.recipe, GptLm):
            return None
        return self.recipe.block or min(getattr(self.model, "context", None) or 1024, 1024)


GROUPS = ("recipe", "model", "optimizer", "schedule", "data", "mesh", "experiment")
"""The groups of the Hydra tree, in the order they are composed."""


def components() -> list[type[Component]]:
    """Every component that can be chosen, those of imported plugins included."""

    def below(base: type[Component]) -> Iterator[type[Component]]:
        for subclass in base.__subclasses__():
            yield subclass
            yield from below(subclass)

    return [c for c in below(Component) if c.group and dataclasses.is_dataclass(c) and _kind_of(c) != MISSING]


def component(group: str, name: str) -> type[Component] | None:
    """The dataclass of one component, or None where nothing has that name."""
    return next((c for c in components() if c.group == group and _kind_of(c) == name), None)


def _kind_of(cls: type) -> str:
    return str(next(f.default for f in dataclasses.fields(cls) if f.name == "kind"))


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """All keys of a dataclass as (dotted key, field, type), nested ones below their parents."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        dotted = f"{prefix}{field.name}"
        yield dotted, field, hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from walk(hints[field.name], f"{dotted}.")


def walk_config(config: Config) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """All leaf keys of a composed configuration as (dotted key, field, value)."""

    def descend(node: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                yield from descend(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", field, value

    return descend(config, "")
