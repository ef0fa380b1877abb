"""What a recipe says of data that it does not read: what is there, and which recipe reads that."""

from __future__ import annotations

from bigctl.data.dataset import Features
from bigctl.data.target import NONE, TOKEN_CLASS
from bigctl.errors import ConfigError

NAME_CLASSES = "name the column with the classes: data.label=COLUMN, or data.labels=COLUMN for several a text"


def misfit(recipe: str, needs: str, features: Features, *also: str) -> ConfigError:
    """The error of a recipe that was given other data.

    Args:
        recipe: its name.
        needs: the data that it reads, in words.
        features: of the data that there is.
        also: further advice.
    """
    holds, hint = _found(features)
    return ConfigError(
        f"recipe={recipe} needs {needs}, the data holds {holds}", where="data", hint="; ".join([hint, *also])
    )


def _found(features: Features) -> tuple[str, str]:
    """What the data holds, and what reads it."""
    kind, target = features.kind, features.target
    if kind == "image" and target.names:
        return "images with classes", "recipe=cnn_cls, resnet_cls and vit_cls read them"
    if kind == "image":
        return "images without classes", "images are told apart by class: a folder for each, or data.label=COLUMN"
    if kind == "table":
        return "table rows", "recipe=mlp_cls reads them"
    if kind == "stream":
        return "one long text", "recipe=gpt_lm learns to write it"
    if target.kind == TOKEN_CLASS:
        return "texts with a tag a word", "recipe=lstm_tag and bert_tag read them"
    if target.kind == NONE:
        return "texts without classes", f"recipe=gpt_lm learns to write them; or {NAME_CLASSES}"
    if not target.names:
        return "texts with a number", NAME_CLASSES
    return "texts with classes", "recipe=ngram_cls, lstm_cls and bert_cls read them"
