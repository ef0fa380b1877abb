"""Entities in tagged words: which runs of tags are one, and how many were found.

Tags are read as `seqeval` reads them in its default mode (the rules of the CoNLL evaluation script): leniently, so that
every sequence means something, whether it is IOB1, IOB2 or IOBES. BILOU is IOBES with other letters: L for E, U for S.
The rules are array operations for numpy and jax alike: a model's tags are counted on the device, inside of the
evaluation's program, and counts add up over batches.

Dimension names: rows (sentences), places (words, or tokens of which some stand for none).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

_OUT, _BEGIN, _INSIDE, _END, _SINGLE = range(5)
_LETTERS = {"O": _OUT, "B": _BEGIN, "I": _INSIDE, "E": _END, "L": _END, "S": _SINGLE, "U": _SINGLE}
_TAG = re.compile(r"[BIELSU](-.*)?", re.DOTALL)
_NO_TYPE = "_"  # what seqeval calls the type of a bare B or I

Ints = Int[np.ndarray, "rows places"] | Int[jax.Array, "rows places"]
Bools = Bool[np.ndarray, "rows places"] | Bool[jax.Array, "rows places"]


@dataclass(frozen=True)
class Entities:
    """Where entities are. Of a place where none begins, `types` and `stops` mean nothing.

    Attributes:
        begins: whether one begins here.
        types: its number in `Scheme.types`.
        stops: the first place behind it that stands for a word; the number of places for one that goes to the end.
    """

    begins: Bools
    types: Ints
    stops: Ints


@dataclass(frozen=True)
class Scheme:
    """What each tag means.

    Attributes:
        letters: of every tag, as numbers: outside, begin, inside, end, single.
        kinds: of every tag its type's number; -1 outside.
        types: names of the types of entities, sorted.
    """

    letters: tuple[int, ...]
    kinds: tuple[int, ...]
    types: tuple[str, ...]

    @classmethod
    def of(cls, tags: Sequence[str]) -> Scheme | None:
        """The scheme of a set of tags; None for tags that mark no entities, such as parts of speech."""
        marks = [tag for tag in tags if tag != "O"]
        bare = any("-" not in tag for tag in marks)
        if not marks or not all(map(_TAG.fullmatch, marks)) or (bare and len(marks) == len(tags)):
            return None
        names = {tag: tag[2:] or _NO_TYPE for tag in marks}
        types = sorted(set(names.values()))
        kinds = tuple(types.index(names[tag]) if tag in names else -1 for tag in tags)
        return cls(tuple(_LETTERS[tag[0]] for tag in tags), kinds, tuple(types))

    def entities(self, tags: Ints, real: Bools, xp: ModuleType = np) -> Entities:
        """The entities of some rows of tags.

        Args:
            tags: numbers of tags; anything where `real` is false.
            real: which places stand for a word; the others are passed over.
            xp: numpy, or jax.numpy.
        """
        places = xp.arange(tags.shape[1])
        # Each place that stands for no word repeats the word before it, so that neighbours are neighbouring words.
        last = _running_max(xp.where(real, places, -1), xp)
        filled = xp.take_along_axis(tags, xp.maximum(last, 0), axis=1)
        letters = xp.where(last >= 0, xp.asarray(self.letters)[filled], _OUT)
        kinds = xp.where(last >= 0, xp.asarray(self.kinds)[filled], -1)
        letters_before, kinds_before = _shifted(letters, _OUT, xp), _shifted(kinds, -1, xp)
        inside = real & (letters != _OUT)
        begins = inside & (
            ((letters == _BEGIN) | (letters == _SINGLE))
            | ((letters_before == _OUT) | (letters_before == _END) | (letters_before == _SINGLE))
            | (kinds != kinds_before)
        )
        # An entity goes on until the next word that begins another, or is in none.
        edges = xp.where(real & (begins | ~inside), places, tags.shape[1])
        following = -_running_max(-edges[:, ::-1], xp)[:, ::-1]
        stops = _shifted(following[:, ::-1], tags.shape[1], xp)[:, ::-1]
        return Entities(begins, kinds, stops)

    def counts(self, true: Ints, predicted: Ints, real: Bools, xp: ModuleType = np) -> Float[Any, "types 3"]:
        """Of every type: entities that were found, those predicted, and those that are there. Float32, to be added up.

        Found is what is predicted from the first word to the last as it is, with its type.
        """
        there, said = self.entities(true, real, xp), self.entities(predicted, real, xp)
        found = there.begins & said.begins & (there.types == said.types) & (there.stops == said.stops)
        kinds = xp.arange(len(self.types))

        def by_type(chosen: Bools, types: Ints) -> Float[Any, " types"]:
            return xp.sum(chosen[..., None] & (types[..., None] == kinds), axis=(0, 1)).astype(np.float32)

        columns = by_type(found, there.types), by_type(said.begins, said.types), by_type(there.begins, there.types)
        return xp.stack(columns, axis=1)

    def metrics(self, counts: Float[np.ndarray, "types 3"]) -> dict[str, float]:
        """Precision, recall and F1 over all entities (micro), and F1 of each type; 0 where nothing is there."""
        precision, recall, f1 = _scores(counts.sum(0))
        result = {"entity_precision": precision, "entity_recall": recall, "entity_f1": f1}
        return result | {f"entity_f1/{name}": _scores(row)[2] for name, row in zip(self.types, counts, strict=True)}


def _scores(counts: np.ndarray) -> tuple[float, float, float]:
    found, predicted, true = map(float, counts)
    return found / max(predicted, 1), found / max(true, 1), 2 * found / max(predicted + true, 1)


def _running_max(x: Ints, xp: ModuleType) -> Ints:
    """The largest value so far along each row."""
    return np.maximum.accumulate(x, axis=1) if xp is np else jax.lax.cummax(cast(jax.Array, x), axis=1)


def _shifted(x: Ints, first: int, xp: ModuleType) -> Ints:
    """Each row moved on by one place."""
    return xp.concatenate([xp.full_like(x[:, :1], first), x[:, :-1]], axis=1)
