"""A trained model as a pure function of its weights and a batch, in float32, with examples to hold a copy of it to.

Sizes of batches, and lengths of texts, are symbols: what is made of the function takes any.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from bigctl.data.dataset import Dataset, Features
from bigctl.engine import experiment
from bigctl.engine.step_memory import changed
from bigctl.errors import ConfigError, DataError, RunError
from bigctl.inference.exporters import peak_memory
from bigctl.inference.trained import TrainedRun
from bigctl.parallel.partition import path_name
from bigctl.training.programs import ModelPrograms
from bigctl.training.state import Tree

log = logging.getLogger("bigctl")

ROWS = 32
"""Examples of each batch that a copy is compared on, at most."""
LARGEST = 2**26
"""Numbers that an output of a batch has at most, 256 MiB of float32."""

Arrays = dict[str, np.ndarray]
Shapes = tuple[tuple[str, tuple[int, ...], str], ...]
Function = Callable[[dict[str, jax.Array], dict[str, jax.Array]], dict[str, jax.Array]]


@dataclass(frozen=True, eq=False)
class Network:
    """A model to be exported.

    Attributes:
        weights: by path, float32 or as they are stored.
        function: (weights, inputs) -> outputs, all by name; the first output is what labels are chosen by.
        inputs: shapes of the inputs, with symbols.
        batches: examples: inputs by name.
        checked: what these are, for people.
        model: weights by path -> the model.
        dataset: the run's data, None where it cannot be had.
    """

    weights: Arrays
    function: Function
    inputs: dict[str, jax.ShapeDtypeStruct]
    batches: list[Arrays]
    checked: str
    model: Callable[[dict[str, jax.Array]], nnx.Module]
    dataset: Dataset | None = None

    @classmethod
    def of(cls, trained: TrainedRun, *, rounded: bool = False) -> Network:
        """The model of a run, with `rounded` as `train.quantize` has it. Raises ConfigError if its recipe says of no
        inputs, or it is of a plugin and for batches of one size."""
        config, features = trained.config, trained.features
        quantize = config.train.quantize if rounded else None
        train = dataclasses.replace(config.train, precision="float32", quantize=quantize)
        if getattr(config.model, "scan", False):  # written out, so that every matrix is met by its own name
            config = changed(config, {"model.scan": False})
        programs = experiment.rebuild(dataclasses.replace(config, train=train), features)
        model, function = computed_by(programs)
        weights = {name: _plain(leaf) for name, leaf in by_path((trained.params, trained.variables)).items()}
        try:
            longest = programs.task.exported_inputs(ROWS)
        except NotImplementedError as error:
            what = f"recipe={config.recipe.kind} does not say what its model is given"
            raise ConfigError(what, where=str(trained.run.path), hint="define Task.exported_inputs") from error
        dataset = _data(trained)
        inputs = _symbolic(longest, features)
        if trained.run.record().get("plugins"):  # models of ours take any
            _require_any_size(function, weights, inputs)
        batches, checked = _examples(trained, dataset, longest, _rows(function, weights, longest))
        if quantize != config.train.quantize:
            checked += " (float32, without the rounding of train.quantize)"
        return cls(weights, function, inputs, batches, checked, model, dataset)

    def given(self, batch: Arrays) -> Arrays:
        """The inputs, of a batch of data; what it has no column for is a cache with nothing in it."""
        rows = len(next(iter(batch.values())))

        def empty(shape: tuple[int, ...]) -> tuple[int, ...]:
            return (rows, *(size if isinstance(size, int) else 0 for size in shape[1:]))

        return {
            name: batch[name] if name in batch else np.zeros(empty(shape.shape), shape.dtype)
            for name, shape in self.inputs.items()
        }

    @cached_property
    def weight_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in self.weights.items()}

    @cached_property
    def expected(self) -> list[Arrays]:
        """What the model gives for each of the batches."""
        run = self.copy(self.weights)
        return [run(batch) for batch in self.batches]

    def copy(self, weights: Arrays) -> Computed:
        """The same function of inputs alone, with other weights."""
        return Computed(self.function, weights, self._peaks)

    @cached_property
    def _peaks(self) -> dict[tuple[Shapes, Shapes], int | None]:
        return {}


class Computed:
    """A function of weights and a batch as jax computes it on CPU, with weights of its own: inputs -> outputs, by name.

    Args:
        function: see `Network.function`.
        weights: by path.
        peaks: what is known of the memory that the function takes, by shapes of weights and inputs.
    """

    runtime = f"jax {jax.__version__}"

    def __init__(self, function: Function, weights: Arrays, peaks: dict[tuple[Shapes, Shapes], int | None]):
        self._run, self._peaks = jax.jit(function), peaks
        with on_cpu():
            self._weights = {name: jnp.asarray(values) for name, values in weights.items()}

    def __call__(self, inputs: Arrays) -> Arrays:
        with on_cpu():
            return {name: np.asarray(values) for name, values in self._run(self._weights, dict(inputs)).items()}

    def peak_memory(self, inputs: Arrays) -> int | None:
        """Bytes, see `beside.Copy`."""
        key = _shapes(self._weights), _shapes(inputs)
        if key not in self._peaks:
            self._peaks[key] = peak_memory.measured(lambda folder: self._write(folder, inputs), inputs)
        return self._peaks[key]

    def _write(self, folder: Path, inputs: Arrays) -> None:
        with on_cpu():
            made = export.export(self._run, platforms=("cpu",))(self._weights, dict(inputs))
        (folder / peak_memory.JAX).write_bytes(made.serialize())
        weights = {name: np.asarray(values) for name, values in self._weights.items()}
        np.savez(folder / peak_memory.WEIGHTS, **weights)  # type: ignore[arg-type]


def computed_by(programs: ModelPrograms) -> tuple[Callable[[dict[str, jax.Array]], nnx.Module], Function]:
    """The model of weights by path, and what is exported of it as a function of these and a batch."""
    shapes = (programs.weights.params, programs.weights.variables)
    names, structure = [*by_path(shapes)], jax.tree_util.tree_structure(shapes)

    def merged(weights: dict[str, jax.Array]) -> nnx.Module:
        params, variables = jax.tree_util.tree_unflatten(structure, [weights[name] for name in names])
        return programs.merge(params, variables)

    def function(weights: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return programs.task.exported(merged(weights), inputs)

    return merged, function


def by_path(weights: tuple[Tree, Tree]) -> dict[str, Any]:
    """The leaves of parameters and variables, by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(weights)
    return {path_name(path).partition("/")[2]: leaf for path, leaf in leaves}


