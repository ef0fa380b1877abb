"""A column of the data by its name, of each example of a prepared split: also one that no model reads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import catalog
from bigctl.data.dataset import Dataset
from bigctl.data.sources.decoded import Origins
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError
from bigctl.files import expanded


def read(config: Data, dataset: Dataset, split: str, name: str, *, where: str) -> np.ndarray | None:
    """The column, float64 [N] with NaN for a missing value or object [N] with None; None where there is no such, or it
    is neither kept nor found in the files.

    Args:
        config: the data's.
        dataset: the same, prepared.
        split: of it.
        name: of the column.
        where: the key or flag that names it.

    Raises:
        ConfigError: where it cannot be told which row of a file an example is.
    """
    values = _of_encoder(dataset, split, name) if dataset.features.kind == "table" else None
    return _of_files(config, dataset, split, name, where) if values is None else values


def known(dataset: Dataset, besides: Iterable[str] = ()) -> list[str]:
    """The columns that the data tells of, those given after the encoded ones."""
    encoder = dataset.features.encoder
    columns = [column.name for column in TableEncoder.from_json(encoder).columns] if encoder else []
    info = dataset.info.get("types") or dataset.info.get("columns") or []
    return list(dict.fromkeys([*columns, *besides, *map(str, info)]))


def unknown(dataset: Dataset, name: str, *, where: str, besides: Iterable[str] = ()) -> ConfigError:
    """What is said of a column that `read` does not find."""
    columns = known(dataset, besides)
    if name in columns:
        return ConfigError(f"{name!r} is not kept, nor found in the files", where=where, hint="use another column")
    close = difflib.get_close_matches(name, columns, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"one of: {', '.join(columns[:20])}"
    hint = hint if columns else "this data has no columns"
    return ConfigError(f"there is no column {name!r}", where=where, hint=hint)


def _of_encoder(dataset: Dataset, split: str, by: str) -> np.ndarray | None:
    """A column of an encoded table as it was, float64 or object [N]; None where it has no such."""
    matrix, features, start = dataset.splits[split]["inputs"], dataset.features, 0
    if features.encoder is None:
        at = list(features.feature_names).index(by) if by in features.feature_names else None
        return None if at is None else np.asarray(matrix[:, at], np.float64)
    for column in TableEncoder.from_json(features.encoder).columns:
        part = np.asarray(matrix[:, start : start + len(column.features)])
        if column.name == by and isinstance(column, Numeric):
            values = (part[:, 0].astype(np.float64) * column.std + column.mean).round(9)
            return np.where(part[:, 1] > 0.5, np.nan, values) if column.missing else values
        if column.name == by:
            labels = [feature.removeprefix(f"{by}=") for feature in column.features]
            seen = part.max(1, initial=0) > 0
            told = np.array([*labels, "(new)"], object)
            return np.asarray(told[np.where(seen, part.argmax(1) if part.size else 0, len(labels))])
        start += len(column.features)
    return None


def _of_files(config: Data, dataset: Dataset, split: str, by: str, where: str) -> np.ndarray | None:
    """A column of the files that examples come from, which no model reads; None where they have no such.

    Which row of a file an example is, is known by its place, and checked by its class.
    """
    if dataset.features.target.kind != CLASS or not isinstance(label := getattr(config, "label", None), str):
        return None
    try:
        with np.load(Path(dataset.path) / "origins.npz", allow_pickle=False) as stored:
            unit, sources = json.loads(stored["sources"].tobytes())
            places = stored[split]
    except (OSError, ValueError, KeyError):
        return None
    files = _files(config)
    classes = np.array(dataset.features.target.names, object)[np.asarray(dataset.splits[split]["label"])]
    found = np.full(len(places), None, object)
    for number, name in enumerate(sources):
        mine = np.flatnonzero(places >> Origins.BITS == number)
        if not len(mine):
            continue
        if name not in files:
            return None
        own, given = (catalog.read_column(files[name], config, dataset.features, each) for each in (by, label))
        if own is None or given is None:
            return None
        rows = (places[mine] & Origins.MOST) - 1
        told = _told(rows, given, classes[mine], unit)
        if told is None:
            hint = "its cells go over several lines: use another column"
            raise ConfigError(f"which row of {name} an example is cannot be told", where=where, hint=hint)
        found[mine] = np.array(own, object)[told]
    numbers = _as_numbers(found)
    return found if numbers is None else numbers


def _files(config: Data) -> dict[str, Path]:
    """The files of the data by name, but for those whose name occurs twice."""
    path = expanded(str(getattr(config, "path", None) or ""))
    found = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    names = [each.name for each in found]
    return {each.name: each for each in found if names.count(each.name) == 1}


def _told(rows: np.ndarray, given: list[Any], classes: np.ndarray, unit: str) -> np.ndarray | None:
    """The rows, which may stand below a header, if they have the classes that they should."""
    for header in (0, 1) if unit == "line" else (0,):
        told = rows - header
        if told.min() >= 0 and told.max() < len(given):
            there = [str(given[row]) for row in told.tolist()]
            if there == [str(name) for name in classes]:
                return told
    return None


def _as_numbers(values: np.ndarray) -> np.ndarray | None:
    try:
        return np.array([float("nan") if value in (None, "") else float(value) for value in values.tolist()], float)
    except (TypeError, ValueError):
        return None
