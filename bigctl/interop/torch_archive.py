"""The one pickle that is read: tensors as torch saved them before 2020, read by an interpreter of our own.

Python's `pickle` calls what a pickle names. This reader calls nothing: it knows the few instructions that such a file
consists of, and of the names in it ordered dicts, tensors and storages, each of which becomes a plain value here.
Everything else ends it. Files are read by `read_verified` alone, which demands their sha256 first.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import DataError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_STORAGES: dict[str, np.dtype[Any]] = {"torch FloatStorage": np.dtype("<f4"), "torch LongStorage": np.dtype("<i8")}
_AGAIN = "nothing of it was run; fetch it again"


@dataclass(frozen=True)
class _Name:
    """A name in the file; nothing is looked up for it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    numbers: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """Says what is wrong with the bytes."""


def read_verified(file: Path, sha256: str) -> dict[str, np.ndarray]:
    """The tensors of a file by name; nothing of it is interpreted unless it is, byte for byte, the one that is known.

    Raises:
        DataError: if it is another file, or damaged.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        message = "is a pickle, and not the one that is known: it is not read"
        raise DataError(message, where=str(file), hint=_AGAIN)
    return parse(content, str(file))


def parse(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The same of bytes; whatever they are, nothing of them is run. Raises DataError."""
    try:
        return _tensors(content)
    except _Refused as error:
        message = f"is no file of nothing but tensors: {error}"
        raise DataError(message, where=where, hint=_AGAIN) from error
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
        raise DataError("is damaged or cut short", where=where, hint=_AGAIN) from error


def _tensors(content: bytes) -> dict[str, np.ndarray]:
    reader = _Reader(content)
    if reader.pickle() != _MAGIC or reader.pickle() != _PROTOCOL:
        raise _Refused("it does not begin as such a file does")
    if reader.pickle().get("little_endian") is not True:
        raise _Refused("its numbers are not little-endian")
    named, keys = reader.pickle(), reader.pickle()
    if not isinstance(named, dict) or not all(isinstance(value, _Tensor) for value in named.values()):
        raise _Refused("it holds other things")
    storages = {tensor.storage.key: tensor.storage for tensor in named.values()}
    if sorted(storages) != sorted(keys):
        raise _Refused("its tensors and its storages do not belong together")
    held = {key: reader.numbers(storages[key]) for key in keys}
    return {str(name): _array(tensor, held[tensor.storage.key]) for name, tensor in named.items()}


