"""What a recipe adds to the shared loop. The loop knows tasks by this class alone.

A task says how its model is built, what its loss is, what is measured, and what a prediction means. What is left out
has the default written here, so that a task of one's own is as short as what it does. Which of its metrics should be
large and which small stands with the recipe's keys (`schema.Recipe.metrics`), where it is known without jax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.training.metrics import EACH, Sums
from bigctl.training.state import Weights

Batch = dict[str, jax.Array]
"""Columns of examples, all with the batch dimension first; `mask` float32 is 0 where an example only pads, `number`
int32 is the example's place in the global batch."""
FEATURES = "features"
"""The column of what a task with a `feature_width` reads in place of its examples."""
TEACHER = "teacher"
"""The column of a teacher's logits, float32 [batch, classes], see `engine.distil`."""
STEP = "step"
"""The name among the hparams of `Task.loss` that the number of the update has, int32 [], counted from 0."""
Network = Callable[..., jax.Array]
"""A model as a task calls it."""
Record = dict[str, Any]
"""What is said of one example, JSON-serialisable."""
ExportedModel = Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
"""A model in the runtime that it was exported for: a batch, of which it takes the columns of `Task.exported_inputs`, ->
what `Task.exported` names."""


@dataclass(frozen=True)
class Judged:
    """A prediction beside what is true.

    Attributes:
        label, predicted: for people.
        wrong: whether they differ; never where there is no right or wrong, as of numbers.
        loss: by which mistakes are ranked.
        probability: of what was predicted; None where there is none.
    """

    label: str
    predicted: str
    wrong: bool
    loss: float
    probability: float | None = None


