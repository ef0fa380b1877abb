"""What a process that trains one experiment after another keeps for the next: programs that are traced and compiled.

Only an experiment that is the same program takes them over, see `config.numbers`; what is trained is its own, as are
data on the devices, state and files. Nothing is kept in a process that has not asked for it.
"""

from __future__ import annotations

import dataclasses

from bigctl.config.numbers import structure
from bigctl.engine.experiment import Experiment, build_resolved
from bigctl.engine.resolve import Resolved

_keeps = False
_last: Experiment | None = None


def keep() -> None:
    """From here on this process keeps what it built last."""
    global _keeps
    _keeps = True


def built(resolved: Resolved) -> Experiment:
    """As `build_resolved`, with the programs of the experiment before where they are those of this one."""
    global _last
    if not _keeps:
        return build_resolved(resolved)
    before, _last = _last, None
    if before is None or not _is_one_program(before, resolved):
        _last = build_resolved(resolved)
    else:
        programs = before.programs.with_config(resolved.config)
        _last = dataclasses.replace(
            before, config=resolved.config, programs=programs, cadence=resolved.cadence, source=resolved.source
        )
    return _last


def _is_one_program(before: Experiment, resolved: Resolved) -> bool:
    train, total = resolved.config.train, before.programs.step.total_steps
    if train.privacy.on or train.privacy.canaries or train.federated.on or resolved.config.distil.teacher is not None:
        return False  # what they draw, or ask, is not told by the configuration alone
    same_data = before.dataset.fingerprint == resolved.dataset.fingerprint
    return same_data and total == resolved.cadence.total and structure(before.config) == structure(resolved.config)
