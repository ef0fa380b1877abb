"""The leaderboard as text, printed at the end of a sweep: at most 80 columns. Free of jax."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bigctl.formatting import columns, cut, number, padded
from bigctl.sweeps.trials import label, repeats_text
from bigctl.terminal import escaped

WIDTH = 80
TOP = 10
"""Points that the table shows."""
_EFFECTS, _LOGS, _LONGEST = 8, 3, 24


EPSILON = "privacy/epsilon"


def leaderboard_text(board: Mapping[str, Any]) -> str:
    """The best points, the effect of each key, the Pareto set, failures, the winner, and likely next commands."""
    sections = (_head, _top, _effects, _pareto, _failures, _winner, _privacy, _next)
    blocks = ["\n".join(section(board)) for section in sections]
    return escaped("\n\n".join(block for block in blocks if block))


def _mean(spread: Mapping[str, Any]) -> str:
    return number(spread["mean"]) + (f" ± {number(spread['std'])}" if spread["std"] is not None else "")


# ----------------------------------------------------------------------------------------------------- head and table


def _head(board: Mapping[str, Any]) -> Iterator[str]:
    status, points = dict(board["status"]), board["points"]
    done = status.pop("complete", 0)
    parts = [f"{done:,} of {len(board['trials']):,} trials complete", *(f"{n:,} {name}" for name, n in status.items())]
    yield from _wrapped(f"{board['sweep']}: {', '.join(parts)}")
    if any(point["rank"] for point in points):
        over = f", mean ± standard deviation over {_repeats(board)}" if _wanted(board) > 1 else ""
        best = "highest" if board["mode"] == "max" else "lowest"
        count = f"{len(points):,} point{'s' * (len(points) != 1)}"
        yield from _wrapped(f"{count} by {board['metric']}, the {best} first{over}")
    elif points:
        yield f"no point has a value of {board['metric'] or 'a metric'} yet" if done else "no trial is complete"


def _top(board: Mapping[str, Any]) -> Iterator[str]:
    shown = board["points"][:TOP]
    if not any(point["rank"] for point in shown):
        return
    keys = list(dict.fromkeys(key for point in board["points"] for key in point["point"]))
    names = dict(zip(keys, _short(keys), strict=True))
    fixed = {"rank": [str(point["rank"] or "-") for point in shown]}
    values = {names[key]: [_cut(str(point["point"].get(key, "-"))) for point in shown] for key in keys}
    results = {board["metric"]: [_mean(point) for point in shown], "n": [str(point["n"]) for point in shown]}
    share = {names[effect["key"]]: effect["importance"] or 0.0 for effect in board["effects"]}
    dropped = []
    while values and _width({**fixed, **values, **results}) > WIDTH:
        least = min(reversed(list(values)), key=lambda name: share.get(name, 0.0))
        dropped.append(least)
        del values[least]
    yield from _table({**fixed, **values, **results})
    rest = len(board["points"]) - len(shown)
    more = [f"{rest:,} more points"] * (rest > 0) + [", ".join(reversed(dropped))] * bool(dropped)
    if more:
        yield from _wrapped(f"in leaderboard.csv: {'; '.join(more)}")
    if any(point["rank"] is None and point["n"] for point in shown):
        yield from _wrapped(f"without a rank: {board['metric']} is missing or not finite for some {_repeat(board)}")
    yield from _chance(board)


def _chance(board: Mapping[str, Any]) -> Iterator[str]:
    """A warning where the ranking may be due to seeds or folds."""
    ranked = [point for point in board["points"] if point["rank"]]
    spreads = [point["std"] for point in ranked if point["std"] is not None]
    if len(ranked) < 2 or not spreads:
        return
    repeats, points = statistics.median(spreads), statistics.stdev(point["mean"] for point in ranked)
    if repeats >= points:
        yield from _wrapped(
            f"{_repeat(board)}s differ as much as points do (standard deviation {number(repeats)} and "
            f"{number(points)}): the order may be chance; add seeds to find out"
        )


def _repeat(board: Mapping[str, Any]) -> str:
    """What the trials of one point differ in."""
    return "fold" if board.get("folds") else "seed"


def _repeats(board: Mapping[str, Any]) -> str:
    return repeats_text(len(board["seeds"]), len(board.get("folds") or ()))


def _wanted(board: Mapping[str, Any]) -> int:
    """How many trials a point has."""
    return max(1, len(board["seeds"])) * max(1, len(board.get("folds") or ()))


def _short(keys: Sequence[str]) -> list[str]:
    """The last part of each key, where that is enough to tell them apart."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]


def _table(table: Mapping[str, Sequence[str]]) -> Iterator[str]:
    cells = [[name, *values] for name, values in table.items()]
    widths = [max(map(columns, column)) for column in cells]
    for row in zip(*cells, strict=True):
        yield "  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _width(table: Mapping[str, Sequence[str]]) -> int:
    return sum(max(map(columns, [name, *values])) + 2 for name, values in table.items()) - 2


def _cut(value: str) -> str:
    return cut(value, _LONGEST)


