"""Decoded examples -> the arrays that a model sees, and `Features` that describe them.

Everything that is estimated is estimated on the training split alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl import formatting
from bigctl.config import schema
from bigctl.config.schema import Data
from bigctl.data.dataset import SPLITS, Features
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.sampler import permutation
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.target import NUMBER
from bigctl.data.text import encoding, ngrams, tokenization, word_tokens, words
from bigctl.data.text.encoding import Texts
from bigctl.data.text.ngrams import Ngrams
from bigctl.data.text.token_shards import TokenShards
from bigctl.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bigctl.data.table_encoder import TableEncoder


def encode_examples(
    decoded: Decoded, by_split: dict[str, Columns], config: Data, info: dict[str, Any]
) -> tuple[Features, dict[str, Columns]]:
    """Columns as a model takes them; everything that is estimated is estimated on the training split alone. What there
    is to say of it is noted into `info`."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels = {split: columns["label"] for split, columns in by_split.items()}
    if decoded.kind == "image":
        inputs = {split: columns["image"] for split, columns in by_split.items()}
        known = inputs["train"]
        if decoded.index is not None:
            known = known.take(_sample(len(known), config.split_seed))
            info["notes"] = [*info.get("notes", ()), _told(decoded.index, len(known), len(inputs["train"]))]
        mean, std = channel_statistics(known)
        size = getattr(config, "image_size", None)
        features = Features(
            "image", inputs["train"].shape[1:], decoded.classes, mean, std, image_size=tuple(size) if size else None
        )
    elif decoded.kind == "table":
        from bigctl.data.table_encoder import TableEncoder

        plain = {s: {name: v for name, v in columns.items() if name != "label"} for s, columns in by_split.items()}
        encoder = TableEncoder.fit(plain["train"], decoded.styles)
        inputs = {split: encoder.encode(columns) for split, columns in plain.items()}
        features, labels = described_table(encoder, decoded.classes, labels)
    else:
        raise DataError(f"data of kind {decoded.kind!r} cannot be prepared")
    if decoded.target.kind != NUMBER:  # of which the features have the statistics already
        features = dataclasses.replace(features, target=decoded.target)
    kind = features.target.dtype
    if decoded.kind == "table":
        inputs = {split: np.ascontiguousarray(values) for split, values in inputs.items()}
    return features, {split: {"inputs": inputs[split], "label": labels[split].astype(kind)} for split in SPLITS}


def described_table(
    encoder: TableEncoder, classes: tuple[str, ...] | None, labels: dict[str, np.ndarray]
) -> tuple[Features, dict[str, np.ndarray]]:
    """What is known of a table, and its labels [N] by split as they are stored."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    origin = 0.0
    if classes is None:
        mean, std, origin = number_statistics(labels["train"])
        labels = {split: _stored(values, origin) for split, values in labels.items()}
    names = tuple(encoder.feature_names)
    features = Features("table", (len(names),), classes, mean, std, encoder.to_json(), names, origin=origin)
    return features, labels


_SAMPLED = 1024
"""Encoded pictures of which the mean and the standard deviation of channels are estimated."""


def _sample(count: int, seed: int) -> np.ndarray:
    """Places of the pictures that statistics are of, int64 [n]: all of few, of many some that a seed draws."""
    if count <= _SAMPLED:
        return np.arange(count)
    return np.sort(permutation(count, seed, len(SPLITS))[:_SAMPLED])


def _told(index: EncodedImages, sampled: int, training: int) -> str:
    """The note on pictures that stay in their files."""
    decoded = formatting.size(index.nbytes)
    found = f"{len(index):,} pictures ({decoded} decoded) are decoded while training (data.decoding=stream)"
    drawn = f"; their mean and standard deviation are of {sampled:,} drawn at random"
    return found + (drawn if sampled < training else "")


_COARSE = 1e-4
"""Steps of float32, as shares of the target's standard deviation, above which numbers are stored less an origin."""


