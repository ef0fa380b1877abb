"""Folds: the rows of the training and the validation split, shared out anew so that each is in validation exactly once.

Fold f of k validates every k-th row, from the f-th on, of the rows ordered by class and at random within one. So folds
differ by one row at most, and by one row of each class at most, as scikit-learn's StratifiedKFold has it. With groups
it is the groups that are shared out, the largest first and each to the fold that has fewest rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bigctl.config.schema import Data
from bigctl.data.dataset import SPLITS
from bigctl.data.files.paths import some
from bigctl.data.sampler import permutation
from bigctl.data.sources.decoded import GROUP, Columns
from bigctl.data.sources.text_rows import short
from bigctl.data.target import CLASS, CLASSES, Target
from bigctl.errors import DataError

Parts = list[tuple[str, np.ndarray]]
"""Rows of splits of a source: [(split, places int [n])]."""
_PURPOSE = len(SPLITS)
"""Among the keys of permutations; the splits that are held out by rule have those before it."""


def take_fold(parts: Parts, source: Mapping[str, Columns], config: Data, target: Target) -> tuple[Parts, Parts]:
    """The rows that a fold trains on and those that it validates, each in their order.

    Raises:
        DataError: if there are fewer rows, or groups, than folds, or a class that only one row has.
    """
    assert config.fold is not None
    labels = np.concatenate([source[name]["label"][rows] for name, rows in parts])
    _check(labels, config.fold_count, target)
    if GROUP in source[parts[0][0]]:
        groups = np.concatenate([source[name][GROUP][rows] for name, rows in parts])
        fold = _of_groups(groups, config.fold_count, config.split_seed)
    else:
        fold = _of_rows(target.strata(labels), config.fold_count, config.split_seed)
    own = np.split(fold == config.fold, np.cumsum([len(rows) for _, rows in parts])[:-1])
    kept = [(name, rows[~held]) for (name, rows), held in zip(parts, own, strict=True)]
    return kept, [(name, rows[held]) for (name, rows), held in zip(parts, own, strict=True)]


def _of_rows(strata: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold of each row, int64 [n]."""
    order: list[np.ndarray] = []
    for number, stratum in enumerate(np.unique(strata)):
        members = np.flatnonzero(strata == stratum)
        order.append(members[permutation(len(members), seed, _PURPOSE, number)])
    fold = np.empty(len(strata), np.int64)
    fold[np.concatenate(order)] = np.arange(len(strata)) % count
    return fold


def _of_groups(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The same where rows of one group stay together."""
    values, place = np.unique(groups, return_inverse=True)
    if len(values) < count:
        raise DataError(
            f"{count} folds cannot be made of {_counted(len(values), 'group')}",
            where="data.folds",
            hint=f"data.group keeps rows of one value together: take at most {len(values)} folds"
            if len(values) > 1
            else "data.group keeps rows of one value together: name another column, or leave it out",
        )
    sizes = np.bincount(place, minlength=len(values))
    order = permutation(len(values), seed, _PURPOSE, 0)
    order = order[np.argsort(-sizes[order], kind="stable")]
    rows, fold = np.zeros(count, np.int64), np.empty(len(values), np.int64)
    for group in order.tolist():
        fold[group] = rows.argmin()
        rows[fold[group]] += sizes[group]
    return fold[place]


def _check(labels: np.ndarray, count: int, target: Target) -> None:
    if len(labels) < count:
        raise DataError(
            f"{count} folds cannot be made of {_counted(len(labels), 'row')}",
            where="data.folds",
            hint=f"take at most {len(labels)} folds, or give more rows" if len(labels) > 1 else "give more rows",
        )
    single = np.flatnonzero(target.counts(labels) == 1) if target.kind == CLASS else np.arange(0)
    if single.size:
        raise DataError(
            f"the class {short(target.names[single[0]])!r} has one row outside of the test split: the fold that "
            "validates it could not learn it",
            where="data.fold",
            hint="give at least two rows of each class, or leave that one out",
        )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def notes(arrays: Mapping[str, Columns], config: Data, target: Target) -> list[str]:
    """What is told of classes that have fewer rows than there are folds."""
    if config.fold is None or target.kind not in (CLASS, CLASSES):
        return []
    counts = target.counts(arrays["train"]["label"]) + target.counts(arrays["validation"]["label"])
    rare = np.flatnonzero((counts > 0) & (counts < config.fold_count)).tolist()
    if not rare:
        return []
    names = some([f"{short(target.names[c])!r} ({counts[c]})" for c in rare], 5)
    what, which = ("class has", "it") if len(rare) == 1 else ("classes have", "them")
    return [f"{len(rare)} {what} fewer rows than there are folds, so not every fold validates {which}: {names}"]
