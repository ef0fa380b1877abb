"""Texts that are too many for memory -> arrays in files, as `encode` makes of fewer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import cache
from bigctl.data.dataset import Features
from bigctl.data.journal import Journal
from bigctl.data.preparation import encode
from bigctl.data.preparation.array_file import ArrayFile, ArrayFiles, Place
from bigctl.data.progress import Progress
from bigctl.data.sources.column_files import StoredTexts
from bigctl.data.sources.decoded import ROW, Columns, Decoded
from bigctl.data.target import NONE, TOKEN_CLASS, Target
from bigctl.data.text import duplicates, encoding, tokenization, word_tokens, words
from bigctl.data.text.encoding import Encoded, Texts
from bigctl.data.text.ngrams import Ngrams
from bigctl.data.text.stream_encoding import StreamEncoder
from bigctl.files import sha256, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TEXTS = 4096
"""Texts that are looked at at once."""


class Making(NamedTuple):
    """Where texts are encoded.

    Attributes:
        work: the folder that the arrays, and tokenizer.json, are written into.
        scratch: one for what is removed in the end.
        journal: what an earlier start has finished.
    """

    work: Path
    scratch: Path
    journal: Journal


def encode_texts(
    making: Making,
    decoded: Decoded,
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, str]]:
    """Write texts as they are, and as tokens where there is a tokenizer.

    Args:
        making: where; what is there already is kept.
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
    keys = {split: _keys(making, stored, own, split) for split, own in rows.items()}

    def of_row(split: str, row: int) -> list[str]:
        return [stored.take(name, rows[split][row : row + 1])[0] for name in stored.names]

    tagged = decoded.target.kind == TOKEN_CLASS
    found = duplicates.report_keys(keys, labels, Target(NONE) if tagged else decoded.target, of_row)
    info |= {"duplicates": found}
    made: Tokenizer | Ngrams | None = None
    if tokenizer is not None:
        made = _tokenizer(making.work / cache.TOKENIZER, tokenizer, stored, rows["train"])
    described = encode.described_texts(tokenizer, made, info)
    files: dict[str, str] = {}
    for split, own in rows.items():
        files |= _write_texts(making, split, stored, own)
        if made is not None and described is not None:
            write = _write_tagged if tagged else _write_tokens
            files |= write(making, split, stored, own, made, described, info)
        elif tagged:
            files |= _write_tags(making, split, stored, own)
        if not tagged:
            files |= write_whole(making.work, split, {"label": labels[split].astype(decoded.target.dtype)})
    return encode.features_of_texts(decoded, config, described, pairs=len(stored.names) > 1), files


def encode_stream(
    making: Making,
    decoded: Decoded,
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, str]]:
    """Write texts as they are, and as one run of tokens a split; arguments, result and errors as of `encode_texts`."""
    assert tokenizer is not None
    whole = cast(StoredTexts, decoded.rows)
    stored, rows = whole.only("text"), {split: columns[ROW] for split, columns in by_split.items()}
    made = _tokenizer(making.work / cache.TOKENIZER, tokenizer, whole, rows["train"])
    assert not isinstance(made, Ngrams)  # which are for examples
    described = tokenization.describe(made, tokenizer.settings, sha256(making.work / cache.TOKENIZER))
    files: dict[str, str] = {}
    for split, own in rows.items():
        files |= _write_texts(making, split, stored, own)
        found, facts = _write_run(making, split, stored, own, made, getattr(config, "boundaries", True))
        unknown = facts.pop("unknown")
        info.setdefault("unknown_tokens", {})[split] = round(unknown / max(1, facts["tokens"]), 5)
        for name, value in facts.items():
            info.setdefault(name, {})[split] = value
        files |= found | write_whole(making.work, split, {"bytes": np.array([facts["bytes"]], np.int64)})
    return Features("stream", (), None, tokenizer=described), files


