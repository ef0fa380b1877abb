"""One array in a file of numpy, written by blocks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np


class ArrayFile:
    """The file that `numpy.save` would write of an array whose rows come in blocks; gives its digest.

    Args:
        file: where.
        dtype, shape: of the whole array.
    """

    def __init__(self, file: Path, dtype: np.dtype, shape: Sequence[int]):
        self.name, self._dtype = file.name, dtype
        header = io.BytesIO()
        described = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, described)
        self._digest = hashlib.sha256(header.getvalue())
        self._stream = file.open("wb")
        self._stream.write(header.getvalue())

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()

    def write(self, rows: np.ndarray) -> None:
        """The next rows. Raises OSError where there is no room."""
        content = np.ascontiguousarray(rows, self._dtype).view(np.uint8).data if rows.size else b""
        self._digest.update(content)
        self._stream.write(content)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()
