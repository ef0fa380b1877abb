"""Hashes of runs of characters, of any number of them at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse among 64-bit numbers


@dataclass(frozen=True)
class Hashes:
    """Hashes of any run of some characters, each in a few operations: a polynomial in an odd base modulo 2^64 (Karp &
    Rabin 1987), from sums over all characters before."""

    sums: UInt64[np.ndarray, " characters+1"]
    inverse: UInt64[np.ndarray, " characters+1"]

    @classmethod
    def of(cls, characters: np.ndarray) -> Hashes:
        powers, inverse = _powers(-(-(len(characters) + 1) // 2**16))
        values = mixed(characters.astype(np.uint64) + np.uint64(1)) * powers[: len(characters)]
        return cls(np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)]), inverse)

    def between(self, starts: np.ndarray, ends: np.ndarray) -> UInt64[np.ndarray, " runs"]:
        return (self.sums[ends] - self.sums[starts]) * self.inverse[starts]


@functools.lru_cache(maxsize=1)
def _powers(blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base, and of its inverse."""
    size = blocks * 2**16
    return tuple(
        np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(size - 1, base, np.uint64)]), dtype=np.uint64)
        for base in (BASE, pow(BASE, -1, 2**64))
    )  # type: ignore[return-value]


def mixed(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Numbers whose every bit depends on every bit of those given (splitmix64, Steele et al. 2014)."""
    values = values + np.uint64(BASE)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
