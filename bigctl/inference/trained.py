"""A trained model and what is done with it: evaluate, predict and generate."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigctl.config import compose as composing
from bigctl.config import plugins as loading
from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset, Features
from bigctl.data.target import TOKEN_CLASS
from bigctl.data.text.words import of_joined
from bigctl.engine import compile_cache, experiment, resolve
from bigctl.errors import RunError
from bigctl.generation.generate import Generation, LanguageModel
from bigctl.generation.options import GenerationOptions
from bigctl.inference import file_records, tagging, text_batches
from bigctl.inference.run_text import run_language_model
from bigctl.inference.text_batches import Text
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory
from bigctl.runs.metrics_file import read_metrics
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.task import Batch, Judged, Record, Task

BATCH = 256
log = logging.getLogger("bigctl")


@dataclass(frozen=True)
class Evaluation:
    """How a model did on a split.

    Attributes:
        metrics: by name, `test/accuracy` for one.
        errors: the examples with the largest loss among those of which the wrong class was predicted, see
            `Task.errors`, with what was to be classified, if text.
    """

    metrics: Record
    errors: list[Record]


class TrainedRun:
    """The weights of one checkpoint, the averaged ones where the run has them.

    Attributes:
        run: the run directory.
        config: what it was trained with.
        features: what its data looked like.
        step: the checkpoint's step.
    """

    def __init__(self, run: RunDirectory, config: Config, features: Features, programs: Any, state: Any, step: int):
        self.run, self.config, self.features, self.step = run, config, features, step
        self._programs, self._state = programs, state
        self._task: Task = programs.task.decided(_carried(run, step, programs.task.carried))

    @classmethod
    def load(cls, name: str, *, step: str | int = "best", plugins: Sequence[str] | None = ()) -> TrainedRun:
        """The model of a run.

        Args:
            name: a run directory, or a name under runs/.
            step: "best", "last" or a number.
            plugins: modules with its components; None to import none, not even what is installed.

        Raises:
            RunError: if there is no such run or checkpoint, it is damaged, or needs plugins that are not given.
        """
        run = directory.locate(name)
        record = run.record()
        loading.load_for_run(record.get("plugins"), plugins, where=str(run.path))
        config = composing.from_yaml(run.read_config(), where=str(run.config))
        if "data" not in record:
            raise RunError("the run has not started training", where=str(run.path))
        try:
            features = Features.from_json(record["data"]["features"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = f"is not as bigctl writes it: data.features ({type(error).__name__})"
            raise RunError(said, where=str(run.record_file)) from error
        if config.train.compile_cache:
            compile_cache.use_compile_cache()
        config = _on_one_device(config)
        programs = experiment.rebuild(config, features)
        checkpoints = Checkpoints(run.checkpoints, best=config.checkpoint.best)
        if step == "best" and not checkpoints.has_best():
            step = "last"
            if config.checkpoint.best:
                log.warning("the best checkpoint is not there any more, or not yet; using the last one")
        saved = checkpoints.find(step)
        state = checkpoints.restore(saved, programs.abstract_state)
        checkpoints.close()
        return cls(run, config, features, programs, state, saved.step)

    @cached_property
    def model(self) -> Any:
        """The network itself, a flax `nnx.Module`."""
        return self._programs.merge(self._weights, self._state.variables)

    @property
    def params(self) -> Any:
        """Weights as a nested dict of arrays."""
        return self._weights

    @property
    def _weights(self) -> Any:
        return self._programs.evaluation_weights(self._state)

    def predict(self, inputs: np.ndarray | Sequence[Text]) -> Any:
        """Class probabilities float32 [N, classes], or target values [N, 1]; of a tagger each text's spans.

        Args:
            inputs: [N, *features.shape], uint8 for images, encoded float32 rows for tables (see `encode`); for texts a
                list of N texts, or of N pairs (first, second) where the model was trained on pairs; for a tagger each
                may be a list of words too.

        Raises:
            ValueError: for what the model does not take, an empty text being of that kind.
            RunError: if the run's tokenizer is not there any more, or the run predicts no classes.
        """
        if self._tags:
            return [record["spans"] for record in self._tag(inputs)]
        if self.features.kind == "text":
            return self._predict_texts(inputs)[0]
        return self._predict_arrays(np.asarray(inputs))

    def _predict_arrays(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.shape[1:] != tuple(self.features.shape):
            raise ValueError(f"inputs have shape {inputs.shape[1:]}, the model takes {tuple(self.features.shape)}")
        if self.features.kind == "image" and inputs.dtype != np.uint8:
            whole = np.issubdtype(inputs.dtype, np.integer) and inputs.size
            if inputs.size and not (whole and inputs.min() >= 0 and inputs.max() <= 255):
                # pixels from 0 to 1 would be taken for black ones, and the answer would look like any other
                raise ValueError(f"images are uint8, from 0 to 255; these are {inputs.dtype}")
            inputs = inputs.astype(np.uint8)
        results = []
        for start in range(0, len(inputs), BATCH):
            block = inputs[start : start + BATCH]
            padded = np.concatenate([block, np.repeat(block[-1:], BATCH - len(block), axis=0)])
            found = self._predict(self._weights, self._state.variables, {"inputs": padded})
            results.append(np.asarray(found)[: len(block)])
        found = np.concatenate(results) if results else np.empty((0, self._outputs), np.float32)
        return self.features.target.restored(found)

    def _predict_texts(self, texts: np.ndarray | Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
        """Class probabilities float32 [N, classes], and which texts were cut, bool [N]."""
        if isinstance(texts, str):
            raise ValueError("one text is given; give a list of texts")
        columns, cut = text_batches.encode_texts(self._tokenizer, list(texts), self.features)
        return self._predict_rows(columns, np.arange(len(cut))), cut

    def _predict_rows(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Class probabilities float32 [len(rows), classes] of encoded texts."""
        longest = int(self.features.shape[0])
        given = [
            (places, self._predict(self._weights, self._state.variables, batch))
            for places, batch in text_batches.text_batches(columns, rows, longest)
        ]
        found = np.empty((len(rows), self._outputs), np.float32)
        for places, values in given:
            found[places] = np.asarray(values)[: len(places)]
        return found

    @property
    def _outputs(self) -> int:
        return max(1, len(self.features.target.names))

    def judge(self, inputs: np.ndarray | Sequence[Text], labels: Any) -> list[Judged]:
        """What the model says of some examples beside their labels. Raises as `predict` does."""
        if self._tags:
            return tagging.judge(self._tag([of_joined(str(text)) for text in inputs]), labels, self.features.target)
        return self._task.judge(self.predict(inputs), self.features.target.restored(np.asarray(labels)))

    @cached_property
    def _tokenizer(self) -> Any:
        return text_batches.run_tokenizer(self.run, self.features)

    @cached_property
    def _predict(self) -> Any:
        programs = self._programs
        if self.config.recipe.purpose != "predict":
            kind = self.config.recipe.kind
            hint = f"train a classifier that starts from it: recipe=bert_cls model.init_from={self.run.path}"
            raise RunError(f"a run of recipe={kind} predicts no classes", where=str(self.run.path), hint=hint)

        def run(params: Any, variables: Any, batch: Batch) -> jax.Array:
            found: jax.Array = programs.task.predict(programs.merge(params, variables), batch)
            return found

        return jax.jit(run)

    @cached_property
    def language_model(self) -> LanguageModel:
        """The network with its tokenizer, which can be asked for text piece by piece. Raises as `generate` does."""
        return run_language_model(self.run, self.features, lambda: self.model, self.step)

    def generate(self, prompts: str | Sequence[str], **options: Any) -> list[Generation]:
        """What a language model writes after each prompt.

        Args:
            prompts: one text, or a list of them.
            options: of `GenerationOptions`: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`, ...

        Raises:
            RunError: if the run is of another kind, or its tokenizer is not there any more.
            ConfigError, DataError: for options and prompts that cannot be used.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return self.language_model.generate(texts, GenerationOptions(**options))

    def evaluate(self, split: str = "test") -> dict[str, Any]:
        """Metrics on a split of the run's own data. Raises RunError if that data has changed since."""
        return self.score(split).metrics

    def score(self, split: str = "test", *, errors: int = 0) -> Evaluation:
        """Metrics on a split of the run's own data, and so many of the worst errors. Raises as `evaluate` does."""
        from bigctl.training.evaluation import Evaluator

        if self.features.tokenizer is not None:
            _ = self._tokenizer  # rather than to make another one
        dataset = resolve.prepare_data(self.config, self.run.tokenizer)
        if dataset.fingerprint != self.run.record()["data"]["fingerprint"]:
            raise RunError(
                "the data is not what the run was trained on", where=str(self.run.path), hint="bring it back as it was"
            )
        if split not in dataset.splits:
            raise ValueError(f"there is no split {split!r}; one of: {', '.join(dataset.splits)}")
        prefix = {"validation": "val"}.get(split, split)
        evaluator = Evaluator(self._programs, dataset.batches, dataset.splits[split], self.config, prefix=prefix)
        found = evaluator.score(self._weights, self._state.variables, self._task)
        return Evaluation(found.metrics, self._worst(dataset, split, found.examples, errors))

    def _worst(self, dataset: Dataset, split: str, examples: dict[str, np.ndarray], count: int) -> list[Record]:
        labels = dataset.splits[split].get("label")
        if labels is None or not count:
            return []
        records = self._task.errors(examples, labels, count)
        if self._tags:
            tagging.add_tags(records, dataset, split, self._tag)
        for record in records:
            texts = (each[record["row"]] for each in dataset.texts.get(split, ()))
            record |= dict(zip(("text", "text_pair"), texts, strict=False))
        return records

    def describe_all(self, inputs: np.ndarray | Sequence[Any]) -> list[Record]:
        """One record an example: what `predict` says of it, in words; `error` where the model's answer is no number."""
        if self.features.kind == "text":
            return self.label_texts(list(inputs))
        return [self._described(values) for values in self._predict_arrays(np.asarray(inputs))]

    def _described(self, values: np.ndarray) -> Record:
        if not np.isfinite(values).all():
            return {"error": "the model's answer is not a finite number: are the values far outside of the training's?"}
        return self._task.describe(values)

    def label_texts(self, texts: Sequence[Text]) -> list[Record]:
        """One record a text: label and probability of each class, or of a tagger what `tagging.tag` says of each; with
        `cut` where it was too long for the model."""
        if self._tags:
            return self._tag(texts)
        probabilities, cut = self._predict_texts(texts)
        return [
            {**self._described(values), **({"cut": True} if short else {})}
            for values, short in zip(probabilities, cut, strict=True)
        ]

    @property
    def _tags(self) -> bool:
        return self.features.target.kind == TOKEN_CLASS

    def _tag(self, sentences: Any) -> list[Record]:
        if isinstance(sentences, str):
            raise ValueError("one text is given; give a list of texts")

        def predict(batch: dict[str, np.ndarray]) -> np.ndarray:
            return np.asarray(self._predict(self._weights, self._state.variables, batch))

        return tagging.tag(self._tokenizer, self.features, sentences, predict, self._task.describe)

    def predict_files(self, files: Sequence[str | Path | bytes], *, strict: bool = False) -> Iterator[Record]:
        """One record an image, a table row or a text: label and probability of each class, or the predicted value; or
        `error`, for a file or a row that cannot be read.

        Args:
            files: by name, or their contents.
            strict: raise for the first that cannot be read, before anything is predicted.

        Raises:
            DataError: for a file that cannot be read, if `strict`.
        """
        return file_records.predict_files(self, files, strict=strict)


def _carried(run: RunDirectory, step: int, names: Sequence[str]) -> dict[str, float]:
    """What the validation at a step, or the last one before it, found of some metrics."""
    if not names:
        return {}
    before = [line for line in read_metrics(run.metrics) if line["step"] <= step]
    found = {name: line[f"val/{name}"] for line in before for name in names if line.get(f"val/{name}") is not None}
    if absent := [name for name in names if name not in found]:
        log.warning("%s does not say the %s of step %d; it is taken for 0.5", run.metrics, absent[0], step)
    return found


def _on_one_device(config: Config) -> Config:
    """A trained model is used on one device, whatever mesh it was trained on."""
    import dataclasses

    sizes: dict[str, Any] = dict.fromkeys(config.mesh.axes, 1)
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))
