"""What Python gives to be predicted -> what the model takes: frames, arrays, pictures, paths and texts, one or many."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.files.paths import some
from bigctl.data.sources import frames, image_decoding, memory, parquet
from bigctl.data.sources.frames import Examples
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import DataError

log = logging.getLogger("bigctl")
FRAME = "the frame"
"""What messages call columns with names."""
_FAR = 10.0
"""Half of the values of a standardised column are nearer to 0 by far."""


@dataclass(frozen=True)
class Asked:
    """Examples as the model takes them, and whether one alone was given, in no list."""

    inputs: Examples
    single: bool = False


def read(given: Examples, features: Features, config: schema.Data, columns: frozenset[str] | None) -> Asked:
    """The examples that are given.

    Args:
        given: see `TrainedRun.predict`.
        features: of the data that the model was trained on.
        config: how that data was read.
        columns: what columns that data had; None where that is not known.

    Raises:
        ValueError: for a form that the model does not take, saying which it does.
        DataError: for a file that cannot be read, and for columns that do not fit.
    """
    if isinstance(given, Path) or (isinstance(given, str) and features.kind in ("image", "table")):
        return _file(Path(given), features, config)
    if features.kind == "text":
        return _texts(given, features)
    return _table(given, features, config, columns) if features.kind == "table" else _images(given, features, config)


def _file(path: Path, features: Features, config: schema.Data) -> Asked:
    found = catalog.read_for_prediction(path, config, features)
    return Asked(_sound(found), single=not found.rows)


def _sound(found: Unlabelled) -> Any:
    """The inputs, of which none may be bad."""
    if found.errors:
        raise found.errors[min(found.errors)]
    return found.inputs


# ---------------------------------------------------------------------------------------------------------------- texts


def _texts(given: Examples, features: Features) -> Asked:
    if isinstance(given, str):
        if features.pairs:
            raise ValueError("the model takes pairs of texts: (first, second)")
        return Asked([given], single=True)
    if features.pairs and isinstance(given, tuple) and len(given) == 2 and frames.is_texts(given):
        return Asked([given], single=True)
    if frames.is_frame(given):
        part = frames.part_of(frames.table_of(given, FRAME), FRAME)
        if features.target.kind == TOKEN_CLASS:
            raise ValueError("a tagger takes texts or lists of words: give a column, frame['text']")
        return Asked(_sound(parquet.rows_to_predict(part, features)))
    numbers = getattr(getattr(given, "dtype", None), "kind", "") in tuple("biuf")
    if image_decoding.is_picture(given) or numbers:
        raise ValueError(f"{_said(given)} is given, and the model takes texts: give one, or a list of them")
    if not isinstance(given, Iterable):
        raise ValueError(f"{given!r} is no text; give one, or a list of texts")
    return Asked(list(given))


# --------------------------------------------------------------------------------------------------------------- tables


def _table(given: Examples, features: Features, config: schema.Data, columns: frozenset[str] | None) -> Asked:
    unnamed = bool(getattr(config, "unnamed", False))
    if (row := frames.row_of(given)) is not None:
        given = row
    if isinstance(given, Mapping) and given and all(np.ndim(value) == 0 for value in given.values()):
        return Asked(_rows({name: [value] for name, value in given.items()}, features, config, columns), single=True)
    if isinstance(given, Sequence) and given and all(isinstance(row, Mapping) for row in given):
        names = dict.fromkeys(name for row in given for name in row)
        given = {name: [row.get(name) for row in given] for name in names}
    if frames.is_frame(given):
        return Asked(_rows(given, features, config, columns))
    array = np.asarray(given)
    numbers = array.dtype.kind in "biuf"
    if array.ndim == 0 or array.ndim > 2 or image_decoding.is_picture(given):
        hint = "give a frame, an array [N, features], or one row as a dict"
        raise ValueError(f"{_said(given)} is given, and the model takes rows of a table: {hint}")
    if array.ndim == 1 and array.size and numbers:
        raise ValueError(f"one row of {len(array)} values is given; add a batch dimension: row[None]")
    if not numbers:
        raise ValueError("values that are no numbers need the names of their columns: give a frame, or a list of dicts")
    width = len(parquet.sources_of(features)) if unnamed else features.shape[0]
    if array.ndim == 2 and array.shape[1] != width:
        what = f"the array has {array.shape[1]} columns, the model takes {width}"
        raise ValueError(what if unnamed else f"{what} features, encoded; give a frame of the columns instead")
    if unnamed and array.ndim == 2:
        return Asked(_rows(memory.unnamed(array), features, config, columns, name="the array"))
    if array.size and (np.nanmedian(np.abs(array), axis=0) > _FAR).any():
        log.warning("these rows do not look standardised, and an array is taken as it is: give a frame of the columns")
    return Asked(array)


def _rows(
    given: Examples,
    features: Features,
    config: schema.Data,
    columns: frozenset[str] | None,
    *,
    name: str = FRAME,
) -> np.ndarray:
    """Rows, encoded. Raises DataError for columns that are missing, unknown or of another type."""
    part = frames.part_of(frames.table_of(given, name), name)
    needed = parquet.sources_of(features)
    for source in needed:
        part.column(source, "feature")
    if columns is not None:
        roles = [getattr(config, role, None) for role in ("label", "labels", "group", "time")]
        known = {*needed, *columns, *(getattr(config, "drop", None) or ()), *(name for name in roles if name)}
        if unknown := [name for name in part.table.column_names if name not in known]:
            hint = f"leave it out; the model's columns are {some(needed)}"
            raise DataError(f"the column {unknown[0]!r} is none of the training's", where=part.source, hint=hint)
    return np.asarray(_sound(parquet.rows_to_predict(part, features)))


# --------------------------------------------------------------------------------------------------------------- images


def _images(given: Examples, features: Features, config: schema.Data) -> Asked:
    if image_decoding.is_picture(given):
        return Asked(_pictures([given], features, config), single=True)
    if isinstance(given, list | tuple) and given and any(_is_one(item) for item in given):
        wrong = next((item for item in given if not _is_one(item)), None)
        if wrong is not None:
            raise ValueError(f"pictures, paths and arrays are not mixed; {type(wrong).__name__} is among others")
        return Asked(np.concatenate([_one(item, features, config) for item in given]))
    if frames.is_frame(given):
        raise ValueError("a frame is given, and the model takes images: give pictures of Pillow, paths or an array")
    array, shape = np.asarray(given), tuple(features.shape)
    if array.shape == shape:
        raise ValueError(f"one image of shape {shape} is given; add a batch dimension: image[None]")
    if shape[-1] == 1 and array.shape == shape[:2]:
        raise ValueError(
            f"one image of shape {array.shape} is given; add a batch dimension and channels: image[None, :, :, None]"
        )
    if array.shape[:2] == shape[:2] and array.ndim == len(shape) and array.shape[-1] in (1, 3, 4):
        raise ValueError(
            f"one image of {array.shape[-1]} channels is given, of shape {array.shape}; the model reads {shape}: "
            "give a PIL image or a path, which is converted"
        )
    grey = array.ndim == 3 and shape[-1] == 1 and array.shape[1:] == shape[:2]
    return Asked(array[..., None] if grey else array)


def _is_one(item: object) -> bool:
    return isinstance(item, str | Path) or image_decoding.is_picture(item)


def _one(item: Examples, features: Features, config: schema.Data) -> np.ndarray:
    if isinstance(item, str | Path):
        return np.asarray(_sound(catalog.read_for_prediction(Path(item), config, features)))
    return _pictures([item], features, config)


def _pictures(pictures: Sequence[Any], features: Features, config: schema.Data) -> np.ndarray:
    """Images of Pillow as those of files: resized to what the model takes."""
    height, width, channels = features.shape
    below, resize = str(getattr(config, "background", "black")), str(getattr(config, "resize", "stretch"))
    return image_decoding.read_pictures(pictures, (height, width), channels, below, resize)


def _said(given: Examples) -> str:
    """What something is, in words."""
    if image_decoding.is_picture(given):
        return "a picture"
    shape = getattr(given, "shape", None)
    return f"an array of shape {tuple(shape)}" if shape is not None else repr(given)