def _array(tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """A view of a storage, which must lie inside of it."""
    ends = [(side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True)]
    sound = all(side > 0 and step >= 0 for side, step in zip(tensor.shape, tensor.strides, strict=True))
    inside = tensor.offset >= 0 and tensor.offset + sum(ends) < len(numbers)
    if not sound or not inside or math.prod(tensor.shape) > len(numbers):
        raise _Refused("a tensor reaches out of its storage")
    width = numbers.dtype.itemsize
    strides = [step * width for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view).reshape(tensor.shape)


_MARK = object()


class _Reader:
    """The instructions of a pickle, as far as tensors need them, on a stack."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, count: int) -> bytes:
        if count < 0 or self.place + count > len(self.content):
            raise ValueError("cut short")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self) -> str:
        end = self.content.index(b"\n", self.place, self.place + 200)
        return self.take(end - self.place + 1)[:-1].decode("ascii")

    def numbers(self, storage: _Storage) -> np.ndarray:
        """What is behind the pickles: how many numbers, then these."""
        if self.number("<q") != storage.numbers:
            raise _Refused("a storage has another length than is said")
        return np.frombuffer(self.take(storage.numbers * storage.dtype.itemsize), storage.dtype)

    def pickle(self) -> Any:
        """The value of the pickle that begins here."""
        self.stack, self.memo = [], {}
        while (code := self.take(1)) != b".":
            if code not in _CODES:
                raise _Refused(f"it has the instruction {code!r}")
            _CODES[code](self)
        (value,) = self.stack
        return value

    def since_mark(self) -> list[Any]:
        place = max(i for i, value in enumerate(self.stack) if value is _MARK)
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        found = self.since_mark()
        return zip(found[::2], found[1::2], strict=True)

    # ------------------------------------------------------------------------------------------- what names stand for

    def named(self) -> None:
        name = f"{self.line()} {self.line()}"
        if name not in (_DICT, _TENSOR, *_STORAGES):
            raise _Refused(f"it names {name.replace(' ', '.')!r}")
        self.stack.append(_Name(name))

    def reduced(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if name == _Name(_DICT) and arguments == ():
            self.stack.append({})
        elif name == _Name(_TENSOR):
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, _Storage):
                raise _Refused("a tensor has no storage")
            self.stack.append(_Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides))))
        else:
            raise _Refused("it would call something")

    def stored(self) -> None:
        what, name, key, device, numbers, view = self.stack.pop()
        if what != "storage" or device != "cpu" or view is not None or name.name not in _STORAGES:
            raise _Refused("it has something stored that is no storage")
        self.stack.append(_Storage(str(key), _STORAGES[name.name], int(numbers)))

    def built(self) -> None:
        """Notes beside an ordered dict, such as versions, are left out."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise _Refused("it would change something else than a dict")

    def items(self, pairs: Iterator[tuple[Any, Any]]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise _Refused("it would change something else than a dict")
        target.update(pairs)

    def one_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.items(iter([(key, value)]))

    def several(self, count: int) -> None:
        found = tuple(self.stack[len(self.stack) - count :])
        if len(found) != count:
            raise ValueError("cut short")
        del self.stack[len(self.stack) - count :]
        self.stack.append(found)

    def extended(self, found: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _Refused("it would change something else than a list")
        self.stack[-1].extend(found)


def _pushes(value: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    return lambda reader: reader.stack.append(value(reader))


def _keeps(form: str) -> Callable[[_Reader], None]:
    return lambda reader: reader.memo.__setitem__(reader.number(form), reader.stack[-1])


_CODES: dict[bytes, Callable[[_Reader], None]] = {
    b"\x80": lambda reader: None if reader.number("<B") == 2 else reader.memo[-1],
    b"\x8a": _pushes(lambda reader: int.from_bytes(reader.take(reader.number("<B")), "little", signed=True)),
    b"K": _pushes(lambda reader: reader.number("<B")),
    b"M": _pushes(lambda reader: reader.number("<H")),
    b"J": _pushes(lambda reader: reader.number("<i")),
    b"X": _pushes(lambda reader: reader.take(reader.number("<I")).decode("utf-8")),
    b"N": _pushes(lambda reader: None),
    b"\x88": _pushes(lambda reader: True),
    b"\x89": _pushes(lambda reader: False),
    b"}": _pushes(lambda reader: {}),
    b"]": _pushes(lambda reader: []),
    b")": _pushes(lambda reader: ()),
    b"(": _pushes(lambda reader: _MARK),
    b"t": _pushes(lambda reader: tuple(reader.since_mark())),
    b"\x85": lambda reader: reader.several(1),
    b"\x86": lambda reader: reader.several(2),
    b"\x87": lambda reader: reader.several(3),
    b"q": _keeps("<B"),
    b"r": _keeps("<I"),
    b"h": _pushes(lambda reader: reader.memo[reader.number("<B")]),
    b"j": _pushes(lambda reader: reader.memo[reader.number("<I")]),
    b"s": lambda reader: reader.one_item(),
    b"u": lambda reader: reader.items(reader.pairs()),
    b"a": lambda reader: reader.extended([reader.stack.pop()]),
    b"e": lambda reader: reader.extended(reader.since_mark()),
    b"c": lambda reader: reader.named(),
    b"R": lambda reader: reader.reduced(),
    b"b": lambda reader: reader.built(),
    b"Q": lambda reader: reader.stored(),
}
"""The instructions that are known, by their byte."""
