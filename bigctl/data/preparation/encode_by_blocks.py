"""Texts that are too many for memory -> arrays in files, as `encode` makes of fewer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import cache
from bigctl.data.dataset import Features
from bigctl.data.preparation import encode
from bigctl.data.preparation.array_file import ArrayFile
from bigctl.data.progress import Progress
from bigctl.data.sources.column_files import StoredTexts
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.text import duplicates, encoding, tokenization
from bigctl.data.text.encoding import Encoded, Texts
from bigctl.data.text.ngrams import Ngrams

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TEXTS = 4096
"""Texts that are looked at at once."""


def encode_texts(
    work: Path,
    decoded: Decoded,
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, str]]:
    """Write texts as they are, and as tokens where there is a tokenizer.

    Args:
        work: the folder that the arrays, and tokenizer.json, are written into.
        decoded: with `rows`.
        by_split: columns ROW and `label`.
        config: of the data.
        tokenizer: how texts become numbers, if they do.
        info: what is found of copies, cuts and unknown tokens is added here.

    Returns:
        What is known of them, and the digests of the arrays by file.

    Raises:
        OSError: there is no room.
    """
    stored = cast(StoredTexts, decoded.rows)
    rows = {split: columns[ROW] for split, columns in by_split.items()}
    labels = {split: columns["label"] for split, columns in by_split.items()}
    keys = {split: _keys(stored, own, split) for split, own in rows.items()}

    def of_row(split: str, row: int) -> list[str]:
        return [stored.take(name, rows[split][row : row + 1])[0] for name in stored.names]

    found = duplicates.report_keys(keys, labels, decoded.target, of_row)
    info |= {"duplicates": found}
    made: Tokenizer | Ngrams | None = None
    if tokenizer is not None:
        made = tokenization.build_tokenizer(tokenizer, _training_texts(stored, rows["train"]))
        (work / cache.TOKENIZER).write_text(made.to_str(pretty=True), encoding="utf-8")
    described = encode.described_texts(tokenizer, made, info)
    files: dict[str, str] = {}
    for split, own in rows.items():
        files |= _write_texts(work, split, stored, own)
        files |= write_whole(work, split, {"label": labels[split].astype(decoded.target.dtype)})
        if made is not None and described is not None:
            files |= _write_tokens(work, split, stored, own, made, described, info)
    return encode.features_of_texts(decoded, config, described, pairs=len(stored.names) > 1), files


def write_whole(work: Path, split: str, columns: Columns) -> dict[str, str]:
    """Write arrays that are in memory; gives their digests by file."""
    files = {}
    for name, values in columns.items():
        with ArrayFile(work / f"{split}.{name}.npy", values.dtype, values.shape) as file:
            file.write(values)
        files[file.name] = file.sha256
    return files


def _blocks(stored: StoredTexts, rows: np.ndarray, what: str) -> Iterator[list[list[str]]]:
    """Texts, of pairs the first and the second ones, some at a time."""
    with Progress(f"data: {what}", len(rows), ("thousand texts", 1e3)) as progress:
        for start in range(0, len(rows), _TEXTS):
            block = rows[start : start + _TEXTS]
            yield [stored.take(name, block) for name in stored.names]
            progress.update(start + len(block))


def _keys(stored: StoredTexts, rows: np.ndarray, split: str) -> np.ndarray:
    blocks = _blocks(stored, rows, f"looking for copies ({split})")
    return np.concatenate([duplicates.as_numbers(duplicates.keys_of(texts)) for texts in blocks])


def _training_texts(stored: StoredTexts, rows: np.ndarray) -> Iterator[str]:
    with Progress("data: making a tokenizer", len(rows) * len(stored.names), ("thousand texts", 1e3)) as progress:
        for number, name in enumerate(stored.names):
            for start in range(0, len(rows), _TEXTS):
                block = rows[start : start + _TEXTS]
                yield from stored.take(name, block)
                progress.update(number * len(rows) + start + len(block))


def _write_texts(work: Path, split: str, stored: StoredTexts, rows: np.ndarray) -> dict[str, str]:
    names = [f"text{number}" for number in range(len(stored.names))]
    lengths: list[list[np.ndarray]] = [[] for _ in names]
    with ExitStack() as stack:
        files = [stack.enter_context(ArrayFile(work / f"{split}.{n}.npy", np.dtype(np.uint8))) for n in names]
        for texts in _blocks(stored, rows, f"writing texts ({split})"):
            for file, own, block in zip(files, lengths, texts, strict=True):
                found = Texts.of(block)
                file.write(found.content)
                own.append(np.diff(found.offsets))
    digests = {file.name: file.sha256 for file in files}
    for name, own in zip(names, lengths, strict=True):
        digests |= write_whole(work, split, {f"{name}_offsets": _offsets(own)})
    return digests


def _write_tokens(
    work: Path,
    split: str,
    stored: StoredTexts,
    rows: np.ndarray,
    made: Tokenizer | Ngrams,
    described: dict[str, Any],
    info: dict[str, Any],
) -> dict[str, str]:
    rule = (int(described["max_length"]), str(described["truncate"]))
    kind = encoding.encode(made, [], [] if len(stored.names) > 1 else None, *rule).tokens.dtype
    lengths, starts = [], []
    cut = unknown = known_of = 0
    with ArrayFile(work / f"{split}.inputs.npy", kind) as file:
        for texts in _blocks(stored, rows, f"making tokens ({split})"):
            found: Encoded = encoding.encode(made, texts[0], texts[1] if len(texts) > 1 else None, *rule)
            file.write(found.tokens)
            lengths.append(np.diff(found.offsets))
            starts.append(found.segment_start)
            cut += int(found.cut.sum())
            unknown += round(found.unknown * found.known_of)
            known_of += found.known_of
    info.setdefault("cut", {})[split] = cut
    info.setdefault("unknown_tokens", {})[split] = round(unknown / max(1, known_of), 5)
    others = {"offsets": _offsets(lengths), "second": np.concatenate(starts)}
    return {file.name: file.sha256, **write_whole(work, split, others)}


def _offsets(lengths: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
