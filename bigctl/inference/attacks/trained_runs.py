"""`bigctl eval RUN --robust linf=0.1`: a trained run of pictures or tables under attack."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bigctl.data.dataset import Dataset
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.errors import ConfigError
from bigctl.inference.attacks import ensemble
from bigctl.inference.attacks.ensemble import USUAL, Effort, Found
from bigctl.inference.attacks.threat import WHERE, Threat, require_scale
from bigctl.inference.measured import require_classes
from bigctl.inference.slices import wilson
from bigctl.inference.trained import TrainedRun
from bigctl.training.state import Tree
from bigctl.training.task import Record

LEAST = 10
"""Examples that are attacked at least."""
SHOWN = 8
"""Pictures that are kept for the report."""


def under_attack(
    trained: TrainedRun, split: str, norm: str, values: Sequence[float], *, count: int = 200, seed: int = 0,
    effort: Effort = USUAL,
) -> Record:  # fmt: skip
    """Robust accuracy of a run by eps, as JSON.

    Args:
        trained: a classifier of pictures, whose pixels go from 0 to 1, or of tables, of which numeric columns that have
            no missing value may move by `eps` standard deviations.
        split: of its data.
        norm: "linf" or "l2".
        values: eps, smallest first.
        count: examples that are attacked, evenly of the whole split.
        seed: of random starts and searches.
        effort: see there.

    Raises:
        ConfigError: for a run that predicts no class, texts, eps of another scale, or too few examples.
        RunError: if the data has changed.
    """
    require_classes(trained, WHERE)
    kind = trained.features.kind
    if kind not in ("image", "table"):
        raise ConfigError("texts are no numbers that could be moved", where=WHERE, hint="--robust text")
    if kind == "image":
        require_scale(norm, list(values), trained.features.shape)
    x, labels, rows = examples(trained, trained.data(), split, count)
    found = ensemble.evaluate(
        asking(trained), (trained.params, trained.variables), x, labels, threat_of(trained, norm), values,
        classes=len(trained.classes), effort=effort, seed=seed,
    )  # fmt: skip
    return _described(trained, found, x, labels, rows) | {
        "norm": norm, "split": split, "count": len(x), "seed": seed, "effort": asdict(effort)
    }  # fmt: skip


def examples(
    trained: TrainedRun, dataset: Dataset, split: str, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs float32 [n, ...], pictures from 0 to 1; labels int [n]; and their rows in the split."""
    columns = dataset.splits[split]
    whole = len(columns["label"])
    if min(whole, count) < LEAST:
        what = f"{min(whole, count)} examples say nothing"
        raise ConfigError(what, where=WHERE, hint=f"attack {LEAST} at least: --count, or another --split")
    rows = np.unique(np.linspace(0, whole - 1, min(whole, count)).astype(int))
    inputs = columns["inputs"]
    x = np.stack([np.asarray(inputs[int(row)]) for row in rows]).astype(np.float32)
    return (x / np.float32(255) if trained.features.kind == "image" else x), np.asarray(columns["label"])[rows], rows


def asking(trained: TrainedRun) -> ensemble.Ask:
    """The run's model as a function of its weights, (params, variables), and of inputs as `examples` has them."""
    programs, scale = trained.programs, 255.0 if trained.features.kind == "image" else 1.0

    def ask(weights: Tree, x: Array) -> Array:
        model = programs.merge(*weights)
        return jnp.asarray(cast(Any, programs.task).exported(model, {"inputs": x * scale})["logits"])

    return ask


def threat_of(trained: TrainedRun, norm: str) -> Threat:
    """What an attacker of a run may do."""
    features = trained.features
    if features.kind == "image":
        return Threat(norm)
    free = np.ones(features.shape, np.float32)
    if features.encoder is not None:
        columns = TableEncoder.from_json(features.encoder).columns
        moves = [isinstance(each, Numeric) and not each.missing for each in columns for _ in each.features]
        free = np.array(moves, np.float32)
    if not free.any():
        raise ConfigError("the table has no numeric column that could be moved", where=WHERE, hint="leave it out")
    return Threat(norm, -np.inf, np.inf, free)


def _described(trained: TrainedRun, found: Found, x: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Record:
    points = [asdict(point) | {"interval": wilson(round(point.robust * len(x)), len(x))} for point in found.points]
    order = np.argsort(found.broken_at, kind="stable")
    worst = [row for row in order.tolist() if 0 < found.broken_at[row] < np.inf][:SHOWN]
    shown = [_example(trained, found, x, labels, rows, row) for row in worst]
    return {"clean": found.clean, "points": points, "warnings": found.warnings, "worst": shown}


def _example(
    trained: TrainedRun, found: Found, x: np.ndarray, labels: np.ndarray, rows: np.ndarray, row: int
) -> Record:
    """One that was attacked with success: its row, eps, classes, and pixels before and after, rounded to show them."""
    logits = asking(trained)((trained.params, trained.variables), jnp.asarray(found.attacked[row : row + 1]))
    told = {
        "row": int(rows[row]), "eps": float(found.broken_at[row]), "label": trained.classes[int(labels[row])],
        "predicted": trained.classes[int(np.asarray(logits)[0].argmax())],
    }  # fmt: skip
    if trained.features.kind != "image":
        return told
    pair = np.concatenate([x[row], found.attacked[row]], axis=1)
    pixels = np.clip(np.round(pair * 255), 0, 255).astype(np.uint8)
    return told | {"shape": list(pixels.shape), "pixels": base64.b64encode(pixels.tobytes()).decode()}
