"""What a model goes by on the whole: columns of a table and what it makes of their values, words and patches by class.

Values of single examples are added up; see `explain` for how these come about.
"""

from __future__ import annotations

import base64
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from bigctl.data.dataset import Features
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.errors import ConfigError, RunError
from bigctl.inference.explaining import explain, images
from bigctl.inference.explaining.asked import Output
from bigctl.inference.explaining.images import ImageExplainer, ImageExplanation
from bigctl.inference.explaining.importance import permutation_importance
from bigctl.inference.explaining.tables import columns_of
from bigctl.inference.explaining.texts import TextExplanation
from bigctl.inference.trained import TrainedRun
from bigctl.training.task import Record

COUNTS = {"table": 500, "text": 200, "image": 100}
"""Examples of a split that are looked at where nothing else is said."""
COLUMNS, POINTS, CLASSES = 12, 20, 10
"""Columns whose values are looked at, numbers of each, and classes that are told of at most."""
WORDS, LEAST = 12, 3
"""Words of a class that are told, and texts that one must be in."""
PATCHES = 3
"""Of a class, the strongest."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def overall(
    trained: TrainedRun, split: str = "validation", count: int | None = None, method: str | None = None, seed: int = 0
) -> Record:
    """What a model goes by, JSON-serialisable: `kind`, `split`, `examples`, and what there is for the kind.

    Args:
        trained: of one class, several classes or a number an example.
        split: whose examples are looked at, evenly spaced.
        count: how many; None for as many as `COUNTS` says.
        method: of texts and pictures, as of `explain`; None for the usual one, of pictures occlusion.
        seed: of what is shuffled.

    Raises:
        ConfigError: for a method or a split that there is not.
        RunError: for a run that gives nothing to be explained, or whose data has changed.
    """
    kind = trained.features.kind
    if kind == "stream":
        hint = 'explain a prompt instead: --text "..."'
        raise RunError("a language model has no classes to tell of", where=str(trained.run.path), hint=hint)
    if kind == "table":
        if method is not None:
            hint = "leave it out: columns are told by permutation and partial dependence"
            raise ConfigError(f"{method!r} is of single rows", where="--method", hint=hint)
        return _of_table(trained, split, count or COUNTS[kind], seed)
    rows = _rows(trained, split, count or COUNTS[kind])
    explainer = explain.explainer_of(trained)
    usual = images.OCCLUSION if isinstance(explainer, ImageExplainer) else None
    method = explain.require_method(explainer, method or usual)
    given = explain.Given(explain.examples_at(trained.data(), split, rows))
    found = explain.explain(trained, explainer, given, method=method)
    if found and found[0].attribution.output is None:
        raise ConfigError(f"{method} sees no classes", where="--method", hint="choose another --method")
    told = _words(cast(Any, found)) if kind == "text" else _patches(cast(Any, found), rows.tolist())
    return {"kind": kind, "split": split, "examples": len(found), "method": method, "classes": told}


def _rows(trained: TrainedRun, split: str, count: int) -> np.ndarray:
    dataset = trained.data()
    explain.require_split(dataset, split)
    size = dataset.size(split)
    return np.arange(min(count, size)) * size // min(count, size)


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Dependence:
    """What a model answers on average where a column has some value in every row (Friedman 2001).

    Attributes:
        column: by its name.
        grid: the values, numbers or categories.
        answers: mean probabilities of each class, or the mean number that is predicted in the unit of the data.
    """

    column: str
    grid: tuple[float | str, ...]
    answers: Float[np.ndarray, "grid outputs"]


def _of_table(trained: TrainedRun, split: str, count: int, seed: int) -> Record:
    importance = permutation_importance(trained, split, seed)
    inputs = np.asarray(explain.examples_at(trained.data(), split, _rows(trained, split, count)), np.float32)
    order = np.argsort(-importance.values, kind="stable")[:COLUMNS]
    found = [dependence(trained, inputs, int(number)) for number in order]
    classes = list(trained.classes)[:CLASSES] or ["value"]
    told = [
        {
            "column": each.column,
            "grid": [*each.grid],
            "answers": {name: each.answers[:, place].tolist() for place, name in enumerate(classes)},
        }
        for each in found
    ]
    about = {"kind": "table", "split": split, "examples": len(inputs), "importance": importance.to_json()}
    return {**about, "dependence": told, "left_out": max(0, len(trained.classes) - CLASSES)}


def dependence(
    trained: TrainedRun, rows: Float[np.ndarray, "rows features"], number: int, grid: Sequence[float] | None = None
) -> Dependence:
    """What a model makes of the values of a column.

    Args:
        trained: a run on a table.
        rows: over which answers are averaged, encoded.
        number: of the column.
        grid: numbers in its unit; None for `POINTS` from its 5th to its 95th percentile, or for all that there are if
            they are fewer. A category has all of its values.
    """
    names, column = columns_of(trained.features)
    own = np.flatnonzero(column == number)
    values, encoded = _grid(trained.features, rows[:, own], number, grid)
    shown = np.repeat(rows[None], len(values), 0)
    shown[:, :, own] = encoded[:, None]
    answers = trained.predict(shown.reshape(-1, rows.shape[1]))
    answers = np.asarray(answers, np.float64).reshape(len(values), len(rows), -1).mean(1)
    return Dependence(names[number], tuple(values), answers)


def _grid(
    features: Features, own: Float[np.ndarray, "rows own"], number: int, grid: Sequence[float] | None
) -> tuple[list[float | str], Float[np.ndarray, "grid own"]]:
    """Values of a column, and what the model reads of each."""
    kind = TableEncoder.from_json(features.encoder).columns[number] if features.encoder else None
    if kind is not None and not isinstance(kind, Numeric):
        levels = [name.partition("=")[2] for name in (each.removeprefix(kind.name) for each in kind.features)]
        return list(levels), np.eye(len(levels), dtype=np.float32)
    mean, std = (kind.mean, kind.std) if kind is not None else (0.0, 1.0)
    if grid is None:
        there = own[own[:, 1] == 0, 0] if own.shape[1] > 1 else own[:, 0]  # without rows that miss it
        points = np.unique(there if len(there) else own[:, 0]).astype(np.float64)
        if len(points) > POINTS:
            low, high = np.quantile(there.astype(np.float64), (0.05, 0.95)).tolist()
            points = np.linspace(low, high, POINTS)
    else:
        points = (np.asarray(grid, np.float64) - mean) / std
    encoded = np.zeros((len(points), own.shape[1]), np.float32)
    encoded[:, 0] = points
    return [float(f"{value:.6g}") for value in points * std + mean], encoded


# ------------------------------------------------------------------------------------------------ words and patches


def _words(found: Sequence[TextExplanation]) -> Record:
    """Of each class that is predicted, the words that speak for and against it most, by what they add to its logit on
    average over the texts that hold them."""
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, int] = defaultdict(int)
    for each in found:
        name = _name(each.attribution.output)
        texts[name] += 1
        for word, value in words_of(each).items():
            sums[name][word].append(value)
    told = {}
    for name in sorted(texts, key=lambda name: -texts[name])[:CLASSES]:
        least = LEAST if texts[name] > 2 * LEAST else 1
        means = {word: (float(np.mean(v)), len(v)) for word, v in sums[name].items() if len(v) >= least}
        ranked = sorted(means, key=lambda word, means=means: -means[word][0])  # type: ignore[misc]
        ways = [word for word in ranked if means[word][0] > 0], [word for word in ranked[::-1] if means[word][0] < 0]
        speak = [
            [{"word": word, "adds": means[word][0], "texts": means[word][1]} for word in way[:WORDS]] for way in ways
        ]
        told[name] = {"examples": texts[name], "for": speak[0], "against": speak[1]}
    return told


def words_of(each: TextExplanation) -> dict[str, float]:
    """What each word of a text adds, its tokens together, in lower case; a character of Chinese or Japanese is one."""
    found: dict[str, float] = defaultdict(float)
    for part, text in enumerate(each.texts):
        place = np.full(len(text), -1)
        words: list[str] = []
        for match in _WORD.finditer(text):
            place[match.start() : match.end()] = len(words)
            words.append(match.group().lower())
        for piece, value in zip(each.pieces, each.attribution.values.tolist(), strict=True):
            within = place[piece.start : piece.end] if piece.part == part else place[:0]
            for number in np.unique(within[within >= 0]).tolist():
                found[words[number]] += value * float((within == number).sum() / (within >= 0).sum())
    return dict(found)


def _patches(found: Sequence[ImageExplanation], rows: Sequence[int]) -> Record:
    """Of each class that is predicted, what the places of its pictures add on average, beside their mean, and the
    strongest patches with what is around them."""
    by: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(found):
        by[_name(each.attribution.output)].append(at)
    told = {}
    for name in sorted(by, key=lambda name: -len(by[name]))[:CLASSES]:
        values = np.stack([found[at].attribution.values for at in by[name]])
        pixels = np.stack([found[at].pixels for at in by[name]])
        strongest = np.argsort(-values.max((1, 2)), kind="stable")[:PATCHES].tolist()
        told[name] = {
            "examples": len(by[name]),
            "adds": values.mean(0).tolist(),
            "mean": _stored(np.round(pixels.mean(0)).astype(np.uint8)),
            "patches": [_patch(rows[by[name][place]], values[place], pixels[place]) for place in strongest],
        }
    return told


def _patch(row: int, values: np.ndarray, pixels: np.ndarray) -> Record:
    """The strongest part of a picture, and once its size around it."""
    high, wide = (-(-size // parts) for size, parts in zip(pixels.shape, values.shape, strict=False))
    down, across = (int(at) for at in np.unravel_index(int(values.argmax()), values.shape))
    top, left = (
        at * size // parts for at, size, parts in zip((down, across), pixels.shape, values.shape, strict=False)
    )
    around = pixels[max(0, top - high) : top + 2 * high, max(0, left - wide) : left + 2 * wide]
    place = {"row": row, "top": top, "left": left, "height": high, "width": wide}
    return {**place, "adds": float(values[down, across]), "around": _stored(around)}


def _stored(pixels: np.ndarray) -> Record:
    return {"shape": list(pixels.shape), "pixels": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode()}


def _name(output: Output | None) -> str:
    return "value" if output is None or output.name is None else output.name


def sentences(found: Record) -> list[str]:
    """What is found, in lines for people."""
    lines = [f"{found['split']} split, {found['examples']:,} examples"]
    if found["kind"] == "table":
        for each in found["dependence"]:
            lines.append(f"  {each['column']}: {_of_values(each)}")
        return lines
    lines[0] += f", by {found['method']}"
    for name, told in found["classes"].items():
        lines.append(f"{name} ({told['examples']:,} examples)")
        if found["kind"] == "text":
            for way in ("for", "against"):
                words = ", ".join(f"{each['word']} {each['adds']:+.2f} ({each['texts']})" for each in told[way])
                lines.append(f"  {way}: {words or 'nothing'}")
            continue
        for each in told["patches"]:
            lines.append(f"  row {each['row']}: the patch at {each['left']}, {each['top']} adds {each['adds']:+.2f}")
    return lines


def _of_values(each: Record) -> str:
    """How far answers go with the values of a column, of the class where they go furthest."""
    spread = {name: max(values) - min(values) for name, values in each["answers"].items()}
    name = max(spread, key=lambda name: spread[name] if math.isfinite(spread[name]) else -1.0)
    values = each["answers"][name]
    low, high = min(range(len(values)), key=values.__getitem__), max(range(len(values)), key=values.__getitem__)
    at = [f"{value:g}" if isinstance(value, float) else str(value) for value in (each["grid"][low], each["grid"][high])]
    what = "" if name == "value" else f"{name} "
    if len(values) == 1:
        return f"{what}{values[0]:.4g}; it is {at[0]} in all of these examples"
    return f"{what}{values[low]:.4g} where it is {at[0]}, {values[high]:.4g} where it is {at[1]}"
