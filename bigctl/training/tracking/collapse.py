"""Whether training against one-step attacks has collapsed: catastrophic overfitting (Wong, Rice and Kolter 2020;
Andriushchenko and Flammarion 2020), where a model learns to fool the one step and many steps break it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

ROBUST, CLEAN = "val/robust_accuracy", "val/accuracy"
HALF, LEAST, KEPT, RECOVERED = 0.5, 0.1, 0.8, 0.75
"""A collapse is where the robust accuracy is below this part of its best, by so much at least, while the accuracy
without attack is still so much of its own best: a model that has lost both has diverged. It is over at the last of
these parts of the best."""


class CollapseWatch:
    """A writer of metrics that keeps none: it warns where the robust accuracy has collapsed, once until it recovers.

    Args:
        warn: a sentence for the user.
        before: the lines of a run that is resumed, which are not told of again.
    """

    def __init__(self, warn: Callable[[str], None], before: Iterable[Mapping[str, Any]] = ()):
        self._warn = warn
        self._seen: list[tuple[int, float, float]] = []
        self._collapsed = False
        for line in before:
            self._sees(int(line["step"]), line)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if not self._sees(step, values):
            return
        best = max(self._seen, key=lambda each: each[1])
        self._warn(
            f"catastrophic overfitting: {ROBUST} is {values[ROBUST]:.3f} at step {step:,}, {best[1]:.3f} at step "
            f"{best[0]:,}, while {CLEAN} is {values[CLEAN]:.3f}: the model fools the steps it is trained on. "
            f"eval.metric={ROBUST} keeps the weights from before; train.adversarial.method=pgd, more steps or a "
            "smaller learning rate avoid it"
        )

    def cut(self, step: int) -> None:
        seen, self._seen, self._collapsed = self._seen, [], False
        for at, robust, clean in seen:
            if at <= step:
                self._sees(at, {ROBUST: robust, CLEAN: clean})

    def close(self) -> None:
        pass

    def _sees(self, step: int, values: Mapping[str, Any]) -> bool:
        """Take note of an evaluation; whether it is the first that shows a collapse."""
        robust, clean = values.get(ROBUST), values.get(CLEAN)
        if not isinstance(robust, int | float) or not isinstance(clean, int | float):
            return False
        self._seen.append((step, float(robust), float(clean)))
        best, best_clean = (max(each[place] for each in self._seen) for place in (1, 2))
        before = self._collapsed
        if robust < HALF * best and best - robust >= LEAST and clean >= KEPT * best_clean:
            self._collapsed = True
        elif robust >= RECOVERED * best:
            self._collapsed = False
        return self._collapsed and not before