def _write_run(
    making: Making, split: str, stored: StoredTexts, rows: np.ndarray, made: Tokenizer, boundaries: bool
) -> tuple[dict[str, str], dict[str, int]]:
    """The tokens of a split, one text after the other; gives the digest of the array by its file, and what there is."""
    encoder, unknown = StreamEncoder(made), tokenization.special(made).get("unk")
    if boundaries and len(rows) > 1:
        encoder.require_end()
    place = Place(making.work / f"{split}.inputs.npy", encoder.dtype)
    with ArrayFiles(making.journal, f"run {split}", [place]) as written:
        counts = Counter(written.facts)
        for (texts,) in _blocks(stored, rows, f"making tokens ({split})", written.done):
            marked = [(boundaries and written.done + number > 0, text) for number, text in enumerate(texts)]
            tokens = encoder.encode_pieces(marked)
            counts["documents"] += len(texts)
            counts["bytes"] += sum(len(text.encode()) for text in texts)
            counts["characters"] += sum(map(len, texts))
            counts["tokens"] += len(tokens)
            counts["unknown"] += 0 if unknown is None else int(np.count_nonzero(tokens == unknown))
            written.write(len(texts), [tokens], counts)
    names = ("documents", "bytes", "characters", "tokens", "unknown")
    return dict(written.digests), {name: counts[name] for name in names}


def write_whole(work: Path, split: str, columns: Columns) -> dict[str, str]:
    """Write arrays that are in memory; gives their digests by file."""
    files = {}
    for name, values in columns.items():
        with ArrayFile(work / f"{split}.{name}.npy", values.dtype, values.shape) as file:
            file.write(values)
        files[file.name] = file.sha256
    return files


def _tokenizer(file: Path, spec: tokenization.Spec, stored: StoredTexts, rows: np.ndarray) -> Tokenizer | Ngrams:
    """That of an earlier start, or a new one of the training split."""
    if file.is_file():
        return spec.load(file)
    made = tokenization.build_tokenizer(spec, _training_texts(stored, rows))
    write_text(file, made.to_str(pretty=True))
    return made


def _blocks(stored: StoredTexts, rows: np.ndarray, what: str, done: int) -> Iterator[list[list[str]]]:
    """Texts, of pairs the first and the second ones, some at a time, behind those that are done."""
    with Progress(f"data: {what}", len(rows), ("thousand texts", 1e3), done) as progress:
        for start in range(done, len(rows), _TEXTS):
            block = rows[start : start + _TEXTS]
            yield [stored.take(name, block) for name in stored.names]
            progress.update(start + len(block))


def _keys(making: Making, stored: StoredTexts, rows: np.ndarray, split: str) -> np.ndarray:
    place = Place(making.scratch / f"{split}.keys.npy", np.dtype(np.uint64))
    with ArrayFiles(making.journal, f"keys {split}", [place]) as written:
        for texts in _blocks(stored, rows, f"looking for copies ({split})", written.done):
            written.write(len(texts[0]), [duplicates.as_numbers(duplicates.keys_of(texts))])
    found: np.ndarray = np.load(place.file)
    return found


def _training_texts(stored: StoredTexts, rows: np.ndarray) -> Iterator[str]:
    with Progress("data: making a tokenizer", len(rows) * len(stored.names), ("thousand texts", 1e3)) as progress:
        for number, name in enumerate(stored.names):
            for start in range(0, len(rows), _TEXTS):
                block = rows[start : start + _TEXTS]
                yield from stored.take(name, block)
                progress.update(number * len(rows) + start + len(block))


def _write_texts(making: Making, split: str, stored: StoredTexts, rows: np.ndarray) -> dict[str, str]:
    names = [f"text{number}" for number in range(len(stored.names))]
    contents = [Place(making.work / f"{split}.{name}.npy", np.dtype(np.uint8)) for name in names]
    lengths = [Place(making.scratch / f"{split}.{name}.lengths.npy", np.dtype(np.int64)) for name in names]
    with ArrayFiles(making.journal, f"texts {split}", [*contents, *lengths]) as written:
        for texts in _blocks(stored, rows, f"writing texts ({split})", written.done):
            found = [Texts.of(block) for block in texts]
            sizes = [np.diff(each.offsets) for each in found]
            written.write(len(texts[0]), [*(each.content for each in found), *sizes])
    digests = {place.file.name: written.digests[place.file.name] for place in contents}
    for name, place in zip(names, lengths, strict=True):
        digests |= write_whole(making.work, split, {f"{name}_offsets": _offsets(place)})
    return digests


