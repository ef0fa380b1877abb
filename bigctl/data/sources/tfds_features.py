"""Which features of a set of TensorFlow Datasets are the inputs and which is the target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.errors import DataError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetInfo
    from tensorflow_datasets.core.features import FeatureConnector

Leaf = tuple[tuple[str, ...], "FeatureConnector"]
"""Where a feature is in an example, and what it is."""
_USABLE = (
    "bigctl reads images and texts with one class label, tables of numbers and categories with one target, and texts "
    "without labels"
)


@dataclass(frozen=True)
class Roles:
    """Which features are read: one image, or texts, or some inputs as paths into an example; and the target, which is
    empty for texts without labels."""

    image: str | None
    inputs: dict[str, tuple[tuple[str, ...], Any]]
    target: str
    texts: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        if not self.target:
            return "stream"
        return "image" if self.image else "text" if self.texts else "table"


def find_roles(info: DatasetInfo, text: str | None, text_pair: str | None) -> Roles:
    from tensorflow_datasets.core import features as f

    def leaves(
        name: str, path: tuple[str, ...], feature: FeatureConnector
    ) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
        if isinstance(feature, f.FeaturesDict):
            for key, child in feature.items():
                yield from leaves(key, (*path, key), child)
        else:
            yield name, (path, feature)

    def scalar(feature: FeatureConnector) -> bool:
        return isinstance(feature, f.Tensor) and feature.shape == ()

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    unusable = DataError(
        f"its features cannot be used: {', '.join(f'{k} ({type(v).__name__})' for k, v in top.items())}", hint=_USABLE
    )
    images = [key for key, feature in top.items() if isinstance(feature, f.Image)]
    labels = [key for key, feature in top.items() if isinstance(feature, f.ClassLabel)]
    alone = _unlabelled_text(info, text) if text_pair is None else None
    if alone is not None:
        return Roles(None, {}, "", (alone,))
    texts = _text_features(info, text, text_pair)
    if texts:
        named = [key for key in labels if info.supervised_keys and key == info.supervised_keys[1]] or labels
        if len(named) != 1:
            raise unusable
        return Roles(None, {}, named[0], texts)
    if info.supervised_keys:
        source, target = info.supervised_keys[:2]
    elif len(labels) == 1 and len(images) <= 1:
        target = labels[0]
        source = images[0] if images else {key: key for key in top if key != target}
    else:
        raise unusable
    if not isinstance(target, str) or not scalar(top.get(target)):
        raise unusable

    if isinstance(source, str) and source in images:
        if target not in labels or top[source].np_dtype != np.uint8:
            raise unusable
        return Roles(source, {}, target)

    sources = {source: source} if isinstance(source, str) else source
    if not isinstance(sources, dict) or not all(isinstance(key, str) and key in top for key in sources.values()):
        raise unusable
    pairs = [pair for name, key in sources.items() for pair in leaves(name, (key,), top[key])]
    inputs = dict(pairs)
    vector = (feature for _, feature in inputs.values() if not scalar(feature))
    if (
        len(inputs) < len(pairs)
        or "label" in inputs
        or not all(isinstance(v, f.Tensor) and len(v.shape) == 1 and v.shape[0] and not is_text(v) for v in vector)
        or any(isinstance(feature, f.Text) for _, feature in inputs.values())
        or is_text(top[target])
    ):
        raise unusable
    return Roles(None, inputs, target)


def _unlabelled_text(info: DatasetInfo, text: str | None) -> str | None:
    """The one text, or the one that is named, of a set that holds nothing else."""
    from tensorflow_datasets.core import features as f

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    if not top or not all(isinstance(feature, f.Text) for feature in top.values()):
        return None
    named = [text] if text in top else list(top) if text is None else []
    return named[0] if len(named) == 1 else None


def _text_features(info: DatasetInfo, text: str | None, text_pair: str | None) -> tuple[str, ...]:
    """The features with the text and, where wanted, the second one; () for what is no set of labelled texts."""
    from tensorflow_datasets.core import features as f

    top = dict(info.features.items()) if isinstance(info.features, f.FeaturesDict) else {}
    known = [key for key, v in top.items() if isinstance(v, f.Tensor) and v.shape == () and is_text(v)]
    for role, name in (("text", text), ("text_pair", text_pair)):
        if name is not None and name not in known:
            found = f"its texts are {', '.join(known)}" if known else "it has none"
            raise DataError(f"data.{role}={name} is no feature with text", hint=found)
    text = text or _usual_text(info, [key for key in known if isinstance(top[key], f.Text) and key != text_pair])
    if text is None and text_pair is not None:
        raise DataError("data.text_pair is set without data.text", hint="set data.text=NAME")
    if text is not None and text == text_pair:
        raise DataError("data.text and data.text_pair name the same feature", hint="name different ones")
    return tuple(name for name in (text, text_pair) if name is not None)


def _usual_text(info: DatasetInfo, texts: list[str]) -> str | None:
    """The text that TFDS calls the input, or the only one beside a class label."""
    from tensorflow_datasets.core import features as f

    if info.supervised_keys:
        source = info.supervised_keys[0]
        return source if isinstance(source, str) and source in texts else None
    kinds = [type(feature) for feature in info.features.values()] if texts else []
    if f.Image in kinds or kinds.count(f.ClassLabel) != 1:
        return None
    if len(texts) > 1:
        hint = "set data.text=NAME, and data.text_pair=NAME for pairs"
        raise DataError(f"it has several texts: {', '.join(texts)}", hint=hint)
    return texts[0]


def is_text(feature: FeatureConnector) -> bool:
    return feature.np_dtype == np.object_
