"""Examples of the validation split with what the model says of them, the worst mistakes first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.data import origins
from bigctl.data.target import CLASS
from bigctl.reports import pictures
from bigctl.runs.directory import RunDirectory

if TYPE_CHECKING:
    from bigctl.data.dataset import Dataset
    from bigctl.inference.trained import TrainedRun
    from bigctl.training.task import Judged

LOOKED_AT = {"image": 1024, "table": 4096, "text": 64}
"""How many examples of the split are predicted to find the worst of: what takes seconds."""
_CLASSES, _OF_A_CLASS = 40, 12
"""How many classes have a gallery, of so many pictures each."""


@dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        row: in the validation split, from 0 on.
        label, predicted: class names; of regression, numbers.
        wrong: whether they are different classes.
        probability: of the predicted class; None for regression.
        loss: cross-entropy, or the absolute error.
        image: as a data URI.
        looked: the same with what speaks for the predicted class, where the model shows that.
        text: the text, or both of a pair.
        cells: of a table, the values in the order of `Examples.columns`.
        origin: the file, and the line in it, if known.
    """

    row: int
    label: str
    predicted: str
    wrong: bool
    probability: float | None
    loss: float
    image: str = ""
    looked: str = ""
    text: str = ""
    cells: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures of a class: its name, a data URI, how many of those that were predicted are right, and of how many."""

    label: str
    image: str
    right: int
    count: int


@dataclass(frozen=True)
class Examples:
    """Some examples of one run.

    Attributes:
        kind: "image", "table" or "text".
        items: the mistakes by loss, then the others in the order of the split.
        columns: names of the columns of a table.
        looked_at: how many examples of the split were predicted.
        split: which they are of.
        step: of the weights.
        threshold: in words, where one of the run's positive class decides what is predicted.
        galleries: of the classes, for pictures.
        filters: those of the first layer as a data URI, where there is something to see.
    """

    kind: str
    items: tuple[Example, ...]
    columns: tuple[str, ...]
    looked_at: int
    step: int
    split: str = "validation"
    threshold: str = ""
    galleries: tuple[Gallery, ...] = ()
    filters: str = ""


def choose(run: RunDirectory, count: int) -> Examples:
    """The worst mistakes of a run among the first examples of its validation split, filled up with others.

    Raises:
        BigctlError: if its weights or its data are not there any more, or it predicts nothing.
    """
    from bigctl.engine import resolve
    from bigctl.errors import RunError
    from bigctl.inference.threshold import describe
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(run.path), plugins=None)  # to look at a run is not to run its code
    features = trained.features
    dataset = resolve.prepare_data(trained.config, run.tokenizer)
    if dataset.fingerprint != run.record()["data"]["fingerprint"]:
        raise RunError("the data is not what the run was trained on", where=str(run.path))
    rows = np.arange(min(LOOKED_AT[features.kind], dataset.size("validation")))
    labels = _labels(dataset, rows)
    judged = trained.judge(_inputs(dataset, rows), labels)
    order = np.array(sorted(range(len(judged)), key=lambda row: _rank(judged[row]))[:count], int)
    columns, items = _items(dataset, "validation", [(int(row), vars(judged[row])) for row in order])
    said = "" if trained.threshold is None else describe(trained.threshold)
    found = Examples(features.kind, items, columns, len(rows), trained.step, threshold=said)
    return _with_pictures(found, trained, dataset, judged, order) if features.target.kind == CLASS else found


def _with_pictures(
    found: Examples, trained: TrainedRun, dataset: Dataset, judged: Sequence[Judged], order: np.ndarray
) -> Examples:
    """The same with where the model looks, galleries and filters, if it is one of pictures."""
    if found.kind != "image" or not len(order):
        return found
    from bigctl.inference.grad_cam import Filtered, class_activation

    names, inputs = list(dataset.features.target.names), dataset.splits["validation"]["inputs"]
    shown = np.stack([np.asarray(inputs[int(row)]) for row in order])
    asked = np.array([names.index(item.predicted) for item in found.items], np.int32)
    places = class_activation(trained, shown, asked)
    items = found.items
    if places is not None:
        looked = [pictures.glowing(pixels, where) for pixels, where in zip(shown, places, strict=True)]
        items = tuple(dataclasses.replace(i, looked=uri) for i, uri in zip(items, looked, strict=True))
    filters = pictures.filters(np.asarray(trained.model.filters())) if isinstance(trained.model, Filtered) else ""
    galleries = []
    for name in names[:_CLASSES]:
        rows = [row for row, each in enumerate(judged) if each.label == name]
        if rows:
            some, wrong = rows[:_OF_A_CLASS], [judged[row].wrong for row in rows]
            image = pictures.strip([np.asarray(inputs[row]) for row in some], wrong[:_OF_A_CLASS])
            galleries.append(Gallery(name, image, len(rows) - sum(wrong), len(rows)))
    return dataclasses.replace(found, items=items, galleries=tuple(galleries), filters=filters)


def mistakes(run: RunDirectory, records: Sequence[Mapping[str, Any]], step: int, count: int) -> Examples | None:
    """The worst mistakes on the test split, as the end of the training has named them; the model is not asked.

    Args:
        run: whose data is still there.
        records: `mistakes` of its summary.
        step: of the weights that made them.
        count: how many to show.

    Raises:
        BigctlError: if the data is not there any more, or is not what it was.
    """
    from bigctl.config import compose
    from bigctl.engine import resolve
    from bigctl.errors import RunError

    config = compose.from_yaml(run.read_config(), where=str(run.config))
    dataset = resolve.prepare_data(config, run.tokenizer)
    if dataset.fingerprint != run.record()["data"]["fingerprint"]:
        raise RunError("the data is not what the run was trained on", where=str(run.path))
    shown = [
        (int(record["row"]), {
            "label": _names(record["label"]), "predicted": _names(record["predicted"]), "wrong": True,
            "probability": record.get("probability"), "loss": float(record["loss"]),
        })
        for record in records[:count] if 0 <= int(record["row"]) < dataset.size("test")
    ]  # fmt: skip
    columns, items = _items(dataset, "test", shown)
    return Examples(dataset.features.kind, items, columns, dataset.size("test"), step, "test") if items else None


def _names(label: object) -> str:
    return ", ".join(map(str, label)) or "(none)" if isinstance(label, list) else str(label)


def _items(
    dataset: Dataset, split: str, judged: Sequence[tuple[int, Mapping[str, Any]]]
) -> tuple[tuple[str, ...], tuple[Example, ...]]:
    """Examples of a split by their rows, with what is said of each; and names of the columns of a table."""
    kind, rows = dataset.features.kind, [row for row, _ in judged]
    columns, cells = _cells(dataset, split, np.array(rows, int)) if kind == "table" and rows else ((), [()] * len(rows))
    places = origins.read(dataset.path, split, rows)
    items = tuple(
        Example(
            row=row,
            **said,
            image=pictures.picture(dataset.splits[split]["inputs"][row]) if kind == "image" else "",
            text="\n".join(texts[row] for texts in dataset.texts.get(split, ())),
            cells=own,
            origin=place or "",
        )
        for (row, said), own, place in zip(judged, cells, places, strict=True)
    )
    return columns, items


def _rank(judged: Judged) -> tuple[bool, float]:
    """Mistakes by loss, before the others in the order of the split; numbers, which are no mistakes, by loss."""
    by_loss = judged.wrong or judged.probability is None
    return (not judged.wrong, -judged.loss if by_loss else 0.0)


def _labels(dataset: Dataset, rows: np.ndarray) -> Any:
    """Labels of some validation examples; of tagged sentences, for each the tags of its words."""
    from bigctl.data import preview
    from bigctl.data.target import TOKEN_CLASS

    if dataset.features.target.kind != TOKEN_CLASS:
        return np.asarray(dataset.splits["validation"]["label"][: len(rows)])
    return [preview.word_tags(dataset, "validation", row) for row in rows.tolist()]


def _inputs(dataset: Dataset, rows: np.ndarray) -> Any:
    if dataset.features.kind != "text":
        return np.asarray(dataset.splits["validation"]["inputs"][: len(rows)])
    texts = dataset.texts["validation"]
    if len(texts) == 1:
        return [texts[0][row] for row in rows.tolist()]
    return [(texts[0][row], texts[1][row]) for row in rows.tolist()]


def _cells(dataset: Dataset, split: str, rows: np.ndarray) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Names of a table's columns, and the values of some rows of a split as they were in its file."""
    from bigctl.data import preview

    picked = {"inputs": np.asarray(dataset.splits[split]["inputs"])[rows]}
    found = preview.columns(dataclasses.replace(dataset, splits={"train": picked}), len(rows))
    return tuple(c.name for c in found), list(zip(*(c.samples for c in found), strict=True))
