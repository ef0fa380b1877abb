"""Examples without labels, as a source reads them for prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigctl.data.dataset import Features
from bigctl.data.sources.decoded import Columns
from bigctl.data.table_encoder import TableEncoder
from bigctl.data.target import TOKEN_CLASS
from bigctl.errors import DataError

Inputs = np.ndarray | Sequence[Any]


@dataclass(frozen=True)
class Unlabelled:
    """What a file holds of examples.

    Attributes:
        inputs: uint8 [N, H, W, C] of images, float32 [N, D] of table rows; of texts a list of N texts or of pairs, and
            of sentences a list of texts or of lists of words.
        rows: whether there may be several in a file, so that each has a number.
        errors: what is wrong with some of them, by their number; their inputs are placeholders.
        notes: what the user should hear of.
    """

    inputs: Inputs
    rows: bool = True
    errors: Mapping[int, DataError] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def take(parts: Sequence[tuple[Unlabelled, Sequence[int]]]) -> np.ndarray | list[Any]:
    """Some examples of each of several files, together."""
    if all(isinstance(found.inputs, np.ndarray) for found, _ in parts):
        return np.concatenate([np.asarray(found.inputs)[list(rows)] for found, rows in parts])
    return [found.inputs[row] for found, rows in parts for row in rows]


def encoded(columns: Columns, features: Features) -> Unlabelled:
    """Rows of a table, given as typed columns; further ones are ignored. Raises DataError where one is missing."""
    return Unlabelled(TableEncoder.from_json(features.encoder or {}).encode(columns))


def what_is_predicted(features: Features) -> str:
    """ "image", "table", "text", or "words" where each word has a class."""
    return "words" if features.target.kind == TOKEN_CLASS else features.kind
