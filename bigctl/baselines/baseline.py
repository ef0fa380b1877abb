"""What must be beaten: the cheap answers to the data of an experiment, trained in seconds on the same splits.

They are scored by the metrics of the project's own tasks and kept beside the prepared data, where runs, reports and
listings find them (`runs.baselines`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.baselines import byte_model, learners, scoring, tags
from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset
from bigctl.data.preparation import prepare
from bigctl.data.target import NONE, TOKEN_CLASS
from bigctl.errors import DataError
from bigctl.recipes.supervised import head_for
from bigctl.runs import baselines
from bigctl.runs.baselines import Baseline

_SPLITS = {"val": "validation", "test": "test"}
_BITS = "val/bits_per_byte"


def baseline(config: Config, *, again: bool = False) -> Baseline:
    """The best of the cheap answers to the data of a configuration, of which nothing but data and recipe need be given.

    It is computed once and then read, until the data or its splits change.

    Args:
        config: what `bigctl.compose` gives.
        again: compute it although it is there.

    Raises:
        DataError: if there is nothing to predict, or the data cannot be read.
        ConfigError: if `data.positive` is none of two classes.
    """
    dataset = prepare.prepare(config.data, regression=config.is_regression)
    if (positive := config.data.positive) is not None:
        head_for(dataset.features, None, None, positive=positive)
    stream = dataset.features.kind == "stream" or config.block is not None
    file = baselines.place(Path(dataset.path).name, stream=stream)
    found = None if again else baselines.read(Path(dataset.path).name, stream=stream)
    if found is None:
        found = _compute(dataset, stream)
        if file is not None:
            baselines.write(file, found)
    return baselines.about(found, positive)


def _compute(dataset: Dataset, stream: bool) -> Baseline:
    began = time.perf_counter()
    if stream:
        by, results = _BITS, [*_streams(dataset)]
    elif dataset.features.target.kind == NONE:
        raise DataError(
            "there is nothing to predict, and no cheap answer to it",
            where="data.label",
            hint="name the column with the classes, data.label=COLUMN; or recipe=gpt_lm for text to be written",
        )
    else:
        by = head_for(dataset.features, None, None).metric
        results = [*_tagged(dataset)] if dataset.features.target.kind == TOKEN_CLASS else [*_examples(dataset)]
    sign = -1 if schema.known_direction(by) == schema.MIN else 1
    best = max(results, key=lambda result: sign * result["metrics"][by])
    seconds = round(time.perf_counter() - began, 3)
    made: Baseline = {
        "name": best["name"], "metrics": best["metrics"], "selected_by": by, "seconds": seconds,
        "binary": best.get("binary", {}), "all": results,
    }  # fmt: skip
    return made


def _result(name: str, scores: tuple[dict[str, float], dict[str, Any]], began: float) -> dict[str, Any]:
    metrics, binary = scores
    return {"name": name, "metrics": metrics, "binary": binary, "seconds": round(time.perf_counter() - began, 3)}


def _examples(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Examples with a class, several or a number."""
    features, target = dataset.features, dataset.features.target
    data = {split: learners.Data(_inputs(dataset, split), dataset.splits[split]["label"]) for split in dataset.splits}
    head = head_for(features, None, None)
    labels = {name: np.asarray(data[split].labels) for name, split in _SPLITS.items()}
    for learner in learners.learners(features.kind, target, data["train"]):
        began = time.perf_counter()
        with learners.threads(data["train"]):
            predict = learner.learn(data["train"], data["validation"])
            predicted = {name: predict(data[split].examples) for name, split in _SPLITS.items()}
        yield _result(learner.name, scoring.score(head, target, predicted, labels), began)


def _inputs(dataset: Dataset, split: str) -> Any:
    """Texts, those of a pair in one, or arrays."""
    if dataset.features.kind != "text":
        return dataset.splits[split]["inputs"]
    parts = dataset.texts[split]
    return ["\n".join(part[number] for part in parts) for number in range(len(parts[0]))]


def _tagged(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Sentences with a tag a word."""
    began, target = time.perf_counter(), dataset.features.target
    counts = tags.learn(*tags.sentences(dataset, "train"), len(target.names))
    predicted, labels = {}, {}
    for name, split in _SPLITS.items():
        given, labels[name] = tags.sentences(dataset, split)
        predicted[name] = tags.predict(counts, given, labels[name].shape[1])
    head = head_for(dataset.features, None, None)
    yield _result(tags.NAME, scoring.score(head, target, predicted, labels), began)


def _streams(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """One long text, or documents, to be written."""
    if not dataset.texts["train"]:
        what = "the data holds ready-made tokens, and the cheap answers are to bytes of text"
        raise DataError(what, where="data", hint="give the text that the tokens were made of: data=text data.path=FILE")
    texts = {split: np.asarray(dataset.texts[split][0].content) for split in dataset.splits}
    for order in (0, byte_model.ORDER):
        began = time.perf_counter()
        model = byte_model.ByteModel(texts["train"], order)
        metrics = {f"{name}/bits_per_byte": model.bits_per_byte(texts[split]) for name, split in _SPLITS.items()}
        what = f"the {order} bytes before, interpolated (Witten-Bell)" if order else "frequencies of bytes"
        yield _result(what, ({name: value for name, value in metrics.items() if value == value}, {}), began)
