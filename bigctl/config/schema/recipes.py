"""Keys of the recipes: what is trained, and how text becomes numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bigctl.config.schema.augment import Augment
from bigctl.config.schema.base import FREE, STRUCTURAL, Component, Problem, Whole, cadence_problems, key, kind
from bigctl.config.schema.extensions import Metric
from bigctl.config.schema.models import Model
from bigctl.config.schema.tokenizers import StreamTokenizer
from bigctl.errors import ConfigError

MAX, MIN = "max", "min"
CROSS_ENTROPY, BCE, ONE_VS_REST = "cross_entropy", "bce", "one_vs_rest"
NEW, PROBE = "new", "probe"
"""What a head may begin as."""


@dataclass
class Recipe(Component):
    """What is trained, and how its loss and metrics are made."""

    group_name: ClassVar[str] = "recipe"
    inputs: ClassVar[str] = ""
    """What it trains on: images, tables, texts, masked texts or streams; models say what they take. Empty: not told."""
    metrics: ClassVar[Mapping[str, str]] = {
        "loss": MIN,
        "epsilon": MIN,
        "examples_per_s": MAX,
        "tokens_per_s": MAX,
        "mfu": MAX,
    }
    """Metrics by name, without what stands before the slash, and whether they should be "max" or "min". Those of the
    classes that a recipe derives from count too."""
    purpose: ClassVar[str] = "predict"
    """What is done with a trained model: "predict", "generate" text, or "initialise" other models."""
    whole_batch: ClassVar[bool] = False
    """Whether each step is given all training examples, however many there are."""
    taught: ClassVar[bool] = False
    """Whether `distil.teacher` may teach it."""
    unlabelled: ClassVar[bool] = False
    """Whether it has no use for a label, so that data need not name one."""
    kind: str = kind("???")

    @classmethod
    def direction(cls, metric: str) -> str | None:
        """Whether a metric, such as val/loss, should be large ("max") or small ("min"); None where nothing says. One of
        a part, such as val/loss/web of the corpus web, is as that of the whole."""
        name = metric.partition("/")[2] or metric
        own = Metric.known().get(name)
        if own is not None:
            return own.direction
        tables = [vars(base).get("metrics", {}) for base in cls.__mro__]
        named = (table[each] for each in (name, name.partition("/")[0]) for table in tables if each in table)
        return next(named, None)

    def build(self, config: Whole, *data: Any) -> Any:
        """The `training.task.Task` of this experiment: its model, loss and metrics.

        Args:
            config: the whole experiment.
            data: what it holds, as `data.dataset.Features`; and how many training examples each class has, int64
                [classes]; where an example has several, those without and with each, [2, classes]; None where nothing
                is trained.
        """
        return self.implementing()(config, *data)

    def window(self, model: Model) -> int | None:
        """Length of a training window of one long text [tokens]; None in recipes of examples."""
        return None

    def sample_cadence(self, evaluation: str) -> str | None:
        """When samples of text are written, given the cadence of evaluations; None for a recipe that writes none."""
        return None

    def check(self, config: Whole) -> Iterator[Problem]:
        model = config.model
        if self.inputs and model.inputs and self.inputs not in model.inputs:
            yield "model.kind", *_misfit(self, model)


def require_direction(recipe: Recipe, metric: str, where: str) -> str:
    """Like `Recipe.direction`, but a metric of which nothing is known is refused.

    Args:
        recipe: whose metric it is.
        metric: its name.
        where: the key that says it otherwise, such as eval.mode.

    Raises:
        ConfigError: telling to set that key.
    """
    found = recipe.direction(metric)
    if found is None:
        raise ConfigError(
            f"nothing says whether {metric!r} should be large or small",
            where=where,
            hint=f"say {where}=max or {where}=min; or name the metric in `metrics` of the recipe's dataclass",
        )
    return found


def known_direction(metric: str) -> str | None:
    """Like `Recipe.direction`, of whatever recipe knows the metric."""
    recipes: list[type[Recipe]] = [Recipe, *_below(Recipe)]
    return next((found for recipe in recipes if (found := recipe.direction(metric)) is not None), None)


def _below(recipe: type[Recipe]) -> list[type[Recipe]]:
    return [each for child in recipe.__subclasses__() for each in (child, *_below(child))]


def _misfit(recipe: Recipe, model: Model) -> tuple[str, str]:
    """What to say of a model and a recipe that are not for the same kind of data, and the remedy."""
    name = f"model={model.kind}"
    if recipe.inputs == "streams":
        return f"{name} does not write text", "use model=gpt_nano or another gpt or llama"
    if recipe.inputs == "n-grams":
        return f"{name} reads no n-grams", "use model=bag"
    if "n-grams" in model.inputs:
        return f"{name} reads nothing but n-grams", "use recipe=ngram_cls"
    if "streams" in model.inputs:
        return f"{name} writes text, recipe={recipe.kind} does not", "use recipe=gpt_lm"
    if recipe.inputs == "masked texts" and "texts" in model.inputs:
        return f"recipe={recipe.kind} cannot train {name}", "choose a BERT, such as model=bert_tiny"
    if recipe.inputs in ("texts", "masked texts"):
        return f"{name} does not read text", "use model=lstm or model=minilm"
    if "texts" in model.inputs:
        return f"{name} reads text, recipe={recipe.kind} does not", "use recipe=bert_cls"
    needs = f"{name} needs {' or '.join(model.inputs)}, recipe={recipe.kind} reads {recipe.inputs}"
    return needs, "use recipe=cnn_cls, or model=mlp"


@dataclass
class Classification(Recipe):
    metrics: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            *("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision", "macro_f1", "map"),
            *("binary_precision", "binary_recall", "binary_f1"),
        ),
        MAX,
    )
    label_smoothing: float = key(0.0, "Share of the target spread evenly over all classes.", traced=True, ge=0, lt=1)
    class_weights: Any = key(
        "none", "Weight of each class in the loss: none, balanced (inverse to its frequency), or a list of numbers."
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        given = self.class_weights
        listed = isinstance(given, list) and all(isinstance(w, int | float) and 0 <= w < math.inf for w in given)
        if given not in (None, "none", "balanced") and not (listed and any(given)):
            remedy = "none, balanced, or a list of numbers, 0 or more, such as [1,2]"
            yield "recipe.class_weights", f"recipe.class_weights cannot be {given!r}", remedy


@dataclass
class ImageCls(Classification):
    """What the recipes of image recognition share."""

    taught: ClassVar[bool] = True
    implementation: ClassVar[str] = "bigctl.recipes.image_cls:ImageCls"
    inputs: ClassVar[str] = "images"
    metrics: ClassVar[Mapping[str, str]] = {"robust_accuracy": MAX}
    loss: str = key(
        CROSS_ENTROPY, "Of one class an example: cross_entropy, or bce, a yes or no to every class, the mean over the "
        "classes (Wightman et al. 2021).", choices=(CROSS_ENTROPY, BCE),
    )  # fmt: skip
    augment: Augment = key(Augment, "Changes of the training images.")
    size: int | None = key(
        None, "Shorter side that pictures in files are resized to, in the shape that most of them have, where "
        "data.image_size is not given; null for what model.init_from was trained with, else as they are [pixels].",
        drift=STRUCTURAL, ge=1,
    )  # fmt: skip
    head: str = key(
        NEW, "What a head that is not taken over begins as: drawn at random (new), or logistic regression on the "
        "features that the pretrained model has of the training split, as recipe=probe solves for it (probe).",
        choices=(NEW, PROBE),
    )  # fmt: skip
    mean: list[float] | None = key(
        None, "What is taken off each channel, of pixels from 0 to 1; null for what the weights of model.init_from "
        "were trained with, else the mean of the training split.", drift=STRUCTURAL, decided=True,
    )  # fmt: skip
    std: list[float] | None = key(
        None, "What each channel is then divided by; null likewise.", drift=STRUCTURAL, decided=True, gt=0
    )

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        if (self.mean is None) != (self.std is None):
            name, other = ("std", "mean") if self.mean is None else ("mean", "std")
            yield f"recipe.{other}", f"recipe.{name} is given without recipe.{other}", "give both, or neither"
        if self.head == PROBE and config.model.init_from is None:
            what = f"recipe.head=probe reads the features of pretrained weights, model={config.model.kind} has none"
            yield "model.init_from", what, "choose model=lite0_pretrained, or leave recipe.head out"
        yield from self.augment.problems(config)


@dataclass
class CnnCls(ImageCls):
    kind: str = kind("cnn_cls")


@dataclass
class ResnetCls(ImageCls):
    kind: str = kind("resnet_cls")


@dataclass
class VitCls(ImageCls):
    kind: str = kind("vit_cls")


@dataclass
class FinetuneCls(ImageCls):
    """Pretrained weights that go on learning."""

    kind: str = kind("finetune_cls")


@dataclass
class SpeedCls(ImageCls):
    kind: str = kind("speed_cls")


@dataclass
class MlpCls(Classification):
    implementation: ClassVar[str] = "bigctl.recipes.mlp_cls:MlpCls"
    taught: ClassVar[bool] = True
    inputs: ClassVar[str] = "tables"
    metrics: ClassVar[Mapping[str, str]] = {"mse": MIN, "mae": MIN, "rmse": MIN}
    kind: str = kind("mlp_cls")


@dataclass
class GptLm(Recipe):
    """Language modelling: each token is predicted from those before it."""

    taught: ClassVar[bool] = True
    implementation: ClassVar[str] = "bigctl.recipes.gpt_lm:GptLm"
    inputs: ClassVar[str] = "streams"
    metrics: ClassVar[Mapping[str, str]] = {"perplexity": MIN, "bits_per_byte": MIN, "cross_entropy": MIN}
    purpose: ClassVar[str] = "generate"
    kind: str = kind("gpt_lm")
    tokenizer: StreamTokenizer = key(StreamTokenizer, "How text becomes numbers.")
    block: int | None = key(
        None,
        "Length of a training window; null for the model's context, 1024 at most [tokens].",
        drift=STRUCTURAL,
        ge=1,
    )
    packing: str = key(
        "windows",
        "What a window holds: part of the text, across documents (windows), or whole documents that do not see each "
        "other, each with positions of its own (documents).",
        drift=STRUCTURAL,
        choices=("windows", "documents"),
    )
    end_token: int | None = key(
        None,
        "Number of the token that ends a document, for packing=documents; null for the tokenizer's, or the index of "
        "Megatron's files.",
        drift=STRUCTURAL,
        ge=0,
    )
    z_loss: float = key(
        0.0, "Weight of the squared logarithm of the normaliser, which keeps logits small.", traced=True, off=0.0, ge=0
    )
    loss_chunk: int | None = key(
        None, "Places of each window whose logits are made at once; null to choose [tokens].", ge=1
    )
    sample_every: str | None = key(
        None, "Cadence of samples of text, such as '500 steps'; null for at each evaluation.", drift=FREE
    )
    sample_tokens: int = key(100, "Length of each sample; 0 for no samples [tokens].", drift=FREE, ge=0)
    prompt: str | None = key(
        None, "What samples begin with; null for the first words of the validation text.", drift=FREE
    )

    def window(self, model: Model) -> int | None:
        return self.block or min(getattr(model, "context", None) or 1024, 1024)

    def sample_cadence(self, evaluation: str) -> str | None:
        return (self.sample_every or evaluation) if self.sample_tokens else None

    def check(self, config: Whole) -> Iterator[Problem]:
        yield from super().check(config)
        context = getattr(config.model, "context", None)
        if self.block and context and self.block > context:
            message = f"recipe.block={self.block} is longer than the model's context ({context})"
            yield "recipe.block", message, f"recipe.block={context} or less, or a larger model.context"
        yield from self._check_packing(config)
        if self.sample_every is not None:
            yield from cadence_problems("recipe.sample_every", self.sample_every, "null for at each evaluation")

    def _check_packing(self, config: Whole) -> Iterator[Problem]:
        if self.packing == "windows":
            if self.end_token is not None:
                message = "recipe.end_token is not used by recipe.packing=windows, which go across documents"
                yield "recipe.end_token", message, "add recipe.packing=documents, or leave it out"
            return
        if not config.model.packs:
            message = f"model={config.model.kind} cannot keep documents of a window apart"
            yield "recipe.packing", message, "use recipe.packing=windows, or a gpt or llama"
        if self.end_token is None and not getattr(config.data, "boundaries", True):
            message = "data.boundaries=false puts nothing between documents, and recipe.packing=documents goes by that"
            yield "data.boundaries", message, "leave it out; or say which token ends one, recipe.end_token=NUMBER"
