"""A decoder as a GGUF file for llama.cpp: what its `convert_hf_to_gguf.py` would write of the same weights.

Names of tensors come from the `gguf` package, which llama.cpp's own converter takes them from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bigctl.errors import ConfigError
from bigctl.interop import decoder, vocabularies
from bigctl.models.architecture import GPT, LLAMA, DecoderArchitecture, require_whole_heads

KINDS = {None: "F16", 8: "Q8_0", 4: "Q4_0"}
"""How matrices are stored, by bits of a weight that were asked for."""
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_0": 2}
_ARCHITECTURES = {GPT: gguf.MODEL_ARCH.GPT2, LLAMA: gguf.MODEL_ARCH.LLAMA}
_TURNED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
_PLAIN = ("position_embd.weight",)
"""Matrices that llama.cpp wants in float32."""


@dataclass(frozen=True)
class GgufExport:
    """What a file is made of.

    Attributes:
        model: the architecture.
        params: by path, float32.
        tokenizer: the run's tokenizer.json, as read.
        special: numbers of the tokens "bos", "eos", "unk" and "pad", those that are known.
        ends: numbers of the tokens that end a text.
        chat_template: for conversations.
        name: of the run.
    """

    model: DecoderArchitecture
    params: Mapping[str, np.ndarray]
    tokenizer: Mapping[str, Any]
    special: Mapping[str, int]
    ends: Sequence[int]
    chat_template: str | None
    name: str


@dataclass(frozen=True)
class Written:
    """Matrices by how they are stored, and the bytes of all tensors before, as float32, and after."""

    matrices: dict[str, int]
    before: int
    after: int

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {name}" for name, count in self.matrices.items())
        return f"matrices: {counted}; {self.before:,} bytes as float32 -> {self.after:,}"


def model_kind(model: DecoderArchitecture, where: str) -> str:
    """Which of "gpt" and "llama" of llama.cpp computes what a decoder does. Raises ConfigError if neither."""
    require_whole_heads(model, "llama.cpp", where)
    if model.experts:
        hint = "--format hf writes a Mixtral, which llama.cpp's own converter reads"
        raise ConfigError(f"a model of experts (model.experts={model.experts}) is not written", where=where, hint=hint)
    try:
        kind = decoder.exported_kind(model)
    except ConfigError as error:
        raise ConfigError(error.message.replace("transformers", "llama.cpp"), where=where, hint=error.hint) from error
    if kind == GPT and model.activation != "gelu_tanh":
        hint = "train model.activation=gelu_tanh; --format onnx takes any"
        raise ConfigError(f"llama.cpp has no GPT-2 with activation={model.activation}", where=where, hint=hint)
    if kind == LLAMA and model.bias:
        raise ConfigError("llama.cpp reads no Llama with biases everywhere", where=where, hint="train model.bias=false")
    return kind


def split_of(tokenizer: Mapping[str, Any], where: str) -> str:
    """How a tokenizer cuts texts into words, by llama.cpp's name for it.

    Raises:
        ConfigError: if it is no byte-level BPE, or of a kind that llama.cpp has no name for.
    """
    hint = "recipe.tokenizer.type=bpe, or weights with a byte-level BPE; --format onnx takes any"
    model = tokenizer.get("model") or {}
    steps = _steps(tokenizer.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not model.get("merges") or not steps or steps[-1].get("type") != "ByteLevel":
        raise ConfigError("GGUF has a place for byte-level BPE with merges alone", where=where, hint=hint)
    normalizer = tokenizer.get("normalizer")
    if normalizer and normalizer.get("normalizers") != []:
        raise ConfigError("GGUF has no place for a tokenizer that changes its text first", where=where, hint=hint)
    *before, last = steps
    if not last.get("add_prefix_space"):
        digits = bool(before) and before[0].get("type") == "Digits" and before[0].get("individual_digits") is True
        patterns = [step.get("pattern", {}).get("Regex") for step in before[digits:]]
        patterns += [vocabularies.GPT2_SPLIT] if last.get("use_regex", True) else []
        if patterns == [vocabularies.GPT2_SPLIT]:
            return "smollm" if digits else "gpt-2"
        if patterns == [vocabularies.LLAMA3_SPLIT] and not digits:
            return "llama-bpe"
    raise ConfigError("llama.cpp has no name for how this tokenizer cuts words", where=where, hint=hint)


def _steps(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for each in part["pretokenizers"] for step in _steps(each)]
    return [part]


def write(export: GgufExport, file: Path, kind: str, where: str) -> Written:
    """Write a file.

    Args:
        export: what it is made of.
        file: a new one.
        kind: "F32", "F16", "Q8_0" or "Q4_0", of matrices; one whose rows are no multiple of 32 stays "F16" where it
            should be quantised, as llama.cpp has it.
        where: the run, for errors.

    Raises:
        ConfigError: as `model_kind` and `split_of`.
    """
    model, name = export.model, model_kind(export.model, where)
    split = split_of(export.tokenizer, where)
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[name]])
    writer.add_name(export.name)
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.heads)
    writer.add_vocab_size(model.vocab)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if name == LLAMA:
        writer.add_head_count_kv(model.kv_heads)
        writer.add_layer_norm_rms_eps(model.eps)
        writer.add_rope_dimension_count(model.depth)
        writer.add_rope_freq_base(model.rope_theta)
    else:
        writer.add_layer_norm_eps(model.eps)
    _add_vocabulary(writer, export, split)
    written = _add_tensors(writer, export, name, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _add_vocabulary(writer: gguf.GGUFWriter, export: GgufExport, split: str) -> None:
    described, model = export.tokenizer, export.tokenizer["model"]
    tokens = {number: token for token, number in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for added in described.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    numbers = range(export.model.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([tokens.get(number, f"[PAD{number}]") for number in numbers])
    writer.add_token_types([kinds.get(number, gguf.TokenType.UNUSED) for number in numbers])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_token_merges(merges)
    adders = {"bos": writer.add_bos_token_id, "unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
    for name, add in adders.items():
        if name in export.special:
            add(export.special[name])
    if export.ends:
        writer.add_eos_token_id(export.ends[0])
    for number, add in zip(export.ends[1:], (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)
    writer.add_add_bos_token(False)  # a run reads its prompt as it read its training text
    if export.chat_template is not None:
        writer.add_chat_template(export.chat_template)


def _add_tensors(writer: gguf.GGUFWriter, export: GgufExport, name: str, kind: str) -> Written:
    names = gguf.get_tensor_name_map(_ARCHITECTURES[name], export.model.layers)
    matrices: dict[str, int] = {}
    before = after = 0
    for theirs, values in decoder.to_tensors(export.params, export.model).items():
        if name == GPT and theirs.endswith(_TURNED):
            values = values.T
        elif theirs.endswith(("q_proj.weight", "k_proj.weight")):
            values = neighbours(values, export.model.depth)
        tensor = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, theirs
        stored = "F32"
        if values.ndim == 2 and tensor not in _PLAIN:
            stored = "F16" if kind.startswith("Q") and values.shape[1] % 32 else kind
            matrices[stored] = matrices.get(stored, 0) + 1
        wanted = gguf.GGMLQuantizationType[stored]
        rows = gguf.quantize(np.ascontiguousarray(values, np.float32), wanted)
        writer.add_tensor(tensor, rows, raw_dtype=wanted)
        before, after = before + 4 * values.size, after + rows.nbytes
    return Written(matrices, before, after)


def neighbours(rows: np.ndarray, depth: int) -> np.ndarray:
    """Rows [heads * depth, ...] in which rope turns pairs half a head apart -> neighbours: undoes `llama2c.halves`."""
    return rows.reshape(-1, 2, depth // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_tokenizer_file(file: Path) -> dict[str, Any]:
    """A tokenizer.json."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
