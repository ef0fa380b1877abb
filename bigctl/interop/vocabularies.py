"""Vocabularies of pretrained models that come without a tokenizer.json, as tokenizers of the `tokenizers` library."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.errors import DataError
from bigctl.files import write_text
from bigctl.interop.tensors import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPACE = "\u2581"
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_DIGITS = ("smollm", "starcoder", "refact", "codeshell", "command-r")
LONGEST = 1000
"""Characters of a token at most. Real ones have some dozens; what is done with one takes time quadratic in them."""
SPLITS = ("default", "gpt-2", "llama-bpe", *_DIGITS)
"""How texts are cut into words before merging, by the names that GGUF files have for it."""


def byte_level(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], *, special: Sequence[str], split: str, where: str
) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019).

    Args:
        tokens: by number.
        merges: the most important first.
        special: tokens that stand for themselves in a text.
        split: one of SPLITS.
        where: the file, for errors.

    Raises:
        DataError: if the split is not known, or merges and tokens do not fit.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    if split not in SPLITS:
        raise DataError(
            f"a tokenizer of the kind {split!r} is not supported", where=where, hint=f"known: {', '.join(SPLITS)}"
        )
    vocabulary = _numbered(tokens, where)
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), ignore_merges=split == "llama-bpe"))
    except Exception as error:  # the library raises nothing more telling
        raise DataError(f"the merges do not fit the tokens: {error}", where=where) from error
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] * (split in _DIGITS)
    parts.append(pre_tokenizers.Split(Regex(LLAMA3_SPLIT if split == "llama-bpe" else GPT2_SPLIT), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def sentence_piece(
    pieces: Sequence[str], scores: Sequence[float], *, special: Sequence[str], prefix: bool = True, where: str
) -> Tokenizer:
    """SentencePiece's BPE (Kudo & Richardson 2018): of all pairs that make a piece, the one with the best score first.

    Args:
        pieces: by number; "\u2581" stands for a space, "<0x0A>" for a byte.
        scores: of the pieces.
        special: pieces that stand for themselves in a text; the first of them is the unknown one.
        prefix: whether texts begin with a space that is not there.
        where: the file, for errors.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _numbered(pieces, where)
    merges = []
    for piece in sorted(set(vocabulary) - set(special), key=lambda p: (-scores[vocabulary[p]], vocabulary[p])):
        if not re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            merges += [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
    bytes_known = all(f"<0x{value:02X}>" in vocabulary for value in range(256))
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=special[0], fuse_unk=True, byte_fallback=bytes_known)
    )
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    ends: list[decoders.Decoder] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def _numbered(tokens: Sequence[str], where: str) -> dict[str, int]:
    """Tokens and their numbers. Raises DataError where one is listed twice, empty or far too long."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise DataError("a token is listed twice", where=where, hint="fetch the file again")
    for token, number in vocabulary.items():
        if len(token) > LONGEST:
            message = f"token {number} has {len(token):,} characters, and none has more than {LONGEST:,}"
            raise DataError(message, where=where, hint="is it damaged? fetch the file again")
    return vocabulary


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    """Let every text begin with a token."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def store_tokenizer(tokenizer: Tokenizer) -> Path:
    """The tokenizer as a tokenizer.json in the cache, named after what it holds."""
    from bigctl.cache_root import cache_root

    content = tokenizer.to_str(pretty=True)
    folder = cache_root() / "tokenizers"
    file = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    try:
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(file, content)
    except OSError as error:
        raise DataError(
            f"cannot store the tokenizer: {error.strerror}",
            where=str(folder),
            hint="free some space, or set BIGCTL_CACHE_DIR to a folder that can be written",
        ) from error
    return file


def gpt2_tokenizer(folder: Path) -> Path | None:
    """The vocab.json and merges.txt of older folders as one file, None where they are not there."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() or not merges.is_file():
        return None
    numbers = read_json(vocabulary)
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise DataError("does not number its tokens from 0 on", where=str(vocabulary), hint="fetch it again")
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise DataError("has a line that is no pair", where=str(merges), hint="fetch it again")
    tokens = sorted(numbers, key=numbers.__getitem__)
    special = [token for token in ("<|endoftext|>",) if token in numbers]
    made = byte_level(tokens, pairs, special=special, split="gpt-2", where=str(merges))  # type: ignore[arg-type]
    return store_tokenizer(made)
