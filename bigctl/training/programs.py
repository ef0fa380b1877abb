"""The compiled functions of an experiment: initialise, train, take sums, evaluate.

They are made once by `compile_programs`, or without those that train by `model_programs`, and never change. Trials that
differ in hparams and seeds only share them, each with hparams of its own, see `Programs.with_config`. What they compute
is in `step`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.backend import get_backend
from jax.sharding import Mesh
from jaxlib import version as jaxlib_version

from bigctl import randomness
from bigctl.config import schema
from bigctl.parallel import accelerators, partition
from bigctl.parallel import mesh as meshes
from bigctl.runs import provenance
from bigctl.training import metrics, on_batches
from bigctl.training.compiled import Compiled, InParts
from bigctl.training.forms import carried_state, make_step, placed_by_rules
from bigctl.training.metrics import Sums
from bigctl.training.on_batches import Arrays
from bigctl.training.state import TrainState, Tree, Weights, zeros_like
from bigctl.training.step import SEED, Hparams, Step, traced_hparams
from bigctl.training.task import Task, special_metrics

LARGEST_LOOP = 1024
"""Steps a dispatch at most: the length of the index array that a looped program takes."""

_SOON_SCORED = 2**24
"""Products of an example and a weight that take so little time that it matters more how long they take to compile."""


@dataclass(frozen=True, eq=False)
class Evaluations:
    """What scores batches, to the same bits.

    Attributes:
        sent: (params, variables, batch columns, mask [batch], hparams) -> sums.
        resident: (params, variables, arrays, indices [batch], mask [batch], hparams, layout, length) -> sums.
    """

    sent: Compiled
    resident: Compiled


@dataclass(frozen=True, eq=False)
class ModelPrograms:
    """The compiled functions that a trained model is used with, on one mesh, and the arguments that are its own.

    Attributes:
        step: what is computed, not compiled.
        hparams: numbers that enter as arguments, the seed among them: other values need no new program.
        seed: of the initial parameters.
        evaluations: of splits of any size, and of few examples.
        add_sums: (sums, sums) -> sums.
    """

    step: Step
    hparams: Hparams
    seed: int
    evaluations: tuple[Evaluations, Evaluations]
    add_sums: Compiled

    @property
    def mesh(self) -> Mesh:
        return self.step.mesh

    @property
    def task(self) -> Task:
        return self.step.task

    @property
    def weights(self) -> Weights:
        """Shapes, dtypes and placements of the weights, as ShapeDtypeStructs."""
        return self.step.weights

    def evaluation(self, examples: int) -> Evaluations:
        """What scores a split of so many examples."""
        many, few = self.evaluations
        return few if _is_soon_scored(self.step, examples) else many

    def merge(self, params: Tree, variables: Tree, hparams: Hparams | None = None) -> nnx.Module:
        """The model with these weights."""
        return self.step.merge(params, variables, self.hparams if hparams is None else hparams)


@dataclass(frozen=True, eq=False)
class Programs(ModelPrograms):
    """The compiled functions of one experiment on one mesh, and the arguments that are its own.

    Attributes:
        abstract_state: shapes, dtypes and placements of the state as it is stored, as ShapeDtypeStructs.
        carried_state: the same of the state as training keeps it, which is what the functions below take and give: with
            like layers as one where `stacking` says so, else the same tree.
        kernels: which kernel computes what there are several for, such as "attention", on the devices of this mesh.
        make_state: (seed, weights by path, variables by path) -> a new state with these, in place on the mesh: no
            device ever holds more than its part, and what is given is not drawn.
        step_sent: (state, batch columns, hparams) -> state: one step on a batch that the host sends.
        step_resident: (state, arrays, indices [batch], hparams, layout, length) -> state: one step on data that is on
            the devices.
        steps_resident: (state, arrays, indices [LARGEST_LOOP, batch], count, hparams, layout, length) -> state: the
            first `count` of these steps. The count is an argument of one program, so a run that is cut at any step runs
            the same code as one that is not.
        sent_in_parts: `step_sent` as two programs, see `InParts`.
        resident_in_parts: `step_resident` likewise.
        take_sums: state -> (state with empty sums, the sums, first bad step): what a log line needs, without waiting
            for it. Among the sums is `skipped`, int32 [], the steps skipped so far, where steps may be.
    """

    abstract_state: TrainState
    carried_state: TrainState
    kernels: Mapping[str, str]
    make_state: Compiled
    step_sent: Compiled
    step_resident: Compiled
    steps_resident: Compiled
    sent_in_parts: Compiled
    resident_in_parts: Compiled
    take_sums: Compiled

    @property
    def state_shardings(self) -> TrainState:
        return jax.tree.map(lambda s: s.sharding, self.carried_state)

    def carried(self, state: TrainState) -> TrainState:
        """A stored state, such as a checkpoint's, as training keeps it."""
        return state if self.step.deep is None else self._carried(state)

    def stored(self, state: TrainState) -> TrainState:
        """`carried` the other way round: what a checkpoint is made of, with a name for each layer."""
        return state if self.step.deep is None else self._stored(state)

    @cached_property
    def _carried(self) -> Compiled:
        return jax.jit(self.step.carried, out_shardings=self.state_shardings)

    @cached_property
    def _stored(self) -> Compiled:
        return jax.jit(self.step.stored, out_shardings=jax.tree.map(lambda s: s.sharding, self.abstract_state))

    def with_config(self, config: schema.Config) -> Programs:
        """The same functions, compiled once for both, with the hparams and the seed of another configuration, which
        must differ in nothing else."""
        return dataclasses.replace(self, hparams=hparams_of(config), seed=config.seed)

    def initialise(
        self, weights: Mapping[str, np.ndarray] | None = None, variables: Mapping[str, np.ndarray] | None = None
    ) -> TrainState:
        """A new state.

        Args:
            weights: parameters by path that replace the initial ones, such as pretrained ones.
            variables: the same of what the model updates by itself.
        """
        shapes = self.abstract_state
        given = _placed(shapes.params, weights or {}), _placed(shapes.variables, variables or {})
        state: TrainState = self.make_state(np.int64(self.seed), *given)
        return state

    def blank(self) -> TrainState:
        """A state of zeros, as training keeps it; nothing is compiled for it."""
        blank: TrainState = jax.tree.map(
            lambda leaf: meshes.put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding), self.carried_state
        )
        return blank

    def trained(self, params: Tree) -> Tree:
        """Which leaves are trained."""
        return self.step.trained(params)

    def evaluation_weights(self, state: TrainState) -> Tree:
        """The averaged weights where there are any."""
        return state.ema if self.step.config.train.ema else state.params

    def metric_names(self, prefix: str, extra: Mapping[str, np.ndarray] | None = None) -> list[str]:
        """What an evaluation gives, found without computing one; `extra` is what the layout adds to sums."""
        state = self.abstract_state
        shapes = jax.eval_shape(self.step.evaluate, state.params, state.variables, self.step.batch_shapes, self.hparams)
        sums = {name: np.ones(s.shape, s.dtype) for name, s in shapes.items()}  # a confusion matrix, scores, ...
        special = special_metrics(self.task, {**sums, **(extra or {})})
        scalars = {f"{prefix}/{name}" for name, value in special.items() if isinstance(value, float)}
        return sorted({*metrics.means(sums, prefix), *scalars})