def number_statistics(target: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean and standard deviation of the training targets, and the origin that they are stored from: their mean where
    float32 is too coarse for their spread, as for dates in seconds; else 0.

    Raises:
        DataError: if they are too large or too close to 0 for float32.
    """
    target = target.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(target.mean()), float(target.std())
        step = float(np.abs(target).max()) * 2.0**-23
    origin = mean if step > _COARSE * std and (target != target.astype(np.float32)).any() else 0.0
    if not math.isfinite(std) or not 1e-15 < (std or 1.0) < 1e15:
        what = f"the target's numbers have a standard deviation of {std:.3g}, which is no size for training"
        raise DataError(what, where="data.label", hint="rescale them")
    return (mean,), (std or 1.0,), origin


def _stored(values: np.ndarray, origin: float) -> np.ndarray:
    return values.astype(np.float64) - origin if origin else values


def encode_texts(
    decoded: Decoded,
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    made: Tokenizer | Ngrams | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, Columns]]:
    """Texts as they are, and as tokens where there is a tokenizer; notes what was cut into `info`."""
    arrays: dict[str, Columns] = {split: {} for split in SPLITS}
    pairs = "text_pair" in by_split["train"]
    for split, columns in by_split.items():
        for number, name in enumerate(("text", "text_pair") if pairs else ("text",)):
            texts = Texts.of(columns[name].tolist())
            arrays[split] |= {f"text{number}": texts.content, f"text{number}_offsets": texts.offsets}
        labels = np.concatenate([*columns["tags"]]) if "tags" in columns else columns["label"]
        arrays[split]["label"] = labels.astype(decoded.target.dtype)
    described = described_texts(tokenizer, made, info)
    if made is not None and described is not None:
        for split, columns in by_split.items():
            rows, rule = columns["text"].tolist(), (described["max_length"], str(described["truncate"]))
            if "tags" in columns:
                found = word_tokens.encode_words(refuse_ngrams(made), [words.of_joined(text) for text in rows], *rule)
                encoded, arrays[split]["label"] = found.encoded, found.labels(columns["tags"].tolist())
                info.setdefault("words_cut", {})[split] = int(found.lost.sum())
            else:
                encoded = encoding.encode(made, rows, columns["text_pair"].tolist() if pairs else None, *rule)
            arrays[split] |= {
                "inputs": encoded.tokens,
                "offsets": encoded.offsets,
                "segment_start": encoded.segment_start,
            }
            info.setdefault("cut", {})[split] = int(encoded.cut.sum())
            info.setdefault("unknown_tokens", {})[split] = round(encoded.unknown, 5)
    return features_of_texts(decoded, config, described, pairs=pairs), arrays


def refuse_ngrams(made: Tokenizer | Ngrams) -> Tokenizer:
    """The tokenizer of sentences with tags. Raises DataError where it makes none of the words."""
    if isinstance(made, Ngrams):
        hint = "use recipe=bert_tag or recipe=lstm_tag"
        raise DataError("these have a tag a word, which n-grams know nothing of", where="data", hint=hint)
    return made


def described_texts(
    tokenizer: tokenization.Spec | None, made: Tokenizer | Ngrams | None, info: dict[str, Any]
) -> dict[str, Any] | None:
    """What is known of the tokenizer of texts; None where there is none. What there is to say goes into `info`."""
    if tokenizer is None or made is None:
        return None
    settings = tokenizer.settings
    assert isinstance(settings, schema.Tokenizer | schema.NgramTokenizer)
    digest = hashlib.sha256(made.to_str(pretty=True).encode()).hexdigest()
    described = tokenization.describe(made, settings, digest)
    if isinstance(made, Ngrams) and isinstance(settings, schema.NgramTokenizer) and tokenizer.file is None:
        info["notes"] = [*info.get("notes", ()), *ngrams.notes(made, settings)]
    return described


def features_of_texts(decoded: Decoded, config: Data, described: dict[str, Any] | None, *, pairs: bool) -> Features:
    """What texts look like."""
    names = [n for n in (getattr(config, "text", None), getattr(config, "text_pair", None)) if n]
    return Features(
        "text",
        (described["max_length"],) if described else (),
        decoded.classes,
        tokenizer=described,
        pairs=pairs,
        columns=tuple(names) if pairs else tuple(names[:1]),
        target=decoded.target,
    )


def encode_stream(
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    made: Tokenizer | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, Columns]]:
    """Documents as they are, and as one run of tokens where there is a tokenizer; notes their sizes into `info`."""
    arrays: dict[str, Columns] = {}
    described = None
    if tokenizer is not None and made is not None:
        digest = hashlib.sha256(made.to_str(pretty=True).encode()).hexdigest()
        described = tokenization.describe(made, tokenizer.settings, digest)
    for split, columns in by_split.items():
        documents = columns["document" if "document" in columns else "text"].tolist()
        texts = Texts.of(documents)
        facts: dict[str, Any] = {"documents": len(documents), "bytes": len(texts.content)}
        facts["characters"] = sum(map(len, documents))
        arrays[split] = {"text0": texts.content, "text0_offsets": texts.offsets}
        arrays[split]["bytes"] = np.array([facts["bytes"]], np.int64)
        if made is not None:
            tokens = encoding.encode_stream(made, documents, boundaries=getattr(config, "boundaries", True))
            arrays[split]["inputs"] = tokens
            facts["tokens"] = len(tokens)
            unknown = tokenization.special(made).get("unk")
            missing = 0 if unknown is None else np.count_nonzero(tokens == unknown)
            info.setdefault("unknown_tokens", {})[split] = round(missing / max(1, len(tokens)), 5)
        for name, value in facts.items():
            info.setdefault(name, {})[split] = value
    return Features("stream", (), None, tokenizer=described), arrays


def encode_tokens(
    by_split: dict[str, TokenShards],
    tokenizer: tokenization.Spec | None,
    made: Tokenizer | None,
    info: dict[str, Any],
) -> tuple[Features, dict[str, Columns], dict[str, TokenShards]]:
    """Ready-made tokens, held against the vocabulary; notes their number into `info`.

    Returns:
        The features, the arrays to be kept, and the columns `inputs`, which stay in their files.

    Raises:
        DataError: for a token that is not of the vocabulary.
    """
    described: dict[str, Any] = {}
    arrays: dict[str, Columns] = {split: {} for split in SPLITS}
    if tokenizer is not None and made is not None:
        digest = hashlib.sha256(made.to_str(pretty=True).encode()).hexdigest()
        described = tokenization.describe(made, tokenizer.settings, digest)
        by_split = {split: TokenShards(shards.parts, described["vocab_size"]) for split, shards in by_split.items()}
    for split, shards in by_split.items():
        shards.check()
        info.setdefault("tokens", {})[split] = len(shards)
        if made is not None and split != "train" and described["type"] != "ids" and len(shards) <= _DECODED:
            text = made.decode(shards[:].tolist(), skip_special_tokens=True)
            arrays[split]["bytes"] = np.array([len(text.encode("utf-8", "replace"))], np.int64)
            info.setdefault("bytes", {})[split] = int(arrays[split]["bytes"][0])
    return Features("stream", (), None, tokenizer=described or None), arrays, by_split


_DECODED = 2**22
"""Tokens up to which it is found out how many bytes of text those of a split stand for."""
_PIXELS = 2**22
"""Values of pictures that are counted at once."""


def channel_statistics(images: np.ndarray | EncodedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, C] as numbers in [0, 1], by blocks of images."""
    channels, values = images.shape[-1], np.arange(256, dtype=np.int64)
    counts = np.zeros((channels, 256), np.int64)
    step = max(1, _PIXELS // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        block = images[start : start + step]
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
    total, squares, count = counts @ values, counts @ np.square(values), images.size // channels
    # In whole numbers, so that the variance of a constant channel is exactly 0 and not a rounding to divide by.
    variances = [(q * count - t * t) / count**2 for t, q in zip(total.tolist(), squares.tolist(), strict=True)]
    return tuple((total / count / 255.0).tolist()), tuple(v**0.5 / 255.0 or 1.0 for v in variances)
