"""A run that teaches another one: which it is, and whether it can. Free of jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigctl.config import compose as composing
from bigctl.config import plugins as loading
from bigctl.config import schema
from bigctl.config.schema import Config
from bigctl.data.dataset import Dataset, Features
from bigctl.data.target import CLASS
from bigctl.errors import ConfigError, RunError
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory

KEY = "distil.teacher"
STREAM = "stream"
"""Kind of data whose teacher is asked in each step."""


@dataclass(frozen=True)
class Teacher:
    """A trained run that can teach.

    Attributes:
        run: where it is.
        config: what it was trained with.
        features: what its data looked like.
        order: of each class of the student, its place among those of the teacher, int [classes].
    """

    run: RunDirectory
    config: Config
    features: Features
    order: np.ndarray

    @property
    def name(self) -> str:
        return str(self.run.path)


def find(config: Config, dataset: Dataset, plugins: Sequence[str] = ()) -> Teacher:
    """The teacher of an experiment.

    Args:
        config: the student's.
        dataset: its data.
        plugins: modules that may be imported for it.

    Raises:
        RunError: if there is no such run, it was not trained to its end, or needs plugins.
        ConfigError: if it does not tell the student's classes apart.
    """
    run, theirs, features = named(config, plugins)
    where = f"{KEY}={config.distil.teacher}"
    if features.kind != dataset.features.kind:
        what = f"it reads {features.kind}s, the data holds {dataset.features.kind}s"
        raise ConfigError(what, where=where, hint="name a run on data of this kind")
    if features.kind == STREAM:
        _require_same_tokens(run, theirs, features, dataset.features, where)
        return Teacher(run, theirs, features, np.zeros(0, np.int64))
    found = Teacher(run, theirs, features, _order(features, dataset.features, where))
    if config.distil.hidden:
        require_same_vectors(found, config, dataset)
    return found


def asked_each_step(config: Config, dataset: Dataset) -> bool:
    """Whether a teacher's weights are an argument of each step, not what it said before a column of the data."""
    return config.distil.teacher is not None and bool(config.distil.hidden or dataset.features.kind == STREAM)


def uncounted(config: Config, dataset: Dataset) -> list[str]:
    """What a plan of the step says of a teacher that is asked in each one, which it is made without."""
    if not asked_each_step(config, dataset):
        return []
    return ["each step asks the teacher too, whose weights, memory and operations are not counted here"]


