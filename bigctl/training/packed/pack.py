"""Several trainings in one program: their states side by side, one step of all of them at once (`jax.vmap`).

Each training keeps its own loop, with its own events, in a thread of its own. Only the steps are taken together: a
loop's `advance` waits until all others of its pack want steps too, and gets its own part of the result. So whatever a
loop does, a packed one does: early stopping, a step that is not finite, checkpoints, resuming.

What is shared is the data, on the device once; what differs is the state, the order of examples, and the hparams, the
seed among them. Trainings of a pack may be at different steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from bigctl.config import schema
from bigctl.config.cadence import Cadence
from bigctl.data.layouts.layout import Columns, FixedPlan, Layout
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.work import Work
from bigctl.errors import ConfigError
from bigctl.parallel import mesh as meshes
from bigctl.training import feed as feeds
from bigctl.training import plans
from bigctl.training.calls import Calls, Check
from bigctl.training.compiled import Compiled
from bigctl.training.evaluation import Evaluator, Scores
from bigctl.training.on_batches import Arrays, on_resident
from bigctl.training.packed.scoring import PackedScoring, Question
from bigctl.training.packed.side_by_side import Copies, side_by_side
from bigctl.training.programs import LARGEST_LOOP, Programs, compiler_options
from bigctl.training.state import TrainState, Tree
from bigctl.training.step import Hparams
from bigctl.training.task import Task

Draw = Callable[[int], np.ndarray]


def compile_packed_steps(programs: Programs, layout: Layout, length: int | None, *, looped: bool) -> Compiled:
    """(states [width, ...], arrays, indices [width, largest, batch], count, hparams [width] each) -> states: the first
    `count` steps of all, or just the first where they are not `looped`."""
    one_step = on_resident(programs.step, programs.step.train)

    def run(together: TrainState, arrays: Arrays, indices: jax.Array, count: jax.Array, hparams: Hparams) -> TrainState:
        def one(state: TrainState, indices: jax.Array, hparams: Hparams) -> TrainState:
            return one_step(state, arrays, indices, hparams, layout, length)

        step = jax.vmap(one)
        if not looped:
            return step(together, indices[:, 0], hparams)
        return jax.lax.fori_loop(0, count, lambda i, states: step(states, indices[:, i], hparams), together)

    everywhere, options = meshes.replicated(programs.mesh), compiler_options(programs.step)
    return jax.jit(run, donate_argnums=0, out_shardings=everywhere, compiler_options=options)


class PackedSteps:
    """The compiled steps of a pack, for as many packs as use them.

    Args:
        programs: of any of the trainings.
        layout: of the data.
        columns: the training split.
        config: of any of them.
        cadence: of all of them.
        width: how many states are side by side.
        check: told of the compiled steps before they run first.

    Raises:
        ConfigError: where batches do not come from the memory of one device.
    """

    def __init__(
        self,
        programs: Programs,
        layout: Layout,
        columns: Columns,
        config: schema.Config,
        cadence: Cadence,
        *,
        width: int,
        check: Check | None = None,
    ):
        if (refused := refusal(programs, layout, columns, config)) is not None:
            raise ConfigError(refused, where="packed trials", hint="train them one by one")
        self.width = width
        plan = plans.training_plan(layout, columns, config)
        assert isinstance(plan, FixedPlan)  # as `refusal` has seen
        (self.length,), self._batch_size = plan.lengths, plan.batch_size
        self.arrays = feeds.place_columns(programs.mesh, columns)
        looped = feeds.loops(programs.mesh, config)
        between = min(cadence.log, cadence.evaluate, cadence.save or cadence.evaluate, cadence.total)
        most = min(LARGEST_LOOP, config.train.steps_per_dispatch or LARGEST_LOOP) if looped else 1
        self.largest = min(most, 1 << (between - 1).bit_length())
        self._length: int | None = config.train.steps_per_dispatch if looped else 1
        self._warm = False
        self.calls = Calls(check)
        self.program = compile_packed_steps(programs, layout, self.length, looped=looped)
        self._copies = Copies(programs, width)

    def compile(self, one: Programs) -> None:
        """Compile the steps, with a training whose hparams are of their kind."""
        hparams = side_by_side([one.hparams], self.width)
        indices = np.zeros((self.width, self.largest, self._batch_size), np.int32)
        self._run(self._copies.empty(), indices, 0, hparams)

    def compile_copies(self, state: TrainState) -> None:
        """Compile what brings states side by side, and apart; this one is used up."""
        self._copies.parted(self._copies.joined([state]), 1)

    def _run(self, states: TrainState, indices: np.ndarray, count: int, hparams: Hparams) -> TrainState:
        given = states, self.arrays, indices, np.int32(count), hparams
        found: TrainState = self.calls.run(self.program, self.length, *given)
        return found

    def __call__(
        self, states: Sequence[TrainState], draw: Draw, limit: int, hparams: Hparams
    ) -> tuple[list[TrainState], int]:
        """Up to `limit` steps of at most `width` states, which are used up, about a second of them at most; gives how
        many they were.

        `draw(count)` gives the examples of that many steps for each row: int32 [width, count, batch].
        """
        count = min(limit, self.largest, self._length or 1)
        indices = np.zeros((self.width, self.largest, self._batch_size), np.int32)
        indices[:, :count] = draw(count)
        timing = self._warm and self._length is None  # the first short dispatches find out how long a step takes
        if timing:
            jax.block_until_ready(states)
        start = time.perf_counter()
        together = self._run(self._copies.joined(states), indices, count, hparams)
        states = self._copies.parted(together, len(states))
        if timing:
            jax.block_until_ready(states)
            self._length = int(np.clip(count / max(time.perf_counter() - start, 1e-6), 1, self.largest))
        self._warm = True
        return states, count


def refusal(programs: Programs, layout: Layout, columns: Columns, config: schema.Config) -> str | None:
    """Why these trainings cannot be packed on this machine, if they cannot."""
    if programs.mesh.size > 1:
        return f"a pack trains on one device, mesh={config.mesh.kind} has {programs.mesh.size}"
    if any(isinstance(values, EncodedImages) for values in columns.values()):
        return "pictures that are decoded while training (data.decoding=stream) cannot be packed"
    if not isinstance(plans.training_plan(layout, columns, config), FixedPlan):
        return "texts in batches of several lengths cannot be packed"
    if plans.stages_of(config, programs.step.total_steps):
        return "pictures that grow (recipe.augment.sizes) cannot be packed"
    if programs.task.feature_width is not None:
        return "a head on features of pictures (recipe=probe) cannot be packed"
    if config.distil.teacher is not None:
        return "trainings that another run teaches (distil.teacher) cannot be packed"
    if not feeds.fits_on_device(columns, config):
        return f"the training split is larger than data.resident_mib={config.data.resident_mib:g}"
    return None


@dataclass
class _Turn:
    """A training that waits for its next steps."""

    state: TrainState
    position: int
    limit: int
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    done: Future[tuple[TrainState, int]] = field(default_factory=Future)


class Pack:
    """Trainings that take their steps together, and are scored together. Whichever of them is the last to want either
    does it for all; those that want scores come first.

    Args:
        steps: the compiled steps.
        scoring: the compiled evaluation; it is asked for nothing where each training is scored by itself.
        lanes: how many trainings, known here by the numbers from 0 on; at most `steps.width`.
    """

    def __init__(self, steps: PackedSteps, scoring: PackedScoring, lanes: int):
        self.steps, self.scoring = steps, scoring
        self._lock = threading.Lock()
        self._feeds: dict[int, PackedFeed] = {}
        self._living = set(range(lanes))
        self._turns: dict[int, _Turn] = {}
        self._questions: dict[int, Question] = {}
        self._hparams: tuple[list[int], Hparams] = ([], {})

    def enter(self, feed: PackedFeed) -> None:
        self._feeds[feed.lane] = feed

    def advance(self, feed: PackedFeed, turn: _Turn) -> tuple[TrainState, int]:
        with self._lock:
            self._turns[feed.lane] = turn
            self._go_on_if_all_wait()
        return turn.done.result()

    def ask(self, lane: int, question: Question) -> None:
        """Have weights scored, those of a training that has not left."""
        with self._lock:
            self._questions[lane] = question
            self._go_on_if_all_wait()

    def leave(self, lane: int) -> None:
        """This training wants no more steps, and no more scores of the pack."""
        with self._lock:
            self._living.discard(lane)
            self._go_on_if_all_wait()

    def holds(self, lane: int) -> bool:
        return lane in self._living

    def _go_on_if_all_wait(self) -> None:
        if not self._living or self._living - self._turns.keys() - self._questions.keys():
            return
        if self._questions:
            questions, self._questions = self._questions, {}
            lanes = sorted(questions)
            self.scoring.answer([questions[lane] for lane in lanes], partial(self._hparams_of, lanes))
        else:
            self._take()

    def _take(self) -> None:
        """The next steps of all."""
        turns, self._turns = self._turns, {}
        now = time.perf_counter()
        for turn in turns.values():
            turn.waited = now - turn.since
        try:
            lanes = sorted(turns)
            states, count = self.steps(
                [turns[lane].state for lane in lanes],
                partial(self._draw, [(self._feeds[lane], turns[lane].position) for lane in lanes]),
                min(turn.limit for turn in turns.values()),
                self._hparams_of(lanes),
            )
        except BaseException as error:  # each of them fails, and says so
            for turn in turns.values():
                turn.done.set_exception(error)
            return
        for lane, state in zip(lanes, states, strict=True):
            turns[lane].done.set_result((state, count))

    def _draw(self, turns: list[tuple[PackedFeed, int]], count: int) -> np.ndarray:
        drawn = [feed.draw(position, count) for feed, position in turns]
        return np.stack(drawn + drawn[:1] * (self.steps.width - len(drawn)))

    def _hparams_of(self, lanes: list[int]) -> Hparams:
        if self._hparams[0] != lanes:
            self._hparams = lanes, side_by_side([self._feeds[lane].hparams for lane in lanes], self.steps.width)
        return self._hparams[1]


class PackedFeed:
    """The feed of one training of a pack.

    Args:
        pack: which.
        lane: its number there.
        hparams: its own.
        plan: its batches.

    Attributes:
        waited: seconds spent waiting for the others.
    """

    shapes = 1
    unforeseen: set[int | None] = set()

    def __init__(self, pack: Pack, lane: int, hparams: Hparams, plan: FixedPlan):
        self.pack, self.lane, self.hparams, self.plan = pack, lane, hparams, plan
        pack.enter(self)
        self.calls = None  # the first call of a pack is compiling as a whole
        self.waited, self.waits_for_data = 0.0, False
        self.work: Work | None = None
        self.nbytes = 0  # its data is on the devices

    def draw(self, position: int, count: int) -> np.ndarray:
        """Examples of `count` batches, int32 [count, batch]."""
        size = self.plan.batch_size
        return self.plan.indices(position, count * size).reshape(count, size)

    def advance(self, state: TrainState, position: int, limit: int) -> tuple[TrainState, int]:
        turn = _Turn(state, position, limit)
        result = self.pack.advance(self, turn)
        self.waited += turn.waited
        return result

    def shape(self, position: int) -> int | None:
        return self.pack.steps.length

    def program(self) -> Compiled:
        return self.pack.steps.program

    def close(self) -> None:
        self.pack.leave(self.lane)


class PackedEvaluator(Evaluator):
    """Scores one training of a pack together with the others; by itself where these are not scored in one call, and
    after it has left the pack.

    Args:
        pack, lane: which.
        programs: of the training, with hparams of its own.
        columns, config: see `SplitScores`.
    """

    def __init__(self, pack: Pack, lane: int, programs: Programs, columns: Columns, config: schema.Config):
        one = pack.scoring.one
        super().__init__(programs, one.layout, columns, config, prefix=one.prefix)
        self.pack, self.lane, self.calls, self._arrays = pack, lane, one.calls, one.place()

    def score(self, params: Tree, variables: Tree, task: Task | None = None) -> Scores:
        if not (self.pack.scoring.possible and self.pack.holds(self.lane)):
            return super().score(params, variables, task)
        question = Question((params, variables))
        self.pack.ask(self.lane, question)
        return self.scores(task or self.programs.task, question.answer.result())
