"""Where each example of a data set comes from: a file, and the line or row in it.

It is kept beside the arrays of a prepared data set and belongs to nothing that a model sees: data that was prepared
before has none, and is the same data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from bigctl.data.sources.decoded import ORIGIN, Columns, Decoded, Origins

_FILE = "origins.npz"


def with_origins(decoded: Decoded) -> dict[str, Columns]:
    """The splits of a source, with a column that says where each example is from, if that is known."""
    if decoded.origins is None:
        return decoded.splits
    places = decoded.origins.places
    return {split: {**columns, ORIGIN: places[split]} for split, columns in decoded.splits.items()}


def taken(by_split: Mapping[str, Columns]) -> dict[str, np.ndarray]:
    """That column, removed from each split; nothing where there is none."""
    found = {split: columns.pop(ORIGIN, None) for split, columns in by_split.items()}
    return {split: places for split, places in found.items() if places is not None}


def names(origins: Origins | None, places: Mapping[str, np.ndarray]) -> Callable[[str, int], str]:
    """What an example of a split is called: where it is from in words, or its number where that is not known."""

    def named(split: str, row: int) -> str:
        if origins is None or split not in places:
            return f"{split} {row}"
        return origins.name(int(places[split][row]))

    return named


def write(folder: Path, origins: Origins | None, places: Mapping[str, np.ndarray]) -> None:
    """Keep where the examples of each split are from, in the folder of a prepared data set. Raises OSError."""
    if origins is None or not places:
        return
    named = json.dumps([origins.unit, list(origins.sources)]).encode()
    np.savez_compressed(folder / _FILE, sources=np.frombuffer(named, np.uint8), **places)  # type: ignore[arg-type]


def read_all(folder: str | Path, places: Sequence[tuple[str, int]]) -> list[str]:
    """What some examples, each a split and a row, of a prepared set are called, see `names`."""
    found = [""] * len(places)
    for split in {split for split, _ in places}:
        numbers = [number for number, (own, _) in enumerate(places) if own == split]
        rows = [places[number][1] for number in numbers]
        for number, row, name in zip(numbers, rows, read(folder, split, rows), strict=True):
            found[number] = name or f"{split} {row}"
    return found


def read(folder: str | Path, split: str, rows: Sequence[int]) -> list[str | None]:
    """Where some examples of a prepared split are from, in words; None where that is not known."""
    try:
        with np.load(Path(folder) / _FILE, allow_pickle=False) as stored:
            unit, sources = json.loads(stored["sources"].tobytes())
            places = stored[split][list(rows)]
        known = Origins(sources, {}, str(unit))
        return [known.name(place) for place in places.tolist()]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return [None] * len(rows)
