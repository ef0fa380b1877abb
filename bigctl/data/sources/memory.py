"""What is given from Python (`data=memory`): a frame, arrays, texts or pictures; `bigctl.train(config, data=...)`.

Columns have the types that they are stored with, as those of Parquet files. The examples are known by a digest of
their bytes, which the configuration of the run keeps: by it the array cache has them when the run is resumed or
evaluated, and where it has not, they must be given again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.data.sources import frames, image_decoding, parquet
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.frames import Examples
from bigctl.data.sources.parquet_columns import CATEGORY, kind_of
from bigctl.data.sources.parquet_files import Part
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_SPLITS = ("train", "validation", "test")
_KEYS = ("label", "text", "text_pair", "labels", "label_separator", "drop", "group", "time", "channels", "image_size")
_FORMS = "a frame, or (inputs, labels), or (train, validation) of such"


@dataclass(frozen=True)
class Given:
    """The examples of each split.

    Attributes:
        parts: columns; of pictures without the pictures.
        images: pictures, uint8 [N, H, W, C]; empty without.
        config: the data's keys, with what the examples decided.
    """

    parts: Mapping[str, Part]
    images: Mapping[str, np.ndarray]
    config: schema.Memory


_held: dict[str, Given] = {}


@contextlib.contextmanager
def held(given: Given) -> Iterator[schema.Memory]:
    """While examples are held they can be decoded; gives the configuration that stands for them."""
    digest = str(given.config.digest)
    before = _held.get(digest)
    _held[digest] = given
    try:
        yield given.config
    finally:
        if before is None:
            _held.pop(digest, None)


def identity(config: schema.Memory) -> Any:
    """What the decoded arrays depend on: the digest of the examples, and the keys that say what is in them."""
    return {name: getattr(config, name) for name in ("digest", "background", *_KEYS)}


def decode(config: schema.Memory, regression: bool) -> Decoded:
    """The examples that are held. Raises DataError where they are not, or cannot be used."""
    given = _held.get(str(config.digest))
    if given is None:
        if config.digest is None:
            what, hint = "data=memory is given from Python, and nothing is given", "bigctl.train(config, data=...)"
        else:
            what = "the data was given from Python, and the cache does not hold it any more"
            hint = "give it again: bigctl.train(config, run_dir, data=...)"
        raise DataError(what, where="data", hint=hint)
    names = [name for name in _KEYS if name not in ("channels", "image_size")]
    columns = schema.Parquet(path="", **{name: getattr(config, name) for name in names})
    images = {split: {"image": pictures} for split, pictures in given.images.items()}
    found = parquet.decode_parts(given.parts, columns, regression, (lambda bad: (images, None)) if images else None)
    info = {name: value for name, value in found.info.items() if name != "files"}
    return dataclasses.replace(found, info={"source": "memory", "digest": config.digest, **info})


# ------------------------------------------------------------------------------------------------- what Python gives


def read(data: object, config: schema.Memory, *, texts: bool = False) -> Given:
    """The examples that Python gives.

    Args:
        data: a frame (or a dict of columns) with a target column; a pair (inputs, labels); texts without labels; or
            two or three of these as (train, validation[, test]), or by these names in a dict.
        config: what the columns are for.
        texts: whether the recipe is one of texts: then the only column beside the target is the text.

    Raises:
        DataError: for anything else, naming the split.
    """
    splits = {split: _Split(split, own, config, texts) for split, own in _by_split(data, config).items()}
    first = splits["train"]
    for split in splits.values():
        if split.roles != first.roles or (split.pictures is None) != (first.pictures is None):
            raise DataError("is of another form than the training examples", where=split.name, hint=_FORMS)
    config = dataclasses.replace(config, **first.roles)
    images = _images(splits, config)
    parts = {name: frames.part_of(_kept(split.table, config), split.name) for name, split in splits.items()}
    config = dataclasses.replace(config, digest=_digest(parts, images))
    return Given(parts, images, config)


def _by_split(data: object, config: schema.Memory) -> dict[str, object]:
    if isinstance(data, Mapping):
        named = {{"val": "validation"}.get(str(name), str(name)): own for name, own in data.items()}
        if named and set(named) <= set(_SPLITS):
            if "train" not in named:
                raise DataError("no training examples are given", where="data", hint="give them as 'train'")
            return named
    if isinstance(data, tuple) and 2 <= len(data) <= 3 and all(_is_split(own, config) for own in data):
        return dict(zip(_SPLITS, data, strict=False))
    return {"train": data}


def _is_split(value: object, config: schema.Memory) -> bool:
    """Whether something is a whole split, and not the labels of another thing."""
    if isinstance(value, tuple):
        return len(value) == 2
    return frames.is_frame(value) and (config.labels or config.label) in _names(value)


def _names(frame: Examples) -> list[str]:
    names = frame.column_names if hasattr(frame, "column_names") else frame if isinstance(frame, Mapping) else None
    return [str(name) for name in (frame.columns if names is None else names)]


class _Split:
    """One split as it is given.

    Attributes:
        name: what messages call it.
        table: its columns.
        pictures: an array, or images of Pillow; None without.
        roles: keys of the configuration that its form decides.
    """

    def __init__(self, split: str, given: object, config: schema.Memory, texts: bool):
        self.name = f"data ({split})"
        self.pictures: Examples = None
        self.roles: dict[str, Any] = {}
        if frames.is_frame(given):
            self.table = frames.table_of(given, self.name)
        elif isinstance(given, tuple) and len(given) == 2:
            self.table = self._with_labels(*given, config)
        elif frames.is_texts(given):
            self.table = frames.table_of({"text": given}, self.name)
            self.roles = {"text": "text", "label": None}
        else:
            raise DataError(f"this is {_said(given)}, which is no set of examples", where=self.name, hint=_FORMS)
        if texts and config.text is None and "text" not in self.roles and self.pictures is None:
            self.roles |= self._only_text(config)

    def _only_text(self, config: schema.Memory) -> dict[str, str]:
        """The column with the text; nothing of a table, which the recipe refuses."""
        others = {config.label, config.labels, config.group, config.time, *config.drop}
        names = [name for name in self.table.column_names if name not in others]
        if len(names) == 1:
            return {"text": names[0]}
        words = [name for name in names if kind_of(self.table.column(name).type) == CATEGORY]
        if words:
            raise DataError("which column holds the text is not told", where=self.name, hint=f"data.text={words[0]}")
        return {}

    def _with_labels(self, inputs: object, labels: object, config: schema.Memory) -> pa.Table:
        target = config.labels or config.label or "label"
        columns = self._inputs(inputs)
        count = columns.num_rows if columns is not None else len(self.pictures)
        values = frames.column_of(_flat(labels, self.name))
        if len(values) != count:
            raise DataError(
                f"there are {count} examples and {len(values)} labels", where=self.name, hint="give one each"
            )
        if columns is None:
            return frames.table_of({target: values}, self.name)
        if target in columns.column_names:
            hint = "data.label=NAME calls the labels something else"
            raise DataError(
                f"the inputs have a column {target!r}, and labels are given too", where=self.name, hint=hint
            )
        return columns.append_column(target, values)

    def _inputs(self, inputs: Examples) -> pa.Table | None:
        """The columns of inputs; None for pictures, which are kept aside."""
        if frames.is_frame(inputs):
            return frames.table_of(inputs, self.name)
        if frames.is_texts(inputs):
            self.roles = {"text": "text"}
            return frames.table_of({"text": inputs}, self.name)
        if isinstance(inputs, list | tuple) and inputs and all(map(image_decoding.is_picture, inputs)):
            self.pictures = inputs
            return None
        if (
            isinstance(inputs, list | tuple)
            and inputs
            and all(isinstance(i, tuple) and frames.is_texts(i) for i in inputs)
        ):
            self.roles = {"text": "text", "text_pair": "text_pair"}
            first, second = zip(*inputs, strict=True) if {len(pair) for pair in inputs} == {2} else ((), ())
            return frames.table_of({"text": first, "text_pair": second}, self.name)
        try:
            array = np.asarray(inputs)
        except ValueError as error:
            raise DataError(f"the inputs are no array: {error}", where=self.name, hint=_FORMS) from None
        if array.ndim in (3, 4) and array.dtype.kind in "biuf":
            self.pictures = array
            return None
        if array.ndim == 2 and array.dtype.kind in "biuf":
            self.roles = {"unnamed": True}
            return frames.table_of(unnamed(array), self.name)
        what = f"the inputs are {_said(inputs)}"
        hint = "[N, features] of a table, [N, height, width] or [N, height, width, channels] of images, or N texts"
        if array.ndim == 1 and array.dtype.kind in "biuf":
            hint = "one feature an example: add a dimension, inputs[:, None]"
        raise DataError(what, where=self.name, hint=hint)


def unnamed(array: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of an array [N, features], which have no names of their own."""
    return {f"x{number}": array[:, number] for number in range(array.shape[1])}


