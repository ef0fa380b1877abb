"""The line that tells how training goes, fitted to a width: what matters least is left out first.

step 1234/5000  ━━━━━━━━╺━━━━━━━━━━━━━━━  eta 0:32  loss 0.1604  val/accuracy 0.9612  12,345 examples/s  epoch 3.20
step 1234/5000  ━━━━━╺━━━━━━━━━━━━━  eta 0:32  loss 0.1604  val/accuracy 0.9612
step 1234/5000  eta 0:32  loss 0.1604
1234/5000 0:32 0.160
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bigctl.formatting import clock

Piece = tuple[str, str]
"""Text, and how it looks: a style of rich's, empty for plain."""

LABEL, DONE, NOTICE = "dim", "cyan", "yellow"
LEAST_BAR, MOST_BAR = 8, 32
_SHARES = (
    ("perf/mfu", "MFU", ".1%"),
    ("train/padding", "padding", ".0%"),
    ("train/expert_load_max", "most chosen expert", ".0%"),
    ("train/dropped_tokens", "dropped", ".0%"),
)
_RATES = (("perf/tokens_per_s", "tokens/s"), ("perf/examples_per_s", "examples/s"))


@dataclass(frozen=True)
class Standing:
    """What is known of a training at a moment.

    Attributes:
        step, total: updates done, and of how many.
        eta: how long it still takes [s]; None while that is not known.
        values: the latest of each metric.
        metric: the name of what selects the best checkpoint.
        doing: what goes on instead of steps, or besides them; often empty.
    """

    step: int
    total: int
    eta: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    metric: str = ""
    doing: str = ""


def fitted(now: Standing, width: int, *, ascii_only: bool = False) -> list[Piece]:
    """The line in at most so many columns, by priority: step, ETA, loss, what goes on, score, bar, and the rest."""
    named = dict(_fields(now))
    order = [name for name in ("step", "bar", "eta", "loss", "score", *_rest(named), "doing") if name in named]
    kept: set[str] = set()
    for name in [n for n in ("step", "eta", "loss", "doing", "score", "bar", *_rest(named)) if n in named]:
        if _length([named[n] for n in order if n in {*kept, name}]) > width:
            break
        kept.add(name)
    if not {"step", "eta", "loss"} & named.keys() <= kept or ("loss" not in named and "doing" in named.keys() - kept):
        return [(next((text for text in _narrow(now) if len(text) <= width), ""), "")]
    chosen = {name: named[name] for name in order if name in kept}
    if "bar" in chosen:
        room = width - _length(chosen.values()) + LEAST_BAR
        chosen["bar"] = _bar(now, min(room, MOST_BAR), ascii_only)
    pieces: list[Piece] = []
    for parts in chosen.values():
        pieces += [("  ", ""), *parts] if pieces else parts
    return pieces


def text(now: Standing) -> str:
    """All of it as plain text, without the bar."""
    named = dict(_fields(now))
    order = ("step", "eta", "loss", "score", *_rest(named), "doing")
    return "  ".join("".join(part for part, _ in named[name]) for name in order if name in named)


def number(value: float) -> str:
    """Four decimals, or what tells more of a value that is very small or large."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _fields(now: Standing) -> Iterator[tuple[str, list[Piece]]]:
    yield "step", [("step ", LABEL), (f"{now.step}/{now.total}", "")]
    yield "bar", [(" " * LEAST_BAR, "")]
    loss, started = _loss(now), now.eta is not None or "train/loss" in now.values
    if started and now.step < now.total:
        yield "eta", [("eta ", LABEL), ("-:--" if now.eta is None else clock(now.eta), "")]
    if isinstance(loss, str):
        yield "loss", [(loss, NOTICE)]
    elif loss is not None:
        yield "loss", [("loss ", LABEL), (number(loss), "bold")]
    if now.metric in now.values:
        yield "score", [(f"{now.metric} ", LABEL), (number(now.values[now.metric]), "")]
    for name, unit in _RATES:
        if name in now.values:
            yield name, [(f"{now.values[name]:,.0f}", ""), (f" {unit}", LABEL)]
    if "epoch" in now.values:
        yield "epoch", [("epoch ", LABEL), (f"{now.values['epoch']:.2f}", "")]
    for name, label, pattern in (*_SHARES, ("privacy/epsilon", "epsilon", ".3f")):
        if name in now.values:
            yield name, [(f"{label} ", LABEL), (f"{now.values[name]:{pattern}}", "")]
    if now.doing:
        yield "doing", [(now.doing, NOTICE)]


def _loss(now: Standing) -> float | str | None:
    """The last loss of training, or why there is none."""
    loss = now.values.get("train/loss")
    if loss is not None and math.isnan(loss) and now.values.get("train/clients") == 0:
        return "no client answered"
    return loss


def _rest(named: Mapping[str, object]) -> list[str]:
    return [name for name in named if name not in ("step", "bar", "eta", "loss", "score", "doing")]


def _length(fields: Iterable[list[Piece]]) -> int:
    fields = list(fields)
    return sum(len(text) for parts in fields for text, _ in parts) + 2 * (len(fields) - 1)


def _bar(now: Standing, width: int, ascii_only: bool) -> list[Piece]:
    full, edge, empty = ("=", ">", "-") if ascii_only else ("━", "╸", "─")
    done = min(width, width * now.step // max(1, now.total))
    head = edge if 0 < done < width else ""
    return [(full * (done - len(head)) + head, DONE), (empty * (width - done), LABEL)]


def _narrow(now: Standing) -> Iterator[str]:
    """Without words, ever shorter: the step goes last."""
    step, loss = f"{now.step}/{now.total}", _loss(now)
    timed = [step, *([] if now.eta is None else [clock(now.eta)])]
    if isinstance(loss, str):
        yield " ".join([*timed, loss])
    elif loss is not None:
        for digits in (4, 3, 2):
            yield " ".join([*timed, f"{loss:.{digits}f}" if 0.01 <= abs(loss) < 1e4 else f"{loss:.0e}"])
    elif now.doing:
        yield f"{step} {now.doing}"
        yield now.doing
    yield " ".join(timed)
    yield step
    yield f"{now.step / max(1, now.total):.0%}"


class Pace:
    """How long the rest takes, by how long the last steps took.

    Args:
        step: where training begins, or goes on.
    """

    def __init__(self, step: int):
        self._marks: deque[tuple[int, float]] = deque(maxlen=32)
        self._step = step

    def mark(self, step: int, now: float) -> None:
        """So many steps are done at a time of a clock [s]."""
        if step > (self._marks[-1][0] if self._marks else self._step):
            self._marks.append((step, now))

    def cut(self, step: int) -> None:
        """Training has gone back there."""
        self._marks.clear()
        self._step = step

    def remaining(self, total: int, now: float) -> float | None:
        """Until the last step [s]; None while too little is known."""
        if len(self._marks) < 2:
            return None
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return max(0.0, (total - last) * (ended - began) / (last - first) - (now - ended))
