"""What the making of batches took, added up by the threads that make them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Made:
    """What was made until some moment.

    Attributes:
        read, decode, transfer: seconds of all threads together: reading files or memory-mapped arrays, decoding
            pictures, and putting batches onto the devices.
        pictures: that were decoded.
        batches: that were given to training.
        ready: how many batches lay ready when each of those was asked for, added up.
        first: seconds that training waited for the first batch of all.
    """

    read: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0
    pictures: float = 0
    batches: float = 0
    ready: float = 0
    first: float = 0.0

    def __sub__(self, other: Made) -> Made:
        return Made(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))


class Work:
    """The same while it goes on; threads add to it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = dict.fromkeys((field.name for field in fields(Made)), 0.0)

    def add(self, **values: float) -> None:
        """More of some attributes of `Made`."""
        with self._lock:
            for name, value in values.items():
                self._sums[name] += value

    def made(self) -> Made:
        with self._lock:
            return Made(**self._sums)
