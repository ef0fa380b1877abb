"""When a sweep ends because none of its trials can begin."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from bigctl.errors import ConfigError
from bigctl.sweeps.search.space import Space
from bigctl.sweeps.trials import COMPLETE, FAILED, PRUNED, Point, State, Study

REFUSED = ConfigError.exit_code
"""Of what the command line, the configuration or the data does not allow: nothing was started."""


def refused(study: Study) -> list[State]:
    """The trials that were refused before they began."""
    return [state for state in study.states.values() if state.status == FAILED and state.exit_code == REFUSED]


def of_all(study: Study, space: Space) -> str | None:
    """Why no trial can begin; None while that is not known.

    The cause lies in what all trials share where two that have no searched value in common were refused alike: by one
    error, word for word. Seeds do not count, since no refusal hangs on chance; where nothing but them differs, any two
    trials are enough. A sweep of which a trial was trained is not judged.
    """
    if any(state.status in (COMPLETE, PRUNED) for state in study.states.values()):
        return None
    keys = [axis.key for axis in space.axes if not axis.values or len(set(axis.values)) > 1]
    folded = len(space.folds) > 1

    def apart(one: State, other: State) -> bool:
        points = one.trial.point, other.trial.point
        return _differ(*points, keys) and not (folded and one.trial.fold == other.trial.fold)

    pairs = itertools.combinations(refused(study), 2)
    return next((one.message for one, other in pairs if one.message == other.message and apart(one, other)), None)


def _differ(one: Point, other: Point, keys: Sequence[str]) -> bool:
    return all(one.get(key) != other.get(key) for key in keys)
