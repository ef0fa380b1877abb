"""Examples of the validation split with what the model says of them, the worst mistakes first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bigctl.data import origins
from bigctl.data.target import CLASS
from bigctl.reports import pictures
from bigctl.runs.directory import RunDirectory

if TYPE_CHECKING:
    from bigctl.data.dataset import Dataset
    from bigctl.inference.trained import TrainedRun
    from bigctl.training.task import Judged

T = TypeVar("T")
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


class Seen:
    """A run's data and its model, each read when it is first asked for.

    Raises:
        BigctlError: if they are not there any more, or the data is not what the run was trained on.
    """

    def __init__(self, run: RunDirectory):
        self.run = run

    @cached_property
    def trained(self) -> TrainedRun:
        """With the weights of the best step."""
        from bigctl.inference.trained import TrainedRun

        return TrainedRun.load(str(self.run.path), plugins=None)  # to look at a run is not to run its code

    @cached_property
    def dataset(self) -> Dataset:
        from bigctl.config import compose
        from bigctl.engine import resolve
        from bigctl.errors import RunError

        config = compose.from_yaml(self.run.read_config(), where=str(self.run.config))
        found = resolve.prepare_data(config, self.run.tokenizer)
        if found.fingerprint != self.run.record()["data"]["fingerprint"]:
            raise RunError("the data is not what the run was trained on", where=str(self.run.path))
        return found


def shown(
    run: RunDirectory, count: int, summary: Mapping[str, Any], *, predicts: bool, lacking: list[str]
) -> tuple[Examples | None, Examples | None]:
    """So many examples of validation with predictions, and of the worst mistakes of the test split, both with where the
    model looks if it shows that.

    Args:
        run: in any state.
        count: how many; 0 for none.
        summary: summary.json.
        predicts: whether the model is to be asked.
        lacking: gets a line for each part that cannot be had, and why.
    """
    seen = Seen(run)

    def attempt(what: str, build: Callable[[], T]) -> T | None:
        try:
            return build()
        except Exception as error:  # weights, data, plugins: whatever is gone, the page is about the rest
            lacking.append(f"{what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return None

    named, step = summary.get("mistakes"), int(summary.get("selected_step") or summary.get("step") or 0)
    found = attempt("sample predictions", lambda: choose(seen, count)) if predicts and count > 0 else None
    wrong = attempt("test mistakes", lambda: mistakes(seen, named, step, count)) if named and count > 0 else None
    if found is not None:
        parts = [found] if wrong is None else [found, wrong]
        found, *rest = attempt("where the model looks", lambda: looked(seen, parts)) or parts
        wrong = rest[0] if rest else None
    return found, wrong


def choose(seen: Seen, count: int) -> Examples:
    """The worst mistakes of a run among the first examples of its validation split, filled up with others.

    Raises:
        BigctlError: if its weights or its data are not there any more, or it predicts nothing.
    """
    from bigctl.inference.threshold import describe

    trained, dataset = seen.trained, seen.dataset
    features = trained.features
    rows = np.arange(min(LOOKED_AT[features.kind], dataset.size("validation")))
    judged = trained.judge(_inputs(dataset, rows), _labels(dataset, rows))
    order = sorted(range(len(judged)), key=lambda row: _rank(judged[row]))[:count]
    columns, items = _items(dataset, "validation", [(row, vars(judged[row])) for row in order])
    said = "" if trained.threshold is None else describe(trained.threshold)
    found = Examples(features.kind, items, columns, len(rows), trained.step, threshold=said)
    return _with_galleries(found, trained, dataset, judged) if _of_classes(found, dataset) else found


def _of_classes(found: Examples, dataset: Dataset) -> bool:
    """Whether they are pictures, of one class each."""
    return found.kind == "image" and dataset.features.target.kind == CLASS and bool(found.items)


def _with_galleries(found: Examples, trained: TrainedRun, dataset: Dataset, judged: Sequence[Judged]) -> Examples:
    """The same with pictures of each class and the filters of the model."""
    from bigctl.inference.grad_cam import Filtered

    filters = pictures.filters(np.asarray(trained.model.filters())) if isinstance(trained.model, Filtered) else ""
    galleries, inputs = [], dataset.splits["validation"]["inputs"]
    for name in dataset.features.target.names[:_CLASSES]:
        rows = [row for row, each in enumerate(judged) if each.label == name]
        if rows:
            some, wrong = rows[:_OF_A_CLASS], [judged[row].wrong for row in rows]
            image = pictures.strip([np.asarray(inputs[row]) for row in some], wrong[:_OF_A_CLASS])
            galleries.append(Gallery(name, image, len(rows) - sum(wrong), len(rows)))
    return dataclasses.replace(found, galleries=tuple(galleries), filters=filters)


def looked(seen: Seen, parts: Sequence[Examples]) -> list[Examples]:
    """The same with where the model looks, those of pictures that its weights have predicted. Raises as `choose` does.

    All are asked about at once, as each time would be compiled anew.
    """
    from bigctl.inference.grad_cam import class_activation

    trained, dataset = seen.trained, seen.dataset
    names = list(dataset.features.target.names)
    asked = [part for part in parts if _of_classes(part, dataset) and part.step == trained.step]
    if not asked:
        return list(parts)
    rows = [(part.split, item) for part in asked for item in part.items]
    shown = np.stack([np.asarray(dataset.splits[split]["inputs"][item.row]) for split, item in rows])
    predicted = np.array([names.index(item.predicted) for _, item in rows], np.int32)
    places = class_activation(trained, shown, predicted)
    if places is None:
        return list(parts)
    made = iter([pictures.glowing(pixels, where) for pixels, where in zip(shown, places, strict=True)])
    return [
        dataclasses.replace(part, items=tuple(dataclasses.replace(item, looked=next(made)) for item in part.items))
        if part in asked
        else part
        for part in parts
    ]


def mistakes(seen: Seen, records: Sequence[Mapping[str, Any]], step: int, count: int) -> Examples | None:
    """The worst mistakes on the test split, as the end of the training has named them; the model is not asked.

    Args:
        seen: the run.
        records: `mistakes` of its summary.
        step: of the weights that made them.
        count: how many to show.

    Raises:
        BigctlError: if the data is not there any more, or is not what it was.
    """
    dataset = seen.dataset
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
