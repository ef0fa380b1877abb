"""Rows that cannot be read and are left out (`data.on_bad=skip`): how many, which, and whether they are too many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bigctl.data.files.paths import some
from bigctl.errors import DataError

_NAMED = 21
"""Rows that are named."""


@dataclass
class BadRows:
    """Those of one file.

    Attributes:
        count: how many there are.
        named: what is wrong with the first ones.
    """

    count: int = 0
    named: list[DataError] = field(default_factory=list)

    def add(self, errors: Iterable[DataError]) -> None:
        """Further ones, in the order of their rows."""
        for error in errors:
            self.count += 1
            if len(self.named) < _NAMED:
                self.named.append(error)

    def left_out(self, rows: int, skip: bool, limit: float) -> list[str]:
        """The note on them.

        Args:
            rows: of the file, these among them.
            skip: whether they may be left out.
            limit: share of all rows that may be left out at most (`data.bad_limit`).

        Raises:
            DataError: they are too many, or may not be left out.
        """
        if not self.count:
            return []
        first = self.named[0]
        if not skip:
            raise first
        if self.count > limit * rows:
            what = f"{self.count:,} of {rows:,} rows cannot be read, more than data.bad_limit={limit:g} allows"
            shown = f"{some([str(error.where) for error in self.named], 5)}; of the first: {first.message}"
            raise DataError(f"{what}: {shown}", where="data.on_bad", hint=first.hint)
        which = "1 row is" if self.count == 1 else f"{self.count:,} rows are"
        others = [str(error.where) for error in self.named[1:]]
        more = f" and {self.count - len(self.named):,} more" if self.count > len(self.named) else ""
        then = f"; then {', '.join(others)}{more}" if others else ""
        return [f"{which} left out, the first with this: {first}{then}"]

    def to_json(self) -> list[Any]:
        return [self.count, [as_json(error) for error in self.named]]

    @classmethod
    def from_json(cls, value: list[Any]) -> BadRows:
        return cls(value[0], [of_json(error) for error in value[1]])


def as_json(error: DataError) -> list[str | None]:
    """What is wrong with a row, for `of_json`."""
    return [error.message, error.where, error.hint]


def of_json(value: list[str | None]) -> DataError:
    message, where, hint = value
    return DataError(message or "", where=where, hint=hint)
