"""Recipes that read texts one by one, and how these are put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from bigctl.config.schema.base import Problem, Whole, key, kind
from bigctl.config.schema.recipes import CROSS_ENTROPY, MAX, MIN, ONE_VS_REST, Classification, Recipe
from bigctl.config.schema.tokenizers import NgramTokenizer, Tokenizer


@dataclass
class Bucketing:
    """Batches of texts of like length, so that little is padding."""

    shapes: int = key(4, "Padded lengths in use, each a program to compile.", ge=1)
    window: int = key(
        64, "Batches drawn at once, whose texts are sorted by length, or dealt, among themselves; 1 for plain order.",
        ge=1,
    )  # fmt: skip


@dataclass
class Packing(Bucketing):
    """Batches of texts of about the same number of tokens."""

    pack: bool | None = key(
        None, "Put several texts into a row, none of which sees another, where that leaves less to compute; then "
        "`shapes` is not asked. null for where the model can.", decided=True,
    )  # fmt: skip


@dataclass
class TextCls(Classification):
    """What the recipes of text classification share."""

    taught: ClassVar[bool] = True
    implementation: ClassVar[str] = "bigctl.recipes.text_cls:TextCls"
    inputs: ClassVar[str] = "texts"
    tokenizer: Tokenizer = key(Tokenizer, "How text becomes numbers.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")


@dataclass
class BertCls(TextCls):
    kind: str = kind("bert_cls")
    bucketing: Packing = key(Packing, "How texts are put into batches.")

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if self.bucketing.pack and not can_pack(config):
            what = "texts cannot share rows with this model, nor in private or federated training"
            yield "recipe.bucketing.pack", what, "leave it out"


def can_pack(config: Whole) -> bool:
    """Whether texts may share rows in an experiment."""
    train = config.train
    return bool(config.model.packs and not train.privacy.on and not train.federated.on)


@dataclass
class LstmCls(TextCls):
    kind: str = kind("lstm_cls")


@dataclass
class NgramCls(Classification):
    """Texts as bags of n-grams (Joulin et al. 2017)."""

    implementation: ClassVar[str] = "bigctl.recipes.ngram_cls:NgramCls"
    inputs: ClassVar[str] = "n-grams"
    kind: str = kind("ngram_cls")
    loss: str = key(
        CROSS_ENTROPY, "Of one class a text, where there are more than two: cross_entropy, or one_vs_rest, a yes or no "
        "to every class, the sum over the classes, as that of linear models in scikit-learn.",
        choices=(CROSS_ENTROPY, ONE_VS_REST),
    )  # fmt: skip
    tokenizer: NgramTokenizer = key(NgramTokenizer, "Which n-grams a text is told by.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")


@dataclass
class TokenCls(Classification):
    """A class for each word of a sentence: the names in it, parts of speech."""

    implementation: ClassVar[str] = "bigctl.recipes.token_cls:TokenCls"
    inputs: ClassVar[str] = "texts"
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(("entity_precision", "entity_recall", "entity_f1"), MAX)
    tokenizer: Tokenizer = key(Tokenizer, "How text becomes numbers.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")


@dataclass
class BertTag(TokenCls):
    kind: str = kind("bert_tag")


@dataclass
class LstmTag(TokenCls):
    kind: str = kind("lstm_tag")


@dataclass
class BertMlm(Recipe):
    """Masked language modelling (Devlin et al. 2019): labels are not used."""

    unlabelled: ClassVar[bool] = True
    implementation: ClassVar[str] = "bigctl.recipes.bert_mlm:BertMlm"
    inputs: ClassVar[str] = "masked texts"
    metrics: ClassVar[Mapping[str, str]] = {"accuracy": MAX, "perplexity": MIN}
    purpose: ClassVar[str] = "initialise"
    kind: str = kind("bert_mlm")
    tokenizer: Tokenizer = key(Tokenizer, "How text becomes numbers.")
    bucketing: Bucketing = key(Bucketing, "How texts are put into batches.")
    mask_rate: float = key(
        0.15, "Share of tokens to be guessed; of them 80% are masked, 10% replaced, 10% kept.", gt=0, lt=1
    )