def _shapes(arrays: Mapping[str, np.ndarray | jax.Array]) -> Shapes:
    return tuple((name, tuple(arrays[name].shape), str(arrays[name].dtype)) for name in sorted(arrays))


@contextmanager
def on_cpu() -> Iterator[None]:
    """What is computed within is computed on CPU where there is one: other devices round products more coarsely."""
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        yield
        return
    with jax.default_device(cpu):
        yield


def _plain(leaf: jax.Array) -> np.ndarray:
    values = np.asarray(leaf)
    return values if values.dtype.kind in "iub" else values.astype(np.float32, copy=False)


def _symbolic(longest: dict[str, jax.ShapeDtypeStruct], features: Features) -> dict[str, jax.ShapeDtypeStruct]:
    """The same shapes with `batch` for the first dimension, and `length` for the second of texts."""
    texts = features.kind in ("text", "stream")
    most = max((shape.shape[1] for shape in longest.values() if len(shape.shape) > 1), default=1)
    limits = [f"length <= {most}"] if texts else []
    batch, length = export.symbolic_shape("batch, length", constraints=limits)
    first = (batch, length) if texts else (batch,)
    shapes = {name: (*first, *given.shape[len(first) :])[: len(given.shape)] for name, given in longest.items()}
    return {name: jax.ShapeDtypeStruct(shape, longest[name].dtype) for name, shape in shapes.items()}


