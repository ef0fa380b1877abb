"""Models of llama2.c (Karpathy 2023), version 0: seven numbers, then all weights in float32; and its tok*.bin.

Its rope turns features 2i and 2i + 1 together, here it is i and i + depth / 2: queries and keys are put in that order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigctl.errors import DataError
from bigctl.interop import vocabularies
from bigctl.interop.stored import Stored
from bigctl.models.architecture import DecoderArchitecture

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_HEADER = struct.Struct("<7i")
_SPECIAL = ["<unk>", "<s>", "</s>"]
BOS, EOS = 1, 2
_LAYER_PARTS = (
    "attention_norm/scale", "attention/query/kernel", "attention/key/kernel", "attention/value/kernel",
    "attention/output/kernel", "mlp_norm/scale", "gate/kernel", "down/kernel", "up/kernel",
)  # fmt: skip
"""In the order of the file, each for all layers at once."""


class StoredLlama2c(Stored):
    """Parameters in a file of llama2.c.

    Attributes:
        file: the file.
        architecture: of the model.
        shapes: of all parameters by path.

    Raises:
        DataError: if it is no such file, or cut short.
    """

    def __init__(self, file: Path):
        self.file = file
        sizes = read_header(file)
        if sizes is None:
            raise DataError(
                "is no model of llama2.c, version 0: its header makes no sense", where=str(file), hint="fetch it again"
            )
        width, wide, layers, heads, groups, vocab, context = sizes
        tied, vocab = vocab > 0, abs(vocab)
        self.architecture = DecoderArchitecture(
            layers=layers, width=width, heads=heads, kv_heads=groups, intermediate=wide, context=context, vocab=vocab,
            position="rope", norm="rms", activation="swiglu", bias=False, tied=tied, eps=1e-5,
        )  # fmt: skip
        self.depth = self.architecture.depth
        shared = groups * self.depth
        matrices = {
            "attention/query/kernel": (width, width), "attention/key/kernel": (shared, width),
            "attention/value/kernel": (shared, width), "attention/output/kernel": (width, width),
            "gate/kernel": (wide, width), "down/kernel": (width, wide), "up/kernel": (wide, width),
        }  # fmt: skip
        self.stored: dict[str, tuple[int, tuple[int, ...]]] = {}
        place = _HEADER.size

        def add(name: str, shape: tuple[int, ...]) -> None:
            nonlocal place
            self.stored[name] = (place, shape)
            place += 4 * math.prod(shape)

        add("token/embedding", (vocab, width))
        for part in _LAYER_PARTS:
            for i in range(layers):
                add(f"layers/{i}/{part}", matrices.get(part, (width,)))
        add("final_norm/scale", (width,))
        place += 4 * context * self.depth  # tables of cosines and sines
        if not tied:
            add("head/kernel", (vocab, width))
        size = file.stat().st_size
        if size != place:
            what = "is cut short" if size < place else "is longer than its header says"
            raise DataError(f"{what}: {size:,} bytes, not {place:,}", where=str(file), hint="fetch it again")
        self.shapes = {n: s[::-1] if n.endswith("kernel") else s for n, (_, s) in self.stored.items()}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> np.ndarray:
        place, shape = self.stored[name]
        values = np.fromfile(self.file, "<f4", math.prod(shape), offset=place).reshape(shape).astype(np.float32)
        return as_parameter(name, values, self.depth, self.file)

    def unused(self, taken: Iterable[str]) -> list[str]:
        used = set(taken)
        return [name for name in self.stored if name not in used]


def as_parameter(name: str, values: np.ndarray, depth: int, file: Path) -> np.ndarray:
    """A tensor of llama2.c or llama.cpp, float32 as it is stored, in the layout here: kernels are [in, out], rope turns
    features half a head apart.

    Raises:
        DataError: if it holds values that are not finite.
    """
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds values that are not finite", where=str(file), hint="fetch it again")
    if name.endswith(("query/kernel", "key/kernel")):
        values = halves(values, depth)
    return values.T if name.endswith("/kernel") else values


def halves(rows: np.ndarray, depth: int) -> np.ndarray:
    """Rows [heads * depth, ...] in which the pairs that rope turns are neighbours -> half a head apart."""
    return rows.reshape(-1, depth // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_header(file: Path) -> tuple[int, ...] | None:
    """Width, intermediate, layers, heads, groups, vocabulary (negative if untied) and context; None if it is none."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_HEADER.size)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error
    if len(start) < _HEADER.size:
        return None
    width, wide, layers, heads, groups, vocab, context = _HEADER.unpack(start)
    positive = (width, wide, layers, heads, groups, abs(vocab), context)
    sensible = all(0 < size < 2**24 for size in positive) and layers < 2**12
    if not sensible or width % heads or heads % groups or width // heads % 2:
        return None
    return width, wide, layers, heads, groups, vocab, context


def read_tokenizer(file: Path, size: int) -> Tokenizer:
    """The tokenizer of a tok*.bin: for each of `size` tokens a score, its length and its bytes.

    Raises:
        DataError: if the file is cut short, or is none.
    """
    where = str(file)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=where) from error
    pieces, scores, place = [], [], 4
    for number in range(size):
        if place + 8 > len(content):
            raise DataError(f"is cut short: {number} tokens, not {size}", where=where, hint="fetch it again")
        score, length = struct.unpack_from("<fi", content, place)
        piece = content[place + 8 : place + 8 + max(0, length)]
        if length < 0 or len(piece) < length:
            raise DataError(f"is cut short or damaged at token {number}", where=where, hint="fetch it again")
        try:
            pieces.append(piece.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"token {number} is not UTF-8", where=where, hint="is it a tok*.bin?") from error
        scores.append(score)
        place += 8 + length
    if place != len(content):
        raise DataError(f"has more than {size} tokens", where=where, hint="give the one that belongs to the weights")
    pieces[: len(_SPECIAL)] = _SPECIAL
    pieces = [piece.replace(" ", "\u2581") for piece in pieces]
    found = vocabularies.sentence_piece(pieces, scores, special=_SPECIAL, where=where)
    vocabularies.begin_with(found, _SPECIAL[BOS])
    return found
