"""A classifier, regressor or tagger that is served: examples of requests -> the records that `bigctl predict` gives."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bigctl.data import catalog
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import BigctlError, DataError, RunError
from bigctl.inference import text_batches
from bigctl.inference.predictor import Predictor
from bigctl.training.task import Record

Example = Any
"""Of JSON: a text, a pair, a row as an object, pixels as lists, an image in base64; or the bytes of an image file."""
SMALL = (1, 8, 32)
"""Sizes of small batches of arrays that are compiled beside the full one."""
_MULTIPLE = 32  # of which padded lengths of texts are

log = logging.getLogger("bigctl")


@dataclass(frozen=True)
class Asked:
    """What a request asks.

    Attributes:
        examples: about which.
        embeddings: whether what the last layer reads of each is wanted too.
    """

    examples: Sequence[Example]
    embeddings: bool = False

    def __len__(self) -> int:
        return len(self.examples)


class Predicting:
    """A run that labels examples.

    Every example gets the record that `bigctl predict` gives it when it is asked about it alone, to the last bit:
    arrays are padded to sizes that have been found to change none, texts go with others of their own padded length.

    Attributes:
        name: in addresses.
        kind: "image", "table", "text", "pair" or "tags".
    """

    def __init__(self, name: str, trained: Predictor):
        if trained.config.recipe.purpose != "predict":
            hint = "serve a run that labels examples, or a language model"
            raise RunError("predicts nothing that could be served", where=str(trained.run.path), hint=hint)
        self.name, self.trained, self._whole = name, trained, trained
        features = trained.features
        self.kind = features.kind
        if features.kind == "text":
            tags = features.target.kind == TOKEN_CLASS
            self.kind = "tags" if tags else "pair" if features.pairs else "text"
            self._tokenizer = trained.tokenizer

    @property
    def most(self) -> int:
        """Examples a batch at most."""
        return text_batches.FEW if self.trained.features.kind == "text" else 256

    def describe(self) -> dict[str, Any]:
        """What /models says."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind, "recipe": self.trained.config.recipe.kind}
        found |= {"step": self.trained.step, "classes": self.trained.classes, "embeddings": self.embeds}
        if self.kind == "image":
            found["shape"] = list(self.trained.features.shape)
        if self.kind == "table":
            found["columns"] = self.columns()
        return found

    def columns(self) -> list[str]:
        """The columns that a row must have."""
        from bigctl.data.sources import parquet

        return [str(name) for name in parquet.sources_of(self.trained.features)]

    @cached_property
    def _embedding(self) -> Predictor | None:
        """What gives embeddings too, in full batches alone; None for models that have none."""
        try:
            return self._whole.with_details(embeddings=True)
        except RunError:
            return None

    @property
    def embeds(self) -> bool:
        """Whether there are embeddings."""
        return self._embedding is not None

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the model reads of these texts."""
        columns, _ = text_batches.encode_texts(self._tokenizer, texts, self.trained.features, warn=False)
        return len(columns["inputs"])

    def warm_up(self) -> None:
        """Compile what requests will need, but for embeddings."""
        _ = self._embedding
        if self.trained.features.kind != "text":
            self.trained = self._whole.with_smaller_batches(SMALL)
            return
        longest = int((self.trained.features.tokenizer or {})["max_length"])
        for words in [*range(_MULTIPLE // 2, longest, _MULTIPLE), longest]:
            text = " ".join(["a"] * words)
            self.trained.describe_all([(text, "a") if self.kind == "pair" else text])

    # ------------------------------------------------------------------------------------------------------- requests

    def answer(self, requests: Sequence[Asked]) -> list[list[Record] | Exception]:
        """For each request one record an example, or what is wrong with it."""
        found: list[list[Record] | Exception] = []
        read = [self._read(request.examples) for request in requests]
        records = {
            wanted: iter(self._records([
                inputs for inputs, request in zip(read, requests, strict=True)
                if request.embeddings == wanted and not isinstance(inputs, Exception)
            ], wanted))
            for wanted in (False, True)
        }  # fmt: skip
        for inputs, request in zip(read, requests, strict=True):
            its = records[request.embeddings]
            found.append(inputs if isinstance(inputs, Exception) else [next(its) for _ in range(len(inputs))])
        return found

    def _read(self, examples: Sequence[Example]) -> Any:
        """Inputs as the model takes them, or what is wrong with them."""
        try:
            if self.kind == "image":
                return np.concatenate([self._image(example, number) for number, example in enumerate(examples)])
            if self.kind == "table":
                return np.asarray(self.trained.asked(self._rows(examples)).inputs)
            texts = [self._text(example, number) for number, example in enumerate(examples)]
            if self.kind == "tags":
                for number, text in enumerate(texts):
                    text_batches.checked_parts(text if isinstance(text, str) else " ".join(text), number, False)
            else:
                text_batches.encode_texts(self._tokenizer, texts, self.trained.features)
            return texts
        except (BigctlError, ValueError) as error:
            return error
        except OverflowError:
            return ValueError("a number is too large")

    def _image(self, example: Example, number: int) -> np.ndarray:
        if isinstance(example, Mapping):
            example = example.get("image", example)
        if isinstance(example, str):
            try:
                example = base64.b64decode(example.partition("base64,")[2] or example, validate=True)
            except binascii.Error:
                raise ValueError(f"the image at {number} is no base64") from None
        if isinstance(example, bytes):
            try:
                found = catalog.read_for_prediction(example, self.trained.config.data, self.trained.features)
            except DataError as error:
                raise DataError(f"the image at {number} cannot be read: {error.message}") from None
            if found.errors:
                raise DataError(f"the image at {number} cannot be read: {found.errors[min(found.errors)].message}")
            return np.asarray(found.inputs)
        if not isinstance(example, list):
            raise ValueError(f"the image at {number} is neither a file in base64 nor a list of pixels")
        try:
            pixels = np.asarray(example)
        except ValueError:
            raise ValueError(f"the pixels of the image at {number} are no full array") from None
        shape = tuple(self.trained.features.shape)
        if pixels.shape == shape[:2] and shape[-1] == 1:
            pixels = pixels[..., None]
        if pixels.shape != shape or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(f"the image at {number} is not {list(shape)} whole numbers from 0 to 255")
        return pixels.astype(np.uint8)[None]

    def _rows(self, examples: Sequence[Example]) -> Any:
        """Raises ValueError for what is no row, and for rows of other columns than the first."""
        if not all(isinstance(row, Mapping) for row in examples):
            if getattr(self.trained.config.data, "unnamed", False):
                return np.asarray(examples)
            raise ValueError(f"a row is an object of columns: {', '.join(self.columns()[:10])}")
        for number, row in enumerate(examples):
            for name, value in row.items():
                if isinstance(value, list | dict):
                    raise ValueError(f"{name!r} of the row at {number} is no single value")
            if other := [*(examples[0].keys() ^ row.keys())]:
                which = "lacks" if other[0] in examples[0] else "has"
                other_way = "has" if which == "lacks" else "lacks"
                raise ValueError(f"the row at {number} {which} the column {other[0]!r}, which the first {other_way}")
        return list(examples)

    def _text(self, example: Example, number: int) -> Any:
        if isinstance(example, Mapping):
            if unknown := [name for name in example if name not in ("text", "text_pair")]:
                raise ValueError(f"the key {unknown[0]!r} of the example at {number} is unknown; a text is in 'text'")
            example = [example.get("text"), example["text_pair"]] if "text_pair" in example else example.get("text")
        if isinstance(example, str) and self.kind != "pair":
            return example
        if isinstance(example, list) and example and all(isinstance(part, str) for part in example):
            if self.kind == "tags":
                return example
            if self.kind == "pair" and len(example) == 2:
                return tuple(example)
        wanted = {"text": "a text", "pair": "a pair of texts", "tags": "a text or a list of words"}[self.kind]
        raise ValueError(f"the example at {number} is not {wanted}")

    # -------------------------------------------------------------------------------------------------------- answers

    def _records(self, read: Sequence[Any], embeddings: bool) -> Iterator[Record]:
        trained = self._embedding if embeddings else self.trained
        if not read:
            return iter(())
        if trained is None:
            raise RunError("gives no embeddings", where=self.name)
        if trained.features.kind != "text":
            return iter(trained.describe_all(np.concatenate(read)))
        return iter(self._texts([text for texts in read for text in texts], trained))

    def _texts(self, texts: list[Any], trained: Predictor) -> list[Record]:
        """Texts of one padded length at a time: in what company they are changes nothing then."""
        groups: dict[int, list[int]] = {}
        if self.kind == "tags":
            groups = {place: [place] for place in range(len(texts))}
        else:
            columns, _ = text_batches.encode_texts(self._tokenizer, texts, self.trained.features)
            for place, length in enumerate(np.diff(columns["offsets"]).tolist()):
                groups.setdefault(-(-length // _MULTIPLE), []).append(place)
        records: dict[int, Record] = {}
        for places in groups.values():
            for start in range(0, len(places), text_batches.FEW):
                some = places[start : start + text_batches.FEW]
                records |= dict(zip(some, trained.describe_all([texts[place] for place in some]), strict=True))
        return [records[place] for place in range(len(texts))]
