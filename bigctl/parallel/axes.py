"""The axes of a mesh, as data: which of them share the batch, and which parameters each of them cuts where.

A new axis is one entry in `AXES` with its rules, and its size as a key of `schema.Mesh`, in the same order. The
outermost axis comes first: the further in, the more its devices talk, and neighbours are connected best.

Over `tensor` the layers of a transformer are cut as in Megatron (Shoeybi et al. 2019): what makes the heads, and the
wide part of an MLP, by its outputs, what reads them by its inputs, so that devices add up once after either; embedding
and output by the vocabulary. `fsdp` cuts another dimension of the same parameters. Over `expert` each device has some
of the experts, and examples of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bigctl.config import schema

Shape = tuple[int, ...]
Rule = tuple[str, Callable[[Shape, int], int | None]]
"""Which paths, and (shape, shards) -> the dimension that is cut; None where every device holds all of it."""


def whole(shape: Shape, shards: int) -> int | None:
    """Every device holds all of it."""
    return None


def largest_dimension(shape: Shape, shards: int) -> int | None:
    """The longest dimension that `shards` divides, the last one on a tie; whole where none is divisible."""
    fitting = [(size, dimension) for dimension, size in enumerate(shape) if size % shards == 0]
    return max(fitting)[1] if fitting else None


def first_dimension(shape: Shape, shards: int) -> int | None:
    """Rows or inputs; whole where they are not divisible."""
    return None if shape[0] % shards else 0


def last_dimension(shape: Shape, shards: int) -> int | None:
    """Outputs; whole where they are not divisible."""
    return None if shape[-1] % shards else len(shape) - 1


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh.

    Attributes:
        name: also the key of `schema.Mesh` with its size.
        rules: what it cuts of the state; the first one whose pattern is found in a path decides.
        skips_small: whether leaves of fewer than `mesh.min_shard` elements stay whole: to cut them would cost more
            messages than it saves memory.
        cuts_stacks: whether of a leaf that holds several parameters in one (`schema.Model.stacked`) it shares out the
            parameters, and the shape that its rules are told is that of the stack alone; other axes cut each parameter.
    """

    name: str
    rules: tuple[Rule, ...]
    skips_small: bool = False
    cuts_stacks: bool = False

    def dimension(self, path: str, shape: Shape, shards: int) -> int | None:
        """The dimension of a leaf that this axis cuts. Raises ValueError where no rule is for the path."""
        for pattern, place in self.rules:
            if re.search(pattern, path):
                return place(shape, shards)
        raise ValueError(f"no rule of the axis {self.name} is for {path!r}")


AXES = (
    Axis("dcn", rules=((r".*", whole),)),
    Axis("data", rules=((r".*", whole),)),
    Axis(
        "fsdp",
        skips_small=True,
        rules=(
            (r"(^|/)(step|bad_step|(sums|anomaly_state)/.*)$", whole),
            (r"(^|/)(bias|scale|mean|var|count)$", whole),
            (r".*", largest_dimension),
        ),
    ),
    Axis("context", rules=((r".*", whole),)),
    Axis(
        "tensor",
        rules=(
            (r"(^|/)attention/(query|key|value)/(kernel|bias)$", last_dimension),
            (r"(^|/)attention/output/kernel$", first_dimension),
            (r"(^|/)layers/(\d+/)?(experts/)?(up|gate)/(kernel|bias)$", last_dimension),
            (r"(^|/)layers/(\d+/)?(experts/)?down/kernel$", first_dimension),
            (r"(^|/)token/embedding$", first_dimension),
            (r"(^|/)head/kernel$", last_dimension),
            (r".*", whole),
        ),
    ),
    Axis(
        "expert",
        cuts_stacks=True,
        rules=((r"(^|/)experts/(up|gate|down)/(kernel|bias)$", last_dimension), (r".*", whole)),  # of [layers, experts]
    ),
)
NAMES = tuple(axis.name for axis in AXES)
BATCH_AXES = schema.Mesh.batch_axes()
"""The axes whose devices have different examples."""
FAR = "dcn"
"""The axis over which only gradients are sent."""
TOKEN_AXES = (*BATCH_AXES, "context")
"""The axes whose devices have different tokens, of a text too."""
