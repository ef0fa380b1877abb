"""Pictures that grow in the course of training: seen small at first, whole in the end (progressive resizing).

The side that a batch is seen at is a function of its position, and the `length` that it is gathered with, so there is a
program for each side, and a resumed run goes on with the same ones.
"""

from __future__ import annotations

from dataclasses import replace

from bigctl.data.layouts.layout import Layout, Stages
from bigctl.data.layouts.rows import Rows
from bigctl.data.layouts.streamed import Streamed
from bigctl.data.pictures.scaling import scaled_size


def grown(layout: Layout, stages: Stages) -> Layout:
    """The layout whose training batches are seen at these sides."""
    return replace(layout, stages=stages) if stages and isinstance(layout, Rows | Streamed) else layout


def told(stages: Stages, batch_size: int, shape: tuple[int, ...]) -> list[str]:
    """What sides training sees its pictures at, as a line; none where it sees them whole.

    Args:
        stages: as the layout has them.
        batch_size: examples a step.
        shape: of a whole picture: (height, width, ...) [pixels].
    """
    if not stages:
        return []
    sizes = [(*scaled_size((shape[0], shape[1]), side), until // batch_size) for until, side in stages]
    parts = ", ".join(f"{height} x {width} pixels up to step {step:,}" for height, width, step in sizes)
    return [f"recipe.augment.sizes: {parts}, then {shape[0]} x {shape[1]}"]
