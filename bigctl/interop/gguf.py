"""Llamas and GPT-2s in GGUF files, the format of llama.cpp: metadata, tokenizer and quantised tensors in one file.

The header is read here, with every length checked against the file; the `gguf` package knows the quantisations.
As in llama2.c, rope turns neighbouring features there (see `llama2c.halves`).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.errors import DataError
from bigctl.interop import settings, vocabularies
from bigctl.interop.llama2c import as_parameter
from bigctl.interop.stored import Stored
from bigctl.models.architecture import GPT, LLAMA, DecoderArchitecture

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAGIC = b"GGUF"

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3  # kinds of tokens
_TOP = {"token/embedding": "token_embd", "final_norm/scale": "output_norm", "head/kernel": "output"}
_LLAMA_LAYER = {
    "attention_norm/scale": "attn_norm",
    "attention/query/kernel": "attn_q",
    "attention/key/kernel": "attn_k",
    "attention/value/kernel": "attn_v",
    "attention/output/kernel": "attn_output",
    "mlp_norm/scale": "ffn_norm",
    "gate/kernel": "ffn_gate",
    "up/kernel": "ffn_up",
    "down/kernel": "ffn_down",
}
_GPT_TOP = {"token/embedding": "token_embd", "position/embedding": "position_embd", "head/kernel": "output"}
_GPT_MODULES = {
    "attention_norm": "attn_norm", "attention/output": "attn_output", "mlp_norm": "ffn_norm", "up": "ffn_up",
    "down": "ffn_down",
}  # fmt: skip
_QKV = ("query", "key", "value")


def _places(kind: str, layers: int) -> dict[str, str]:
    """The tensor that each parameter is in, or of query, key and value of a GPT-2 a third of."""
    if kind == LLAMA:
        places = {ours: f"{theirs}.weight" for ours, theirs in _TOP.items()}
        for i in range(layers):
            places |= {f"layers/{i}/{ours}": f"blk.{i}.{theirs}.weight" for ours, theirs in _LLAMA_LAYER.items()}
        return places
    places = {ours: f"{theirs}.weight" for ours, theirs in _GPT_TOP.items()}
    modules = {"final_norm": "output_norm"}
    for i in range(layers):
        modules |= {f"layers/{i}/{ours}": f"blk.{i}.{theirs}" for ours, theirs in _GPT_MODULES.items()}
        modules |= {f"layers/{i}/attention/{part}": f"blk.{i}.attn_qkv" for part in _QKV}
    for ours, theirs in modules.items():
        weight = "scale" if ours.endswith("norm") else "kernel"
        places |= {f"{ours}/{weight}": f"{theirs}.weight", f"{ours}/bias": f"{theirs}.bias"}
    return places


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor is: its shape as numpy has it, its kind of numbers, and its place in the file [bytes]."""

    shape: tuple[int, ...]
    kind: int
    offset: int
    end: int = 0


