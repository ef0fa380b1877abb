"""A table's columns as one model knows them, in terms of those of another: matched by name, category by category.

Dimension names: ours (features of the model that starts), theirs (features of the model that it starts from).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from bigctl.data.files.paths import some
from bigctl.data.table_encoder import Categorical, Numeric, TableEncoder
from bigctl.errors import DataError


@dataclass(frozen=True)
class Match:
    """theirs = ours @ matrix + shift, for each row of a table: what is not known to them is 0, as in their predictions.

    Attributes:
        matrix, shift: float64.
        new: features of ours that they do not have.
        dropped: features of theirs that nothing of ours becomes.
    """

    matrix: Float[np.ndarray, "ours theirs"]
    shift: Float[np.ndarray, " theirs"]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def is_identity(self) -> bool:
        rows, columns = self.matrix.shape
        return rows == columns and not self.shift.any() and np.array_equal(self.matrix, np.eye(rows))


def match(ours: TableEncoder, theirs: TableEncoder, where: str) -> Match:
    """How the features of one encoder follow from those of another.

    Raises:
        DataError: if no column has a name that both know; `where` says whose the others are.
    """
    own, others = ours.feature_names, theirs.feature_names
    matrix, shift = np.zeros((len(own), len(others))), np.zeros(len(others))
    place = {column.name: start for column, start in _starts(theirs.columns)}
    known = {column.name: column for column in theirs.columns}
    for column, start in _starts(ours.columns):
        other = known.get(column.name)
        if isinstance(column, Numeric) and isinstance(other, Numeric):
            _numeric(column, other, matrix[start:, place[column.name] :], shift[place[column.name] :])
        elif isinstance(column, Categorical) and isinstance(other, Categorical):
            _categorical(column, other, matrix[start:, place[column.name] :])
    if own and not matrix.any():
        raise DataError(
            f"was trained on other columns: {some([c.name for c in theirs.columns])}; here are "
            f"{some([c.name for c in ours.columns])}",
            where=where,
            hint="columns are matched by name and kind: rename them, or leave model.init_from out",
        )
    new = tuple(name for name, row in zip(own, matrix, strict=True) if not row.any())
    dropped = tuple(name for name, column in zip(others, matrix.T, strict=True) if not column.any())
    return Match(matrix, shift, new, dropped)


def _starts(columns: Sequence[Numeric | Categorical]) -> list[tuple[Numeric | Categorical, int]]:
    """Each column, and where its features begin."""
    ends = np.cumsum([0, *(len(column.features) for column in columns)]).tolist()
    return list(zip(columns, ends, strict=False))


def _numeric(column: Numeric, other: Numeric, matrix: np.ndarray, shift: np.ndarray) -> None:
    """(x - m) / s of theirs from that of ours; a missing value is 0 in both."""
    matrix[0, 0] = column.std / other.std
    shift[0] = (column.mean - other.mean) / other.std
    if column.missing:
        matrix[1, 0] = -shift[0]
        if other.missing:
            matrix[1, 1] = 1.0


def _categorical(column: Categorical, other: Categorical, matrix: np.ndarray) -> None:
    """An indicator of theirs for each of ours; one that they have not seen is their `<other>`, if they have it."""
    position = {value: number for number, value in enumerate(other.categories)}
    rest = len(other.categories) if other.other else None
    found = [position.get(value, rest) for value in column.categories]
    found += [rest] if column.other else []
    if column.missing:
        found += [len(other.categories) + other.other if other.missing else None]
    for number, at in enumerate(found):
        if at is not None:
            matrix[number, at] = 1.0