def _flat(labels: Examples, name: str) -> Examples:
    """Labels with one dimension; a column of a frame, or an array [N, 1], is one too."""
    if frames.is_frame(labels):
        table = frames.table_of(labels, name)
        if table.num_columns != 1:
            raise DataError(f"the labels have {table.num_columns} columns", where=name, hint="give one")
        return table.column(0).combine_chunks()
    shape = np.shape(labels) if hasattr(labels, "shape") else ()
    return np.asarray(labels)[:, 0] if len(shape) == 2 and shape[1] == 1 else labels


def _kept(table: pa.Table, config: schema.Memory) -> pa.Table:
    """The columns that are of use, by what the keys say."""
    if config.text is not None:
        roles = (config.text, config.text_pair, config.label, config.labels, config.group, config.time)
        return table.select([name for name in table.column_names if name in roles])
    for name in config.drop:
        frames.part_of(table, "data").column(name, "data.drop")
    return table.drop_columns([name for name in config.drop if name in table.column_names])


def _images(splits: Mapping[str, _Split], config: schema.Memory) -> dict[str, np.ndarray]:
    if splits["train"].pictures is None:
        return {}
    size = (config.image_size[0], config.image_size[1]) if config.image_size else None
    given = [split.pictures for split in splits.values()]
    if all(isinstance(pictures, np.ndarray) for pictures in given):
        if size is not None:
            hint = "leave it out, or give images of Pillow"
            raise DataError("arrays are not resized", where="data.image_size", hint=hint)
        return {name: pixels(split.pictures, split.name) for name, split in splits.items()}
    whole = image_decoding.read_pictures(
        [picture for pictures in given for picture in pictures], size, config.channels, config.background
    )
    ends = np.cumsum([len(pictures) for pictures in given])[:-1]
    return dict(zip(splits, np.split(whole, ends), strict=True))