class StoredGguf(Stored):
    """Parameters in a GGUF file.

    Attributes:
        file: the file.
        metadata: what it says of itself.
        kind: of the model, "llama" or "gpt".
        architecture: of the model.
        shapes: of its parameters, by path.

    Raises:
        DataError: if it is no GGUF file, is cut short, or holds another model than these.
    """

    def __init__(self, file: Path):
        self.file = file
        reader = _Reader(file)
        self.metadata, self.tensors = reader.metadata, reader.tensors
        self.kind = {"llama": LLAMA, "gpt2": GPT}.get(str(self.metadata.get("general.architecture")), "")
        read = _read_gpt if self.kind == GPT else _read_architecture
        self.architecture = read(self.metadata, self.tensors, str(file))
        places = _places(self.kind, self.architecture.layers)
        self.names = {ours: name for ours, name in places.items() if name in self.tensors}
        self.shapes = {ours: self._shape(ours) for ours in self.names}

    def _shape(self, ours: str) -> tuple[int, ...]:
        first, *rest = self.tensors[self.names[ours]].shape
        shape = (first // 3 if ".attn_qkv." in self.names[ours] else first, *rest)
        return shape[::-1] if ours.endswith("kernel") else shape

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> np.ndarray:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        tensor = self.tensors[self.names[name]]
        kind = GGMLQuantizationType(tensor.kind)
        block, size = GGML_QUANT_SIZES[kind]
        *rows, last = tensor.shape
        count = math.prod(rows) * last // block * size
        stored = np.fromfile(self.file, np.uint8, count, offset=tensor.offset).reshape(*rows, last // block * size)
        try:
            plain = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}.get(kind)
            values = stored.view(plain).astype(np.float32) if plain else dequantize(stored, kind)
        except NotImplementedError as error:
            raise DataError(
                f"{self.names[name]} is stored as {kind.name}, which cannot be read",
                where=str(self.file),
                hint="take another quantisation, such as Q8_0 or Q4_K_M",
            ) from error
        values = values.reshape(tensor.shape)
        if self.kind == LLAMA:
            return as_parameter(name, values, self.architecture.depth, self.file)
        if not np.isfinite(values).all():
            raise DataError(f"{name} holds values that are not finite", where=str(self.file), hint=_AGAIN)
        if ".attn_qkv." in self.names[name]:
            values = np.split(values, 3)[_QKV.index(name.split("/")[-2])]
        return values.T if name.endswith("/kernel") else values

    def unused(self, taken: Iterable[str]) -> list[str]:
        used = {self.names[name] for name in taken}
        return [name for name in self.tensors if name not in used]

    @property
    def special(self) -> dict[str, int]:
        """Numbers of the tokens "bos", "eos", "unk" and "pad", those that the file names and has."""
        long = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
        found = {ours: self.metadata.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in long.items()}
        return {name: int(number) for name, number in found.items() if number is not None and self._is_token(number)}

    @property
    def ends(self) -> tuple[int, ...]:
        """Numbers of the tokens that end a text, or a turn in a conversation."""
        names = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
        return tuple(dict.fromkeys(self.metadata[n] for n in names if self._is_token(self.metadata.get(n))))

    def _is_token(self, number: object) -> bool:
        return type(number) is int and 0 <= number < self.architecture.vocab

    def _listed(self, name: str, kind: type, length: int | None = None) -> list[Any]:
        """A list of the tokenizer's, empty where there is none. Raises DataError if it holds something else."""
        found = self.metadata.get(f"tokenizer.ggml.{name}") or []
        if not isinstance(found, list) or not all(type(each) is kind for each in found):
            raise DataError(f"tokenizer.ggml.{name} is no list of {kind.__name__}", where=str(self.file))
        if found and length not in (None, len(found)):
            message = f"tokenizer.ggml.{name} has {len(found)} entries for {length} tokens"
            raise DataError(message, where=str(self.file), hint="fetch it again")
        return found

    def tokenizer(self) -> Tokenizer:
        """Raises DataError if it has none, or one of a kind that is not supported."""
        where, data = str(self.file), self.metadata
        kind, tokens = data.get("tokenizer.ggml.model"), self._listed("tokens", str)
        if not tokens:
            raise DataError("holds no tokenizer", where=where, hint="give recipe.tokenizer.type=file and its path")
        if len(tokens) > self.architecture.vocab:
            message = f"has {len(tokens)} tokens, and {self.architecture.vocab} rows in the embedding"
            raise DataError(message, where=where, hint="it is damaged: fetch it again")
        kinds = self._listed("token_type", int, len(tokens)) or [_NORMAL] * len(tokens)
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_UNKNOWN, _CONTROL)]
        if kind == "gpt2":
            merges = [tuple(merge.split(" ", 1)) for merge in self._listed("merges", str)]
            split = data.get("tokenizer.ggml.pre", "default")
            found = vocabularies.byte_level(tokens, merges, special=special, split=split, where=where)
            begins = data.get("tokenizer.ggml.add_bos_token", split == "llama-bpe")
        elif kind == "llama":
            scores = self._listed("scores", float, len(tokens)) or [-float(i) for i in range(len(tokens))]
            unknown = tokens[self.special.get("unk", 0)]
            special = [unknown, *(token for token in special if token != unknown)]
            prefix = data.get("tokenizer.ggml.add_space_prefix", True)
            found = vocabularies.sentence_piece(tokens, scores, special=special, prefix=prefix, where=where)
            begins = data.get("tokenizer.ggml.add_bos_token", True)
        else:
            raise DataError(f"a tokenizer of the kind {kind!r} is not supported", where=where)
        if begins and "bos" in self.special:
            vocabularies.begin_with(found, tokens[self.special["bos"]])
        return found


