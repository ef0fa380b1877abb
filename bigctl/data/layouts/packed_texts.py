"""Batches of texts of which several share a row, for models that keep these apart: one shape, and little padding.

A batch has as many texts as one of `ragged`, out of the same windows of the stream of examples, but long and short
ones: the texts of a window are dealt, the longest first, each to the batch that has the fewest tokens so far, so that
all batches come to about the same sum. Within a batch they are put into rows as best-fit decreasing does (see
`packed`). Which texts are in a batch depends on the data and (seed, position) alone; how many rows it has, on the
devices too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from bigctl.data.layouts.layout import Arrays, Columns, Indices, Layout, evaluation_batch_size
from bigctl.data.layouts.masked import PADDING, Masked
from bigctl.data.layouts.ragged import LARGEST_BATCH, MULTIPLE, LengthPlan, Ragged
from bigctl.data.sampler import mix, permutation

_SHUFFLE = 0x726F7773  # keys the order of a window's batches
_WINDOWS, _TEXTS = 16, 2**14  # by which the shape of batches is chosen, at most: the first ones of training
_LARGEST = 4096  # texts of a batch; to put more into rows takes too long
_TRIED = 8  # lengths of rows, from the longest text to twice that
_DEVICES, _DEARER = 8, 1.05  # among which rows should be shared out evenly where that costs no more on one
_ORDERS, _NOISE = 2**11, 0.3  # tried of a batch, times its texts; by how much longer one may be taken to be in these
_ROWS = 4  # of which the rows of a batch that is scored are a multiple
_SEEN = 1024  # places of a row that cost a token as much in attention as all else in a layer, of small models on a CPU


@dataclass(frozen=True)
class Shape:
    """Of the rows of a batch.

    Attributes:
        rows: of a batch; there may be more where its texts do not fit.
        length: of a row [tokens].
        most: texts in a row, at most.
    """

    rows: int
    length: int
    most: int

    def room(self, rows: int) -> int:
        """Of a batch that needs so many rows, how many it has: there are few shapes besides this one."""
        more = max(1, self.rows // 8)
        return self.rows + -(-max(0, rows - self.rows) // more) * more

    @property
    def cost(self) -> float:
        """Of a batch, in tokens that see nothing but themselves."""
        return self.rows * self.length * (1 + self.length / _SEEN)


@dataclass(frozen=True)
class Cut:
    """How the rows of a batch are cut: into parts that are computed one after the other, and each over devices."""

    parts: int = 1
    shards: int = 1

    def rows(self, count: int) -> int:
        """So many, and those that are empty."""
        each = -(-count // self.parts)
        return -(-each // self.shards) * self.shards * self.parts

    def of(self, indices: np.ndarray) -> np.ndarray:
        """The rows, and as many empty ones at the end of each part as devices need: what is in a part, and where, does
        not depend on them."""
        parts = _filled(indices, self.parts).reshape(self.parts, -1, indices.shape[1])
        return np.concatenate([_filled(part, self.shards) for part in parts])


WHOLE = Cut()


@dataclass(frozen=True)
class PackedTexts(Masked):
    """A split of `Ragged` texts. An index is of a row and a place in it: [rows, most], `PADDING` for none.

    Attributes:
        base: the layout of the texts.
        shape: of batches.
        cut: how the rows of a batch of training are cut.
    """

    base: Ragged
    shape: Shape
    cut: Cut = WHOLE
    kind: ClassVar[str] = "packed texts"

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of a batch of training: its rows, their length, and the texts that there are places for."""
        rows = self.cut.rows(self.shape.rows)
        return rows, self.shape.length, rows * self.shape.most

    def training_plan(self, columns: Columns, *, batch_size: int, seed: int, frozen: bool = False) -> RowPlan:
        texts = self.base.training_plan(columns, batch_size=batch_size, seed=seed, frozen=frozen)
        return RowPlan(texts, self.shape, self.cut)

    def evaluation_plan(self, columns: Columns, *, batch_size: int | None, shards: int) -> RowEvaluationPlan:
        return RowEvaluationPlan(
            *_whole(self.base.lengths(columns), batch_size, self.shape), self.shape, Cut(1, shards)
        )

    def gather(self, columns: Arrays, indices: Indices, length: int | None, xp: ModuleType = np) -> dict[str, Any]:
        """`inputs` int32 [rows, length of a row], 0 where a place only pads. All else is [rows x most, ...], by row:
        `lengths` int32, 0 where there is no text; `mask` float32, 0 there; and the columns of the texts."""
        rows, most = indices.shape
        flat = indices.reshape(-1)
        real, texts = flat >= 0, xp.maximum(flat, 0)
        starts = columns["offsets"][texts]
        lengths = xp.where(real, columns["offsets"][texts + 1] - starts, 0).astype(xp.int32)
        ends = xp.cumsum(lengths.reshape(rows, most), 1)
        place = xp.arange(self.shape.length)
        text = xp.sum(place[:, None] >= ends[:, None], -1)
        inside = text < most
        shifts = starts.reshape(rows, most) - ends + lengths.reshape(rows, most)  # from a place to that of the token
        where = xp.take_along_axis(shifts, xp.minimum(text, most - 1), 1) + place
        tokens = columns["inputs"][xp.where(inside, where, 0)]
        batch = {"inputs": xp.where(inside, tokens, 0).astype(xp.int32)}
        batch |= {"lengths": lengths, "mask": real.astype(xp.float32)}
        return {**batch, **{name: columns[name][texts] for name in columns if name not in ("inputs", "offsets")}}