def compile_programs(config: schema.Config, task: Task, mesh: Mesh, total_steps: int) -> Programs:
    """The compiled functions of an experiment; each is traced and compiled when it is called first.

    Args:
        config: the experiment.
        task: what the recipe adds, which builds the model and knows its loss.
        mesh: the devices.
        total_steps: length of training, for the schedule.
    """
    used = model_programs(config, task, mesh, total_steps)
    step, hparams = used.step, used.hparams
    with meshes.recorded_kernels() as kernels:
        carried = carried_state(step, hparams)
    stored = carried if step.deep is None else placed_by_rules(jax.eval_shape(step.stored, carried), config, mesh)
    placed = jax.tree.map(lambda s: s.sharding, carried)
    train, graded = partial(_training, step, placed), partial(jax.jit, compiler_options=compiler_options(step))
    update = train(step.updated)
    return Programs(
        **{field.name: getattr(used, field.name) for field in dataclasses.fields(used)},
        abstract_state=stored,
        carried_state=carried,
        kernels=kernels,
        make_state=jax.jit(
            partial(_new_state, step, hparams), out_shardings=placed, compiler_options=_options_of_one_call(step)
        ),
        step_sent=train(on_batches.on_sent(step.train)),
        step_resident=train(on_batches.on_resident(step, step.train), static_argnums=(4, 5)),
        steps_resident=train(on_batches.steps_on_resident(step), static_argnums=(5, 6)),
        sent_in_parts=InParts(graded(on_batches.on_sent(step.graded)), update, hparams=2),
        resident_in_parts=InParts(
            graded(on_batches.on_resident(step, step.graded), static_argnums=(4, 5)), update, hparams=3
        ),
        take_sums=jax.jit(_take_sums, donate_argnums=0, out_shardings=(placed, None, None)),
    )


