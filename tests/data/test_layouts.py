"""Promises of `bigctl.data.layouts`: one choice when data is prepared, and one answer to what a batch is."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigctl.data.dataset import Features
from bigctl.data.layouts.choose import BatchOptions, choose_layout
from bigctl.data.layouts.layout import Columns, Layout, evaluation_batch_size
from bigctl.data.layouts.ragged import Ragged
from bigctl.data.layouts.rows import Rows
from bigctl.data.layouts.windows import Windows

OPTIONS = BatchOptions(block=8, batch_size=4)
OFFSETS = np.concatenate([[0], np.cumsum(np.arange(20) % 7 + 2)])
DATA: dict[str, tuple[type[Layout], Features, Columns]] = {
    "table": (Rows, Features("table", (3,), ("a", "b")), {
        "inputs": np.arange(60, dtype=np.float32).reshape(20, 3), "label": np.arange(20, dtype=np.int32) % 2,
    }),
    "text": (Ragged, Features("text", (8,), ("a", "b")), {
        "inputs": np.arange(OFFSETS[-1]).astype(np.uint16), "offsets": OFFSETS,
        "segment_start": np.ones(20, np.int32), "label": np.arange(20, dtype=np.int32) % 2,
    }),
    "stream": (Windows, Features("stream", (), None), {
        "inputs": np.arange(100, dtype=np.uint16), "bytes": np.array([200]),
    }),
}  # fmt: skip


def chosen(name: str) -> tuple[Layout, Columns]:
    kind, features, columns = DATA[name]
    layout = choose_layout(features, {"train": columns}, OPTIONS)
    assert type(layout) is kind
    return layout, columns  # type: ignore[return-value]


@pytest.mark.parametrize("name", DATA)
def test_a_batch_on_the_devices_is_the_one_on_the_host(name):
    layout, columns = chosen(name)
    plan = layout.training_plan(columns, batch_size=4, seed=1)
    narrow = {np.dtype(np.int64): np.int32}
    arrays = {name: jnp.asarray(values.astype(narrow.get(values.dtype, values.dtype)))
              for name, values in columns.items()}  # fmt: skip
    for position in range(0, 40, 4):
        indices, length = plan.batch(position)
        assert length in plan.lengths
        here, there = layout.gather(columns, indices, length), layout.gather(arrays, indices, length, jnp)
        assert here.keys() == there.keys()
        for column, values in here.items():
            assert len(values) == 4
            np.testing.assert_array_equal(values, there[column], err_msg=column)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(("batch_size", "shards"), [(None, 1), (None, 8), (3, 1), (3, 2)])
def test_an_evaluation_has_every_example_once_in_batches_that_the_devices_share(name, batch_size, shards):
    layout, columns = chosen(name)
    plan = layout.evaluation_plan(columns, batch_size=batch_size, shards=shards)
    seen: list[int] = []
    for indices, mask, _ in plan.batches():
        assert len(indices) == len(mask) and len(mask) % shards == 0
        seen += indices[mask > 0].tolist()
    assert len(seen) == len(set(seen)) == layout.size(columns, training=False)


@pytest.mark.parametrize("name", DATA)
def test_one_batch_can_be_repeated_for_ever(name):
    layout, columns = chosen(name)
    plan = layout.training_plan(columns, batch_size=4, seed=1, frozen=True)
    first = sorted(plan.batch(0)[0])
    assert all(sorted(plan.batch(position)[0]) == first for position in range(0, 400, 4))


@pytest.mark.parametrize("name", DATA)
def test_layouts_are_values(name):
    """A compiled program takes them as static arguments: equal ones must not be compiled twice."""
    (one, _), (other, _) = chosen(name), chosen(name)
    assert one == other and hash(one) == hash(other)


def test_texts_that_are_not_tokens_have_none():
    assert choose_layout(Features("text", (), ("a",)), {"train": {"label": np.zeros(3, np.int32)}}, OPTIONS) is None
    assert choose_layout(DATA["stream"][1], {"train": {"bytes": np.array([9])}}, OPTIONS) is None
    assert choose_layout(DATA["stream"][1], {"train": DATA["stream"][2]}, BatchOptions()) is None


@pytest.mark.parametrize(
    ("count", "asked", "shards", "size"), [(10, None, 1, 10), (1000, None, 1, 512), (10, None, 8, 16), (10, 3, 2, 4)]
)
def test_the_size_of_an_evaluation_batch(count, asked, shards, size):
    assert evaluation_batch_size(count, asked, 512, shards) == size
