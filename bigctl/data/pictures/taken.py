"""Rows of arrays that are gathered as they are asked for, so that a split of decoded pictures is no second copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from bigctl.data.preparation.array_file import ArrayFile

_BLOCK = 2**24
"""Bytes that are gathered at once to be written."""


class TakenRows:
    """Some rows of a few arrays, as if these were joined; it is read like an array.

    Args:
        arrays: of one shape but for the number of rows, and of one dtype.
        places: of the rows in all of them, one array after the other.
    """

    def __init__(self, arrays: Sequence[np.ndarray], places: Int[np.ndarray, " rows"]):
        self._arrays, self._places = arrays, places
        self._starts = np.cumsum([0, *(len(array) for array in arrays)])
        self.dtype, self.shape = np.result_type(*arrays), (len(places), *arrays[0].shape[1:])

    @property
    def size(self) -> int:
        """Numbers in all rows."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, wanted: int | slice | np.ndarray) -> np.ndarray:
        """One row, or those of a slice or of places, newly gathered."""
        if isinstance(wanted, int | np.integer):
            return self[slice(wanted, wanted + 1)][0]
        places = self._places[wanted]
        owner = np.searchsorted(self._starts, places, side="right") - 1
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        for number in np.unique(owner).tolist():
            own = owner == number
            rows[own] = self._arrays[number][places[own] - self._starts[number]]
        return rows

    def save(self, file: Path) -> str:
        """Write the file that `numpy.save` would, by blocks; gives its sha256. Raises OSError."""
        step = max(1, _BLOCK // max(1, self.size // max(1, len(self)) * self.dtype.itemsize))
        with ArrayFile(file, self.dtype, self.shape) as written:
            for start in range(0, len(self), step):
                written.write(self[start : start + step])
        return written.sha256


def in_place(splits: dict[str, dict[str, np.ndarray]], column: str) -> list[np.ndarray]:
    """Put into a column of each split of a source the places of its rows among those of all, int64 [N]; gives the
    arrays that were there."""
    arrays, start = list[np.ndarray](), 0
    for columns in splits.values():
        arrays.append(columns[column])
        columns[column] = np.arange(start, start := start + len(columns[column]))
    return arrays
