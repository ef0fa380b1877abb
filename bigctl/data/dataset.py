"""Prepared data: memory-mapped arrays by split, and what a model and a user need to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Features:
    """What the examples look like.

    Attributes:
        kind: "image" (inputs uint8 [height, width, channels]) or "table" (inputs float32 [features]).
        shape: shape of one input.
        classes: class names in label order; None for regression.
        mean, std: statistics of the training split: per channel of images in [0, 1], or of the target in regression.
        encoder: how table columns become features, as JSON (see `encoder.TableEncoder`).
        feature_names: one name a feature, for tables.
        image_size: what images are resized to at prediction, None to demand their size.
    """

    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    encoder: dict[str, Any] | None = None
    feature_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes) if self.classes else 0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Features:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name in ("shape", "classes", "mean", "std", "feature_names", "image_size"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to be trained on.

    Attributes:
        splits: "train", "validation", "test" -> columns: `inputs` [N, *shape] and `label` [N].
        features: see `Features`.
        fingerprint: sha256 over the arrays' contents and the features; equal data, equal fingerprint.
        info: facts for people, JSON-serialisable.
        path: the cache folder it lives in.
    """

    splits: dict[str, dict[str, np.ndarray]]
    features: Features
    fingerprint: str
    info: dict[str, Any] = field(default_factory=dict)
    path: str = ""

    def size(self, split: str) -> int:
        return len(self.splits[split]["label"])
