"""What a reader hands over of one long text that is too large to be decoded at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Parts(Protocol):
    """Documents, one after the other.

    Attributes:
        characters: of all of them, and `empty` how many are left out; both are known after `look`.
    """

    characters: int
    empty: int

    def look(self) -> None:
        """Count and check everything. Raises DataError."""

    def left_out(self) -> list[str]:
        """Notes on what was left out because it cannot be read."""

    def left_out_facts(self) -> list[dict[str, Any]]:
        """See `BadRows.facts`."""

    def between(self, start: int, stop: int) -> Iterator[tuple[str, bool]]:
        """The characters [start, stop) in parts, each with whether a document begins with it."""


@dataclass(frozen=True)
class Stream:
    """One long text that is read by parts.

    Attributes:
        sources: the splits that it has, by name.
        info: facts worth showing.
        boundaries: whether the end token stands between two documents.
        workers: processes that make tokens; None for as many as there are cores.
        sample: characters of the training split that a vocabulary is made of, at most.
    """

    sources: Mapping[str, Parts]
    info: Mapping[str, Any]
    boundaries: bool
    workers: int | None
    sample: int
