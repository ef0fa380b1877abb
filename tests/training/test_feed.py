"""What each step is given follows the plan alone, however batches are sent, kept on the devices, or grouped."""

from __future__ import annotations

import dataclasses
import threading
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.data.layouts.layout import FixedPlan
from bigctl.data.layouts.rows import Rows
from bigctl.data.sampler import BatchPlan
from bigctl.data.text.joined_tokens import JoinedTokens
from bigctl.data.work import Work
from bigctl.engine.experiment import Experiment
from bigctl.parallel import host_memory
from bigctl.training import feed as feeds
from bigctl.training import waiting
from bigctl.training.prefetch import prefetched
from bigctl.training.programs import LARGEST_LOOP
from bigctl.training.state import TrainState
from tests.training.steps import CNN, MLP, arrays_of, assert_close, assert_same_bits, built, start


@pytest.fixture(autouse=True)
def memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ran before in this process: else programs are compiled before they are called; stand-ins cannot be."""
    monkeypatch.setattr(host_memory, "keeps", lambda: False)


# ------------------------------------------------------------------------------------------ dispatches and programs


def run_grouped(exp: Experiment, groups: list[int]) -> TrainState:
    """A loop feed whose dispatches are of these sizes."""
    plan = FixedPlan(BatchPlan(exp.dataset.size("train"), exp.config.seed), exp.config.train.batch_size)
    feed = feeds.LoopFeed(exp.programs, Rows(), arrays_of(exp), plan, exp.config)
    feed._length = feed.largest
    state, done = start(exp), 0
    for size in groups:
        state, count = feed.advance(state, done * exp.config.train.batch_size, size)
        assert count == size
        done += count
    assert int(state.step) == done
    return state


@pytest.mark.parametrize(
    "overrides",
    [(*MLP, "model.norm=batch", "train.ema=0.9"), (*CNN, "model.dropout=0.3", "train.accumulate=2")],
    ids=["mlp", "cnn"],
)
def test_grouping_steps_into_dispatches_changes_no_bit(overrides: tuple[str, ...]) -> None:
    exp = built(*overrides)
    one_by_one = run_grouped(exp, [1] * 15)
    for groups in ([15], [2] * 7 + [1], [3] * 5, [5] * 3, [1, 13, 1], [4, 11]):
        assert_same_bits(run_grouped(exp, groups), one_by_one)
    assert exp.programs.steps_resident._cache_size() == 1


def test_a_dispatch_never_passes_the_limit_and_short_ones_come_first() -> None:
    exp = built(*MLP, "model.norm=batch", "train.ema=0.9")
    plan = FixedPlan(BatchPlan(exp.dataset.size("train"), 0), 32)
    feed = feeds.LoopFeed(exp.programs, Rows(), arrays_of(exp), plan, exp.config)
    state, counts = start(exp), list[int]()
    for _ in range(4):
        state, count = feed.advance(state, sum(counts) * 32, 7)
        counts.append(count)
    assert counts[:2] == [1, 1] and max(counts) <= 7


FEEDS = {
    "resident": (feeds.ResidentFeed, "train", {"steps_per_dispatch": 1}),
    "loop": (feeds.LoopFeed, "train", {"steps_per_dispatch": 6}),
    "sent": (feeds.SentFeed, "data", {"resident_mib": 0}),
}


@pytest.mark.parametrize("overrides", [pytest.param(MLP, marks=pytest.mark.slow), CNN], ids=["mlp", "cnn"])
def test_every_feed_gives_the_same_parameters(overrides: tuple[str, ...]) -> None:
    """Dropout and augmentation included. Each feed has a program of its own, so XLA may round differently between
    them, by the last bits; within one program there is no difference at all."""
    states, exp = {}, built(*overrides)
    for name, (kind, group, keys) in FEEDS.items():
        changed: Any = {group: dataclasses.replace(getattr(exp.config, group), **keys)}
        for attempt in ("first", "second"):
            feed = feeds.make_feed(
                exp.programs,
                exp.dataset.batches,
                exp.dataset.splits["train"],
                dataclasses.replace(exp.config, **changed),
            )
            assert type(feed) is kind
            state, done = start(exp), 0
            while done < 20:
                state, count = feed.advance(state, done * 32, 20 - done)
                done += count
            feed.close()
            states[name, attempt] = state
        assert_same_bits(states[name, "first"], states[name, "second"])
        assert feed.program()._cache_size() == 1
    for name in ("loop", "sent"):
        assert_close(states[name, "first"].params, states["resident", "first"].params, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------- which examples, and when


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


class Recorded:
    """Programs that only take note of the examples of each step."""

    def __init__(self, exp: Experiment):
        self.mesh, self.hparams = exp.programs.mesh, exp.programs.hparams
        self.seen: list[list[int]] = []

    def step_resident(self, state: Any, arrays: Any, indices: Any, hparams: Any, layout: Any, length: Any) -> Any:
        self.seen.append(indices.tolist())
        return state

    def steps_resident(
        self, state: Any, arrays: Any, indices: Any, count: int, hparams: Any, layout: Any, length: Any
    ) -> Any:
        self.seen += indices[:count].tolist()
        return state

    def step_sent(self, state: Any, batch: Any, hparams: Any) -> Any:
        self.seen.append(np.asarray(batch["label"]).tolist())
        return state


def sent_feed(columns: Any = None) -> tuple[Recorded, feeds.SentFeed, BatchPlan]:
    exp = built(*MLP)
    plan = BatchPlan(100, 0)
    programs = Recorded(exp)
    columns = {"label": np.arange(100)} if columns is None else columns
    batches = FixedPlan(plan, exp.config.train.batch_size)
    return programs, feeds.SentFeed(programs, Rows(), columns, batches, exp.config), plan  # type: ignore[arg-type]


def test_sent_batches_follow_the_plan_also_after_a_jump() -> None:
    programs, feed, plan = sent_feed({"label": Slow(np.arange(100), 1e-3)})
    positions = [0, 32, 64, 640, 672, 0]
    for position in positions:
        feed.advance(None, position, 5)  # type: ignore[arg-type]
    feed.close()
    assert programs.seen == [plan.indices(position, 32).tolist() for position in positions]
    assert feed.waited > 0


@pytest.mark.parametrize("kind", [feeds.ResidentFeed, feeds.LoopFeed])
def test_resident_batches_follow_the_plan_through_blocks_and_jumps(kind: Any) -> None:
    exp = built(*MLP)
    programs, plan = Recorded(exp), BatchPlan(1000, 0)
    options = (exp.config,) if kind is feeds.LoopFeed else ()
    feed = kind(programs, Rows(), {}, FixedPlan(plan, 32), *options)
    feed._length = 9000
    starts = [0, *range(16_000, 17_600, 32), 64, 50_000]
    for position in starts:
        assert feed.advance(None, position, 1)[1] == 1
    if kind is feeds.LoopFeed:
        assert feed.advance(None, 70_000, 9000)[1] == LARGEST_LOOP
        starts += range(70_000, 70_000 + LARGEST_LOOP * 32, 32)
    assert programs.seen == [plan.indices(position, 32).tolist() for position in starts]


@pytest.mark.parametrize("keys", [keys for _, *keys in FEEDS.values()], ids=FEEDS)
def test_an_observer_is_told_what_each_step_is_given(keys: Any) -> None:
    exp, (group, changed), told = built(*MLP), keys, list[Any]()
    config = dataclasses.replace(exp.config, **{group: dataclasses.replace(getattr(exp.config, group), **changed)})
    columns = exp.dataset.splits["train"]
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, columns, config, told.append)
    state, done = start(exp), 0
    while done < 4:
        state, count = feed.advance(state, done * 32, 4 - done)
        done += count
    feed.close()
    plan = BatchPlan(exp.dataset.size("train"), exp.config.seed)
    assert len(told) == 4
    for number, given in enumerate(told):
        indices = plan.indices(number * 32, 32)
        np.testing.assert_array_equal(given.get("indices", indices), indices)
        np.testing.assert_array_equal(given["inputs"], columns["inputs"][indices])
        np.testing.assert_array_equal(given["label"], columns["label"][indices])


def test_closing_ends_the_thread_even_when_it_is_far_ahead() -> None:
    before = prefetchers()
    _, feed, _ = sent_feed()
    feed.advance(None, 0, 1)  # type: ignore[arg-type]
    assert len(prefetchers()) > len(before)
    feed.close()
    assert prefetchers() == before
    feed.close()  # twice does no harm


def test_no_more_batches_are_made_ahead_than_there_is_room_for() -> None:
    made: list[int] = []
    results = prefetched((lambda number=number: made.append(number) or number for number in range(100)), depth=3)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    results.close()
    assert len(made) <= 4 + 3
    assert [*prefetched(iter([lambda: 1, lambda: 2]), depth=3)] == [1, 2]


def test_an_error_of_the_thread_reaches_the_caller() -> None:
    class Broken:
        def take(self, *given: Any, **options: Any) -> Any:
            raise OSError("the disk is gone")

    _, feed, _ = sent_feed({"label": Broken()})
    with pytest.raises(OSError, match="the disk is gone"):
        feed.advance(None, 0, 1)  # type: ignore[arg-type]
    feed.close()
    assert not prefetchers()


class Slow:
    """A column that takes so long to be read [s]."""

    def __init__(self, values: np.ndarray, seconds: float):
        self.values, self.seconds, self.nbytes = values, seconds, values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        return self.values[rows]

    def take(self, rows: np.ndarray, *given: Any, **options: Any) -> np.ndarray:
        return self[rows]


@jax.jit
def multiplied(step: jax.Array, times: int) -> jax.Array:
    values = jnp.full((200, 200), step * 1e-3)
    return step + 1 + jax.lax.fori_loop(0, times, lambda _, values: jnp.tanh(values @ values), values)[0, 0].astype(int)


class Computing(Recorded):
    """Programs whose step takes so many products."""

    def __init__(self, exp: Experiment, products: int):
        super().__init__(exp)
        self.products = products

    def step_sent(self, state: Any, batch: Any, hparams: Any) -> Any:
        return SimpleNamespace(step=multiplied(state.step, self.products))


def waited_for(read: float, transfer: float, products: int, patch: pytest.MonkeyPatch) -> waiting.Verdict | None:
    """What is said of 40 steps, by the seconds that reading a batch and moving it take, and the products of a step."""
    exp = built(*MLP, "data.resident_mib=0")
    put_batch = feeds.meshes.put_batch

    def moved(*given: Any) -> Any:
        batch = put_batch(*given)
        time.sleep(transfer)
        return batch

    patch.setattr(feeds.meshes, "put_batch", moved)
    patch.setattr(waiting, "SECONDS", 0.1)
    plan = FixedPlan(BatchPlan(100, 0), 32)
    columns: Any = {"label": Slow(np.arange(100), read)}
    feed = feeds.SentFeed(Computing(exp, products), Rows(), columns, plan, exp.config)  # type: ignore[arg-type]
    follower, state = waiting.Waiting(feed, exp.config), SimpleNamespace(step=jnp.zeros((), jnp.int32))
    start = time.perf_counter()
    for number in range(40):
        state, _ = feed.advance(state, number * 32, 1)  # type: ignore[arg-type,assignment]
    jax.block_until_ready(state.step)
    seconds = time.perf_counter() - start
    feed.close()
    return follower.verdict(seconds)


def test_what_is_slow_is_what_training_is_said_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads make batches, so that half of what one takes is hidden by the other."""
    disk = waited_for(0.04, 0.0, 1, monkeypatch)
    assert disk is not None and (disk.cause, disk.share > 0.5) == ("disk", True)
    assert "which is copying examples out of mapped files (disk or memory) (busy: disk" in str(disk)
    transfer = waited_for(0.0, 0.04, 1, monkeypatch)
    assert transfer is not None and (transfer.cause, transfer.share > 0.5) == ("transfer", True)
    assert "data.resident_mib=1 keeps the training split on the devices" in transfer.hint


