"""Training examples with a wrong label, each left in the training split or out of it by the toss of a coin. Who tells
which from the model alone has shown that it gives its examples away (Steinke, Nasr and Jagielski 2023).

Which examples, which labels and the coins are functions of the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigctl.data.layouts.layout import Columns
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows
from bigctl.data.sampler import mix, permutation

_ROWS, _LABELS, _COINS = 0x63616E617279, 0x63616E6C6162, 0x63616E636F69


@dataclass(frozen=True, eq=False)
class Canaries:
    """Some examples of a training split.

    Attributes:
        rows: which they are, ascending int64 [m].
        labels: the class that each is trained as, never its own, int32 [m].
        inside: whether each is in the training split, bool [m].
    """

    rows: np.ndarray
    labels: np.ndarray
    inside: np.ndarray

    @classmethod
    def drawn(cls, labels: np.ndarray, classes: int, count: int, seed: int) -> Canaries:
        """So many of the examples with these labels, int [N], of so many classes."""
        rows = np.sort(permutation(len(labels), seed, _ROWS)[:count])
        places = rows.astype(np.uint64)
        shift = 1 + _bits(seed, _LABELS, places) % np.uint64(classes - 1)
        wrong = (np.asarray(labels)[rows].astype(np.uint64) + shift) % np.uint64(classes)
        inside = (_bits(seed, _COINS, places) >> np.uint64(63)).astype(bool)
        return cls(rows, wrong.astype(np.int32), inside)

    def planted(self, columns: Columns, layout: Rows | Ragged) -> Columns:
        """The training split as it is trained on: its canaries have their labels, and those outside are left out. The
        arrays are copies."""
        labels = np.array(columns["label"])
        labels[self.rows] = self.labels
        kept = np.ones(len(labels), bool)
        kept[self.rows[~self.inside]] = False
        columns = {**columns, "label": labels}
        if isinstance(layout, Rows):
            return {name: np.asarray(values)[kept] for name, values in columns.items()}
        sizes = layout.lengths(columns)
        tokens = np.repeat(kept, sizes)
        found = {"offsets": np.concatenate([[0], np.cumsum(sizes[kept])]).astype(columns["offsets"].dtype)}
        for name, values in columns.items():
            if name != "offsets":
                found[name] = np.asarray(values)[tokens if name in layout.token_columns else kept]
        return found


def _bits(seed: int, purpose: int, places: np.ndarray) -> np.ndarray:
    """Random bits, uint64 [n]."""
    return mix(mix(np.uint64(seed), np.uint64(purpose)), places)
