"""What `bigctl eval` has found out about a run beyond its metrics, as tables and figures of its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bigctl.inference import kept
from bigctl.reports.plots import Figure, shown
from bigctl.runs import untrusted
from bigctl.runs.directory import RunDirectory


@dataclass(frozen=True)
class Table:
    """A table with what is said of it."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and what it shows."""

    image: str
    caption: str


@dataclass(frozen=True)
class Trust:
    """What a page shows of `assessment.json`."""

    step: int
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def of_run(run: RunDirectory) -> Trust | None:
    """Of a run that has been assessed. Raises ValueError and the like for a file that is none of ours."""
    if not run.assessment.exists():
        return None
    read = untrusted.read(run.assessment, kept.SHAPE)
    found, trust = read["found"], Trust(int(read["step"]))
    trust.tables.extend(_slices(each) for each in found.get("slices", ()))
    if told := found.get("ood"):
        trust.tables.append(_ood(told))
    return trust


def _slices(found: Mapping[str, Any]) -> Table:
    main = str(found["headline"])
    rows = []
    for each in found["slices"]:
        low, high = each["intervals"].get(main) or (float("nan"), float("nan"))
        rows.append(
            [str(each["name"]), f"{int(each['count']):,}", shown(float(each["metrics"][main])),
             f"{shown(float(low))} to {shown(float(high))}", shown(float(each["p"]))]
        )  # fmt: skip
    worse = ", ".join(map(str, found["worse"]))
    said = f"worse than the other examples: {worse}" if worse else "none is worse than the other examples"
    caption = f"{main} of all: {shown(float(found['whole']))}; {said} (p < 0.05, corrected for {len(rows)} slices)"
    return Table(f"By {found['by']}", f"{caption}.", ["slice", "examples", main, "95% interval", "p"], rows)


def _ood(found: Mapping[str, Any]) -> Table:
    names = ("auroc", "fpr95", "threshold", "flagged", "own_flagged")
    rows = [[str(each["score"]), *(shown(float(each[name])) for name in names)] for each in found["scores"]]
    caption = (
        f"{int(found['count']):,} examples of {found['data']} beside {int(found['own_count']):,} of {found['split']}; "
        "thresholds let 95% of the validation examples pass."
    )
    header = ["score", "AUROC", "FPR at 95%", "threshold", "flagged", "own flagged"]
    return Table("Examples from elsewhere", caption, header, rows)