def test_whoever_is_ahead_of_the_devices_does_not_wait_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are dispatched as soon as there is a batch, and take longer than one."""
    multiplied(jnp.zeros((), jnp.int32), 10).block_until_ready()
    taken = []
    for _ in range(
        5
    ):  # the least of them, however busy the machine is: a step is then longer than thought, if anything
        start = time.perf_counter()
        multiplied(jnp.zeros((), jnp.int32), 200).block_until_ready()
        taken.append(time.perf_counter() - start)
    products = int(200 * 0.03 / min(taken)) + 10
    assert waited_for(0.01, 0.0, products, monkeypatch) is None


class Drawn:
    """A feed of which all is given."""

    def __init__(self, waited: float, **made: float):
        self.waited, self.waits_for_data, self.shapes, self.nbytes = 0.0, True, 1, 2**30
        self.work = Work()
        self._then = (waited, made)

    def drawn(self) -> None:
        self.waited, made = self._then
        self.work.add(**made)


@pytest.mark.parametrize(
    ("made", "keys", "cause", "hint"),
    [
        ({"decode": 30.0, "read": 2.0, "pictures": 64}, {"decoding_threads": 1}, "decode", "data.decoding_threads="),
        ({"decode": 30.0, "read": 2.0, "pictures": 64}, {}, "decode", "data.decoding=memory"),
        ({"read": 30.0, "decode": 2.0, "pictures": 64}, {}, "disk", "data.decoding=memory"),
        ({"transfer": 30.0, "read": 1.0}, {}, "transfer", "data.resident_mib=1024"),
        ({"read": 9.0, "transfer": 1.0}, {}, "disk", "data.resident_mib=1024"),
    ],
)
def test_what_training_waits_for_is_named_with_the_key_that_helps(
    made: dict[str, float], keys: dict[str, int], cause: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "cores", lambda: 4)
    monkeypatch.setattr(waiting, "available", lambda: 2**33)
    given = [f"data.{name}={value}" for name, value in keys.items()]
    config = bigctl.compose(["recipe=cnn_cls", "data=image_folder", "data.path=x", "data.image_size=[8,8]", *given])
    feed = Drawn(5.0, batches=10, ready=5, **made)
    follower = waiting.Waiting(feed, config)  # type: ignore[arg-type]
    feed.drawn()
    verdict, told = follower.verdict(10.0), list[str]()
    for _ in range(2):
        follower.tell(10.0, told.append)
    assert verdict is not None and (verdict.share, verdict.cause) == (0.5, cause)
    assert told == [str(verdict)] and hint in told[0] and "\n" not in told[0]
    assert follower.verdict(200.0) is None
    assert follower.rates(follower.mark(), 10.0)["perf/queue_depth"] == 0.5


@pytest.mark.parametrize(("slow", "helps"), [("read", "a faster disk"), ("transfer", "a faster link")])
def test_no_key_is_said_to_help_tokens_that_stay_in_their_files(
    slow: str, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds.token_shards, "MANY", 1000)
    columns: Any = {"inputs": JoinedTokens(("a",), [np.zeros(2000, np.uint16)])}
    assert feeds.stays_in_files(columns)
    _, feed, _ = sent_feed(columns)
    words = ["recipe=gpt_lm", "data=tokens", "data.path=x", "recipe.tokenizer.type=bytes"]
    follower = waiting.Waiting(feed, bigctl.compose(words))
    feed.waited = 5.0
    feed.work.add(batches=10, **{slow: 3.0})
    verdict = follower.verdict(10.0)
    assert verdict is not None and f"no copy is kept, so what helps is {helps}" in verdict.hint
    assert "resident_mib" not in str(verdict)


def test_a_wait_for_the_first_batch_alone_is_not_worth_a_word() -> None:
    feed = Drawn(5.0, batches=10, ready=30, first=5.0, decode=3.0, pictures=20)
    follower = waiting.Waiting(feed, built(*MLP).config)  # type: ignore[arg-type]
    feed.drawn()
    assert follower.verdict(10.0) is None


def test_the_parts_of_making_batches_are_measured() -> None:
    _, feed, _ = sent_feed({"label": Slow(np.arange(100), 0.1)})
    feed.advance(None, 0, 1)  # type: ignore[arg-type]
    assert feed.work.made().first == feed.waited > 0
    for position in range(32, 320, 32):
        feed.advance(None, position, 1)  # type: ignore[arg-type]
    feed.close()
    made = feed.work.made()
    assert made.batches == 10 and 0 <= made.ready <= 10 * 4
    assert made.read > 0 and made.transfer > 0 and feed.waited > made.first > 0 and made.pictures == made.decode == 0
