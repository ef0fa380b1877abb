"""A trained model that is asked about new examples: frames, arrays, pictures, texts and files."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from bigctl.config.schema import Config
from bigctl.data.dataset import Features
from bigctl.data.sources.frames import Examples
from bigctl.data.target import TOKEN_CLASS
from bigctl.data.text.words import of_joined
from bigctl.engine import experiment
from bigctl.errors import RunError
from bigctl.inference import file_records, given_inputs, tagging, text_batches
from bigctl.inference.confidence import Confidence
from bigctl.inference.file_records import shortened
from bigctl.inference.forward import Compiled, Forward
from bigctl.inference.text_batches import Text
from bigctl.inference.threshold import Threshold
from bigctl.runs.directory import RunDirectory
from bigctl.runs.metrics_file import read_metrics
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Tree, Weights
from bigctl.training.task import Judged, Record, Task

log = logging.getLogger("bigctl")


class Predictor:
    """The weights of one checkpoint, the averaged ones where the run has them.

    Attributes:
        run: the run directory.
        config: what it was trained with.
        features: what its data looked like.
        step: the checkpoint's step.
        top: how many of the likeliest classes records name; None for all.
        embeddings: whether records have the embedding too.
        threshold: of the positive class; None where the likelier of two is predicted.
        confidence: how probabilities are scaled and which sets of classes are given; None where as they are.
    """

    top: int | None = None
    embeddings = False
    threshold: float | Threshold | None = None
    confidence: Confidence | None = None

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        features: Features,
        programs: ModelPrograms,
        weights: Weights,
        step: int,
    ):
        self.run, self.config, self.features, self.step = run, config, features, step
        self._programs, self._weights = programs, weights
        self._task: Task = programs.task.decided(_carried(run, step, programs.task.carried))

    @cached_property
    def model(self) -> Any:
        """The network itself, a flax `nnx.Module`."""
        return self._programs.merge(self.params, self.variables)

    def with_params(self, params: Tree, variables: Tree | None = None) -> Self:
        """The same model with other weights, a nested dict of arrays as `params` is, and other `variables` if given."""
        other = copy.copy(self)
        for name in ("model", "_forward", "language_model", "_probabilities"):  # what was made of the old ones
            other.__dict__.pop(name, None)
        placed = jax.tree.map(
            lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding), self.params, params
        )
        kept = self.variables if variables is None else variables
        other._weights = dataclasses.replace(self._weights, params=placed, variables=kept)
        return other

    def randomised(self) -> Self:
        """The same model with all weights drawn anew, pretrained ones too."""
        programs = experiment.rebuild_training(self.config, self.features)
        fresh = programs.stored(programs.initialise())
        return self.with_params(fresh.params, fresh.variables)

    @property
    def programs(self) -> ModelPrograms:
        """The compiled functions of the model."""
        return self._programs

    @property
    def params(self) -> Any:
        """Weights as a nested dict of arrays."""
        return self._weights.params

    @property
    def variables(self) -> Any:
        """What the model updates by itself, such as the statistics of batch normalisation, as a nested dict."""
        return self._weights.variables

    @property
    def task(self) -> Task:
        """What the recipe adds, with what belongs to these weights, such as a threshold."""
        return self._task

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of what `predict` gives; empty where a number is predicted."""
        return list(self.features.target.names)

    @property
    def positive(self) -> str | None:
        """Of two classes, the one that binary metrics and the threshold are about."""
        return self._task.positive

    def __repr__(self) -> str:
        what = f"{self.config.recipe.kind}, step {self.step:,}"
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"<bigctl run {self.run.path}: {what}{f'; {len(self.classes)} classes: {names}' if names else ''}>"

    def predict(self, inputs: Examples) -> Any:
        """Class probabilities float32 [N, classes], or target values [N, 1]; of a tagger each text's spans.

        Of one example, such as a text or a picture that is in no list, what is said of it alone: [classes].

        Args:
            inputs: for tables a frame (or a dict of columns, or a list of dicts) whose columns are known by name, an
                encoded float32 array [N, *features.shape], or raw values [N, columns] where the run was trained on an
                array; for images an uint8 array [N, height, width, channels], pictures of Pillow or paths, one or a
                list of them; for texts a text, a list of N texts or of N pairs (first, second), or a frame; for a
                tagger each may be a list of words too. A `Path` is a file of such, whatever the model.

        Raises:
            ValueError: for what the model does not take, an empty text being of that kind.
            DataError: for columns that are missing, unknown, or of another type than in training, and for files.
            RunError: if the run's tokenizer is not there any more, or the run predicts no classes.
        """
        asked = self.asked(inputs)
        if self._tags:
            found: Examples = [record["spans"] for record in self._tag(asked.inputs)]
        elif self.features.kind == "text":
            found = self._scaled(self._predict_texts(asked.inputs)[0])
        else:
            found = self._scaled(self._predict_arrays(np.asarray(asked.inputs)))
        return found[0] if asked.single else found

    def describe(self, inputs: Examples) -> Any:
        """What `predict` takes, as records: label and probability of each class, or the predicted value; one record for
        one example, else a list."""
        asked = self.asked(inputs)
        found = self.describe_all(asked.inputs)
        return found[0] if asked.single else found

    def with_smaller_batches(self, sizes: Sequence[int]) -> Self:
        """The same model that computes few images or rows in batches of these sizes, where that changes no bit."""
        other = copy.copy(self)
        if self.features.kind != "text":
            other.__dict__["_forward"] = copy.copy(self._forward)  # what is compiled is shared
            other._forward.use_smaller(sizes)
        return other

    def asked(self, inputs: Examples) -> given_inputs.Asked:
        """What `predict` takes, as the model does. Raises as `predict` does."""
        return given_inputs.read(inputs, self.features, self.config.data, self.known_columns)

    @cached_property
    def known_columns(self) -> frozenset[str] | None:
        """The columns of the data that the run was trained on; None where that is not known."""
        info = self.run.record()["data"].get("info") or {}
        if isinstance(found := info.get("types") or info.get("columns"), dict | list):
            return frozenset(map(str, found))
        return None if "numeric" in info else frozenset({"label", "target"})  # of a set whose columns all are features

    def with_details(self, *, top: int | None = None, embeddings: bool = False) -> Self:
        """The same model, whose records have the probabilities of the `top` likeliest classes alone, and the embedding.

        Raises:
            RunError: if the model has no such.
        """
        if top is not None and (not self.classes or self._tags):
            raise RunError(
                "this run gives no probabilities of classes", where=str(self.run.path), hint="leave out --top-k"
            )
        if embeddings:
            self._require_embeddings()
        other = copy.copy(self)
        other.top, other.embeddings = top, embeddings
        return other

    def with_confidence(self, kept: Confidence | None) -> Self:
        """The same model whose probabilities are scaled in another way, and other sets of classes; None for neither."""
        other = copy.copy(self)
        other.confidence = kept
        return other

    def embed(self, inputs: Examples) -> np.ndarray:
        """What the last layer reads of each example, float32 [N, width], [width] of one; takes what `predict` does.

        Raises:
            RunError: if the model is a tagger, writes text, or has no layer called `head`.
        """
        self._require_embeddings()
        asked = self.asked(inputs)
        if self.features.kind == "text":
            found = self._forward.texts(asked.inputs, self._forward.embed, self.tokenizer)[0]
        else:
            found = self._forward.arrays(np.asarray(asked.inputs), self._forward.embed)
        return found[0] if asked.single else found

    def logits(self, inputs: Examples) -> np.ndarray:
        """Of every class, float32 [N, classes], before any temperature; takes what `predict` does, of a classifier."""
        if self._tags:
            what, hint = "tags words, whose logits are not given", "`predict` gives what it finds"
            raise RunError(what, where=str(self.run.path), hint=hint)
        asked = self.asked(inputs)
        if self.features.kind == "text":
            return self._forward.texts(asked.inputs, self._forward.logits, self.tokenizer)[0]
        return self._forward.arrays(np.asarray(asked.inputs), self._forward.logits)

    def _require_embeddings(self) -> None:
        if self._tags or self.config.recipe.purpose != "predict" or not hasattr(self.model, "head"):
            what = f"a run of recipe={self.config.recipe.kind} with model={self.config.model.kind} gives no embeddings"
            raise RunError(what, where=str(self.run.path), hint="they are what a layer called `head` reads")

    def _predict_arrays(self, inputs: np.ndarray) -> np.ndarray:
        found = self._forward.arrays(inputs, self._predict)
        return self.features.target.restored(found.reshape(-1, self._outputs))

    def _predict_texts(self, texts: np.ndarray | Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities float32 [N, classes], and which texts were cut, bool [N]."""
        found, cut = self._forward.texts(texts, self._predict, self.tokenizer)
        return found.reshape(-1, self._outputs), cut

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self._programs, self._weights, self.features)

    @property
    def _predict(self) -> Compiled:
        if self.config.recipe.purpose != "predict":
            kind = self.config.recipe.kind
            hint = f"train a classifier that starts from it: recipe=bert_cls model.init_from={self.run.path}"
            raise RunError(f"a run of recipe={kind} predicts no classes", where=str(self.run.path), hint=hint)
        return self._forward.predict

    @property
    def _outputs(self) -> int:
        return max(1, len(self.features.target.names))

    def judge(self, inputs: np.ndarray | Sequence[Text], labels: Examples) -> list[Judged]:
        """What the model says of some examples beside their labels. Raises as `predict` does."""
        if self._tags:
            return tagging.judge(self._tag([of_joined(str(text)) for text in inputs]), labels, self.features.target)
        if self.features.kind == "text":
            return self._task.judge(self._predict_texts(inputs)[0], self.features.target.restored(np.asarray(labels)))
        return self._task.judge(
            self._predict_arrays(np.asarray(inputs)), self.features.target.restored(np.asarray(labels))
        )

    def describe_all(self, inputs: np.ndarray | Sequence[Any]) -> list[Record]:
        """One record an example: what `predict` says of it, in words; `error` where the model's answer is no number."""
        if self.features.kind == "text":
            return self.label_texts(list(inputs))
        inputs = np.asarray(inputs)
        found = [self._described(values) for values in self._predict_arrays(inputs)]
        return self._completed(found, lambda: self._forward.arrays(inputs, self._forward.embed))

    def _described(self, values: np.ndarray) -> Record:
        if not np.isfinite(values).all():
            return {"error": "the model's answer is not a finite number: are the values far outside of the training's?"}
        record = self._task.describe(values)
        return record if self.confidence is None else self.confidence.applied(record, values, self.classes)

    def _scaled(self, predictions: np.ndarray) -> np.ndarray:
        return predictions if self.confidence is None else self.confidence.scaled(predictions)

    def label_texts(self, texts: Sequence[Text]) -> list[Record]:
        """One record a text: label and probability of each class, or of a tagger what `tagging.tag` says of each; with
        `cut` where it was too long for the model."""
        if self._tags:
            return self._tag(texts)
        probabilities, cut = self._predict_texts(texts)
        found = [
            {**self._described(values), **({"cut": True} if short else {})}
            for values, short in zip(probabilities, cut, strict=True)
        ]
        return self._completed(found, lambda: self._forward.texts(texts, self._forward.embed, self.tokenizer)[0])

    def _completed(self, records: list[Record], embed: Callable[[], np.ndarray]) -> list[Record]:
        """Records with what `with_details` asks for."""
        if self.top is not None:
            records = [shortened(record, self.top) for record in records]
        if self.embeddings:
            records = [{**record, "embedding": row.tolist()} for record, row in zip(records, embed(), strict=True)]
        return records

    @property
    def _tags(self) -> bool:
        return self.features.target.kind == TOKEN_CLASS

    def _tag(self, sentences: Examples) -> list[Record]:
        def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(self._predict(batch))

        return tagging.tag(self.tokenizer, self.features, sentences, predict, self._task.describe)

    def predict_files(
        self,
        files: Sequence[str | Path | bytes],
        *,
        strict: bool = False,
        ids: Sequence[str] = (),
        require: bool = True,
    ) -> Iterator[Record]:
        """One record an image, a table row or a text: label and probability of each class, or the predicted value; or
        `error`, for a file or a row that cannot be read.

        Args:
            files: by name, or their contents.
            strict: raise for the first that cannot be read, before anything is predicted.
            ids: names of a column of the files, the first that is there counts; their records have its values too.
            require: whether files with rows must have one of these.

        Raises:
            DataError: for a file that cannot be read, if `strict`; for one with rows that lacks the required column.
        """
        return file_records.predict_files(self, files, strict=strict, ids=file_records.Ids(tuple(ids), require))

    @cached_property
    def tokenizer(self) -> Any:
        """What cuts texts into tokens, or n-grams. Raises RunError where it is not there any more."""
        return text_batches.run_tokenizer(self.run, self.features)


def _carried(run: RunDirectory, step: int, names: Sequence[str]) -> dict[str, float]:
    """What the validation at a step, or the last one before it, found of some metrics."""
    if not names:
        return {}
    before = [line for line in read_metrics(run.metrics) if line["step"] <= step]
    found = {name: line[f"val/{name}"] for line in before for name in names if line.get(f"val/{name}") is not None}
    if absent := [name for name in names if name not in found]:
        log.warning("%s does not say the %s of step %d; it is taken for 0.5", run.metrics, absent[0], step)
    return found
