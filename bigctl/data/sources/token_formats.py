"""What files of ready-made tokens say of themselves: raw ones nothing, llm.c's in a header, Megatron's in an index.

Nothing of the tokens is read here, and of an index no more than a block at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigctl.errors import DataError

RAW, LLMC, MEGATRON = "raw", "llmc", "megatron"

_LLMC_HEADER = 1024
"""Bytes: 256 numbers of 4, of which three are used: magic number, version, count of tokens."""
_LLMC = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Magic number -> version, and the type of a token: of GPT-2's tokenizer, of Llama 3's."""

_MMIDIDX = b"MMIDIDX\x00\x00"
_INDEX = struct.Struct("<QBQQ")  # version, type, sequences, documents with the end of the last
_TYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}

_BLOCK = 2**20
"""Entries of an index that are looked at at once."""


@dataclass(frozen=True)
class Stored:
    """Where the tokens of a file are.

    Attributes:
        format: RAW, LLMC or MEGATRON.
        dtype: of a token, as numpy writes it.
        header: bytes before the first token.
        count: tokens.
        documents: how many, where that is known.
    """

    format: str
    dtype: str
    header: int
    count: int
    documents: int | None = None


def read_format(file: Path, index: Path | None, given: str | None, dtype: str | None) -> Stored:
    """What a file of tokens says of itself.

    Args:
        file: with the tokens.
        index: the one beside it that Megatron writes, if there is one.
        given: the format, None to tell it from the files.
        dtype: "uint16" or "uint32", of a raw file; None for uint16.

    Raises:
        DataError: where the file does not hold what it says, or cannot be read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(_LLMC_HEADER)
        if given == MEGATRON and index is None:
            hint = "Megatron writes both; data.format=raw reads tokens without one"
            raise DataError("there is no index beside it", where=str(file.with_suffix(".idx")), hint=hint)
        if given == MEGATRON or (given is None and index is not None):
            assert index is not None
            return _megatron(file, index, size)
        magic = int.from_bytes(start[:4], "little") if len(start) >= 4 else 0
        if given == LLMC or (given is None and magic in _LLMC):
            return _llmc(file, start, size, magic)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from error
    return _raw(file, size, dtype)


def _raw(file: Path, size: int, dtype: str | None) -> Stored:
    width = np.dtype(dtype or "uint16").itemsize
    if size == 0:
        raise DataError("the file is empty", where=str(file), hint="is it the right file?")
    if size % width:
        what = f"its {size:,} bytes are no whole number of tokens of {width} bytes ({dtype or 'uint16'})"
        raise DataError(what, where=str(file), hint="was it copied whole? data.dtype says what a token is")
    return Stored(RAW, f"<u{width}", 0, size // width)


def _llmc(file: Path, start: bytes, size: int, magic: int) -> Stored:
    if len(start) < _LLMC_HEADER:
        what = f"the header is cut off: it has {_LLMC_HEADER:,} bytes, the file {size:,}"
        raise DataError(what, where=str(file), hint="was it copied whole?")
    if magic not in _LLMC:
        hint = f"{' and '.join(map(str, _LLMC))} are known; data.format=raw reads tokens without a header"
        raise DataError(f"the magic number is {magic}, not that of tokens of llm.c", where=str(file), hint=hint)
    version, count = struct.unpack_from("<2i", start, 4)
    known, dtype = _LLMC[magic]
    if version != known:
        hint = "write it again, or convert it to tokens without a header (data.format=raw)"
        raise DataError(f"version {version} of the format is not known, {known} is", where=str(file), hint=hint)
    _require_count(file, size - _LLMC_HEADER, np.dtype(dtype).itemsize, count % 2**32, "the header")
    return Stored(LLMC, dtype, _LLMC_HEADER, count % 2**32)


def _require_count(file: Path, size: int, width: int, count: int, says: str) -> None:
    if size != count * width:
        what = f"{says} tells of {count:,} tokens, {count * width:,} bytes, and the file holds {size:,} bytes of them"
        raise DataError(what, where=str(file), hint="was it copied whole?")
    if not count:
        raise DataError("the file holds no tokens", where=str(file), hint="is it the right file?")


# ------------------------------------------------------------------------------------------------------------ Megatron


@dataclass(frozen=True)
class _Index:
    """An index of Megatron's: sizes of the sequences [tokens], where each begins [bytes], and the sequence that each
    document begins with, the end of the last one besides."""

    dtype: str
    sizes: np.ndarray
    begins: np.ndarray
    documents: np.ndarray


def _open_index(index: Path) -> _Index:
    where, head = str(index), len(_MMIDIDX) + _INDEX.size
    size = index.stat().st_size
    with index.open("rb") as stream:
        start = stream.read(head)
    if not start.startswith(_MMIDIDX):
        hint = "data.format=raw reads the tokens beside it without an index"
        raise DataError("this is no index of Megatron's (it begins with MMIDIDX)", where=where, hint=hint)
    if len(start) < head:
        raise DataError("the header is cut off", where=where, hint="was it copied whole?")
    version, code, sequences, documents = _INDEX.unpack_from(start, len(_MMIDIDX))
    if version != 1:
        raise DataError(f"version {version} of the index is not known, 1 is", where=where, hint="write it again")
    if code not in _TYPES:
        raise DataError(f"tokens of type {code} are no whole numbers", where=where, hint="is it an index of tokens?")
    needed = head + sequences * 12 + documents * 8
    if size not in (needed, needed + sequences):  # a mode for each sequence may follow, of data with pictures
        what = f"it tells of {sequences:,} sequences and {documents:,} documents, {needed:,} bytes, and has {size:,}"
        raise DataError(what, where=where, hint="was it copied whole?")
    if not sequences:
        raise DataError("the index has no sequences", where=where, hint="is it the right file?")
    places = (head, head + 4 * sequences, head + 12 * sequences)
    counts, kinds = (sequences, sequences, documents), ("<i4", "<i8", "<i8")
    opened = [
        np.memmap(index, kind, "r", place, (count,)) if count else np.empty(0, kind)
        for kind, place, count in zip(kinds, places, counts, strict=True)
    ]
    return _Index(_TYPES[code], *opened)


def _megatron(file: Path, index: Path, size: int) -> Stored:
    found, where = _open_index(index), str(index)
    width, total = np.dtype(found.dtype).itemsize, 0
    for first in range(0, len(found.sizes), _BLOCK):
        sizes = found.sizes[first : first + _BLOCK].astype(np.int64)
        begins = found.begins[first : first + _BLOCK]
        if sizes.min() < 0 or not np.array_equal(begins, (total + np.cumsum(sizes) - sizes) * width):
            what = "sequences do not lie one after the other"
            raise DataError(what, where=where, hint="write the data again with Megatron's preprocess_data.py")
        total += int(sizes.sum())
    _require_count(file, size, width, total, "the index")
    _check_documents(found, where)
    return Stored(MEGATRON, found.dtype, 0, total, max(1, len(found.documents) - 1))


def document_starts(index: Path) -> np.ndarray:
    """Where each document of an index begins, and where the last one ends, ascending, int64 [D + 1] [tokens]; of an
    index without documents all of it is one.

    Raises:
        DataError: where the index is none, or cannot be read.
    """
    try:
        found = _open_index(index)
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(index)) from error
    width, last = np.dtype(found.dtype).itemsize, len(found.sizes) - 1
    end = int(found.begins[last]) // width + int(found.sizes[last])
    inside = np.asarray(found.documents[found.documents <= last])
    return np.concatenate([[0], np.asarray(found.begins[inside]) // width, [end]]).astype(np.int64)


def _check_documents(found: _Index, where: str) -> None:
    last = 0
    for first in range(0, len(found.documents), _BLOCK):
        documents = found.documents[first : first + _BLOCK]
        if documents[0] < last or (np.diff(documents) < 0).any() or documents[-1] > len(found.sizes):
            raise DataError("the documents in it are out of order", where=where, hint="is the index whole?")
        last = int(documents[-1])
