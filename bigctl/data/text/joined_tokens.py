"""Tokens of several corpora one after the other, in place of one array: nothing of them is copied or read ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from bigctl.data.text.token_shards import TokenShards
from bigctl.errors import DataError


@dataclass(frozen=True)
class JoinedTokens:
    """In place of an array [T].

    Attributes:
        names: of the corpora, for what is wrong with one.
        parts: their tokens, arrays or `TokenShards`; none of them empty.
    """

    names: Sequence[str]
    parts: Sequence[np.ndarray | TokenShards]

    ndim = 1

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.result_type(*(part.dtype for part in self.parts))

    @property
    def ends(self) -> np.ndarray:
        """Where each corpus ends, int64 [K]."""
        return np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    @property
    def nbytes(self) -> int:
        return len(self) * self.dtype.itemsize

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of them."""
        found = np.empty(len(self), self.dtype if dtype is None else dtype)
        for number, end in enumerate(self.ends.tolist()):
            found[end - len(self.parts[number]) : end] = self._read(number, slice(None))
        return found

    def __getitem__(self, places: np.ndarray | slice) -> np.ndarray:
        """Tokens at some places, integers of any shape, or a slice of neighbouring ones.

        Raises:
            DataError: naming the corpus, as `TokenShards` does.
        """
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step != 1:
                raise ValueError("only neighbouring tokens can be cut out")
            places = np.arange(start, max(start, stop), dtype=np.int64)
        places = np.asarray(places)
        owner = np.searchsorted(self.ends, places, side="right")
        found = np.empty(places.shape, self.dtype)
        rows = places.ndim > 1 and (owner == owner[..., :1]).all()  # windows, each of one corpus
        for number in np.unique(owner).tolist():
            own = (owner[..., 0] if rows else owner) == number
            begin = int(self.ends[number]) - len(self.parts[number])
            found[own] = self._read(number, places[own] - begin)
        return found

    def _read(self, number: int, places: np.ndarray | slice) -> np.ndarray:
        try:
            if isinstance(places, slice):
                return np.asarray(self.parts[number])
            return np.asarray(self.parts[number][places])
        except DataError as error:
            raise of_corpus(error, self.names[number]) from error


def of_corpus(error: DataError, name: str) -> DataError:
    """The same error, with the corpus that it is about before its place."""
    where = f"data.corpora.{name}" if error.where in (None, "data") else f"data.corpora.{name}, {error.where}"
    return DataError(error.message, where=where, hint=error.hint)
