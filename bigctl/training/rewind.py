"""Back to a checkpoint after a bad step, and on with other batches (`train.divergence.policy=rewind`)."""

from __future__ import annotations

import logging

from bigctl.config.schema import Divergence
from bigctl.errors import Diverged, RunError
from bigctl.training.checkpoints.store import Checkpoints, Saved
from bigctl.training.divergence import HINT, describe
from bigctl.training.state import Progress, TrainState

log = logging.getLogger("bigctl.train")


def set_anchor(progress: Progress, *, best: bool) -> None:
    """The checkpoint that is being saved, or was resumed from, is the one to rewind to from now on.

    Only checkpoints at the multiples of `checkpoint.every` are: one that is saved because someone asked to stop must
    not change what becomes of the run.
    """
    progress.anchors = [progress.step]
    if best and progress.best_step is not None:
        progress.anchors.append(progress.best_step)
    progress.rewound = 0


def rewind(
    rule: Divergence, checkpoints: Checkpoints, abstract: TrainState, progress: Progress, bad: int
) -> tuple[TrainState, Progress]:
    """The state of the checkpoint to rewind to, and its progress, but with the position of `progress`.

    Nothing is written: until the next save the disk says that the rewind is yet to come, so a run that is killed here
    takes the same steps again and gets to the same rewind.

    Args:
        rule: the configuration.
        checkpoints: of the run.
        abstract: shapes and placements of the state.
        progress: as it is at the event where the bad step was noticed, past its batch.
        bad: that step.

    Raises:
        Diverged: if that has been tried often enough, or no checkpoint can be read.
    """
    anchor = progress.anchors[0]
    if progress.rewound >= rule.limit:
        raise Diverged(f"{describe(rule, bad)}, after {progress.rewound} rewinds to step {anchor}", hint=HINT)
    checkpoints.wait()
    saved = _newest(checkpoints, anchor)
    if saved is None:
        raise Diverged(f"{describe(rule, bad)}, and there is no checkpoint to rewind to", hint=HINT)
    state = checkpoints.restore(saved, abstract)
    checkpoints.clean(after=saved.step)  # they are of a past that will not have been
    back = saved.progress
    back.passed_over += progress.position - back.position
    back.position, back.rewinds, back.rewound = progress.position, progress.rewinds + 1, progress.rewound + 1
    back.anchors = progress.anchors if saved.step == anchor else [saved.step]
    return state, back


def _newest(checkpoints: Checkpoints, anchor: int) -> Saved | None:
    for step in reversed([step for step in checkpoints.group.first(checkpoints.steps) if step <= anchor]):
        try:
            return checkpoints.find(step)
        except RunError as error:
            log.warning("checkpoint passed over: %s", error)
    return None
