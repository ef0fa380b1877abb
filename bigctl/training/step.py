"""The compiled programs of a run: initialise, train, evaluate. Pure functions of their arguments.

The model is split once into its structure and plain trees; each program merges them inside. Learning rate, weight
decay, dropout and the like arrive as `numbers`, an argument, so that other values need no new program.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from bigctl import randomness
from bigctl.config import schema
from bigctl.data.layouts import ragged, windows
from bigctl.models.layers import Hyperparameter
from bigctl.optim import masks, optimizers, schedules
from bigctl.parallel import mesh as meshes
from bigctl.parallel import partition
from bigctl.training import divergence, metrics
from bigctl.training.state import TrainState, zeros_like
from bigctl.training.task import Batch, Task

Numbers = dict[str, Any]
Arrays = dict[str, jax.Array]

SEED = "seed"
"""The name among the numbers that the seed has where it is an argument too, see `Programs.like`."""

LARGEST_LOOP = 1024
"""Steps a dispatch at most: the length of the index array that a looped program takes."""


class Programs:
    """The programs of one experiment on one mesh.

    Args:
        config: the experiment.
        task: what the recipe adds, which builds the model and knows its loss.
        mesh: the devices.
        total_steps: length of training, for the schedule.
    """

    def __init__(self, config: schema.Config, task: Task, mesh: Mesh, total_steps: int):
        self.config = config
        self.task = task
        self.mesh = mesh
        self.total_steps = total_steps
        self.numbers = traced_numbers(config)
        self.compute_dtype = jnp.dtype(config.train.precision)
        key = jax.eval_shape(lambda: randomness.key(0, randomness.PARAMETERS))
        self.graphdef, _, hyper, _ = jax.eval_shape(lambda k: _split(self._build(k)), key)
        self.hyperparameters = {path: v.get_metadata()["key"] for path, v in nnx.to_flat_state(hyper)}

    # ---------------------------------------------------------------------------------------------------- the state

    @cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and placements of the state; nothing is allocated."""
        shapes = jax.eval_shape(self._initial, randomness.key(0, randomness.PARAMETERS))
        placed = partition.shardings(self.mesh, shapes, self.config.mesh.min_shard)
        return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, placed)

    @property
    def state_shardings(self) -> Any:
        return jax.tree.map(lambda s: s.sharding, self.abstract_state)

    def initialise(self, weights: Mapping[str, np.ndarray] | None = None) -> TrainState:
        """A new state, made in place on the mesh: no device ever holds more than its part.

        Args:
            weights: parameters by path that replace the initial ones, such as pretrained ones.
        """
        state = self._make(randomness.key(self.config.seed, randomness.PARAMETERS))
        if not weights:
            return state

        def replaced(path: Any, leaf: jax.Array) -> jax.Array:
            given = weights.get(partition.path_name(path))
            return leaf if given is None else meshes.put(given.astype(leaf.dtype), leaf.sharding)

        params = jax.tree_util.tree_map_with_path(replaced, state.params)
        ema = jax.tree.map(jnp.copy, params) if self.config.train.ema else state.ema
        return dataclasses.replace(state, params=params, ema=ema)

    @cached_property
    def _make(self) -> Any:
        """key -> a new state."""
        return jax.jit(self._initial, out_shardings=self.state_shardings)

    def like(self, config: schema.Config) -> Programs:
        """The same programs, compiled once for both, with the numbers and the seed of another configuration, which
        must differ in nothing else."""
        for name, attribute in vars(Programs).items():
            if isinstance(attribute, cached_property):
                getattr(self, name)
        other = copy.copy(self)
        other.config = config
        other.numbers = {**traced_numbers(config), SEED: jnp.asarray(np.int64(config.seed))}
        return other

    def _build(self, key: jax.Array) -> nnx.Module:
        return self.task.build(nnx.Rngs(params=key))

    def _initial(self, key: jax.Array) -> TrainState:
        _, params, _, variables = _split(self._build(key))
        params, variables = nnx.to_pure_dict(params), nnx.to_pure_dict(variables)
        batch = self.batch_shapes
        sums = jax.eval_shape(self._gradients, params, variables, batch, jnp.int32(0), self.numbers)[2]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            variables=variables,
            opt_state=self._rule(params, self.numbers).init(params),
            ema=params if self.config.train.ema else {},
            sums=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), {**sums, **_STEP_SUMS}),
            bad_step=jnp.int32(-1),
            guard=divergence.new_guard(self.config.train.divergence),
        )

    @property
    def batch_shapes(self) -> Any:
        n = self.config.train.batch_size
        return {**self.task.example_shapes(n), **_bookkeeping(n, shapes_only=True)}  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------------------ training

    def train_step(self, state: TrainState, batch: Batch, numbers: Numbers) -> TrainState:
        """One update: the mean loss over the batch, its gradient, the optimizer's step; or, of a bad one, none."""
        rule = self.config.train.divergence
        grads, variables, sums = self._gradients(state.params, state.variables, batch, state.step, numbers)
        loss, weight = sums["loss"]
        grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), grads)
        factor = schedules.factor(self.config.schedule, state.step, self.total_steps)
        updates, opt_state = self._rule(state.params, numbers, factor).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1 - self._ema_decay(state.step)) if state.ema else {}
        grad_norm, update_norm = optax.global_norm(grads), optax.global_norm(updates)
        sums["grad_norm"] = jnp.stack([grad_norm, 1.0])
        sums["update_norm"] = jnp.stack([update_norm, 1.0])
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        if rule.policy != "stop":
            finite &= divergence.all_finite(variables)  # a batch may spoil its statistics and no more
        loss = loss / jnp.maximum(weight, 1e-9)
        good = divergence.judge(rule, state.guard, loss, grad_norm, finite)
        guard = divergence.remember(state.guard, good, loss, grad_norm)
        if rule.policy == "skip":
            new, old = (params, variables, opt_state, ema), (state.params, state.variables, state.opt_state, state.ema)
            params, variables, opt_state, ema = divergence.choose(good, new, old)
            sums = divergence.choose(good, sums, zeros_like(sums))
        lost = (state.bad_step < 0) & divergence.lost(rule, guard, good)
        return TrainState(
            step=state.step + 1,
            params=params,
            variables=variables,
            opt_state=opt_state,
            ema=ema,
            sums=metrics.add(state.sums, sums),
            bad_step=jnp.where(lost, state.step + 1, state.bad_step),
            guard=guard,
        )

    def _rule(self, params: Any, numbers: Numbers, factor: Any = 1.0) -> optax.GradientTransformation:
        optimizer, stacked = self.config.optimizer, self.config.model.stacked
        return optimizers.update_rule(optimizer, numbers, factor, trained=self.trained(params), stacked=stacked)

    def trained(self, params: Any) -> Any:
        """Which leaves are trained: all but those that `optimizer.freeze` or the model leaves as they are."""
        return masks.trained(params, [*self.config.optimizer.freeze, *self.task.frozen])

    def _ema_decay(self, step: jax.Array) -> jax.Array:
        """`train.ema`, less in the first steps, so that a short training does not average its starting point.

        The warm-up (1 + step) / (10 + step) is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
        """
        return jnp.minimum(self.config.train.ema, (1.0 + step) / (10.0 + step))

    def _gradients(
        self, params: Any, variables: Any, batch: Batch, step: Any, numbers: Numbers
    ) -> tuple[Any, Any, Any]:
        """Gradient of the summed loss, new variables and metric sums of a batch, computed in `accumulate` parts."""
        parts = self.config.train.accumulate
        seed = numbers.get(SEED, self.config.seed)
        dropout = randomness.key(seed, randomness.DROPOUT, step)
        augmentation = randomness.key(seed, randomness.AUGMENTATION, step)

        trained = self.trained(params)

        def loss(params: Any, variables: Any, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
            model = self.merge(params, variables, numbers)
            with meshes.used(self.mesh):
                sums = self.task.loss(model, part, key, augmentation, numbers)
            return sums["loss"][0], (nnx.to_pure_dict(_split(model)[3]), sums)

        gradient = jax.grad(loss, has_aux=True)
        if parts == 1:
            grads, (variables, sums) = gradient(params, variables, batch, dropout)
            return grads, variables, sums

        def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
            grads, variables, sums = carry
            number, columns = part
            new, (variables, more) = gradient(params, variables, columns, jax.random.fold_in(dropout, number))
            return (metrics.add(grads, new), variables, metrics.add(sums, more)), None

        split = jax.tree.map(lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), batch)
        split = jax.lax.with_sharding_constraint(split, meshes.batch_sharding(self.mesh, leading=1))
        first = jax.tree.map(lambda x: x[0], split)
        shapes = jax.eval_shape(gradient, params, variables, first, dropout)[1][1]
        start = (zeros_like(params), variables, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        carry, _ = jax.lax.scan(accumulate, start, (jnp.arange(parts), split))
        return carry

    def merge(self, params: Any, variables: Any, numbers: Mapping[str, Any]) -> nnx.Module:
        """The model with these weights, cast to the compute type, and with these numbers in place."""
        if self.compute_dtype != jnp.float32:
            params = jax.tree.map(lambda p: p.astype(self.compute_dtype), params)
        flat = {path: jnp.asarray(numbers[name], jnp.float32) for path, name in self.hyperparameters.items()}
        hyper: dict[Any, Any] = {}
        for path, value in flat.items():
            node = hyper
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
        return nnx.merge(self.graphdef, params, hyper, variables)

    def gather(
        self, arrays: Arrays, indices: jax.Array, mask: jax.Array | None = None, length: int | None = None
    ) -> Batch:
        """A batch out of columns on the device: indices, or starts of windows, int32 [batch]; `length` is what texts
        are padded to, or that of the windows."""
        if length is not None:
            take = ragged.take if "offsets" in arrays else windows.take
            batch = take(arrays, indices, length, jnp)
        else:
            batch = {name: jnp.take(values, indices, axis=0, mode="clip") for name, values in arrays.items()}
        batch = jax.lax.with_sharding_constraint(batch, meshes.batch_sharding(self.mesh))
        return {**batch, **_bookkeeping(len(indices), mask)}

    @cached_property
    def step_sent(self) -> Any:
        """(state, batch columns, numbers) -> state: one step on a batch that the host sends."""

        def run(state: TrainState, batch: Batch, numbers: Numbers) -> TrainState:
            return self.train_step(state, {**batch, **_bookkeeping(self.config.train.batch_size)}, numbers)

        return self._jit(run)

    @cached_property
    def step_resident(self) -> Any:
        """(state, arrays, indices [batch], numbers, length of texts or windows) -> state: one step on data on the
        devices."""

        def run(
            state: TrainState, arrays: Arrays, indices: jax.Array, numbers: Numbers, length: int | None = None
        ) -> TrainState:
            return self.train_step(state, self.gather(arrays, indices, length=length), numbers)

        return self._jit(run, static_argnums=4)

    @cached_property
    def steps_resident(self) -> Any:
        """(state, arrays, indices [LARGEST_LOOP, batch], count, numbers, length of windows) -> state: the first `count`
        of these steps.

        The count is an argument of one program, so a run that is cut at any step runs the same code as one that is not.
        """

        def run(
            state: TrainState,
            arrays: Arrays,
            indices: jax.Array,
            count: jax.Array,
            numbers: Numbers,
            length: int | None = None,
        ) -> TrainState:
            def body(i: jax.Array, state: TrainState) -> TrainState:
                return self.train_step(state, self.gather(arrays, indices[i], length=length), numbers)

            return jax.lax.fori_loop(0, count, body, state)

        return self._jit(run, static_argnums=5)

    @cached_property
    def take_sums(self) -> Any:
        """state -> (state with empty sums, the sums, first bad step): what a log line needs, without waiting for it.

        Among the sums is `skipped`, int32 [], the steps skipped so far, where steps may be.
        """

        def run(state: TrainState) -> tuple[TrainState, Any, jax.Array]:
            empty = TrainState(**{**state.__dict__, "sums": zeros_like(state.sums)})
            skipped = {name: state.guard[name] + 0 for name in ("skipped",) if name in state.guard}
            return empty, {**state.sums, **skipped}, state.bad_step + 0

        return jax.jit(run, donate_argnums=0, out_shardings=(self.state_shardings, None, None))

    def _jit(self, function: Any, **more: Any) -> Any:
        on_gpu = self.mesh.devices.flat[0].platform == "gpu"
        options = {"xla_gpu_deterministic_ops": True} if on_gpu and self.config.train.deterministic else None
        return jax.jit(function, donate_argnums=0, out_shardings=self.state_shardings, compiler_options=options, **more)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluation_weights(self, state: TrainState) -> Any:
        return state.ema if self.config.train.ema else state.params

    @cached_property
    def evaluate_resident(self) -> Any:
        """(params, variables, arrays, indices [batch], mask [batch], length of texts or windows) -> sums."""

        def run(
            params: Any, variables: Any, arrays: Arrays, indices: jax.Array, mask: jax.Array, length: int | None = None
        ) -> Any:
            return self._evaluate(params, variables, self.gather(arrays, indices, mask, length))

        return jax.jit(run, static_argnums=5, out_shardings=meshes.replicated(self.mesh))

    @cached_property
    def evaluate_sent(self) -> Any:
        """(params, variables, batch columns, mask [batch]) -> sums."""

        def run(params: Any, variables: Any, batch: Batch, mask: jax.Array) -> Any:
            return self._evaluate(params, variables, {**batch, **_bookkeeping(len(mask), mask)})

        return jax.jit(run, out_shardings=meshes.replicated(self.mesh))

    def _evaluate(self, params: Any, variables: Any, batch: Batch) -> Any:
        with meshes.used(self.mesh):
            return self.task.evaluate(self.merge(params, variables, self.numbers), batch)

    def metric_names(self, prefix: str) -> list[str]:
        """The numbers that an evaluation gives, found without computing one."""
        state = self.abstract_state
        shapes = jax.eval_shape(self._evaluate, state.params, state.variables, self.batch_shapes)
        sums = {name: np.ones(s.shape, s.dtype) for name, s in shapes.items()}  # a confusion matrix, scores, ...
        if self.config.block is not None:
            sums[metrics.BYTES] = np.ones(())
        special = self.task.metrics(sums)
        scalars = {f"{prefix}/{name}" for name, value in special.items() if isinstance(value, float)}
        return sorted({*metrics.means(sums, prefix), *scalars})

    @cached_property
    def add_sums(self) -> Any:
        return jax.jit(metrics.add, donate_argnums=0)


_STEP_SUMS = {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in ("grad_norm", "update_norm")}


def traced_numbers(config: schema.Config) -> Numbers:
    """The numbers that enter a program as arguments, by their configuration keys."""
    return {
        dotted: jnp.float32(value)
        for dotted, field, value in schema.walk_config(config)
        if field.metadata.get("traced") and value is not None
    }


def _bookkeeping(n: int, mask: jax.Array | None = None, *, shapes_only: bool = False) -> dict[str, Any]:
    if shapes_only:
        return {"mask": jax.ShapeDtypeStruct((n,), jnp.float32), "number": jax.ShapeDtypeStruct((n,), jnp.int32)}
    return {"mask": jnp.ones((n,), jnp.float32) if mask is None else mask, "number": jnp.arange(n, dtype=jnp.int32)}


def _split(model: nnx.Module) -> Any:
    """(structure, trained weights, hyperparameters, everything else)."""
    return nnx.split(model, nnx.Param, Hyperparameter, ...)
