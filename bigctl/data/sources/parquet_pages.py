"""Where the values of a column of bytes lie in a Parquet file that is not compressed.

Pages of such a column hold each value as it is, behind its length in four bytes, one after the other (the encoding
PLAIN), and so does a page with a dictionary. Where they are is not parsed but found: each value that pyarrow reads is
looked for where the last one ended, and what is taken for it is equal to it, byte for byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MISSING = -1
"""The size of a value that is not there."""

_ROWS = 64
"""Rows that are read at once."""


def places(file: Path, column: str, contents: Callable[[pa.Array], pa.Array]) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the values of a column begin, and their sizes, int64 [N] each; None where they are compressed or not found.

    Args:
        file: a Parquet file.
        column: the name of the column, or of the field of a struct as "column.field".
        contents: the bytes of a block of it.

    Raises:
        OSError: where the file cannot be read. And what pyarrow raises.
    """
    import pyarrow.parquet as pq

    starts, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with pq.ParquetFile(file, buffer_size=2**20) as opened, file.open("rb") as stream, contextlib.ExitStack() as held:
        spans = _spans(opened.metadata, column)
        if spans is None:
            return None
        mapped = held.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        for number, span in enumerate(spans):
            search = _Search(mapped, *span)
            for block in opened.iter_batches(batch_size=_ROWS, row_groups=[number], columns=[column]):
                found = [*search.places(contents(block.column(0)))]
                if None in found:
                    return None
                starts.append(np.array([each[0] for each in found if each is not None], np.int64))
                sizes.append(np.array([each[1] for each in found if each is not None], np.int64))
    return np.concatenate(starts), np.concatenate(sizes)


def _spans(described: pq.FileMetaData, column: str) -> list[tuple[int, int]] | None:
    """The bytes that a column takes in each group of rows; None where any of it is compressed."""
    found = []
    for number in range(described.num_row_groups):
        group = described.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        chunk = next((each for each in chunks if each.path_in_schema == column), None)
        if chunk is None or chunk.compression != "UNCOMPRESSED" or chunk.physical_type != "BYTE_ARRAY":
            return None
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
        found.append((start, start + chunk.total_compressed_size))
    return found


class _Search:
    """Values that are looked for in order."""

    def __init__(self, mapped: mmap.mmap, start: int, end: int):
        self._mapped, self._at, self._end = mapped, start, end
        self._known: dict[bytes, int] = {}

    def places(self, values: pa.Array) -> Iterator[tuple[int, int] | None]:
        """Where each value begins and its size; None for one that is not found."""
        for value in values:
            if not value.is_valid:
                yield 0, MISSING
                continue
            content: bytes = value.as_buffer().to_pybytes()
            wanted = len(content).to_bytes(4, "little") + content
            key, at = hashlib.blake2b(content, digest_size=16).digest(), self._at
            if self._mapped[at : at + len(wanted)] != wanted:
                at = self._known.get(key, -1)  # it is in a dictionary once
                at = self._mapped.find(wanted, self._at, self._end) if at < 0 else at
            if at < 0:
                yield None
                return
            self._known[key] = at
            self._at = max(self._at, at + len(wanted))
            yield at + 4, len(content)
