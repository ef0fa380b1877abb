"""Whether two runs are the same run, to the last bit: checkpoints, metrics, samples, batches, and what came out."""

from __future__ import annotations

from collections.abc import Iterator

from bigctl.errors import RunError
from bigctl.runs import comparison
from bigctl.runs.comparison import Comparison
from bigctl.runs.directory import RunDirectory
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints, Saved

_PARTS = {
    "params": "parameters",
    "opt_state": "optimizer state",
    "ema": "averaged weights",
    "variables": "variables",
    "sums": "metric sums",
    "guard": "divergence guard",
}


def compare_runs(expected: RunDirectory, found: RunDirectory) -> list[Comparison]:
    """Everything that must be equal, each with its first difference."""
    results: list[Comparison] = []
    for which in ("last", "best"):
        results += _checkpoints(which, expected, found)
    files = {
        "metrics.jsonl": (expected.metrics, found.metrics),
        "samples.jsonl": (expected.samples, found.samples),
        "batches.jsonl": (expected.batches, found.batches),
    }
    for what, (a, b) in files.items():
        if a.exists() or b.exists():
            results.append(comparison.compare_lines(what, comparison.lines(a), comparison.lines(b)))
    summaries = comparison.summary_of(expected), comparison.summary_of(found)
    return [*results, comparison.compare_values("summary.json", *summaries)]


def _checkpoints(which: str, expected: RunDirectory, found: RunDirectory) -> Iterator[Comparison]:
    name = f"{which} checkpoint"
    a, b = (_saved(run, which) for run in (expected, found))
    if a is None and b is None:
        return
    if isinstance(a, RunError) or isinstance(b, RunError) or a is None or b is None:
        said = "; ".join(
            "there is none" if side is None else str(side) for side in (a, b) if not isinstance(side, Saved)
        )
        yield Comparison(name, difference=said)
        return
    yield comparison.compare_values(f"{name}: progress", a.meta, b.meta)
    arrays_a, arrays_b = (read_arrays(saved.path, list(saved.meta["shapes"]), dtype=None) for saved in (a, b))
    parts = {_part(path) for path in (*arrays_a, *arrays_b)}
    for part in sorted(parts):
        sides = ({path: value for path, value in side.items() if _part(path) == part} for side in (arrays_a, arrays_b))
        yield comparison.compare_arrays(f"{name}: {part}", *sides)


def _saved(run: RunDirectory, which: str) -> Saved | RunError | None:
    store = Checkpoints(run.checkpoints, warn=lambda text: None)
    try:
        if which == "best" and not store.has_best():
            return None
        return store.find(which)
    except RunError as error:
        return error


def _part(path: str) -> str:
    return _PARTS.get(path.split("/")[0], "counters")
