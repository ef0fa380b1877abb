"""Which client has which example, in federated training: by chance, by class, or by a column.

A client is a law by which examples are drawn, a function of the seed alone: applied to another split it gives examples
of the same kind, by which a client can be scored on what it has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigctl.data.sampler import mix, permutation

NOBODY = -1
"""Who has an example that is no client's: of a column, one whose value no training example has."""
_ORDER, _SHARDS, _LAW = 0x636C69656E74, 0x736861726473, 0x6469726963


@dataclass(frozen=True)
class ByChance:
    """As many examples for each of `clients` as for others, or one more."""

    clients: int
    seed: int

    def owners(self, labels: np.ndarray) -> np.ndarray:
        """The client of each example, int32 [N]; of `labels` nothing but the length counts."""
        count = len(labels)
        found = np.empty(count, np.int32)
        found[permutation(count, self.seed, _ORDER)] = np.arange(count) * self.clients // count
        return found


@dataclass(frozen=True)
class ByShards:
    """Examples sorted by label and cut into equal parts, `shards` of which each client has (McMahan et al. 2017)."""

    clients: int
    shards: int
    seed: int

    def owners(self, labels: np.ndarray) -> np.ndarray:
        """The client of each example, int32 [N], by its class or number [N]."""
        count, parts = len(labels), self.clients * self.shards
        order = permutation(count, self.seed, _ORDER)
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
        owner = permutation(parts, self.seed, _SHARDS) // self.shards
        found = np.empty(count, np.int32)
        found[order] = owner[np.arange(count) * parts // count]
        return found


@dataclass(frozen=True, eq=False)
class ByDirichlet:
    """Equally many examples each, of classes in shares drawn from Dirichlet(alpha * prior) (Hsu et al. 2019).

    Attributes:
        clients: how many.
        alpha: concentration.
        prior: shares of the classes in the training split, float [classes].
        seed: of the draws.
    """

    clients: int
    alpha: float
    prior: np.ndarray
    seed: int

    def shares(self) -> np.ndarray:
        """Of the classes, float [clients, classes]; from numbers of our own, for library streams change."""
        from scipy import special

        a = np.broadcast_to(self.alpha * self.prior, (self.clients, len(self.prior)))
        places = np.arange(a.size, dtype=np.uint64).reshape(a.shape)
        keys = mix(mix(np.uint64(self.seed), np.uint64(_LAW)), places)
        uniform = ((keys >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = np.log(special.gammaincinv(a, uniform))  # a gamma variable, whose logarithm stays where it is 0
            small = (np.log(uniform) + special.gammaln(a + 1)) / a
        logs = np.where(a > 0, np.where(drawn > -600, drawn, small), -np.inf)
        raw = np.exp(logs - logs.max(1, keepdims=True))
        return np.asarray(raw / raw.sum(1, keepdims=True))

    def owners(self, labels: np.ndarray) -> np.ndarray:
        """The client of each example, int32 [N], by its class [N]. A client takes its shares of each class as long as
        there are examples, and then of those that are left."""
        count, classes = len(labels), len(self.prior)
        left = np.bincount(labels, minlength=classes)
        order = permutation(count, self.seed, _ORDER)
        members = [order[np.asarray(labels)[order] == c] for c in range(classes)]
        given, found = np.zeros(classes, int), np.empty(count, np.int32)
        for client, shares in enumerate(self.shares()):
            wanted = count * (client + 1) // self.clients - count * client // self.clients
            for c, taken in enumerate(_taken(shares, left, wanted).tolist()):
                found[members[c][given[c] : given[c] + taken]] = client
                given[c] += taken
                left[c] -= taken
        return found


def _taken(shares: np.ndarray, left: np.ndarray, wanted: int) -> np.ndarray:
    """So many examples in about these shares of the classes, int [classes], and no more than are `left` of each."""
    taken = np.zeros(len(shares), int)
    while (missing := wanted - int(taken.sum())) > 0:
        room = left - taken
        weights = np.where(room > 0, shares, 0.0)
        if weights.sum() <= 1e-12:
            weights = room.astype(float)
        ideal = missing * weights / weights.sum()
        more = np.minimum(np.floor(ideal).astype(int), room)
        if not more.any():  # fewer are missing than there are classes: one of that with the largest remainder
            more[int(np.argmax(np.where(room > 0, ideal, -1.0)))] = 1
        taken += more
    return taken


@dataclass(frozen=True, eq=False)
class ByColumn:
    """A client for each value of a column, in the order of `values`, which are those of the training split."""

    values: np.ndarray

    @property
    def clients(self) -> int:
        return len(self.values)

    def owners(self, values: np.ndarray) -> np.ndarray:
        """The client of each example, int32 [N], by its value as a text [N]; or `NOBODY`."""
        place = np.searchsorted(self.values, values)
        known = self.values[np.minimum(place, len(self.values) - 1)] == values
        return np.where(known, place, NOBODY).astype(np.int32)


Law = ByChance | ByShards | ByDirichlet | ByColumn