def _wrapped(line: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        line, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- effects, winner


def _effects(board: Mapping[str, Any]) -> Iterator[str]:
    told = [effect for effect in board["effects"] if len(effect["levels"]) > 1]
    told.sort(key=lambda effect: -(effect["importance"] or 0.0))
    slight = [effect["key"] for effect in told if effect["importance"] is not None and effect["importance"] < 0.01]
    told = [effect for effect in told if effect["key"] not in slight]
    intervals = {axis["key"] for axis in board["axes"] if not axis["values"]}
    for effect in told[:_EFFECTS]:
        levels = sorted(effect["levels"], key=lambda level: level["mean"], reverse=board["mode"] == "max")
        uneven = effect["key"] not in intervals and len({level["n"] for level in levels}) > 1
        best, worst = (_level(level, uneven=uneven) for level in (levels[0], levels[-1]))
        alone = len(board["effects"]) == 1 or effect["importance"] is None
        explains = "" if alone else f" explains {100 * effect['importance']:.0f} %"
        yield from _wrapped(f"{effect['key']}{explains}: best {best}, worst {worst}")
    if len(told) > _EFFECTS:
        yield f"and {len(told) - _EFFECTS} more keys in leaderboard.json"
    if slight:
        yield from _wrapped(f"less than 1 %: {', '.join(slight)}")


def _level(level: Mapping[str, Any], *, uneven: bool) -> str:
    """A level, its mean, and if `uneven` over how many trials: levels that lost trials are not quite comparable."""
    return f"{_cut(level['value'])} ({number(level['mean'])}{' of ' + str(level['n']) if uneven else ''})"


def _pareto(board: Mapping[str, Any]) -> Iterator[str]:
    pareto = board["pareto"]
    if pareto is None or not pareto["points"]:
        return
    first, second = pareto["metrics"]
    yield f"no other point is better in {first} and {second}:"
    points = [board["points"][index] for index in pareto["points"]]
    for point in points[:TOP]:
        values = f"{number(point['mean'])}  {number(point['metrics'][second]['mean'])}"
        yield from _wrapped(f"{values}  {label(point['point'])}", "  ")
    if len(points) > TOP:
        yield f"  and {len(points) - TOP} more in leaderboard.json"


def _failures(board: Mapping[str, Any]) -> Iterator[str]:
    """Causes, the most frequent first; messages that differ only in numbers are counted together."""
    causes: dict[str, list[Mapping[str, Any]]] = {}
    for failure in board["failures"]:
        causes.setdefault(re.sub(r"\d+", "#", failure["message"]), []).append(failure)
    for group in sorted(causes.values(), key=len, reverse=True):
        count = "1 trial" if len(group) == 1 else f"{len(group):,} trials"
        yield from _wrapped(f"{count} failed: {group[0]['message'][:400]}")
        for failure in group[:_LOGS]:
            yield f"  {failure['log']}  {failure['label']}".rstrip()
        if len(group) > _LOGS:
            yield f"  and {len(group) - _LOGS:,} more in leaderboard.json"


def _winner(board: Mapping[str, Any]) -> Iterator[str]:
    winner = board["winner"]
    if winner is None:
        return
    wanted = _wanted(board)
    what = "trials" if len(board["seeds"]) > 1 and board.get("folds") else f"{_repeat(board)}s"
    lacking = f" ({winner['n']} of {wanted} {what} complete)" if winner["n"] < wanted else ""
    name = label(winner["point"]) or "the only point"
    yield from _wrapped(f"winner: {name}: {board['metric']} {_mean(winner)}{lacking}")
    if winner["test"]:
        scores = ", ".join(f"{metric} {_mean(spread)}" for metric, spread in winner["test"].items())
        yield from _wrapped(f"its test split, scored once: {scores}")


def _privacy(board: Mapping[str, Any]) -> Iterator[str]:
    """Trials that were trained with differential privacy spend more than one of them says."""
    spent = [point["metrics"][EPSILON] for point in board["points"] if EPSILON in point["metrics"]]
    trials = sum(each["n"] for each in spent)
    if trials > 1:
        together = number(sum(each["mean"] * each["n"] for each in spent))
        yield from _wrapped(
            f"privacy: {EPSILON} is of one training. The {trials:,} trials together spend {together} at most, their "
            "sum, and so does a model that is chosen among them; deltas add up, too"
        )


def _next(board: Mapping[str, Any]) -> Iterator[str]:
    if board["winner"] is not None:
        if board["winner"].get("use"):
            yield "use the winner:"
            yield from (f"  {line}" for line in board["winner"]["use"])
        yield "train the winner again:"
        yield f"  {board['winner']['command']}"
    if board["points"]:
        yield "all curves and plots:"
        yield f"  bigctl report {board['sweep']}"
        yield "  bigctl ui"
    if any(board["status"].get(name) for name in ("waiting", "running", "stopped")):
        yield "not all trials have ended: run the same command again to continue"
    elif board["failures"]:
        yield "to start the failed ones again: the same command with --retry-failed"