def _write_tokens(
    making: Making,
    split: str,
    stored: StoredTexts,
    rows: np.ndarray,
    made: Tokenizer | Ngrams,
    described: dict[str, Any],
    info: dict[str, Any],
) -> dict[str, str]:
    rule = (int(described["max_length"]), str(described["truncate"]))
    kind = encoding.encode(made, [], [] if len(stored.names) > 1 else None, *rule)
    inputs = Place(making.work / f"{split}.inputs.npy", kind.tokens.dtype)
    lengths = Place(making.scratch / f"{split}.lengths.npy", np.dtype(np.int64))
    second = Place(making.work / f"{split}.second.npy", kind.segment_start.dtype)
    with ArrayFiles(making.journal, f"tokens {split}", [inputs, lengths, second]) as written:
        counts = Counter(written.facts)
        for texts in _blocks(stored, rows, f"making tokens ({split})", written.done):
            found: Encoded = encoding.encode(made, texts[0], texts[1] if len(texts) > 1 else None, *rule)
            _count(counts, found)
            written.write(len(texts[0]), [found.tokens, np.diff(found.offsets), found.segment_start], counts)
    _tell(info, split, counts)
    digests = {place.file.name: written.digests[place.file.name] for place in (inputs, second)}
    return digests | write_whole(making.work, split, {"offsets": _offsets(lengths)})


def _write_tags(making: Making, split: str, stored: StoredTexts, rows: np.ndarray) -> dict[str, str]:
    """The tags of all words, one after the other."""
    place = Place(making.work / f"{split}.label.npy", np.dtype(np.int32))
    with ArrayFiles(making.journal, f"tags {split}", [place]) as written:
        while written.done < len(rows):
            block = rows[written.done : written.done + _TEXTS]
            written.write(len(block), [np.concatenate(stored.tags(block))])
    return dict(written.digests)


def _write_tagged(
    making: Making,
    split: str,
    stored: StoredTexts,
    rows: np.ndarray,
    made: Tokenizer | Ngrams,
    described: dict[str, Any],
    info: dict[str, Any],
) -> dict[str, str]:
    """The tokens of sentences, with the tag of each word beside the first of its own."""
    tokenizer, rule = encode.refuse_ngrams(made), (int(described["max_length"]), str(described["truncate"]))
    inputs = Place(making.work / f"{split}.inputs.npy", encoding.token_type(tokenizer))
    lengths = Place(making.scratch / f"{split}.lengths.npy", np.dtype(np.int64))
    second = Place(making.work / f"{split}.second.npy", np.dtype(np.int32))
    label = Place(making.work / f"{split}.label.npy", np.dtype(np.int32))
    with ArrayFiles(making.journal, f"tokens {split}", [inputs, lengths, second, label]) as written:
        counts = Counter(written.facts)
        for (texts,) in _blocks(stored, rows, f"making tokens ({split})", written.done):
            tags = stored.tags(rows[written.done : written.done + len(texts)])
            found = word_tokens.encode_words(tokenizer, [words.of_joined(text) for text in texts], *rule)
            encoded = found.encoded
            _count(counts, encoded)
            counts["lost"] += int(found.lost.sum())
            blocks = [encoded.tokens, np.diff(encoded.offsets), encoded.segment_start, found.labels(tags)]
            written.write(len(texts), blocks, counts)
    info.setdefault("words_cut", {})[split] = counts["lost"]
    _tell(info, split, counts)
    digests = {place.file.name: written.digests[place.file.name] for place in (inputs, second, label)}
    return digests | write_whole(making.work, split, {"offsets": _offsets(lengths)})


def _count(counts: Counter[str], found: Encoded) -> None:
    counts["cut"] += int(found.cut.sum())
    counts["unknown"] += round(found.unknown * found.known_of)
    counts["known_of"] += found.known_of


def _tell(info: dict[str, Any], split: str, counts: Counter[str]) -> None:
    """How many texts of a split were cut, and which part of their tokens is unknown."""
    info.setdefault("cut", {})[split] = counts["cut"]
    info.setdefault("unknown_tokens", {})[split] = round(counts["unknown"] / max(1, counts["known_of"]), 5)


def _offsets(lengths: Place) -> np.ndarray:
    found = np.load(lengths.file, mmap_mode="r")
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(found, dtype=np.int64)])
