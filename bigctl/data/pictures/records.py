"""Pictures in records of ArrayRecord files, as TFDS writes them: each a `tf.train.Example`, reached by its number.

A record is compressed by itself and read by itself; neither the library's protocol buffers nor TensorFlow is needed for
one field of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

_OPEN = 128
"""Files that are open at once; of more, the one that was opened first is closed."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_readers: dict[tuple[str, int], Any] = {}
_lock = threading.Lock()


def read(path: str, modified: int, number: int, field: str) -> bytes:
    """A field of bytes of a record.

    Args:
        path: an ArrayRecord file.
        modified: when it was changed last [ns], so that one that was replaced is opened again.
        number: of the record, from 0.
        field: its name.

    Raises:
        ValueError, RuntimeError, IndexError, OSError: the file is damaged, or has no such record or field.
    """
    (record,) = _reader(path, modified).read([number])
    for found in _fields(memoryview(record), 1):  # Features
        for entry in _fields(found, 1):  # of a map
            if next((bytes(key) for key in _fields(entry, 1)), b"") == field.encode():
                for feature in _fields(entry, 2):
                    for values in _fields(feature, 1):  # BytesList
                        for value in _fields(values, 1):
                            return bytes(value)
    raise ValueError(f"record {number} has no bytes {field!r}")


def _reader(path: str, modified: int) -> Any:
    from array_record.python import array_record_module

    key = path, modified
    with _lock:
        if key not in _readers:
            while len(_readers) >= _OPEN:
                del _readers[next(iter(_readers))]
            _readers[key] = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
        return _readers[key]


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields of a number in a message of protocol buffers that hold bytes. Raises ValueError where it is none."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, size = tag & 7, 0
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("a field is cut short")
            if tag >> 3 == wanted:
                yield message[at : at + size]
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    found = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        found, at, shift = found | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return found, at
    raise ValueError("a number is cut short")
