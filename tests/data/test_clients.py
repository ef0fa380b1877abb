"""Who has which examples in federated training, and who takes part in a round: functions of the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from bigctl.config import schema
from bigctl.data import clients
from bigctl.data.layouts import rounds
from bigctl.data.layouts.masked import PADDING
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows

LABELS = np.random.default_rng(0).integers(0, 10, 4000)


def by_client(law: clients.Law, labels: np.ndarray = LABELS) -> np.ndarray:
    """Examples by client and class, int [clients, classes]."""
    owners = law.owners(labels)
    assert owners.shape == labels.shape and (owners == law.owners(labels)).all() and owners.min() >= 0
    found = np.zeros((law.clients, 10), int)
    np.add.at(found, (owners, labels), 1)
    return found


@pytest.mark.parametrize(
    "law",
    [clients.ByChance(30, 1), clients.ByShards(30, 2, 1), clients.ByDirichlet(30, 1.0, np.full(10, 0.1), 1)],
    ids=["iid", "shards", "dirichlet"],
)  # fmt: skip
def test_clients_have_equally_many_and_every_example_is_someones(law: clients.Law) -> None:
    sizes = by_client(law).sum(1)
    assert sizes.sum() == len(LABELS) and sizes.max() - sizes.min() <= 2


def test_shards_are_of_few_classes_and_chance_knows_none() -> None:
    assert (by_client(clients.ByShards(50, 2, 0)) > 0).sum(1).max() <= 4  # a shard may lie across a border
    assert (by_client(clients.ByShards(50, 2, 0)) > 0).sum(1).mean() < 3
    assert (by_client(clients.ByChance(50, 0)) > 0).all()


def test_alpha_says_how_alike_clients_are() -> None:
    prior = np.bincount(LABELS) / len(LABELS)
    largest = []
    for alpha in (0.01, 1, 10, 1000):
        law = clients.ByDirichlet(40, alpha, prior, 0)
        shares = law.shares()
        assert shares.sum(1) == pytest.approx(1) and np.isfinite(shares).all()
        largest.append(shares.max(1).mean())
        assert by_client(law).sum() == len(LABELS)
    assert largest == sorted(largest, reverse=True) and largest[0] > 0.99 and largest[-1] < 0.15


def test_shares_are_those_of_a_dirichlet_law() -> None:
    """Mean p, variance p (1 - p) / (alpha + 1)."""
    prior = np.array([0.5, 0.3, 0.2])
    for alpha in (0.5, 8.0):
        shares = clients.ByDirichlet(6000, alpha, prior, 3).shares()
        assert shares.mean(0) == pytest.approx(prior, abs=0.02)
        assert shares.var(0) == pytest.approx(prior * (1 - prior) / (alpha + 1), rel=0.08)


def test_another_split_is_shared_out_alike() -> None:
    """What a client has in the test split is of the classes that it has in the training split."""
    test = np.random.default_rng(1).integers(0, 10, 1500)
    for law in (clients.ByShards(20, 2, 0), clients.ByDirichlet(20, 0.3, np.full(10, 0.1), 0)):
        ours, theirs = (x / x.sum(1, keepdims=True) for x in (by_client(law), by_client(law, test)))
        assert np.abs(ours - theirs).sum(1).mean() / 2 < 0.15  # total variation
        mixed = np.abs(ours - np.roll(theirs, 1, 0)).sum(1).mean() / 2
        assert mixed > 0.5


def test_a_value_that_no_training_example_has_is_nobodys() -> None:
    law = clients.ByColumn(np.unique(np.array(["b", "a", "c"])))
    assert law.owners(np.array(["c", "a", "d", "", "b"])).tolist() == [2, 0, clients.NOBODY, clients.NOBODY, 1]


def test_rounds_are_functions_of_seed_and_number() -> None:
    draw = rounds.Round(clients=20, wanted=5, unit=2)
    drawn = np.stack([draw.drawn(0, number) for number in range(400)])
    assert drawn.shape == (400, 6) and (drawn[:, 5] == PADDING).all()
    assert all(len(set(row[:5])) == 5 for row in drawn)
    assert np.bincount(drawn[:, :5].ravel()) == pytest.approx(np.full(20, 100), abs=45)
    assert (draw.drawn(0, 7) == drawn[7]).all() and (draw.drawn(1, 7) != drawn[7]).any()


def test_a_batch_holds_each_clients_examples_in_its_place() -> None:
    columns = {"inputs": np.arange(60)[:, None], "label": np.arange(60), rounds.OWNER: np.arange(60) ** 2 % 7 % 4}
    config = schema.Train(federated=schema.Federated(clients=4, fraction=0.75, at_once=2))
    layout = rounds.by_rounds(Rows(), config)
    plan = layout.training_plan(columns, batch_size=45, seed=2)
    indices, length = plan.batch(90)
    batch, places = layout.gather(columns, indices, length), layout.draw.drawn(2, 2)
    assert rounds.OWNER not in batch
    for client, held, mask in zip(places, np.split(batch["label"], 4), np.split(batch["mask"], 4), strict=True):
        mine = np.flatnonzero(columns[rounds.OWNER] == client)
        assert mask.sum() == len(mine) and (held[: len(mine)] == mine).all()


def test_texts_of_a_round_are_padded_to_its_longest() -> None:
    offsets = np.cumsum([0, 3, 3, 9, 9])
    columns = {"inputs": np.arange(24, dtype=np.int32), "offsets": offsets, "label": np.arange(4)}
    columns[rounds.OWNER] = np.array([0, 0, 1, 1])
    layout = rounds.by_rounds(Ragged((4, 12)), schema.Train(federated=schema.Federated(clients=2, fraction=0.5)))
    plan = layout.training_plan(columns, batch_size=2, seed=0)
    for number in range(6):
        indices, length = plan.batch(2 * number)
        assert length == (4, 12)[layout.draw.drawn(0, number)[0]]
        assert layout.gather(columns, indices, length)["inputs"].shape == (2, length)


def test_where_privacy_is_counted_each_client_is_drawn_by_itself() -> None:
    draw = rounds.Round(clients=60, wanted=12, unit=4, chance=True)
    assert draw.places % 4 == 0 and draw.places >= 40
    there = np.stack([np.isin(np.arange(60), draw.drawn(0, number)) for number in range(1000)])
    sizes = there.sum(1)
    assert sizes.mean() == pytest.approx(12, abs=0.4) and sizes.var() == pytest.approx(60 * 0.2 * 0.8, rel=0.15)
    assert (there[:, :30].astype(float).T @ there[:, 30:] / 1000).mean() == pytest.approx(0.04, abs=0.003)
