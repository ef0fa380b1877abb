"""Keys of the recipes: what is trained, and how text becomes numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from bigctl.config.schema.base import FREE, STRUCTURAL, Component, key, kind


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
        0.0, "Weight of the squared logarithm of the normaliser, which keeps logits small.", traced=True, off=0.0
    )
    loss_chunk: int | None = key(None, "Places of each window whose logits are made at once; null chooses [tokens].")
    sample_every: str | None = key(
        None, "Cadence of samples of text, such as '500 steps'; null for at each evaluation.", drift=FREE
    )
    sample_tokens: int = key(100, "Length of each sample; 0 for no samples [tokens].", drift=FREE)
    prompt: str | None = key(
        None, "What samples begin with; null for the first words of the validation text.", drift=FREE
    )