def hparams_of(config: schema.Config) -> Hparams:
    """What enters the programs of an experiment as arguments: its numbers and its seed, of which no program knows."""
    return {**traced_hparams(config), SEED: jax.device_put(np.int64(config.seed))}


def told_step(programs: Programs) -> Compiled:
    """`step_sent` once more, whose compiled text says of each operation which line of the model it comes from."""
    step = dataclasses.replace(programs.step, told=True)
    return _training(step, programs.state_shardings, on_batches.on_sent(step.train))


def _training(
    step: Step, placed: TrainState, run: Callable[..., TrainState], static_argnums: tuple[int, ...] = ()
) -> Compiled:
    compiled: Compiled = jax.jit(
        run,
        donate_argnums=0,
        out_shardings=placed,
        static_argnums=static_argnums,
        compiler_options=compiler_options(step),
    )
    return compiled


def compiler_options(step: Step) -> accelerators.Options:
    """Of every program that contains `step.train`: its kernels are told while it is traced what it is compiled for."""
    pictures, deterministic = _of_pictures(step.task.example_shapes(1)), step.config.train.deterministic
    return _known(
        accelerators.compiler_options(
            _platform(step), deterministic=deterministic, pictures=pictures, small=_is_small_of_tables(step)
        )
    )


def options_of_use(step: Step, examples: int | None = None) -> accelerators.Options:
    """Of a program that asks the model about examples, or scores it on so many of them."""
    try:
        shapes = step.task.exported_inputs(1)  # pictures also where training sees features of them
    except NotImplementedError:  # of a plugin
        shapes = step.task.example_shapes(1)
    pictures = _of_pictures(shapes)
    soon = examples is not None and _is_soon_scored(step, examples)
    small = _is_small_of_tables(step)
    return _known(accelerators.options_of_use(_platform(step), pictures=pictures, small=small, soon=soon))


_FEW_ARRAYS = 12
"""Parameters, each an array, that a small model has at most: an MLP of five layers, an LSTM, a transformer of one."""


def _is_small(step: Step) -> bool:
    return step.deep is None and len(jax.tree.leaves(step.weights.params)) <= _FEW_ARRAYS


def _is_small_of_tables(step: Step) -> bool:
    """An LSTM would compile sooner too, but not to the same bits for batches that are sent and for those on the device:
    what is fused with looking up a token differs."""
    columns = step.task.example_shapes(1).values()
    tokens = any(len(c.shape) == 2 and jnp.issubdtype(c.dtype, jnp.integer) for c in columns)
    return _is_small(step) and not tokens and all(len(c.shape) <= 2 for c in columns)


