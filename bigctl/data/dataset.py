"""Prepared data: memory-mapped arrays by split, and what a model and a user need to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bigctl.data.canaries import Canaries
from bigctl.data.layouts.layout import Columns, Layout
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.target import CLASSES, TOKEN_CLASS, Target
from bigctl.data.text.encoding import Texts

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Features:
    """What the examples look like.

    Attributes:
        kind: "image" (inputs uint8 [height, width, channels]), "table" (inputs float32 [features]), "text" (inputs
            int32 [length], `shape` being the largest; columns of texts are described in `buckets`) or "stream" (one
            long text, seen in windows of inputs int32 [block], see `windows`).
        shape: shape of one input.
        classes: class names in label order, where each example has one class; else None.
        mean, std: statistics of the training split: per channel of images in [0, 1], or of the target in regression.
        encoder: how table columns become features, as JSON (see `encoder.TableEncoder`).
        feature_names: one name a feature, for tables.
        image_size: what images are resized to at prediction, None to demand their size.
        tokenizer: what `tokenization.describe` says of the tokenizer; None for what is no text.
        pairs: whether each example is a pair of texts.
        columns: names of the columns of a table file that held the texts.
        origin: of a number to be predicted, see `Target`.
        target: what is to be predicted; None for what follows from `classes`, which is filled in.
    """

    kind: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    encoder: dict[str, Any] | None = None
    feature_names: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    tokenizer: dict[str, Any] | None = None
    pairs: bool = False
    columns: tuple[str, ...] = ()
    origin: float = 0.0
    target: Target = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.target is None:
            table = self.kind == "table" and self.mean  # the statistics of other kinds are those of pixels
            statistics = (self.mean[0], self.std[0], self.origin) if table else ()
            object.__setattr__(self, "target", Target.usual(self.kind, self.classes, *statistics))

    @property
    def num_classes(self) -> int:
        return len(self.classes) if self.classes else 0

    def to_json(self) -> dict[str, Any]:
        """The target is left out where it follows from the rest."""
        optional = {"target"} if self.origin else {"target", "origin"}  # the fingerprint of other data stays as it was
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in optional}
        return values | ({"target": self.target.to_json()} if self.target.kind in (CLASSES, TOKEN_CLASS) else {})

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Features:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        for name in ("shape", "classes", "mean", "std", "feature_names", "image_size", "columns"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        if "target" in known:
            known["target"] = Target.from_json(known["target"])
        return cls(**known)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to be trained on.

    Attributes:
        splits: "train", "validation", "test" -> columns: `inputs` [N, *shape] and `label` [N]; of texts `inputs` are
            all tokens one after the other, `offsets` [N + 1] says where each text begins, and `segment_start`
            [N] where in it a second text does; of one long text `inputs` are its tokens [T], and `bytes` [1] its length
            in UTF-8, which of ready-made tokens may be unknown.
        features: see `Features`.
        fingerprint: sha256 over the arrays' contents and the features; equal data, equal fingerprint.
        info: facts for people, JSON-serialisable.
        path: the cache folder it lives in.
        texts: for text, split -> the texts themselves; of pairs, the first and the second ones; of one long text
            its documents.
        layout: how examples become batches; None for texts that are not tokens yet.
        canaries: those of the training split, which is then without some of them; None for data as it is.
    """

    splits: dict[str, Columns]
    features: Features
    fingerprint: str
    info: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    texts: dict[str, tuple[Texts, ...]] = field(default_factory=dict)
    layout: Layout | None = None
    canaries: Canaries | None = None

    @property
    def batches(self) -> Layout:
        """The layout, of data that has one."""
        if self.layout is None:
            raise ValueError("texts have no layout before they are tokens: prepare them with a tokenizer")
        return self.layout

    @property
    def streamed(self) -> bool:
        """Whether its pictures stay in their files, and are decoded as they are needed."""
        return isinstance(self.splits["train"].get("inputs"), EncodedImages)

    def size(self, split: str) -> int:
        """Examples of a split; of one long text its windows, or without a tokenizer its documents, and of ready-made
        tokens these."""
        if self.layout is None:
            return len(self.texts[split][0] if self.texts[split] else self.splits[split]["inputs"])
        return self.layout.size(self.splits[split], training=split == "train")