# ----------------------------------------------------------------------------------------------------------- examples


def _require_any_size(function: Function, weights: Arrays, inputs: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Raises ConfigError for a model that asks for the size of a batch as a Python number, naming the line."""
    shapes = {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in weights.items()}
    try:
        jax.eval_shape(function, shapes, inputs)
    except Exception as error:  # jax's own is of no public class
        if "_DimExpr" not in str(error) and type(error).__name__ != "InconclusiveDimensionOperation":
            raise
        lines = [each for each in traceback.extract_tb(error.__traceback__) if "site-packages" not in each.filename]
        hint = "take sizes from x.shape, such as x.shape[0] in place of len(x), and make no int of them"
        what = "the size of a batch is no number here, as an export takes batches of any size"
        raise ConfigError(what, where=f"{lines[-1].filename}, line {lines[-1].lineno}", hint=hint) from error


def _rows(function: Function, weights: Arrays, longest: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Examples a batch: fewer where the outputs of `ROWS` would be large, as those of long texts over many tokens."""
    shapes = {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in weights.items()}
    outputs = jax.eval_shape(function, shapes, longest)
    each = max((math.prod(output.shape[1:]) for output in outputs.values()), default=1)
    return max(1, min(ROWS, LARGEST // max(each, 1)))


def _data(trained: TrainedRun) -> Dataset | None:
    try:
        return trained.data()
    except (DataError, RunError) as error:
        log.warning("the run's data cannot be had, random inputs are compared instead: %s", error)
        return None


def _examples(
    trained: TrainedRun, dataset: Dataset | None, longest: dict[str, jax.ShapeDtypeStruct], rows: int
) -> tuple[list[Arrays], str]:
    """Batches of validation rows, of the shortest and the longest texts where these differ, and one of a single row;
    of random numbers without data."""
    if dataset is None:
        found = [{name: values[:rows] for name, values in _random(trained.features, longest).items()}]
        what = f"{rows} random inputs, for want of the run's data"
    else:
        found = _of_data(dataset, longest, rows, str(trained.run.path))
        rows = sum(len(next(iter(batch.values()))) for batch in found)
        what = f"{rows} validation {'windows' if trained.features.kind == 'stream' else 'rows'}"
    return [*found, {name: values[:1] for name, values in found[0].items()}], what


def _of_data(dataset: Dataset, longest: dict[str, jax.ShapeDtypeStruct], rows: int, where: str) -> list[Arrays]:
    """The first batch of so many validation rows and the last. Raises ConfigError for inputs that the data has not."""
    columns, layout = dataset.splits["validation"], dataset.batches
    planned = list(layout.evaluation_plan(columns, batch_size=rows, shards=1).batches())
    found = []
    for indices, mask, length in planned[:1] + planned[1:][-1:]:
        batch = layout.gather(columns, indices, length)
        if missing := [name for name in longest if name not in batch]:
            what = f"Task.exported_inputs names {', '.join(missing)}, which batches of the data do not have"
            raise ConfigError(what, where=where, hint=f"they have {', '.join(batch)}")
        found.append({name: np.asarray(batch[name])[mask > 0] for name in longest})
    return found


def _random(features: Features, longest: dict[str, jax.ShapeDtypeStruct]) -> Arrays:
    rng = np.random.default_rng(0)
    tokens = (features.tokenizer or {}).get("vocab_size", 2)
    found: Arrays = {}
    for name, shape in longest.items():
        if np.issubdtype(shape.dtype, np.floating):
            found[name] = rng.normal(size=shape.shape).astype(shape.dtype)
        else:
            most = 256 if shape.dtype == np.uint8 else tokens if len(shape.shape) > 1 else features.shape[0]
            found[name] = rng.integers(0, most, shape.shape).astype(shape.dtype)
    if "lengths" in found:
        found["lengths"] += 1
        found["segment_start"] = found["lengths"].copy()
    return found