def _is_soon_scored(step: Step, examples: int) -> bool:
    weights = sum(leaf.size for leaf in jax.tree.leaves(step.weights.params))
    return examples * weights <= _SOON_SCORED and _is_small_of_tables(step)


def _of_pictures(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    return any(len(column.shape) == 4 for column in shapes.values())


def _platform(step: Step) -> str:
    platform: str = step.mesh.devices.flat[0].platform
    return platform


def options_of_copies(step: Step, size: int) -> accelerators.Options:
    """Of a program that computes nothing, and copies so many bytes."""
    return _known(accelerators.options_of_copies(_platform(step), size))


def _options_of_one_call(step: Step) -> accelerators.Options:
    if jax.config.read("jax_disable_most_optimizations"):
        return {}  # fewer still
    return _known(accelerators.options_of_one_call(_platform(step), small=_is_small(step)))


def _known(asked: accelerators.Options) -> accelerators.Options:
    """Those of them that XLA has yet and still: they may be named otherwise in another version."""
    of_a_cpu = asked.keys() <= accelerators.OF_A_CPU.keys()
    if not asked or _are_known(tuple((accelerators.OF_A_CPU if of_a_cpu else asked).items())):
        return asked
    return {name: value for name, value in asked.items() if _are_known(((name, value),))}


@cache
def _are_known(options: tuple[tuple[str, bool | int | str], ...]) -> bool:
    """Asked of XLA by compiling something; once, where programs are kept between starts: by an empty file there."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    of = jaxlib_version.__version__, get_backend().platform_version, options
    known = Path(folder, f"options-{provenance.digest(repr(of))}") if folder else None
    with contextlib.suppress(OSError):
        if known is not None and known.exists():
            return True
    try:
        jax.jit(jnp.negative, compiler_options=dict(options)).lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return False
    if known is not None:
        with contextlib.suppress(OSError):  # a full disk, or a cache of jax's own kind elsewhere
            known.touch()
    return True


def model_programs(config: schema.Config, task: Task, mesh: Mesh, total_steps: int = 1) -> ModelPrograms:
    """The same without those that train, of which nothing is traced to know the shapes of a state."""
    step = make_step(config, task, mesh, total_steps)
    sent, resident = on_batches.evaluation_of_sent(step), on_batches.evaluation_of_resident(step)

    def compiled(options: accelerators.Options) -> Evaluations:
        sums = partial(jax.jit, out_shardings=meshes.replicated(mesh), compiler_options=options)
        return Evaluations(sums(sent), sums(resident, static_argnums=(6, 7)))

    of_many, of_few = options_of_use(step), options_of_use(step, 0)
    many = compiled(of_many)
    return ModelPrograms(
        step=step,
        hparams=hparams_of(config),
        seed=config.seed,
        evaluations=(many, many if of_few == of_many else compiled(of_few)),
        add_sums=jax.jit(metrics.add, donate_argnums=0),
    )


def _take_sums(state: TrainState) -> tuple[TrainState, Sums, jax.Array]:
    skipped = {name: state.anomaly_state[name] + 0 for name in ("skipped",) if name in state.anomaly_state}
    empty = dataclasses.replace(state, sums=zeros_like(state.sums))
    return empty, {**state.sums, **skipped}, state.bad_step + 0


def _new_state(step: Step, hparams: Hparams, seed: jax.Array, weights: Arrays, variables: Arrays) -> TrainState:
    return step.initial(randomness.key(seed, randomness.PARAMETERS), hparams, weights, variables)


def _placed(shapes: Tree, given: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Those of the values that have a place in the tree, on the devices."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0] if given else []
    known = {partition.path_name(path): leaf for path, leaf in leaves}
    return {
        name: meshes.put(values.astype(known[name].dtype), known[name].sharding)
        for name, values in given.items()
        if name in known
    }
