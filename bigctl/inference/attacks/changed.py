"""Accuracy of a run on inputs that are changed by no attacker: `--robust corruptions` and `--robust text`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigctl.errors import ConfigError
from bigctl.inference import assess
from bigctl.inference.attacks import corruptions, text_changes
from bigctl.inference.attacks.threat import WHERE
from bigctl.inference.attacks.trained_runs import examples
from bigctl.inference.measured import require_classes
from bigctl.inference.slices import wilson
from bigctl.inference.trained import TrainedRun
from bigctl.training.task import Record

CHANGED = ("text", "corruptions")


def under_corruptions(trained: TrainedRun, split: str, *, count: int = 200, seed: int = 0) -> Record:
    """Accuracy under each corruption and severity, as JSON. Raises ConfigError for a run of no pictures or classes."""
    require_classes(trained, WHERE)
    if trained.features.kind != "image":
        raise ConfigError("corruptions are of pictures", where=WHERE, hint=_instead(trained))
    if trained.features.shape[-1] not in (1, 3):
        raise ConfigError("the pictures are neither grey nor coloured", where=WHERE, hint="leave it out")
    x, labels, _ = examples(trained, trained.data(), split, count)
    images = np.round(x * 255).astype(np.uint8)
    before = _predicted(trained, images)
    rows = []
    for name in corruptions.names():
        for severity in corruptions.SEVERITIES:
            after = _predicted(trained, corruptions.corrupted(images, name, severity, seed))
            rows.append({"name": name, "severity": severity, **_told(before, after, labels)})
    return _described("corruptions", split, seed, before, labels, rows)


def under_text_changes(
    trained: TrainedRun, split: str, *, count: int = 200, seed: int = 0, checklist: Path | None = None
) -> Record:
    """Accuracy under each change of texts, as JSON; of pairs both texts are changed.

    Raises:
        ConfigError: for a run of no texts, or no class; for a checklist that is none.
    """
    require_classes(trained, WHERE)
    if trained.features.kind != "text":
        raise ConfigError("the examples are no texts", where=WHERE, hint=_instead(trained))
    changes = text_changes.usual() | ({} if checklist is None else text_changes.checklist(checklist))
    data = trained.data()
    whole = data.size(split)
    places = np.unique(np.linspace(0, whole - 1, min(whole, count)).astype(int)).tolist()
    texts = [[each[place] for each in data.texts[split]] for place in places]
    labels = np.asarray(data.splits[split]["label"])[places]
    before = _predicted(trained, _given(texts))
    rows: list[Record] = []
    for name, change in changes.items():
        rng = np.random.default_rng(seed)
        moved = [[change(text, rng) for text in parts] for parts in texts]
        some = [n for n, parts in enumerate(moved) if parts != texts[n] and all(text.strip() for text in parts)]
        if not some:
            rows.append({"name": name, "count": 0})
            continue
        after = before.copy()
        after[some] = _predicted(trained, _given([moved[n] for n in some]))
        row = {"name": name, "count": len(some), **_told(before[some], after[some], labels[some])}
        broken = [n for n in some if after[n] != before[n]]
        if broken:
            row["example"] = " | ".join(moved[broken[0]])[:300]
        rows.append(row)
    return _described("text", split, seed, before, labels, rows)


def _instead(trained: TrainedRun) -> str:
    return "--robust text" if trained.features.kind == "text" else "--robust linf=0.1"


def _given(texts: list[list[str]]) -> list[Any]:
    return [parts[0] if len(parts) == 1 else tuple(parts) for parts in texts]


def _predicted(trained: TrainedRun, inputs: np.ndarray | list[Any]) -> np.ndarray:
    told = trained.with_confidence(None).predict(inputs)
    return assess.predicted_of(trained, np.asarray(told, np.float64))


def _told(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> Record:
    right = int((after == labels).sum())
    return {
        "clean": float((before == labels).mean()), "accuracy": right / len(labels),
        "interval": wilson(right, len(labels)), "changed": float((before != after).mean()),
    }  # fmt: skip


def _described(kind: str, split: str, seed: int, before: np.ndarray, labels: np.ndarray, rows: list[Record]) -> Record:
    clean = float((before == labels).mean())
    return {"norm": kind, "split": split, "count": len(labels), "seed": seed, "clean": clean, "rows": rows}
