"""Parquet files (`data=parquet`): tables, texts and images, each column with the type that it is stored with.

Numbers, booleans, dates and times are numbers, strings are categories; `docs/parquet.md` has the whole table. Null is
missing, and so is NaN; nothing else is: the string "NA" is a category. Strings are taken as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.data import paths
from bigctl.data.dataset import Features
from bigctl.data.sources import image_decoding
from bigctl.data.sources.decoded import GROUP, TIME, Columns, Decoded
from bigctl.data.sources.label_sets import read_label_sets
from bigctl.data.sources.parquet_files import Part, matching, read
from bigctl.data.sources.text_rows import TextTable, short
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.data.target import Target
from bigctl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

NUMBER, CATEGORY = "a number", "a category"
MAX_CLASSES = 1000
_FEW = 20  # values that a target may have however few the rows are


def identity(config: schema.Parquet) -> Any:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    given = [config.path, config.validation_path, config.test_path]
    prints = [paths.fingerprint_files(matching(path)) if path else None for path in given]
    names = ("label", "labels", "label_separator", "text", "text_pair", "drop", "image", "image_size", "channels")
    found = {"files": prints} | {name: getattr(config, name) for name in names}
    found |= {"background": config.background} if config.background != "black" else {}
    return found | {name: getattr(config, name) for name in ("group", "time") if getattr(config, name) is not None}


def decode(config: schema.Parquet, regression: bool) -> Decoded:
    """The rows of files as examples.

    Raises:
        DataError: there is no such file, or it is damaged; a column is missing, or of a type that cannot be used.
    """
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    roles = [config.text, config.text_pair, config.image, config.label, config.labels, config.group, config.time]
    only = None if config.text is None and config.image is None else [name for name in roles if name]
    parts = {
        split: read(path, only=only, drop=config.drop if only is None else ()) for split, path in given.items() if path
    }
    notes: list[str] = []
    if only is not None:
        kind = "text" if config.text is not None else "image"
        inputs = _texts(parts, config) if kind == "text" else _images(parts, config)
    else:
        kind, inputs = "table", _table_features(parts, config, notes)
    target, labels = _targets(parts, config, kind, regression, notes)
    info: dict[str, Any] = {
        "source": "parquet",
        "files": {split: part.source for split, part in parts.items()},
        "rows": {split: part.table.num_rows for split, part in parts.items()},
        "target": config.labels or config.label,
        "types": {
            name: str(parts["train"].table.schema.field(name).type) for name in parts["train"].table.column_names
        },
        "notes": notes,
    }
    if kind == "text":
        info["text"] = [name for name in (config.text, config.text_pair) if name]
    splits = {
        split: {**columns, "label": labels[split], **_split_columns(parts[split], config)}
        for split, columns in inputs.items()
    }
    return Decoded(kind, splits, target.names if target.kind == "class" else None, info, target)


def read_for_prediction(path: Path, config: schema.Parquet, features: Features) -> Unlabelled:
    """The rows of a file: of a table, of texts, or of images in the column of the training. Raises DataError."""
    if features.kind == "image":
        name = config.image or "image"
        height, width, channels = features.shape
        contents, names = encoded_images(read(str(path), only=[name]), name)
        size, below = (height, width), config.background
        return Unlabelled(image_decoding.decode_all(contents, size, channels, names, background=below))
    if features.kind == "text":
        columns = features.columns or (("text", "text_pair") if features.pairs else ("text",))
        part = read(str(path), only=columns)
        found = [texts(part, name).tolist() for name in columns]
        return Unlabelled(list(zip(*found, strict=True)) if features.pairs else found[0])
    encoder = TableEncoder.from_json(features.encoder or {})
    sources = {c.name: c.style.of or c.name if isinstance(c, Numeric) and c.style else c.name for c in encoder.columns}
    part = read(str(path), only=[*sources.values()])
    if absent := [name for name in dict.fromkeys(sources.values()) if name not in part.table.column_names]:
        what = f"the model needs the feature columns {paths.some(absent)}, which are missing"
        raise DataError(what, where=str(path))
    rows = {column.name: _as_trained(part, sources[column.name], column) for column in encoder.columns}
    return Unlabelled(encoder.encode(rows), notes=tuple(encoder.unseen(rows, str(path))))


def _as_trained(part: Part, name: str, column: Numeric | Categorical) -> np.ndarray:
    """A column for what a model was trained on; numbers and dates that were read of text may be stored as such."""
    if isinstance(column, Categorical):
        return typed(part, name, CATEGORY)
    stored, style = part.column(name, "feature").type, column.style
    if style is None or (kind_of(stored) == NUMBER and not style.date):
        return typed(part, name, NUMBER)
    found = [math.nan if value is None else style.parse(value) for value in categories(part, name).tolist()]
    for row, value in enumerate(found):
        if value is None:
            raise DataError(f"this is none of the training's {style}", where=part.at(row, name))
    return np.array(found, np.float64)


# ---------------------------------------------------------------------------------------------------- stored -> columns


def kind_of(stored: pa.DataType) -> str | None:
    """NUMBER or CATEGORY, as at the top of this file; None for what is no column of a table."""
    import pyarrow.types as types

    if types.is_dictionary(stored):
        return CATEGORY
    if types.is_string(stored) or types.is_large_string(stored):
        return CATEGORY
    numeric = types.is_integer(stored) or types.is_floating(stored) or types.is_decimal(stored)
    return NUMBER if numeric or types.is_boolean(stored) or types.is_temporal(stored) else None


def numbers(part: Part, name: str) -> np.ndarray:
    """A column of numbers, float64 [N] with NaN for null. Raises DataError for infinite ones."""
    import pyarrow as pa
    import pyarrow.types as types

    column, stored = part.column(name, "feature"), part.table.schema.field(name).type
    scale = 1.0
    if types.is_date(stored):
        column = column.cast(pa.date32()).cast(pa.int32())
    elif types.is_timestamp(stored) or types.is_time(stored) or types.is_duration(stored):
        scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[stored.unit]
        column = column.cast(pa.int32() if types.is_time32(stored) else pa.int64())
    if types.is_boolean(stored):
        column = column.cast(pa.int8())
    values = column.cast(pa.float64(), safe=False).to_numpy() / scale
    if (rows := np.flatnonzero(np.isinf(values))).size:
        raise DataError(
            "the value is infinite" + (f", and {len(rows) - 1} more are" if len(rows) > 1 else ""),
            where=part.at(int(rows[0]), name),
            hint="store a finite number, or null if it is unknown",
        )
    return np.asarray(values, np.float64)


def categories(part: Part, name: str) -> np.ndarray:
    """A column of categories, object [N] of str with None for null."""
    values = np.empty(part.table.num_rows, object)
    values[:] = [None if value is None else _name(value) for value in _values(part, name)]
    return values


def _values(part: Part, name: str) -> list[Any]:
    try:
        return part.column(name, "feature").to_pylist()
    except UnicodeDecodeError:
        raise DataError("a string is not UTF-8", where=f"{part.source}:{name}", hint="write it anew") from None


def _name(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(part: Part, name: str, kind: str) -> np.ndarray:
    """A column as the training files have it. Raises DataError where it is stored as something else."""
    stored = part.column(name, "feature").type
    if kind_of(stored) != kind and part.column(name, "feature").null_count < part.table.num_rows:
        was = f"{stored}, where it was {kind} in training"
        raise DataError(f"the column {name!r} is {was}", where=part.source, hint="store it as the training files do")
    return numbers(part, name) if kind == NUMBER else categories(part, name)


def _table_features(parts: Mapping[str, Part], config: schema.Parquet, notes: list[str]) -> dict[str, Columns]:
    """The columns of use, by split; those of the training files alone decide which these are."""
    train, label = parts["train"], config.label
    if not label:
        raise DataError("a table needs a target", where="data.label", hint="data.label=COLUMN; only texts go without")
    for part in parts.values():
        part.column(label, "target")
    if label != "label" and "label" in train.table.column_names:
        raise DataError(
            f"the feature column 'label' is in the way, because the target {label!r} is stored under that name",
            where=train.source,
            hint="rename the column 'label', or leave it out with data.drop=[label]",
        )
    kinds = dict(_useful(train, label, config.group, notes))
    if not kinds:
        raise DataError(f"no feature columns are left beside {label!r}: {'; '.join(notes)}", where=train.source)
    return {split: {name: typed(part, name, kind) for name, kind in kinds.items()} for split, part in parts.items()}


def _split_columns(part: Part, config: schema.Parquet) -> Columns:
    """The columns by which splits are made."""
    found: Columns = {}
    if config.group is not None:
        found[GROUP] = np.array([str(value) for value in categories(part, config.group)], object)
    if config.time is not None:
        found[TIME] = typed(part, config.time, NUMBER)
        if np.isnan(found[TIME]).any():
            raise DataError(f"some rows have no {config.time!r}", where=part.source, hint="fill it in, or remove them")
    return found


def _useful(train: Part, label: str, group: str | None, notes: list[str]) -> Iterator[tuple[str, str]]:
    """(name, kind) of each training column that can tell anything."""
    import pyarrow.types as types

    for name in train.table.column_names:
        column, kind = train.table.column(name), kind_of(train.table.schema.field(name).type)
        if name in (label, group):
            continue
        if types.is_null(column.type) or column.null_count == len(column):
            notes.append(f"column {name!r} has no values and is left out")
        elif kind is None:
            raise DataError(
                f"the column {name!r} is {column.type}, which is no feature of a table",
                where=train.source,
                hint=f"leave it out with data.drop=[{name}], or name it: data.text, data.image or data.labels",
            )
        elif kind == CATEGORY and not column.null_count and len(column.unique()) == len(column):
            notes.append(f"column {name!r} is different in every row, like a name or an identifier, and is left out")
        else:
            yield name, kind


# ----------------------------------------------------------------------------------------------------- texts and images


def texts(part: Part, name: str) -> np.ndarray:
    """A column of texts, object [N] of str; none may be null or empty."""
    stored = part.column(name, "text").type
    if kind_of(stored) != CATEGORY:
        raise DataError(f"the column {name!r} is {stored}, not of strings", where=part.source, hint="name another")
    found = np.empty(part.table.num_rows, object)
    for row, value in enumerate(_values(part, name)):
        if value is None or not str(value).strip():
            raise DataError("the text is empty", where=part.at(row, name), hint="write the text, or remove the row")
        found[row] = str(value)
    return found


def encoded_images(part: Part, name: str) -> tuple[list[bytes], list[str]]:
    """A column of images as they are stored, in PNG, JPEG or the like, and what to call each of them."""
    import pyarrow.types as types

    column = part.column(name, "image")
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:  # as Hugging Face writes images
        column = column.combine_chunks().field("bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise DataError(f"the column {name!r} is {column.type}, not of bytes", where=part.source, hint="name another")
    contents = column.to_pylist()
    for row, content in enumerate(contents):
        if content is None:
            raise DataError("there is no image", where=part.at(row, name), hint="store one, or remove the row")
    return contents, [part.at(row, name) for row in range(len(contents))]


def _images(parts: Mapping[str, Part], config: schema.Parquet) -> dict[str, Columns]:
    """uint8 [N, H, W, C] by split; whether they are grey is a matter of all of them."""
    found = [encoded_images(part, config.image or "") for part in parts.values()]
    size = (config.image_size[0], config.image_size[1]) if config.image_size else None
    contents = [content for own, _ in found for content in own]
    names = [name for _, own in found for name in own]
    decoded = image_decoding.decode_all(contents, size, config.channels, names, background=config.background)
    ends = np.cumsum([len(one[0]) for one in found])[:-1]
    return {split: {"image": own} for split, own in zip(parts, np.split(decoded, ends), strict=True)}


def _texts(parts: Mapping[str, Part], config: schema.Parquet) -> dict[str, Columns]:
    roles = {role: name for role, name in (("text", config.text), ("text_pair", config.text_pair)) if name}
    return {split: {role: texts(part, name) for role, name in roles.items()} for split, part in parts.items()}


# ----------------------------------------------------------------------------------------------------------- the target


def _targets(
    parts: Mapping[str, Part], config: schema.Parquet, kind: str, regression: bool, notes: list[str]
) -> tuple[Target, dict[str, np.ndarray]]:
    if config.labels is not None:
        return read_label_sets(
            {s: _lists(part, config.labels) for s, part in parts.items()}, config.labels, config.label_separator, notes
        )
    if not config.label:
        return Target.usual(kind, None), {s: np.zeros(part.table.num_rows, np.int32) for s, part in parts.items()}
    for part in parts.values():
        if missing := part.column(config.label, "target").null_count:
            hint = "fill these in or remove the rows"
            raise DataError(f"{missing} rows have no value in the target column", where=part.source, hint=hint)
    if regression:
        found = {split: typed(part, config.label, NUMBER) for split, part in parts.items()}
        for split, values in found.items():
            if (rows := np.flatnonzero(np.isnan(values))).size:
                where = parts[split].at(int(rows[0]), config.label)
                raise DataError("the target is not a number", where=where, hint="fill it in or remove the row")
        return Target.usual(kind, None), found
    classes = _classes(parts["train"], config.label)
    place = {name: number for number, name in enumerate(classes)}
    labels = {}
    for split, part in parts.items():
        names = [_name(value) for value in _values(part, config.label)]
        if unknown := [row for row, name in enumerate(names) if name not in place]:
            known = paths.some([short(name) for name in classes])
            raise DataError(
                f"{short(names[unknown[0]])!r} is not among the training classes {known}",
                where=part.at(unknown[0], config.label),
                hint="correct the label, or add rows with it to the training files",
            )
        labels[split] = np.array([place[name] for name in names], np.int32)
    return Target.usual(kind, classes), labels


def _classes(train: Part, label: str) -> tuple[str, ...]:
    """The classes of the training files: integers in their order, strings in that of the alphabet."""
    import pyarrow.types as types

    stored = train.table.schema.field(label).type
    whole = types.is_integer(stored) or types.is_boolean(stored)
    if not whole and kind_of(stored) != CATEGORY:
        hint = "to predict a number use model.head=regression; classes are stored as integers or strings"
        raise DataError(f"the target column {label!r} is {stored}, which is no class", where=train.source, hint=hint)
    distinct = set(_values(train, label))
    if len(distinct) > MAX_CLASSES or (whole and len(distinct) > max(train.table.num_rows / 3, _FEW)):
        what = f"has {len(distinct)} different values in {train.table.num_rows} rows"
        hint = "to predict a number use model.head=regression" if whole else "is it the right column?"
        raise DataError(
            f"the target column {label!r} does not look like classes: it {what}", where=train.source, hint=hint
        )
    if len(distinct) == 1:
        raise DataError(f"the target column {label!r} has only one class", where=train.source, hint="two are needed")
    return tuple(_name(value) for value in (sorted(distinct) if whole else sorted(distinct, key=_name)))


def _lists(part: Part, name: str) -> TextTable:
    """A column of lists, or of strings with a separator, as `read_label_sets` takes it."""
    values = part.column(name, "label")
    cells = ["" if v is None else json.dumps(v) if isinstance(v, list) else str(v) for v in values.to_pylist()]
    return TextTable(part.source, tuple(part.table.column_names), {name: cells}, list(range(1, len(cells) + 1)), [])
