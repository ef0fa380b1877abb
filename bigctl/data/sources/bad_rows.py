"""Examples that cannot be used and are left out (`data.on_bad=skip`): how many, which, and whether they are too many.

The facts of a prepared set hold how many there were, so that `data.bad_limit` counts when it is opened too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigctl.data.files.paths import some
from bigctl.errors import DataError

_NAMED = 21
"""Rows that are named."""

LEFT_OUT = "left_out"
"""The fact of a data set that says how many were left out, a list with what `BadRows.facts` gives."""


@dataclass
class BadRows:
    """Those of one file.

    Attributes:
        count: how many there are.
        named: what is wrong with the first ones.
        unit: what one is called.
        verb: what cannot be done with them.
    """

    count: int = 0
    named: list[DataError] = field(default_factory=list)
    unit: str = "row"
    verb: str = "read"

    @classmethod
    def of(cls, bad: Mapping[int, DataError], unit: str = "row", verb: str = "read") -> BadRows:
        """Those of which the places are known."""
        found = cls(unit=unit, verb=verb)
        found.add(bad[place] for place in sorted(bad))
        return found

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
        if self.count and not skip:
            raise self.named[0]
        require_few(self.facts(rows), limit)
        return self.note()

    def note(self) -> list[str]:
        """A sentence that says what is left out; none where nothing is."""
        if not self.count:
            return []
        which = f"1 {self.unit} is" if self.count == 1 else f"{self.count:,} {self.unit}s are"
        others = [str(error.where) for error in self.named[1:]]
        more = f" and {self.count - len(self.named):,} more" if self.count > len(self.named) else ""
        then = f"; then {', '.join(others)}{more}" if others else ""
        return [f"{which} left out, the first with this: {self.named[0]}{then}"]

    def facts(self, rows: int) -> list[dict[str, Any]]:
        """What the facts of a data set have to hold, for `require_few`; nothing where there are none.

        Args:
            rows: of the file, these among them.
        """
        if not self.count:
            return []
        first = self.named[0]
        shown = f"{some([str(error.where) for error in self.named], 5)}; of the first: {first.message}"
        what = f"{self.unit}s cannot be {self.verb}"
        return [{"count": self.count, "of": rows, "what": what, "shown": shown, "hint": first.hint}]

    def to_json(self) -> list[Any]:
        return [self.count, [as_json(error) for error in self.named]]

    @classmethod
    def from_json(cls, value: list[Any]) -> BadRows:
        return cls(value[0], [of_json(error) for error in value[1]])


def require_few(facts: Iterable[Mapping[str, Any]], limit: float) -> None:
    """Raises DataError where more was left out of a file than a share of it (`data.bad_limit`)."""
    for fact in facts:
        if fact["count"] > limit * fact["of"]:
            what = f"{fact['count']:,} of {fact['of']:,} {fact['what']}, more than data.bad_limit={limit:g} allows"
            raise DataError(f"{what}: {fact['shown']}", where="data.on_bad", hint=fact["hint"])


def as_json(error: DataError) -> list[str | None]:
    """What is wrong with a row, for `of_json`."""
    return [error.message, error.where, error.hint]


def of_json(value: list[str | None]) -> DataError:
    message, where, hint = value
    return DataError(message or "", where=where, hint=hint)
