"""Files to be predicted -> records, one an example, with what is wrong in place of a label where one cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigctl.config.schema import Config
from bigctl.data import catalog
from bigctl.data.dataset import Features
from bigctl.data.sources.unlabelled import Unlabelled, take
from bigctl.errors import ConfigError, DataError
from bigctl.training.task import Record

BLOCK = 1024
"""Examples predicted at once; what is held of a long list of them at a time."""
STDIN = "stdin"
_OWN = {
    "file",
    "row",
    "label",
    "labels",
    "probability",
    "probabilities",
    "value",
    "spans",
    "tags",
    "cut",
    "set",
    "error",
}
"""Fields of records, and so no names of a column that is kept."""

log = logging.getLogger("bigctl")


class Describes(Protocol):
    """Of a `TrainedRun`, what is needed here."""

    config: Config
    features: Features

    def describe_all(self, inputs: np.ndarray | Sequence[Any]) -> list[Record]: ...


@dataclass(frozen=True)
class Ids:
    """Which column of a file names its rows: the first of these that it has.

    Attributes:
        required: whether a file with rows must have one of them.
    """

    names: tuple[str, ...] = ()
    required: bool = True

    def __post_init__(self) -> None:
        if taken := sorted({*self.names} & _OWN):
            hint = f"name the column otherwise; predictions have {', '.join(sorted(_OWN))} of their own"
            raise ConfigError(f"{taken[0]!r} is what a column of the predictions is called", where="--id", hint=hint)


@dataclass(frozen=True)
class _File:
    name: str
    found: Unlabelled | DataError
    ids: tuple[str, list[Any]] | None = None

    @property
    def count(self) -> int:
        return 1 if isinstance(self.found, DataError) else len(self.found.inputs)


def predict_files(
    trained: Describes,
    files: Sequence[str | Path | bytes],
    *,
    strict: bool = False,
    ids: Ids = Ids(),
) -> Iterator[Record]:
    """See `TrainedRun.predict_files`."""
    read = (_read(trained, file, strict, ids) for file in files)
    # Small files, such as pictures, are predicted together; what is wrong with any is known first if it is an error.
    for block in _blocks([*read] if strict else read):
        yield from _records(trained, block)


def _read(trained: Describes, file: str | Path | bytes, strict: bool, ids: Ids) -> _File:
    name = STDIN if isinstance(file, bytes) else str(file)
    source = file if isinstance(file, bytes) else Path(file)
    try:
        found = catalog.read_for_prediction(source, trained.config.data, trained.features)
    except DataError as error:
        if strict:
            raise
        return _File(name, error)
    if strict and found.errors:
        raise found.errors[min(found.errors)]
    for note in found.notes:
        log.warning("%s", note)
    return _File(name, found, _ids(trained, source, name, ids) if found.rows else None)


def _ids(trained: Describes, source: Path | bytes, name: str, ids: Ids) -> tuple[str, list[Any]] | None:
    """The column that names the rows. Raises DataError where a file has rows and no such column, if it must."""
    for column in ids.names:
        if (found := catalog.read_column(source, trained.config.data, trained.features, column)) is not None:
            return column, found
    if ids.names and ids.required:
        raise DataError(f"there is no column {ids.names[0]!r}", where=name, hint="--id names the column that is kept")
    return None


def _blocks(files: Iterable[_File]) -> Iterator[list[_File]]:
    """Files with about so many examples together as are predicted at once."""
    block: list[_File] = []
    held = 0
    for file in files:
        block.append(file)
        held += file.count
        if held >= BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block


def _records(trained: Describes, files: Sequence[_File]) -> Iterator[Record]:
    good = [
        (place, row)
        for place, file in enumerate(files)
        if isinstance(file.found, Unlabelled)
        for row in range(file.count)
        if row not in file.found.errors
    ]
    known: dict[tuple[int, int], Record] = {}
    for start in range(0, len(good), BLOCK):
        part = good[start : start + BLOCK]
        inputs = _inputs(files, part)
        _warn_of_inverted(trained.features, inputs)
        known |= dict(zip(part, trained.describe_all(inputs), strict=True))
    for place, file in enumerate(files):
        if isinstance(file.found, DataError):
            yield {"file": file.name, "error": str(file.found)}
            continue
        for row in range(file.count):
            where: Record = {"file": file.name, **({"row": row} if file.found.rows else {})}
            if file.ids is not None:
                where = {file.ids[0]: file.ids[1][row], **where}
            yield {**where, **(known.get((place, row)) or {"error": str(file.found.errors[row])})}


def _inputs(files: Sequence[_File], places: Sequence[tuple[int, int]]) -> np.ndarray | list[Any]:
    rows: dict[int, list[int]] = {}
    for place, row in places:
        rows.setdefault(place, []).append(row)
    return take([(files[place].found, own) for place, own in rows.items()])  # type: ignore[misc]  # none is an error


def _warn_of_inverted(features: Features, inputs: np.ndarray | list[Any]) -> None:
    """Says where pictures are as light as those of the training are dark, or the other way round."""
    if features.kind != "image" or not isinstance(inputs, np.ndarray) or not features.mean:
        return
    trained, found = float(np.mean(features.mean)), float(inputs.mean(dtype=np.float64)) / 255
    if abs(trained - 0.5) > 0.2 and abs(found - (1 - trained)) < 0.5 * abs(found - trained):
        one, other = ("dark on light", "light on dark") if found > trained else ("light on dark", "dark on light")
        log.warning("the pictures look %s, and those of the training %s: invert them if so", one, other)


def shortened(record: Record, top: int) -> Record:
    """A record with the likeliest classes alone, the first of them first."""
    if "probabilities" not in record:
        return record
    order = sorted(record["probabilities"].items(), key=lambda pair: -pair[1])[:top]
    return {**record, "probabilities": dict(order)}
