"""What is looked for in data that is being prepared, however it was read."""

from __future__ import annotations

from typing import Any

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import folds, notes
from bigctl.data.dataset import SPLITS, Features
from bigctl.data.sources.decoded import Columns
from bigctl.data.target import TOKEN_CLASS, Target
from bigctl.errors import DataError


def check_target(target: Target, regression: bool) -> None:
    """Raises DataError where a number is wanted and there are classes."""
    if regression and target.names:
        raise DataError(
            "model.head=regression needs a real-valued target, this data has classes",
            where="model.head",
            hint="leave it out, or choose a table and its data.label",
        )


def note_findings(
    info: dict[str, Any],
    arrays: dict[str, Columns],
    features: Features,
    config: Data,
    named: notes.Named,
) -> None:
    """Add what a user should hear of prepared examples to the notes in `info`; `named` gives the file that a row of a
    split is from. Raises DataError for a class that the training split lacks."""
    found = [*info.get("notes", ()), *_refuse_missing_classes(arrays, features)]
    found += notes.on_arrays(arrays, features, named)
    found += folds.notes(arrays, config, features.target)
    info |= {"notes": found} if found or "notes" in info else {}


def _refuse_missing_classes(arrays: dict[str, Columns], features: Features) -> list[str]:
    """Notes on tags, or a DataError for classes, that the training split does not hold and another one does."""
    target, found = features.target, list[str]()
    if not target.names:
        return found
    counts = {split: target.counts(arrays[split]["label"]) for split in SPLITS}
    for split in ("validation", "test"):
        absent = [target.names[c] for c in np.flatnonzero((counts[split] > 0) & (counts["train"] == 0))]
        if absent and target.kind == TOKEN_CLASS:  # a rare one, such as I-MISC, may be there once
            found.append(f"the tag {absent[0]!r} is in the {split} split only, and is not learned")
        elif absent:
            raise DataError(
                f"class {absent[0]!r} is in the {split} split but not in the training split",
                where="data",
                hint="add training examples of it, or choose other splits",
            )
    return found