def named(config: Config, plugins: Sequence[str] = ()) -> tuple[RunDirectory, Config, Features]:
    """The run that is to teach, its configuration and what its data looked like; looked at before any data is.

    Raises:
        RunError: if there is no such run, it was not trained to its end, or needs plugins.
        ConfigError: if it tells no class of an example, or, where text is to be written, writes none.
    """
    where = f"{KEY}={config.distil.teacher}"
    try:
        run = directory.locate(str(config.distil.teacher))
    except RunError as error:
        raise RunError(error.message, where=where, hint=error.hint) from error
    record = run.record()
    if not run.summary_file.is_file() or "data" not in record:
        raise RunError("has not finished training", where=where, hint=f"bigctl resume {run.path}")
    loading.load_for_run(record.get("plugins"), plugins, where=str(run.path))
    theirs = composing.from_yaml(run.read_config(), where=str(run.config))
    try:
        features = Features.from_json(record["data"]["features"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is not as bigctl writes it: data.features ({type(error).__name__})"
        raise RunError(what, where=str(run.record_file)) from error
    if config.recipe.inputs == "streams":
        if features.kind != STREAM or theirs.recipe.purpose != "generate":
            what = f"a run of recipe={theirs.recipe.kind} does not say what the next token is"
            raise ConfigError(what, where=where, hint="name a run of recipe=gpt_lm")
        return run, theirs, features
    if features.target.kind != CLASS or theirs.recipe.purpose != "predict":
        what = f"a run of recipe={theirs.recipe.kind} tells no class of an example"
        raise ConfigError(what, where=where, hint="name a run that classifies")
    return run, theirs, features


def require_same_vectors(teacher: Teacher, student: Config, dataset: Dataset) -> None:
    """Raises ConfigError unless the vectors of each token can be compared: two BERTs of one width and tokenizer."""
    where, model = "distil.hidden", teacher.config.model
    words, own = teacher.features.tokenizer or {}, dataset.features.tokenizer or {}
    widths = [getattr(each, "width", None) for each in (model, student.model)]
    if model.kind != student.model.kind or widths[0] != widths[1]:
        what = f"{teacher.name} is model={model.kind} of width {widths[0]}, the student one of {widths[1]}"
        raise ConfigError(what, where=where, hint="give the student the teacher's width, or leave distil.hidden out")
    if words.get("sha256") != own.get("sha256"):
        hint = f"recipe.tokenizer.type=file recipe.tokenizer.path={teacher.run.tokenizer} takes its own"
        raise ConfigError(f"{teacher.name} has another tokenizer", where=where, hint=hint)
    positions = getattr(model, "positions", None)
    if positions is not None and positions < dataset.features.shape[0]:
        what = f"{teacher.name} takes texts of {positions} tokens, here are {dataset.features.shape[0]}"
        raise ConfigError(what, where=where, hint=f"recipe.tokenizer.max_length={positions}")


def _require_same_tokens(run: RunDirectory, theirs: Config, known: Features, ours: Features, where: str) -> None:
    """Raises ConfigError unless its numbers stand for the same tokens, and its texts may be as long as ours."""
    words, own = known.tokenizer or {}, ours.tokenizer or {}
    if any(words.get(name) != own.get(name) for name in ("sha256", "vocab_size")):
        what = f"has another tokenizer: {words.get('vocab_size')} tokens, the data has {own.get('vocab_size')}"
        if words.get("vocab_size") == own.get("vocab_size"):
            what = "has another tokenizer: its tokens are others, or have other numbers"
        hint = f"recipe.tokenizer.type=file recipe.tokenizer.path={run.tokenizer} takes its own"
        raise ConfigError(what, where=where, hint=hint)
    context, block = getattr(theirs.model, "context", None), ours.shape[0]
    if getattr(theirs.model.with_defaults(), "position", None) == "learned" and context and context < block:
        what = f"takes texts of {context} tokens, the student is trained on windows of {block}"
        raise ConfigError(what, where=where, hint=f"set recipe.block={context}")


def _order(theirs: Features, ours: Features, where: str) -> np.ndarray:
    """Where each class of ours is among theirs; the same classes may come in another order."""
    known, wanted = list(theirs.target.names), list(ours.target.names)
    if sorted(known) != sorted(wanted):
        odd = [name for name in wanted if name not in known] or [name for name in known if name not in wanted]
        one, other = ("the data", "it") if odd[0] in wanted else ("it", "the data")
        what = f"has other classes than the data: {one} has {odd[0]!r}, {other} has not"
        raise ConfigError(what, where=where, hint="name a run that was trained on the same classes")
    return np.array([known.index(name) for name in wanted])


def its_data(teacher: Teacher, student: Config, dataset: Dataset) -> Dataset:
    """The student's data as the teacher reads it: texts by its own tokenizer, pictures in its own size.

    Raises:
        ConfigError: where that cannot be, or gives other examples.
    """
    where = f"{KEY}={student.distil.teacher}"
    config = dataclasses.replace(teacher.config, data=_seen_by(teacher.config.data, student.data))
    from bigctl.engine import resolve  # here: who uses a trained model prepares no data

    found = resolve.prepare_data(config, teacher.run.tokenizer if teacher.run.tokenizer.is_file() else None)
    theirs, own = teacher.features, found.features
    if (theirs.tokenizer or {}).get("sha256") != (own.tokenizer or {}).get("sha256"):
        hint = "data on which a tokenizer is made again gives another one: train the teacher on this data"
        raise ConfigError("its tokenizer cannot be had for this data", where=where, hint=hint)
    if own.kind == "image" and own.shape != theirs.shape:
        what = f"it sees pictures of {_by(theirs.shape)}, here they are of {_by(own.shape)}"
        raise ConfigError(what, where=where, hint="data.image_size and data.channels decide that")
    same = found.fingerprint == teacher.run.record()["data"].get("fingerprint")
    if own.kind == "table" and not same and (own.encoder is None or own.encoder != theirs.encoder):
        hint = "train the teacher on the same file with the same data keys"
        raise ConfigError("it reads columns in another way than this data has them", where=where, hint=hint)
    ours, labels = dataset.splits["train"]["label"], found.splits["train"]["label"]
    if len(ours) != len(labels) or not np.array_equal(ours, labels):
        hint = "data keys of the teacher that choose or drop examples must be those of the student"
        raise ConfigError("it reads other examples of this data than the student", where=where, hint=hint)
    return found


def _seen_by(theirs: schema.Data, ours: schema.Data) -> schema.Data:
    """Our data with the size of pictures that they have."""
    names = [name for name in ("image_size", "channels", "resize") if hasattr(ours, name) and hasattr(theirs, name)]
    given: dict[str, Any] = {name: getattr(theirs, name) for name in names}
    return dataclasses.replace(ours, **given) if given else ours


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
