"""Promises of packed documents in a mixture: each corpus is packed by itself, drawn by its weight, scored by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.config import schema
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.layouts import mixed
from bigctl.data.layouts.choose import DOCUMENTS, BatchOptions
from bigctl.data.layouts.mixed_packed import MixedPacked
from bigctl.data.layouts.packed import Packed
from bigctl.data.notes import notes_of
from bigctl.data.preparation import prepare
from bigctl.data.text import tokenization
from tests.corpora import TINY, given, write

pytestmark = pytest.mark.fewer

WINDOW, LINE_END = 64, 10
PACKING = BatchOptions(block=WINDOW, packing=DOCUMENTS, end_token=LINE_END)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "packed-mixtures"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("corpora"))


def prepared(config: schema.Data) -> Dataset:
    spec = tokenization.spec(schema.StreamTokenizer(type="bytes"))
    return prepare.prepare(config, tokenizer=spec, batches=PACKING)


def mixture(folder: Path, web: float | None = 0.7, books: float | None = 0.3) -> Dataset:
    corpora = {"web": schema.Corpus(f"{folder}/web.bin", web), "books": schema.Corpus(f"{folder}/books", books)}
    return prepared(schema.Mixture(corpora=corpora))


def alone(folder: Path) -> dict[str, Dataset]:
    return {
        "web": prepared(schema.Tokens(path=f"{folder}/web.bin")),
        "books": prepared(schema.Tokens(path=f"{folder}/books")),
    }


def scored(dataset: Dataset, split: str) -> list[tuple[str, dict[str, Any]]]:
    """The windows of an evaluation, each with its corpus."""
    layout, columns, found = dataset.batches, dataset.splits[split], []
    for indices, mask, length in layout.evaluation_plan(columns, batch_size=4, shards=1).batches():
        batch = layout.gather(columns, indices, length)
        name = layout.part(columns, indices) if isinstance(layout, MixedPacked) else ""
        real = np.flatnonzero(mask)
        found += [(name, {column: values[row] for column, values in batch.items()}) for row in real]
    return found


def test_each_corpus_is_packed_as_it_is_by_itself_and_scored_by_itself(folder):
    whole, parts = mixture(folder), alone(folder)
    for split in SPLITS:
        expected = [(name, window) for name, part in parts.items() for _, window in scored(part, split)]
        found = scored(whole, split)
        assert [name for name, _ in found] == [name for name, _ in expected]
        for (_, one), (_, other) in zip(found, expected, strict=True):
            for column, values in other.items():
                np.testing.assert_array_equal(one[column], values)
    assert all(isinstance(part.batches, Packed) for part in parts.values())
    facts = whole.info["corpora"]["books"]["packing"]["train"]
    assert facts == parts["books"].info["packing"]["train"] and facts["documents"] > 10
    assert {note.partition(": ")[2] for note in notes_of(whole)} >= set(notes_of(parts["web"]))


def test_windows_are_drawn_by_weights_from_any_position_on_each_once_an_epoch(folder):
    whole = mixture(folder)
    layout, columns = whole.batches, whole.splits["train"]
    windows = np.diff(columns["window_ends"], prepend=0)
    draws = layout.training_plan(columns, batch_size=8, seed=3).indices(0, 4000)
    owner = np.searchsorted(columns["window_ends"], draws, side="right")
    counts = np.cumsum(owner[:, None] == np.arange(2), axis=0)
    assert np.abs(counts - np.arange(1, 4001)[:, None] * np.array([0.7, 0.3])).max() <= 1
    np.testing.assert_array_equal(owner, mixed.draws((0.7, 0.3), 0, 4000)[0])
    for corpus, count in enumerate(windows.tolist()):
        own = draws[owner == corpus]
        for epoch in np.split(own[: len(own) // count * count], len(own) // count):
            assert len(np.unique(epoch)) == count
    for position in (8, 1000, 3992):
        again = layout.training_plan(columns, batch_size=8, seed=3)
        np.testing.assert_array_equal(again.batch(position)[0], draws[position : position + 8])
    even = mixture(folder, None, None)
    assert even.batches.shares(columns) == pytest.approx(windows / windows.sum())


def test_devices_gather_what_the_host_does(folder):
    whole = mixture(folder)
    columns = whole.splits["train"]
    on_devices = {name: jnp.asarray(np.asarray(values).astype(np.int32)) for name, values in columns.items()}
    indices, length = whole.batches.training_plan(columns, batch_size=16, seed=0).batch(0)
    host = whole.batches.gather(columns, indices, length)
    device = whole.batches.gather(on_devices, jnp.asarray(indices), length, jnp)
    for name, values in host.items():
        np.testing.assert_array_equal(np.asarray(device[name]), values)


@pytest.mark.slow
def test_a_training_on_packed_corpora_scores_each(folder, tmp_path):
    keys = [*TINY, *given(folder), "recipe.packing=documents", f"recipe.end_token={LINE_END}", "model.context=64"]
    found = bigctl.train(bigctl.compose(keys), run_dir=str(tmp_path / "run"))["metrics"]
    losses = [found[f"test/loss/{name}"] for name in ("web", "books")]
    assert min(losses) < found["test/loss"] < max(losses)