class Task:
    """One kind of experiment.

    Attributes:
        metric: what selects the best checkpoint unless `eval.metric` does, such as "val/accuracy".
        frozen: patterns of the paths of parameters that are not trained, besides those of `optimizer.freeze`.
        carried: metrics of the validation split, without prefix, that belong to the weights they were measured with and
            are handed to `decided` wherever these are used, such as a threshold.
        tokens_per_example: tokens in each example, where the speed of training is told in tokens; else None.
        sample_tokens: length of the text that the model writes now and then while it is trained; 0 for none [tokens].
        prompt: what such a text begins with; None for the first words of the validation text.
    """

    metric: str = "val/loss"
    frozen: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    tokens_per_example: int | None = None
    sample_tokens: int = 0
    prompt: str | None = None
    solves: bool = False
    """Whether a step is a solution for the batch, by `solve`, in place of a step of the optimizer."""
    feature_width: int | None = None
    """Where training reads features of its examples in place of them, computed once by `compute_features`, how many."""
    packs: bool = False
    """Whether a row of a batch may hold several texts, as `data.layouts.packed_texts` makes them: `inputs` has an entry
    a row, all else one a text. Said by each class for itself: one that is made of it may not know."""
    teacher: Callable[[Weights], nnx.Module] | None = None
    """Of a task that asks its teacher in each step: the model of its weights, which stand among the hparams."""
    own_metrics: tuple[schema.Metric, ...] = ()
    """Those of `eval.metrics`, which are computed besides."""

    # Every task defines these four.

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, newly initialised."""
        raise NotImplementedError

    def example_shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Columns of a batch of n examples."""
        raise NotImplementedError

    def loss(
        self, model: nnx.Module, batch: Batch, key: jax.Array, augment_key: jax.Array, hparams: Mapping[str, Any]
    ) -> Sums:
        """Training sums of a batch; `loss` is the pair that is minimised."""
        raise NotImplementedError

    def evaluate(self, model: nnx.Module, batch: Batch) -> Sums:
        """Evaluation sums of a batch, additive over batches; and, named `metrics.EACH`..., values of each example."""
        raise NotImplementedError

    # These have defaults.

    def look(self, columns: Mapping[str, Any]) -> None:
        """Find out what `build` needs to know of the training split, such as statistics of it.

        Asked once, before anything is built; not where a trained run is used, whose state holds what came of it.
        """

    def compute_features(self, model: nnx.Module, batch: Batch) -> jax.Array:
        """float32 [batch, feature_width], the column `FEATURES` of a training batch; the model may be changed."""
        raise NotImplementedError

    def solve(self, model: nnx.Module, batch: Batch, step: jax.Array, hparams: Mapping[str, Any]) -> None:
        """Give the model the weights of step number `step`, int32 [], counted from 0; of tasks that `solves`."""
        raise NotImplementedError

    def decided(self, values: Mapping[str, float]) -> Self:
        """The task for weights of which the `carried` metrics are known; by default itself.

        Its `metrics`, `describe`, `judge` and `errors` are asked of the test split and of new examples.
        """
        return self

    def metrics(self, sums: Mapping[str, np.ndarray]) -> Record:
        """What is reported of evaluation sums that are no plain means: numbers by name, without prefix.

        What began with `metrics.EACH` is here of all examples of the split. By default nothing.
        """
        return {}

    def predict(self, model: nnx.Module, batch: Batch) -> jax.Array:
        """What the model says of each example, [batch, ...]; `batch` has no labels. Asked only of recipes whose
        `purpose` is "predict"."""
        raise NotImplementedError

    def describe(self, prediction: np.ndarray) -> Record:
        """What `bigctl predict` prints of one example; by default the numbers that `predict` gave."""
        return {"prediction": np.asarray(prediction).tolist()}

    def exported_inputs(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What an exported model is given, columns of a batch of n of the longest examples; by default those of
        `example_shapes` but for the label."""
        return {name: shape for name, shape in self.example_shapes(n).items() if name != "label"}

    def exported(self, model: nnx.Module, batch: Batch) -> dict[str, jax.Array]:
        """What an exported model gives, by name, each [batch, ...]; the first is what a user compares and ranks by. By
        default what `predict` gives."""
        return {"prediction": self.predict(model, batch)}

    def evaluate_exported(self, model: ExportedModel, batch: Batch) -> Sums:
        """What `evaluate` gives, of a model that another runtime computes; nothing of it is compiled.

        By default there is no such; who defines `evaluate` anew defines this too, or exports are not scored.
        """
        raise NotImplementedError

    def judge(self, predictions: np.ndarray, labels: np.ndarray) -> list[Judged]:
        """What `predict` gave of some examples beside their labels, for reports; by default nothing."""
        return []

    @property
    def positive(self) -> str | None:
        """Of two classes, the one that binary metrics are about; by default none is."""
        return None

    def decision(self) -> float | None:
        """The least probability of a class that is predicted, see `decided`; None where the likeliest one is."""
        return None

    def curves(self, examples: Mapping[str, np.ndarray], labels: np.ndarray) -> Record:
        """Curves of an evaluation for reports, as `recipes.curves.described` has them; by default none.

        Arguments are those of `errors`.
        """
        return {}

    def errors(self, examples: Mapping[str, np.ndarray], labels: np.ndarray, count: int) -> list[Record]:
        """The worst mistakes of an evaluation, at most `count`; by default none.

        Args:
            examples: values of each example that `evaluate` gave, by name.
            labels: of the examples, as prepared data has them.

        Returns:
            Each with `row`, its place in the split, `loss`, `label` and `predicted`.
        """
        return []

    def flops_per_example(self, shapes: Mapping[str, tuple[int, ...]]) -> float | None:
        """Operations that training takes for an example; `shapes` are those of all parameters by path.

        By default None: not known, and no utilisation of the devices is told.
        """
        return None


_OWN = f"{EACH}own/"


def require_task(task: Task, recipe: schema.Recipe) -> Task:
    """The task that a recipe built, if it is a whole one.

    Raises:
        ConfigError: naming what it lacks, and where its class is defined.
    """
    where = schema.place_of(type(task))
    if not isinstance(task, Task):
        raise ConfigError(f"recipe {recipe.kind!r} must build a bigctl.training.task.Task", where=where)
    for name in ("build", "example_shapes", "loss", "evaluate"):
        if getattr(type(task), name) is getattr(Task, name):
            raise ConfigError(f"the task of recipe {recipe.kind!r} has no method `{name}`", where=where)
    return task


def training_sums(task: Task, *arguments: Any) -> Sums:
    """`task.loss`, held to what it promises."""
    return _with_loss(task, "loss", task.loss(*arguments))


def evaluation_sums(task: Task, model: nnx.Module, batch: Batch) -> Sums:
    """`task.evaluate`, held to what it promises, and the values of each example that `eval.metrics` need."""
    sums, count = _with_loss(task, "evaluate", task.evaluate(model, batch)), len(batch["mask"])
    for metric in task.own_metrics:
        values = metric.measure(task, model, batch)
        if not isinstance(values, jax.Array) or values.shape[:1] != (count,):
            found = f"an array {values.shape}" if isinstance(values, jax.Array) else type(values).__name__
            raise metric.incomplete(f"must give a value for each of the {count} examples of a batch, not {found}")
        sums = {**sums, _OWN + metric.name: values}
    return sums


def _with_loss(task: Task, method: str, sums: Sums) -> Sums:
    if not isinstance(sums, dict) or "loss" not in sums or jax.numpy.shape(sums["loss"]) != (2,):
        raise ConfigError(
            f"`{method}` must give sums by name, with the pair [sum, weight] of the loss as `loss`",
            where=schema.place_of(type(task)),
            hint="bigctl.training.metrics.pair makes such pairs of a value and a weight for each example",
        )
    return sums


def special_metrics(task: Task, sums: Mapping[str, np.ndarray]) -> Record:
    """`task.metrics`, and those of `eval.metrics`."""
    found = dict(task.metrics(sums))
    for metric in task.own_metrics:
        value = metric.compute(sums[_OWN + metric.name])
        if not np.isscalar(value) and np.shape(value) != ():
            raise metric.incomplete(f"must compute one number, not {type(value).__name__}")
        found[metric.name] = float(value)
    return found


def scores_exports(task: Task) -> bool:
    """Whether `evaluate_exported` is there, and of a class that knows what `evaluate` is: not above one that changes
    it."""
    classes = type(task).__mro__
    evaluate, exported = (
        next(place for place, each in enumerate(classes) if name in vars(each))
        for name in ("evaluate", "evaluate_exported")
    )
    return exported <= evaluate