@dataclass
class RowPlan:
    """The batches of a training split of texts.

    Attributes:
        texts: which ones make up a window.
        shape: of batches.
        cut: how their rows are cut.
    """

    texts: LengthPlan
    shape: Shape
    cut: Cut = WHOLE
    _number: int = field(default=-1, repr=False)
    _batches: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """Here: how many rows; more than these only where a batch has no room in them, see `Shape`."""
        return (self.cut.rows(self.shape.rows),)

    def batch(self, position: int) -> tuple[np.ndarray, int]:
        """The batch at a position: indices int32 [rows, most], and the number of rows."""
        number, offset = divmod(position, self.texts.span)
        if number != self._number:
            self._number, self._batches = number, self._draw(number)
        indices = self._batches[offset // self.texts.batch_size]
        return indices, len(indices)

    def _draw(self, number: int) -> list[np.ndarray]:
        batches, found = _dealt(self.texts, number), []
        rows = in_rows(self.texts.sizes[batches], self.shape)
        for place in permutation(len(batches), self.texts.stream.seed, _SHUFFLE, number):
            found.append(self.cut.of(_placed(batches[place], rows[place], self.shape)))
        return found


@dataclass(frozen=True)
class RowEvaluationPlan:
    """Every text exactly once.

    Attributes:
        texts: of each batch, int [batches, texts], PADDING where there are no more.
        found: the row of each.
        shape: of batches.
        cut: how their rows are cut.
    """

    texts: np.ndarray
    found: np.ndarray
    shape: Shape
    cut: Cut

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Triples (indices int32 [rows, most], mask float32 [rows x most], the number of rows)."""
        for texts, found in zip(self.texts, self.found, strict=True):
            indices = self.cut.of(_placed(texts, found, self.shape))
            yield indices, (indices.reshape(-1) >= 0).astype(np.float32), len(indices)


def packed(
    layout: Layout, columns: Columns, batch_size: int, seed: int, frozen: bool = False, cut: Cut = WHOLE
) -> Layout:
    """The layout of training batches of texts, which share rows where that leaves less to compute; arguments as those
    of `Layout.training_plan`."""
    if not isinstance(layout, Ragged) or layout.token_columns != ("inputs",):
        return layout
    shape = shape_for(layout.training_plan(columns, batch_size=batch_size, seed=seed, frozen=frozen))
    return layout if shape is None else PackedTexts(layout, shape, cut)


def told(layout: Layout, batch_size: int) -> str:
    """How batches of training are made up, as a line."""
    if not isinstance(layout, PackedTexts):
        return "recipe.bucketing.pack: each text has a row of its own, for sharing would leave no less to compute"
    rows, length, _ = layout.sizes
    return f"recipe.bucketing.pack: {batch_size} texts a batch share {rows} rows of {length} tokens"


def shape_for(plan: LengthPlan) -> Shape | None:
    """The shape of rows in which batches of these texts cost least; None where texts that are padded cost no more."""
    batch_size = plan.batch_size
    if batch_size > _LARGEST:
        return None
    most, windows = max(1, _TEXTS // batch_size), max(1, min(_WINDOWS, _TEXTS // plan.span))
    sizes = np.concatenate([plan.sizes[_dealt(plan, number)[:most]] for number in range(windows)])
    longest = max(int(plan.sizes.max(initial=1)), 1)
    step = max(MULTIPLE, longest // _TRIED // MULTIPLE * MULTIPLE)
    first = -(-longest // MULTIPLE) * MULTIPLE
    shapes = [_shape(sizes, length) for length in range(first, 2 * first, step)]
    devices = math.gcd(max(1, batch_size // 4), _DEVICES)
    shared = [dataclasses.replace(shape, rows=Cut(1, devices).rows(shape.rows)) for shape in shapes]
    least, best = (min(some, key=lambda shape: shape.cost) for some in (shapes, shared))
    best = best if best.cost < _DEARER * least.cost else least
    padded = [plan.batch(at * batch_size)[1] for at in range(len(sizes))]
    cost = np.mean([Shape(batch_size, length, 1).cost for length in padded])
    return best if best.cost < cost else None


def evaluated(layout: Layout, columns: Columns, batch_size: int | None) -> Layout:
    """The layout of batches that score texts, which share rows where that leaves less to compute.

    Args:
        layout, columns: of the split.
        batch_size: texts a batch; None for many.
    """
    if not isinstance(layout, Ragged) or layout.token_columns != ("inputs",):
        return layout
    sizes = layout.lengths(columns)
    longest = max(layout.edges[-1], int(sizes.max(initial=1)))
    length = -(-longest // MULTIPLE) * MULTIPLE
    texts, found = _whole(sizes, batch_size, Shape(1, length, len(sizes)))
    rows, most = int(found.max(initial=0)) + 1, _most(found)
    # Rounded up, so that other splits may have the same.
    shape = Shape(-(-rows // _ROWS) * _ROWS, length, -(-most // MULTIPLE) * MULTIPLE)
    padded = layout.evaluation_plan(columns, batch_size=batch_size, shards=1).batches()
    cost = sum(Shape(len(mask), length, 1).cost for _, mask, length in padded)
    return PackedTexts(layout, shape) if len(texts) * shape.cost < cost else layout


def _whole(sizes: np.ndarray, batch_size: int | None, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """The texts of the batches of a whole split, PADDING where there are no more, and their rows."""
    count = len(sizes)
    each = evaluation_batch_size(count, batch_size, LARGEST_BATCH, 1)
    batches = -(-count // each)
    sizes = np.concatenate([sizes, np.full(batches * each - count, PADDING, sizes.dtype)])
    texts = deal(sizes, batches)
    return np.where(texts < count, texts, PADDING), fit(sizes[texts], shape.length, shape.most)


def _shape(sizes: np.ndarray, length: int) -> Shape:
    """The least that batches of texts of these sizes, int [batches, each], have room in, of rows of this length."""
    plain = fit(sizes, length, sizes.shape[1])
    for rows in itertools.count(-(-int(sizes.sum(1).max()) // length)):
        found = _otherwise(plain, sizes, Shape(rows, length, sizes.shape[1]))
        if found.max() < rows:
            break
    return Shape(rows, length, _most(found))


def _most(found: np.ndarray) -> int:
    """Of the rows [batches, each] that things are in, how many things one has."""
    batches, each = found.shape
    return int(np.bincount((np.arange(batches)[:, None] * each + found)[found >= 0], minlength=1).max())


def _dealt(plan: LengthPlan, number: int) -> np.ndarray:
    """The texts of the batches of a window, int [batches, batch_size], each batch's longest first."""
    indices = plan.drawn(number)
    return indices[deal(plan.sizes[indices], plan.window)]


def deal(sizes: np.ndarray, batches: int) -> np.ndarray:
    """Deal things to so many batches of equally many, so that they have about equal sums.

    In turns: each batch gets one of the largest that are left, the batch with the smallest sum the largest of them (the
    rule "longest processing time first" of Graham 1969, for equal counts).

    Args:
        sizes: of the things, int [batches x each].

    Returns:
        Places of the things, int [batches, each], the largest of a batch first.
    """
    order = np.argsort(-sizes, kind="stable").reshape(-1, batches)
    sums, found = np.zeros(batches, np.int64), np.empty((batches, len(order)), np.int64)
    for turn, things in enumerate(order):
        lightest = np.argsort(sums, kind="stable")
        found[lightest, turn] = things
        sums[lightest] += sizes[things]
    return found


def fit(sizes: np.ndarray, length: int, most: int) -> np.ndarray:
    """The row of each thing by best-fit decreasing, in many batches at once.

    Args:
        sizes: int [batches, each], descending in a batch, none above `length`; PADDING for none.
        length: of a row.
        most: things in a row.

    Returns:
        int [batches, each], from 0 on; PADDING for none.
    """
    batches, each = sizes.shape
    every = np.arange(batches)
    room, left = np.full((batches, each), length), np.full((batches, each), most)
    found = np.empty((batches, each), np.int64)
    opened = 0
    for turn in range(each):
        size = sizes[:, turn]
        spare = np.where(left[:, : opened + 1] > 0, room[:, : opened + 1] - size[:, None], -1)
        row = np.where(spare >= 0, spare, length + 1).argmin(1)  # of equal ones the first, so none is opened in vain
        real = size >= 0
        found[:, turn] = np.where(real, row, PADDING)
        opened = max(opened, min(int(found[:, turn].max()) + 1, each - 1))
        room[every, row] -= np.where(real, size, 0)
        left[every, row] -= real
    return found


def in_rows(sizes: np.ndarray, shape: Shape) -> np.ndarray:
    """The row of each thing, as `fit` has it; where these are more than there are, in another order if that helps."""
    return _otherwise(fit(sizes, shape.length, shape.most), sizes, shape)


def _otherwise(rows: np.ndarray, sizes: np.ndarray, shape: Shape) -> np.ndarray:
    found, each = rows.copy(), sizes.shape[1]
    tried, unfit = max(1, _ORDERS // each), np.flatnonzero(found.max(1) >= shape.rows)
    for place in unfit if len(unfit) <= max(1, len(sizes) // 2) else ():
        noise = mix(np.uint64(_SHUFFLE), np.arange(tried * each, dtype=np.uint64)).reshape(tried, each)
        orders = np.argsort(-sizes[place] * (1 + _NOISE * (noise / 2.0**64)), kind="stable")
        rows = fit(sizes[place][orders], shape.length, shape.most)
        fitting = np.flatnonzero(rows.max(1) < shape.rows)
        if len(fitting):
            found[place, orders[fitting[0]]] = rows[fitting[0]]
    return found


def _placed(texts: np.ndarray, rows: np.ndarray, shape: Shape) -> np.ndarray:
    """The texts of a batch by row, [rows, most]; more rows than the shape's where it has no room in these."""
    texts, rows = texts[rows >= 0], rows[rows >= 0]
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=shape.rows)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((shape.room(len(counts)), shape.most), PADDING, texts.dtype)
    found[rows[order], places] = texts[order]
    return found


def _filled(indices: np.ndarray, multiple: int) -> np.ndarray:
    """Rows, and empty ones up to a multiple."""
    more = -len(indices) % multiple
    return np.concatenate([indices, np.full((more, *indices.shape[1:]), PADDING, indices.dtype)])
