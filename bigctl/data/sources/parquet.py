"""Parquet files (`data=parquet`): tables, texts and images, each column with the type that it is stored with.

Numbers, booleans, dates and times are numbers, strings are categories; `docs/parquet.md` has the whole table. Null is
missing, and so is NaN; nothing else is: the string "NA" is a category. Strings are taken as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.config.suggestions import listed
from bigctl.data.dataset import Features
from bigctl.data.files import paths
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sources import column_blocks, column_pictures, image_decoding
from bigctl.data.sources.bad_rows import LEFT_OUT, BadRows
from bigctl.data.sources.column_files import StoredRows, StoredTexts
from bigctl.data.sources.column_pictures import Pictures
from bigctl.data.sources.decoded import GROUP, TIME, Columns, Decoded, Origins
from bigctl.data.sources.parquet_columns import (
    CATEGORY,
    NUMBER,
    Bad,
    all_different,
    categories,
    encoded_images,
    is_empty,
    kind_of,
    texts,
    told,
    typed,
)
from bigctl.data.sources.parquet_files import Part, matching, read
from bigctl.data.sources.parquet_stored import kept, places, stored_texts
from bigctl.data.sources.parquet_targets import targets
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.errors import DataError


def identity(config: schema.Parquet) -> Any:
    """What the decoded arrays depend on: the content of the files, and the keys that say what is in them."""
    given = [config.path, config.validation_path, config.test_path]
    large = config.image is not None or _is_large(config)  # which are read by blocks
    prints = [paths.fingerprint_files(matching(path), in_blocks=large) if path else None for path in given]
    streamed = {"streamed": True} if _is_streamed(config) else {}
    return {"files": prints} | given_keys(config) | streamed


def _is_streamed(config: schema.Parquet) -> bool:
    given = (config.path, config.validation_path, config.test_path)
    return column_pictures.is_streamed(
        config, [file for path in given if path for file in matching(path)], column_pictures.Parquet
    )


def _is_large(config: schema.Parquet) -> bool:
    """Whether it is a table, or texts, that is prepared by blocks."""
    given = (config.path, config.validation_path, config.test_path)
    if config.image is not None:
        return False
    files = [file for path in given if path for file in matching(path)]
    return column_blocks.are_large(files, column_blocks.Parquet, wanted(config))


def given_keys(config: schema.Parquet) -> dict[str, Any]:
    """The keys that say what is in the files; those that came later only where they are not as before."""
    names = ("label", "labels", "label_separator", "text", "text_pair", "drop", "image", "image_size", "channels")
    found = {name: getattr(config, name) for name in names}
    later = {"background": ("black",), "on_bad": ("refuse",), "resize": image_decoding.AS_EVER}
    found |= {name: value for name, usual in later.items() if (value := getattr(config, name)) not in usual}
    return found | {name: getattr(config, name) for name in ("group", "time") if getattr(config, name) is not None}


def by_blocks(config: schema.Parquet, regression: bool) -> Callable[[Path], Decoded] | None:
    """What decodes large files through others in a folder; None where `decode` will do."""
    if not _is_large(config):
        return None
    only = wanted(config)

    def read_blocks(path: str) -> Part:
        drop = config.drop if only is None else ()
        return column_blocks.joined(path, matching(path), column_blocks.Parquet, only=only, drop=drop)

    return lambda work: _decoded(config, regression, read_blocks, work)


def decode(config: schema.Parquet, regression: bool) -> Decoded:
    """The rows of files as examples.

    Raises:
        DataError: there is no such file, or it is damaged; a column is missing, or of a type that cannot be used.
    """
    only, streamed = wanted(config), _is_streamed(config)
    drop = config.drop if only is None else ()
    if streamed:
        only = [name for name in only or () if name != config.image]
    return _decoded(config, regression, partial(read, only=only, drop=drop), streamed=streamed)


def _decoded(
    config: schema.Parquet,
    regression: bool,
    read_part: Callable[[str], Part],
    work: Path | None = None,
    *,
    streamed: bool = False,
) -> Decoded:
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    parts = {split: read_part(path) for split, path in given.items() if path}
    pictures = partial(column_pictures.located, parts, config, column_pictures.Parquet) if streamed else None
    found = decode_parts(parts, config, regression, pictures, work)
    return dataclasses.replace(found, info={"source": "parquet", **found.info})


def wanted(config: schema.Parquet) -> list[str] | None:
    """The columns that are read; None for all, which a table needs."""
    roles = [config.text, config.text_pair, config.image, config.label, config.labels, config.group, config.time]
    return None if config.text is None and config.image is None else [name for name in roles if name]


def decode_parts(
    parts: Mapping[str, Part],
    config: schema.Parquet,
    regression: bool,
    pictures: Pictures | None = None,
    work: Path | None = None,
) -> Decoded:
    """The rows of each split as examples; `pictures` gives those of the rows where they are not to be decoded here.
    With `work`, an empty folder, texts and the features of a table go into files there, and are `rows`.

    Raises:
        DataError: a column is missing, or of a type that cannot be used.
        OSError: there is no room in `work`.
    """
    notes: list[str] = []
    index: EncodedImages | None = None
    rows: StoredRows | StoredTexts | None = None
    bad: dict[str, Bad | None] = {split: {} if config.on_bad == "skip" else None for split in parts}
    if config.text is not None:
        kind = "text"
        if work is None:
            inputs = _texts(parts, config, bad)
        else:
            inputs, rows = places(parts), stored_texts(parts, _roles(config), bad, work)
    elif pictures is not None:
        kind, (inputs, index) = "image", pictures(bad)
    elif config.image is not None:
        kind, inputs = "image", column_pictures.decoded(parts, config, bad)
    else:
        kind, stored = "table", None if work is None else StoredRows(work)
        inputs = _table_features(parts, config, notes, bad, stored)
        if stored is not None:
            inputs, rows = places(parts), stored
    target, labels = targets(parts, config, kind, regression, notes)
    info: dict[str, Any] = {
        "files": {split: part.source for split, part in parts.items()},
        "rows": {split: part.rows for split, part in parts.items()},
        "target": config.labels or config.label,
        "types": {name: str(parts["train"].stored(name)) for name in parts["train"].names},
        "notes": notes,
    }
    if kind == "text":
        info["text"] = [name for name in (config.text, config.text_pair) if name]
    splits = {
        split: {**columns, "label": labels[split], **_split_columns(parts[split], config)}
        for split, columns in inputs.items()
    }
    origins = _origins(parts, bad)
    splits = {split: _without(columns, bad[split] or {}, config, info) for split, columns in splits.items()}
    classes = target.names if target.kind == "class" else None
    return Decoded(kind, splits, classes, info, target, origins=origins, index=index, rows=rows)


def _origins(parts: Mapping[str, Part], bad: Mapping[str, Bad | None]) -> Origins:
    """The file of each row that is not bad, and its number there."""
    names: list[str] = []
    places = {}
    for split, part in parts.items():
        rows = np.delete(np.arange(part.rows), [*(bad[split] or {})])
        file = np.searchsorted(part.starts, rows, side="right") - 1
        places[split] = (file + len(names) << Origins.BITS) + rows - np.asarray(part.starts)[file] + 1
        names += [own.name for own in part.files]
    return Origins(names, places, "row")


def _without(columns: Columns, bad: Bad, config: schema.Parquet, info: dict[str, Any]) -> Columns:
    """The columns of a split without its bad rows, which `info` tells. Raises DataError where these are too many, or
    all."""
    if not bad:
        return columns
    kept = np.ones(len(columns["label"]), bool)
    kept[[*bad]] = False
    if not kept.any():
        raise bad[min(bad)]
    found = BadRows.of(bad)
    info["notes"] += found.left_out(len(kept), skip=True, limit=config.bad_limit)
    info.setdefault(LEFT_OUT, []).extend(found.facts(len(kept)))
    return {name: values[kept] for name, values in columns.items()}


def read_for_prediction(path: Path, config: schema.Parquet, features: Features) -> Unlabelled:
    """The rows of a file: of a table, of texts, or of images in the column of the training. Raises DataError."""
    only = [config.image or "image"] if features.kind == "image" else sources_of(features)
    return predicted(read(str(path), only=only), config, features)


def predicted(part: Part, config: schema.Parquet, features: Features) -> Unlabelled:
    """Rows as a model takes them: of a table, of texts, or of images in the column of the training."""
    if features.kind != "image":
        return rows_to_predict(part, features)
    bad: dict[int, DataError] = {}
    height, width, channels = features.shape
    contents, names = encoded_images(part, config.image or "image", bad)
    look = (config.background, config.resize)
    images, wrong = image_decoding.decode_each(contents, (height, width), channels, names, *look)
    return Unlabelled(images, errors=wrong | bad)


def read_column(path: Path, config: schema.Parquet, name: str) -> list[Any] | None:
    """The values of a column as they are stored; None where there is no such column. Raises DataError."""
    table = read(str(path)).table
    return table.column(name).to_pylist() if name in table.column_names else None


def sources_of(features: Features) -> list[str]:
    """The columns that a model of texts or of tables needs."""
    if features.kind == "text":
        return list(features.columns or (("text", "text_pair") if features.pairs else ("text",)))
    encoder = TableEncoder.from_json(features.encoder or {})
    return list(dict.fromkeys(_source(column) for column in encoder.columns))


def _source(column: Numeric | Categorical) -> str:
    """The column of a file that one of the model comes from."""
    style = column.style if isinstance(column, Numeric) else None
    return style.of if style and style.date else column.name


def rows_to_predict(part: Part, features: Features) -> Unlabelled:
    """Rows as a model of texts or of tables takes them; further columns are ignored. Raises DataError."""
    bad: dict[int, DataError] = {}
    if features.kind == "text":
        found = [texts(part, name, bad).tolist() for name in sources_of(features)]
        return Unlabelled(list(zip(*found, strict=True)) if features.pairs else found[0], errors=bad)
    encoder = TableEncoder.from_json(features.encoder or {})
    if absent := [name for name in sources_of(features) if name not in part.names]:
        what = f"the model needs the feature columns {paths.some(absent)}, which are missing"
        raise DataError(what, where=part.source)
    rows = {column.name: _as_trained(part, _source(column), column, bad) for column in encoder.columns}
    missing = [[v is None for v in own.tolist()] if own.dtype == object else np.isnan(own) for own in rows.values()]
    empty = sum(row not in bad for row in np.flatnonzero(np.all(missing, axis=0)).tolist())
    notes = [f"{part.source}: {empty} rows have no value in any column of the model"] if empty else []
    return Unlabelled(encoder.encode(rows), errors=bad, notes=(*notes, *encoder.unseen(rows, part.source)))


def _as_trained(part: Part, name: str, column: Numeric | Categorical, bad: dict[int, DataError]) -> np.ndarray:
    """A column for what a model was trained on; numbers and dates that were read of text may be stored as such."""
    if isinstance(column, Categorical):
        return typed(part, name, CATEGORY, bad)
    stored, style = part.stored(name), column.style
    if style is None or (kind_of(stored) == NUMBER and not style.date):
        return typed(part, name, NUMBER, bad)
    found = [math.nan if value is None else style.parse(value) for value in categories(part, name, bad).tolist()]
    for row, value in enumerate(found):
        if value is None or math.isinf(value):
            what = f"this is none of the training's {style}" if value is None else "the value is infinite"
            bad.setdefault(row, DataError(what, where=part.at(row, name)))
    return np.array([math.nan if value is None or math.isinf(value) else value for value in found], np.float64)


# ----------------------------------------------------------------------------------------------------------- the inputs


def _table_features(
    parts: Mapping[str, Part],
    config: schema.Parquet,
    notes: list[str],
    bad: Mapping[str, Bad | None],
    stored: StoredRows | None,
) -> dict[str, Columns]:
    """The columns of use, by split; those of the training files alone decide which these are. With `stored` they are
    put there, where those that an earlier start has read are found."""
    train, label = parts["train"], config.label
    if not label:
        raise DataError("a table needs a target", where="data.label", hint="data.label=COLUMN; only texts go without")
    for part in parts.values():
        part.stored(label, "target")
    if label != "label" and "label" in train.names:
        raise DataError(
            f"the feature column 'label' is in the way, because the target {label!r} is stored under that name",
            where=train.source,
            hint="rename the column 'label', or leave it out with data.drop=[label]",
        )
    kinds = dict(_useful(train, label, config.group, notes, stored))
    if not kinds:
        raise DataError(f"no feature columns are left beside {label!r}: {'; '.join(notes)}", where=train.source)
    column = typed if stored is None else partial(kept, stored)
    return {
        split: {name: column(part, name, kind, bad[split]) for name, kind in kinds.items()}
        for split, part in parts.items()
    }


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


def _useful(
    train: Part, label: str, group: str | None, notes: list[str], stored: StoredRows | None
) -> Iterator[tuple[str, str]]:
    """(name, kind) of each training column that can tell anything."""
    for name in train.names:
        kind = kind_of(train.stored(name))
        if name in (label, group):
            continue
        found = None if stored is None else stored.known(f"told {name}")
        if found is None:
            found = _told(train, name, kind)
            if stored is not None:
                stored.remember(f"told {name}", found)
        useful, said = found
        notes += said
        if useful and kind is not None:
            yield name, kind


def _told(train: Part, name: str, kind: str | None) -> tuple[bool, list[str]]:
    """Whether a column can tell anything, and what there is to say of it. Raises DataError for what is no feature."""
    import pyarrow.types as types

    stored = train.stored(name)
    if types.is_null(stored) or is_empty(train, name):
        return False, [f"column {name!r} has no values and is left out"]
    if kind is None:
        raise DataError(
            f"the column {name!r} is {stored}, which is no feature of a table",
            where=train.source,
            hint=f"leave it out with {listed('data.drop', name)}, or name it: data.text, data.image or data.labels",
        )
    if kind == CATEGORY and all_different(train, name):
        what = "is different in every row, like a name or an identifier, and is left out"
        return False, [f"column {name!r} {what}", *told(train, name, kind)]
    return True, told(train, name, kind)


def _roles(config: schema.Parquet) -> dict[str, str]:
    return {role: name for role, name in (("text", config.text), ("text_pair", config.text_pair)) if name}


def _texts(parts: Mapping[str, Part], config: schema.Parquet, bad: Mapping[str, Bad | None]) -> dict[str, Columns]:
    return {
        split: {role: texts(part, name, bad[split]) for role, name in _roles(config).items()}
        for split, part in parts.items()
    }
