"""Texts as a trained model takes them: encoded with the run's own tokenizer, in batches of like length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bigctl.data.dataset import Features
from bigctl.data.layouts.ragged import LengthEvaluationPlan, Ragged
from bigctl.data.notes import unknown_share
from bigctl.data.text import encoding, ngrams, tokenization
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import RunError
from bigctl.files import sha256
from bigctl.runs.directory import RunDirectory

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH, FEW = 64, 16
"""Texts a batch, and where there are no more than so few of them."""

_FINER = 16  # the same of a text that is computed many times
_MULTIPLE = 32  # of which padded lengths are: few programs to compile, little padding

_STRANGE = 0.5
"""Share of unknown tokens above which it is told."""

log = logging.getLogger("bigctl")

Text = str | tuple[str, str]
"""A text, or a pair of them."""


def run_tokenizer(run: RunDirectory, features: Features) -> Tokenizer | Ngrams:
    """The tokenizer that a run was trained with.

    Raises:
        RunError: if it is not there, or not the one that it was.
    """
    assert features.tokenizer is not None
    hint = "bring it back as it was; a copy may be in a backup, or in an export of the run"
    if not run.tokenizer.is_file():
        raise RunError("is missing, and texts cannot be encoded without it", where=str(run.tokenizer), hint=hint)
    if sha256(run.tokenizer) != features.tokenizer["sha256"]:
        raise RunError("is not the tokenizer that the run was trained with", where=str(run.tokenizer), hint=hint)
    if features.tokenizer["type"] == ngrams.TYPE:
        return ngrams.load(run.tokenizer)
    return tokenization.load_tokenizer(run.tokenizer, stream=features.kind == "stream")


def encode_texts(
    tokenizer: Tokenizer | Ngrams, texts: Sequence[Text], features: Features, *, warn: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns `inputs`, `offsets` and `segment_start` as a data set has them, and which texts were cut, bool [N].

    Args:
        tokenizer: of the run.
        texts: texts, or pairs of them.
        features: of the run's data.
        warn: whether it is told that much is unknown.

    Raises:
        ValueError: for a text that is empty or no text, or where there are not as many texts as the model takes.
    """
    assert features.tokenizer is not None
    longest, rule = features.tokenizer["max_length"], features.tokenizer["truncate"]
    pairs = [checked_parts(given, number, features.pairs) for number, given in enumerate(texts)]

    second = [pair[1] for pair in pairs] if features.pairs else None
    encoded = encoding.encode(tokenizer, [pair[0] for pair in pairs], second, longest, rule)
    share = encoded.unknown  # of n-grams it is that of the words
    if not isinstance(tokenizer, Ngrams):
        share = unknown_share(share, len(encoded.tokens), len(texts), features.pairs)
    if warn and share > _STRANGE:
        what = "of the tokens are unknown ([UNK]) to the run's tokenizer: it was made for other texts"
        log.warning("%.0f%% %s", 100 * share, what)
    return {"inputs": encoded.tokens, "offsets": encoded.offsets, "segment_start": encoded.segment_start}, encoded.cut


def checked_parts(given: str | Sequence[str], number: int, pairs: bool) -> tuple[str, ...]:
    """A text, or both of a pair, without surrounding blanks. Raises ValueError as `encode_texts` does."""
    parts = tuple(given) if isinstance(given, list | tuple | np.ndarray) else (given,)
    if len(parts) != 1 + pairs:
        what = "pairs of texts, (first, second)" if pairs else "single texts"
        raise ValueError(f"the model takes {what}; at {number} there are {len(parts)}")
    for part in parts:
        if not isinstance(part, str):
            raise ValueError(f"{type(part).__name__} at {number} is no text")
        if not part.strip():
            raise ValueError(f"the text at {number} is empty")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text at {number} has half of a character (a lone surrogate)") from None
    return tuple(part.strip() for part in parts)  # as in training


def text_batches(
    columns: dict[str, np.ndarray], rows: np.ndarray, longest: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batches of some rows of a split, sorted by length: places in `rows` of those that are real, int [n], and the
    columns that a model takes, of one of two sizes and few lengths."""
    layout = Ragged((*range(_MULTIPLE, longest, _MULTIPLE), longest))
    plan = LengthEvaluationPlan(layout.lengths(columns)[rows], FEW if len(rows) <= FEW else BATCH, layout.edges)
    columns = {name: columns[name] for name in ("inputs", "offsets", "segment_start")}
    for places, mask, length in plan.batches():
        yield places[mask > 0], layout.gather(columns, rows[places], length)


def one_text(columns: dict[str, np.ndarray], row: int, longest: int) -> dict[str, np.ndarray]:
    """A batch of one text alone, of one of few lengths."""
    size = int(columns["offsets"][row + 1] - columns["offsets"][row])
    length = min(-(-size // _FINER) * _FINER, max(longest, size))
    named = {name: columns[name] for name in ("inputs", "offsets", "segment_start")}
    return Ragged((length,)).gather(named, np.array([row]), length)