def pixels(array: np.ndarray, name: str) -> np.ndarray:
    """Arrays [N, H, W] or [N, H, W, C] of whole numbers from 0 to 255 as uint8 [N, H, W, C]. Raises DataError."""
    array = array if array.ndim == 4 else array[..., None]
    if array.dtype != np.uint8:
        whole = array.dtype.kind in "iu" and (not array.size or (array.min() >= 0 and array.max() <= 255))
        if not whole:
            hint = "(255 * images).round().astype('uint8') of values from 0 to 1"
            if array.dtype == np.uint16:
                hint = "(images // 257).astype('uint8') of values up to 65535, by less of smaller ones"
            elif array.dtype.kind in "iu":
                hint = "scale them to 0 to 255"
            elif array.size and array.min() >= 0 and 1 < array.max() <= 255:
                hint = "images.round().astype('uint8') of values from 0 to 255"
            raise DataError(f"images are uint8, from 0 to 255; these are {array.dtype}", where=name, hint=hint)
        array = array.astype(np.uint8)
    if array.shape[-1] not in (1, 3):
        hint = "the last dimension is 1 of grey, 3 of colour: np.moveaxis(images, 1, -1) if channels come first"
        raise DataError(f"images cannot have {array.shape[-1]} channels", where=name, hint=hint)
    return np.ascontiguousarray(array)


def _said(value: object) -> str:
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} {tuple(shape)} of {getattr(value, 'dtype', '?')}" if shape is not None else kind


def _digest(parts: Mapping[str, Part], images: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types and values of all that is given; equal examples, equal digest."""
    import pyarrow.types as types

    digest = hashlib.sha256()
    for split, part in parts.items():
        for name in part.table.column_names:
            column = part.table.column(name)
            kind = str(column.type).replace("large_", "")  # how long texts may be altogether is no matter
            digest.update(repr((split, name, kind, len(column))).encode())
            if types.is_integer(column.type) or types.is_floating(column.type):
                filled = column.fill_null(0)
                digest.update(np.ascontiguousarray(filled.to_numpy()).tobytes())
                digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
            else:
                digest.update(repr(column.to_pylist()).encode("utf-8", "surrogatepass"))
        if split in images:
            digest.update(repr((split, images[split].shape)).encode())
            digest.update(images[split].data)
    return digest.hexdigest()