class _Reader:
    """The header of a GGUF file, version 2 or 3."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.size = file.stat().st_size
            with file.open("rb") as self.stream:
                self._read()
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(file)) from error

    def _read(self) -> None:
        if self.stream.read(4) != MAGIC:
            raise DataError("is no GGUF file", where=str(self.file), hint="it begins with the letters GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise DataError(f"is of version {version}; 2 and 3 are supported", where=str(self.file))
        tensors, keys = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self._string()
            self.metadata[name] = self._value(self._number("I"))
        raw: dict[str, _Tensor] = {}
        for _ in range(tensors):
            name, rank = self._string(), self._number("I")
            if rank > 4 or name in raw:
                raise self._damaged()
            shape = tuple(self._number("Q") for _ in range(rank))[::-1]
            raw[name] = _Tensor(shape, self._number("I"), self._number("Q"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise DataError(f"general.alignment cannot be {alignment!r}", where=str(self.file), hint="fetch it again")
        start = -(-self.stream.tell() // alignment) * alignment
        self.tensors = {name: self._placed(name, tensor, start, alignment) for name, tensor in raw.items()}
        places = sorted((tensor.offset, tensor.end, name) for name, tensor in self.tensors.items())
        for (_, end, name), (begin, _, other) in itertools.pairwise(places):
            if begin < end:
                message = f"{other} begins at byte {begin:,}, where {name} goes on to {end:,}"
                raise DataError(message, where=str(self.file), hint="it is damaged: fetch it again")

    def _placed(self, name: str, tensor: _Tensor, start: int, alignment: int) -> _Tensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        if tensor.kind not in list(GGMLQuantizationType):
            raise DataError(f"{name} is stored in an unknown way ({tensor.kind})", where=str(self.file))
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % block:
            raise self._damaged()
        if tensor.offset % alignment:
            message = f"{name} begins {tensor.offset:,} bytes after the header, no multiple of {alignment}"
            raise DataError(message, where=str(self.file), hint="it is damaged: fetch it again")
        end = start + tensor.offset + math.prod(tensor.shape) // block * size
        if end > self.size:
            raise DataError(
                f"is cut short: {self.size:,} bytes, {name} ends at {end:,}",
                where=str(self.file),
                hint="fetch it again",
            )
        return _Tensor(tensor.shape, tensor.kind, start + tensor.offset, end)

    def _take(self, size: int) -> bytes:
        if size > self.size - self.stream.tell():
            raise self._damaged()
        return self.stream.read(size)

    def _number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind)))[0]

    def _string(self) -> str:
        return self._take(self._number("Q")).decode("utf-8", "replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth > 4:
            raise self._damaged()
        inner, count = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            code = _NUMBERS[inner]
            return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code))))
        smallest = 8 if inner == _STRING else 12  # a length; a kind and a length
        if count * smallest > self.size - self.stream.tell():
            raise self._damaged()
        return [self._value(inner, depth + 1) for _ in range(count)]

    def _damaged(self) -> DataError:
        return DataError("is cut short or damaged", where=str(self.file), hint="fetch it again")


_AGAIN = "fetch it again"
_SIZES = {
    "layers": "block_count", "width": "embedding_length", "heads": "attention.head_count",
    "intermediate": "feed_forward_length", "context": "context_length",
}  # fmt: skip
_ROPE = tuple(
    f"llama.rope.{name}"
    for name in ("dimension_count", "freq_base", "scaling.original_context_length", "scaling.finetuned")
)


def _read_architecture(metadata: Mapping[str, Any], tensors: Mapping[str, _Tensor], where: str) -> DecoderArchitecture:
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise DataError(f"holds a model of the kind {kind!r}", where=where, hint="only llama and gpt2 are supported")
    scaled = settings.unknown_rope_setting({k: v for k, v in metadata.items() if k.startswith("llama.rope.")}, _ROPE)
    strange = next(
        (name for name in tensors if name.endswith(".bias") or "rope_freqs" in name or "_exps" in name), None
    )
    if metadata.get("llama.expert_count") or strange or scaled:
        what = strange or scaled or "llama.expert_count"
        raise DataError(
            f"holds a Llama of another make: it has {what}", where=where, hint="only plain ones are supported"
        )
    sizes: dict[str, Any] = {ours: metadata.get(f"llama.{theirs}") for ours, theirs in _SIZES.items()}
    sizes["kv_heads"] = metadata.get("llama.attention.head_count_kv", sizes["heads"])
    _require_sizes(sizes, tensors, where)
    embedding, wide = tensors.get("token_embd.weight"), tensors.get("blk.0.ffn_gate.weight")
    width, heads = sizes["width"], sizes["heads"]
    fits = embedding is not None and len(embedding.shape) == 2 and embedding.shape[1] == width
    fits = fits and (wide is None or wide.shape == (sizes["intermediate"], width))
    if embedding is None or not fits or width % heads or heads % sizes["kv_heads"]:
        raise DataError("holds sizes that do not go together", where=where, hint="fetch it again")
    depth = metadata.get("llama.attention.key_length", width // heads)
    if depth != width // heads or metadata.get("llama.rope.dimension_count", depth) != depth:
        raise DataError(f"has heads of {depth} features, not {width // heads}", where=where)
    eps = settings.number(metadata, "llama.attention.layer_norm_rms_epsilon", 1e-5, where, hint=_AGAIN)
    return DecoderArchitecture(
        **sizes,
        vocab=embedding.shape[0],
        position="rope",
        rope_theta=settings.number(metadata, "llama.rope.freq_base", 10000.0, where, most=1e12, hint=_AGAIN),
        norm="rms",
        activation="swiglu",
        bias=False,
        tied="output.weight" not in tensors,
        eps=float(f"{eps:.7g}"),  # as it was before float32
    )


def _require_sizes(sizes: Mapping[str, Any], tensors: Mapping[str, _Tensor], where: str) -> None:
    for ours, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"does not say the number of {ours}: {size!r}", where=where)
    if sizes["layers"] > len(tensors):  # before anything is made for each of them
        message = f"says that it has {sizes['layers']:,} layers, and holds {len(tensors):,} tensors"
        raise DataError(message, where=where, hint="it is damaged: fetch it again")


def _read_gpt(metadata: Mapping[str, Any], tensors: Mapping[str, _Tensor], where: str) -> DecoderArchitecture:
    sizes: dict[str, Any] = {ours: metadata.get(f"gpt2.{theirs}") for ours, theirs in _SIZES.items()}
    _require_sizes(sizes, tensors, where)
    width, context = sizes["width"], sizes["context"]
    needed = {
        "position_embd.weight": (context, width),
        "blk.0.attn_qkv.weight": (3 * width, width),
        "blk.0.ffn_up.weight": (sizes["intermediate"], width),
    }
    embedding = tensors.get("token_embd.weight")
    fits = all(name in tensors and tensors[name].shape == shape for name, shape in needed.items())
    if (
        embedding is None
        or len(embedding.shape) != 2
        or embedding.shape[1] != width
        or not fits
        or width % sizes["heads"]
    ):
        raise DataError("holds sizes that do not go together", where=where, hint=_AGAIN)
    eps = settings.number(metadata, "gpt2.attention.layer_norm_epsilon", 1e-5, where, hint=_AGAIN)
    return DecoderArchitecture(
        **sizes,
        kv_heads=sizes["heads"],
        vocab=embedding.shape[0],
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        bias=True,
        tied="output.weight" not in tensors,
        eps=float(f"{eps:.7g}"),
    )
