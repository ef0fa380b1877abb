"""One array in a file of numpy, written by blocks."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from bigctl.files import sha256


class ArrayFile:
    """The file that `numpy.save` would write of an array whose rows come in blocks.

    Args:
        file: where.
        dtype, shape: of the whole array; without a shape it has one dimension, as long as what is written.

    Attributes:
        sha256: of the file, once it is closed.
    """

    def __init__(self, file: Path, dtype: np.dtype, shape: Sequence[int] | None = None):
        self.name, self.sha256 = file.name, ""
        self._file, self._dtype, self._grows, self._rows = file, dtype, shape is None, 0
        header = _header(dtype, (0,) if shape is None else shape)
        self._digest = hashlib.sha256(header)
        self._stream = file.open("wb")
        self._stream.write(header)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._grows and kind is None:  # the header is as long for any number of rows
            self._stream.seek(0)
            self._stream.write(_header(self._dtype, (self._rows,)))
        self._stream.close()
        if kind is None:
            self.sha256 = sha256(self._file) if self._grows else self._digest.hexdigest()

    def write(self, rows: np.ndarray) -> None:
        """The next rows. Raises OSError where there is no room."""
        content = np.ascontiguousarray(rows, self._dtype).view(np.uint8).data if rows.size else b""
        self._rows += len(rows)
        if not self._grows:
            self._digest.update(content)
        self._stream.write(content)


def _header(dtype: np.dtype, shape: Sequence[int]) -> bytes:
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
