"""What must be beaten: the scores of a cheap answer to the same data, as they are kept beside it. Free of jax.

They are computed by `bigctl baseline` and `bigctl train --baseline` alone; whoever shows a score looks here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from bigctl.cache_root import cache_root
from bigctl.errors import DataError
from bigctl.files import write_json
from bigctl.runs import untrusted

_FOLDER = re.compile(r"(?P<plain>[\w.-]{1,60}-[0-9a-f]{16})(-[0-9a-f]{8})*")


class Baseline(TypedDict):
    """The best of the cheap answers.

    Attributes:
        name: what it is, in words.
        metrics: of the validation and the test split, flat and named as those of a run.
        selected_by: the metric by which it is the best.
        seconds: that it took to train and score all of them.
        all: each of them, with `name`, `metrics`, `binary` and `seconds`.
        binary: of two classes, the metrics about one of them by its name; those of the positive one are in `metrics`.
            A file of before there were any has none.
    """

    name: str
    metrics: dict[str, float]
    selected_by: str
    seconds: float
    all: list[dict[str, Any]]
    binary: NotRequired[dict[str, dict[str, float]]]


def place(prepared: str, *, stream: bool) -> Path | None:
    """Where the baseline of prepared data is kept: in the folder of its plain form, whatever tokens were made of it.

    Args:
        prepared: the name of a folder of prepared data.
        stream: whether it is one long text.
    """
    found = _FOLDER.fullmatch(prepared)
    if found is None:
        return None
    return cache_root() / "data" / found["plain"] / ("baseline-stream.json" if stream else "baseline.json")


def read(prepared: str, *, stream: bool) -> Baseline | None:
    """The baseline of prepared data, None where it has not been computed, or cannot be read."""
    file = place(prepared, stream=stream)
    if file is None or not file.is_file():
        return None
    try:
        found = untrusted.read(file, untrusted.BASELINE)
    except (OSError, ValueError):
        return None
    return cast(Baseline, found) if found.keys() >= Baseline.__required_keys__ else None


def about(baseline: Baseline, positive: str | None) -> Baseline:
    """A baseline whose metrics include those of the positive class.

    Args:
        baseline: as it is kept.
        positive: of two classes; None for the second.
    """

    def told(metrics: Mapping[str, float], binary: Mapping[str, dict[str, float]] | None) -> dict[str, float]:
        binary = binary or {}
        name = next(reversed([*binary]), "") if positive is None else positive
        return {**metrics, **binary.get(name, {})}

    answers = [{**each, "metrics": told(each.get("metrics") or {}, each.get("binary"))} for each in baseline["all"]]
    return {**baseline, "metrics": told(baseline["metrics"], baseline.get("binary")), "all": answers}


def of_run(record: Mapping[str, Any], summary: Mapping[str, Any], positive: str | None = None) -> Baseline | None:
    """The baseline of a run's data: as its summary has it, else as it is by now.

    Args:
        record: its run.json.
        summary: its summary.json, or nothing.
        positive: the class of its binary metrics, where the summary does not say it.
    """
    if summary.get("baseline"):
        found = summary["baseline"]
        return cast(Baseline, found) if found.keys() >= Baseline.__required_keys__ else None
    data = record.get("data") or {}
    if not data.get("prepared"):  # a run that older versions made
        return None
    found = read(data["prepared"], stream=(data.get("features") or {}).get("kind") == "stream")
    return None if found is None else about(found, summary.get("positive") or positive)


def write(file: Path, baseline: Baseline) -> None:
    """Raises DataError where there is no room for it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, baseline)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", where=str(file)) from error


def beside(
    baseline: Baseline, metrics: Mapping[str, Any], selected_by: object
) -> list[tuple[str, float, float | None]]:
    """The metrics to show: name, that of the baseline, and that of a run, of which it may be None.

    They are what the baseline was chosen by, on validation and test, and after that what the run was selected by where
    it is something else.
    """
    measures = [str(name).partition("/")[2] for name in (baseline["selected_by"], selected_by)]
    names = [f"{split}/{measure}" for measure in dict.fromkeys(measures) for split in ("val", "test")]
    return [(name, baseline["metrics"][name], metrics.get(name)) for name in names if name in baseline["metrics"]]


def lines(baseline: Baseline, metrics: Mapping[str, Any], selected_by: object) -> list[str]:
    """For people: what the baseline is, and each of its scores beside that of the run."""
    scores, name = parts(baseline, metrics, selected_by)
    return [f"baseline: {'; '.join(scores)}", f"  {name}"] if scores else []


def parts(baseline: Baseline, metrics: Mapping[str, Any], selected_by: object) -> tuple[list[str], str]:
    """Each score in words, and what the baseline is."""
    scores = [
        f"{name} {value:.4f}" + ("" if own is None else f" (this run {own:.4f}, {own - value:+.4f})")
        for name, value, own in beside(baseline, metrics, selected_by)
    ]
    return scores, baseline["name"]
