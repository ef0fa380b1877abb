"""One step of training, and one batch of an evaluation: pure functions of their arguments, not yet compiled.

The model is split once into its structure and plain trees, and merged inside of each function. Learning rate, weight
decay, dropout and the like arrive as `hparams`, an argument, so that other values need no new program. What is compiled
of this, and how batches get into it, is in `programs`; where to begin reading is `Step._train`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from bigctl import randomness
from bigctl.config import schema
from bigctl.data.layouts import rounds
from bigctl.models import depth, rounded
from bigctl.models.layers import Hyperparameter
from bigctl.optim import masks, optimizers, schedules, server, thawing
from bigctl.parallel import mesh as meshes
from bigctl.parallel import partition
from bigctl.training import divergence, federated, metrics, private, stacking
from bigctl.training.metrics import Sums
from bigctl.training.state import TrainState, Tree, Weights, zeros_like
from bigctl.training.task import STEP, Batch, Task, evaluation_sums, training_sums

if TYPE_CHECKING:
    from bigctl.config.schema.optimizers import Scalar

Hparams = dict[str, Any]
"""Numbers that enter a compiled function as arguments, by their configuration keys."""

Given = Mapping[str, jax.Array]
"""Values of parameters or variables by path."""

SEED = "seed"
"""The name among the hparams that the seed has: trainings of several seeds share a program."""


class Graded(NamedTuple):
    """What a batch gives a step.

    Attributes:
        solved: weights that the task has solved for; empty where it does not.
        grads: of the summed loss.
        variables: what the model has updated by itself.
        sums: of metrics.
    """

    solved: Tree
    grads: Tree
    variables: Tree
    sums: Sums


@dataclass(frozen=True, eq=False)
class Step:
    """What is computed of one experiment on one mesh.

    Attributes:
        config: the experiment.
        task: what the recipe adds, which builds the model and knows its loss.
        mesh: the devices.
        total_steps: length of training, for the schedule.
        graphdef: the model's structure.
        hyperparameters: path in the model -> the hparam that stands there.
        weights: shapes, dtypes and placements of the model's weights, as ShapeDtypeStructs.
        deep: the model with like layers as one, where training keeps them so, see `stacking`.
        told: whether each operation says which line of the model it comes from, for who reads the compiled program;
            else what several programs contain is traced once for all of them, and its lines are lost.
    """

    config: schema.Config
    task: Task
    mesh: Mesh
    total_steps: int
    graphdef: nnx.GraphDef[nnx.Module]
    hyperparameters: Mapping[tuple[Any, ...], str]
    weights: Weights
    deep: stacking.Form | None = None
    told: bool = False

    # What follows is traced once for all programs that contain it; it is written out in them, as if it had been called.

    @cached_property
    def initial(self) -> Callable[..., TrainState]:
        """(key, hparams, weights by path, variables by path) -> a new state, in which these replace initial ones."""
        return jax.jit(self._initial, inline=True)

    @cached_property
    def train(self) -> Callable[[TrainState, Batch, Hparams], TrainState]:
        """(state, batch, hparams) -> the state after one update: the mean loss over the batch, its gradient, the
        optimizer's step; or, of a bad one, none."""
        return self._train if self.told else jax.jit(self._train, inline=True)

    @cached_property
    def _gradients(self) -> Callable[..., tuple[Tree, Tree, Sums]]:
        return self._compute_gradients if self.told else jax.jit(self._compute_gradients, inline=True)

    @cached_property
    def evaluate(self) -> Callable[..., Sums]:
        """(params, variables, batch, hparams) -> evaluation sums of the batch."""
        return jax.jit(self._evaluate, inline=True)

    # ---------------------------------------------------------------------------------------------------- the state

    def _initial(self, key: jax.Array, hparams: Hparams, weights: Given, given: Given) -> TrainState:
        # Layers that are one have no names of their own, by which their weights could be given.
        with depth.made_as_one() if self.deep is not None and not weights else contextlib.nullcontext():
            model = self.task.build(nnx.Rngs(params=key))
        _, params, _, variables = split_model(model)
        params = self.carried(_replaced(nnx.to_pure_dict(params), weights))
        variables = _replaced(nnx.to_pure_dict(variables), given)
        sums = jax.eval_shape(self._gradients, params, variables, self.batch_shapes, jnp.int32(0), hparams)[2]
        return TrainState(
            step=jnp.int32(0),
            params=params,
            variables=variables,
            opt_state=private.begun(self.config.train.privacy, self._update_rule(params, hparams).init(params)),
            ema=params if self.config.train.ema else {},
            sums=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), {**sums, **self._step_sums}),
            bad_step=jnp.int32(-1),
            anomaly_state=divergence.new_anomaly_state(self.config.train.divergence),
        )

    def carried(self, tree: Tree) -> Tree:
        """A state, or weights, as training keeps them, from what has a name for each layer."""
        return tree if self.deep is None else stacking.stacked(tree)

    def stored(self, tree: Tree) -> Tree:
        """`carried` the other way round."""
        return tree if self.deep is None else stacking.unstacked(tree, self.deep.count)

    @property
    def stacked(self) -> tuple[str, ...]:
        """Patterns of the paths of parameters that hold several in one, see `schema.Model.stacked`."""
        return (*self.config.model.stacked, *([stacking.PATTERN] if self.deep else []))

    @property
    def _step_sums(self) -> Sums:
        """Of those that a step adds itself: their shapes."""
        train = self.config.train
        names = ["grad_norm", *["update_norm"] * self._tells_update, *["clip"] * train.privacy.adapts]
        return {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in names}

    @property
    def _tells_update(self) -> bool:
        return self.config.train.update_norm or self.config.train.federated.on

    @property
    def rows(self) -> int:
        """Of a batch: its size; where examples are drawn by chance the least that hold so many; of a round what its
        clients have if all have the same."""
        size, keys = self.config.train.batch_size, self.config.train.privacy
        if (clients := self.config.train.federated).on:
            draw = rounds.draw_of(self.config.train)
            return draw.places * max(1, round(size / draw.wanted / clients.epochs))
        return -(-size // keys.microbatch) * keys.microbatch if keys.on else size

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Columns of a training batch, with those that `add_places` adds."""
        n = self.rows
        places = {"mask": jax.ShapeDtypeStruct((n,), jnp.float32), "number": jax.ShapeDtypeStruct((n,), jnp.int32)}
        return {**self.task.example_shapes(n), **places}

    # ------------------------------------------------------------------------------------------------------ training

    def _train(self, state: TrainState, batch: Batch, hparams: Hparams) -> TrainState:
        return self.updated(state, self.graded(state, batch, hparams), hparams)

    def graded(self, state: TrainState, batch: Batch, hparams: Hparams) -> Graded:
        """The first part of `train`, which depends on the shape of the batch."""
        solved = self._solved(state, batch, hparams) if self.task.solves else {}
        hparams = private.held(self.config.train.privacy, state.opt_state, hparams)[1]
        return Graded(solved, *self._gradients(solved or state.params, state.variables, batch, state.step, hparams))

    def updated(self, state: TrainState, graded: Graded, hparams: Hparams) -> TrainState:
        """The second part of `train`, which depends on the shapes of the weights alone."""
        rule, begun = self.config.train.divergence, graded.solved or state.params
        held, hparams = private.held(self.config.train.privacy, state.opt_state, hparams)
        grads, variables, sums = graded.grads, graded.variables, dict(graded.sums)
        loss, weight = sums["loss"]
        share: Scalar = 1.0  # the gradient of a round is an average
        if not self.config.train.federated.on:
            # What is drawn by chance may not decide what the noise is divided by.
            share = 1 / (self.config.train.batch_size if self.config.train.privacy.on else jnp.maximum(weight, 1e-9))
        factor = schedules.factor(self.config.schedule, state.step, self.total_steps)
        with self._placing():
            update = self._update_rule(state.params, hparams, factor, state.step, share).update
            updates, opt_state = update(grads, held, state.params)
        if self.config.train.privacy.adapts:
            opt_state = private.kept(self.config.train, opt_state, sums, hparams, self._noise(state.step, hparams))
        if self.task.solves:
            updates, opt_state = jax.tree.map(jnp.subtract, begun, state.params), state.opt_state
        params = begun if self.task.solves else optax.apply_updates(state.params, updates)
        if self.config.train.keep_zeros:
            params = masks.zeros_kept(state.params, params)
        ema = optax.incremental_update(params, state.ema, 1 - self._ema_decay(state.step)) if state.ema else {}
        sums["grad_norm"] = jnp.stack([grad_norm := share * optax.global_norm(grads), 1.0])
        if self._tells_update:
            sums["update_norm"] = jnp.stack([optax.global_norm(updates), 1.0])
        changed = jax.tree.map(lambda p, trained: p if trained else None, params, self.trained(params))
        # Asked of their norm, which reads them once on a CPU; asking each weight keeps the answers and reads those too.
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.global_norm(changed))
        if rule.policy != "stop":
            finite &= divergence.all_finite(variables)  # a batch may spoil its statistics and no more
        loss = loss / jnp.maximum(weight, 1e-9)
        good = divergence.judge(rule, state.anomaly_state, loss, grad_norm, finite)
        anomaly_state = divergence.remember(state.anomaly_state, good, loss, grad_norm)
        if rule.policy == "skip":
            new, old = (params, variables, opt_state, ema), (state.params, state.variables, state.opt_state, state.ema)
            params, variables, opt_state, ema = divergence.choose(good, new, old)
            sums = divergence.choose(good, sums, zeros_like(sums))
        lost = (state.bad_step < 0) & divergence.lost(rule, anomaly_state, good)
        return TrainState(
            step=state.step + 1,
            params=params,
            variables=variables,
            opt_state=opt_state,
            ema=ema,
            sums=metrics.add(state.sums, sums),
            bad_step=jnp.where(lost, state.step + 1, state.bad_step),
            anomaly_state=anomaly_state,
        )

    def _noise(self, step: jax.Array, hparams: Hparams) -> jax.Array:
        return randomness.key(hparams.get(SEED, self.config.seed), randomness.PRIVACY, step)

    def _solved(self, state: TrainState, batch: Batch, hparams: Hparams) -> Tree:
        """The weights that the task solves for."""
        model = self.merge(state.params, state.variables, hparams)
        self.task.solve(model, batch, state.step, hparams)
        return nnx.to_pure_dict(split_model(model)[1])

    def _rule(
        self, params: Tree, hparams: Hparams, factor: Any = 1.0, step: Scalar = 0, share: Scalar = 1.0
    ) -> optax.GradientTransformation:
        model, trained = self.config.model, self.trained(params)
        thaw = thawing.thaw(self.config, trained, step, self.total_steps)
        rule = partial(optimizers.update_rule, stacked=self.stacked, levels=model.levels, seldom=model.seldom())
        return rule(self.config.optimizer, hparams, factor, trained=trained, thaw=thaw, share=share)

    def _update_rule(
        self, params: Tree, hparams: Hparams, factor: Scalar = 1.0, step: Scalar = 0, share: Scalar = 1.0
    ) -> optax.GradientTransformation:
        """What a step updates weights by: the optimizer, or where clients have that what the server has."""
        clients = self.config.train.federated
        return server.server_rule(clients) if clients.on else self._rule(params, hparams, factor, step, share)

    @contextlib.contextmanager
    def _placing(self) -> Iterator[None]:
        """An optimizer that shares its work out over the devices knows where parameters live."""
        if self.mesh.size == 1:
            yield
            return
        rules = partition.Rules(dict(self.mesh.shape), self.config.mesh.min_shard, self.stacked)
        with meshes.used(self.mesh), partition.placing(rules):
            yield

    def trained(self, params: Tree) -> Tree:
        """Which leaves are trained: all but those that `optimizer.freeze` or the model leaves as they are."""
        frozen = [*self.config.optimizer.freeze, *self.task.frozen]
        if self.deep is None or not stacking.is_stacked(params):
            return masks.trained(params, frozen)
        return stacking.of_one(masks.trained(jax.eval_shape(self.stored, params), frozen))

    def _ema_decay(self, step: jax.Array) -> jax.Array:
        """`train.ema`, less in the first steps, so that a short training does not average its starting point.

        The warm-up (1 + step) / (10 + step) is that of TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
        """
        return jnp.minimum(self.config.train.ema, (1.0 + step) / (10.0 + step))

    def _compute_gradients(
        self, params: Tree, variables: Tree, batch: Batch, step: jax.Array, hparams: Hparams
    ) -> tuple[Tree, Tree, Sums]:
        """Gradient of the summed loss, new variables and metric sums of a batch, computed in `accumulate` parts; of a
        round the mean update of its clients, with its sign turned round."""
        train, parts = private.at_present(self.config.train, hparams), self.config.train.accumulate
        seed = hparams.get(SEED, self.config.seed)
        dropout = randomness.key(seed, randomness.DROPOUT, step)
        same = train.overfit_one_batch  # one batch and, where a task draws what it asks, one question
        augmentation = randomness.key(seed, randomness.AUGMENTATION, jnp.zeros_like(step) if same else step)
        trained = self.trained(params)
        thaw = thawing.thaw(self.config, trained, step, self.total_steps)

        def loss(
            params: Tree, variables: Tree, part: Batch, key: jax.Array, augmentation: jax.Array = augmentation
        ) -> tuple[jax.Array, Any]:
            params = jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained)
            params = thawing.gated(params, thaw)
            model = self.merge(params, variables, hparams)
            by = self.config.mesh.context_by
            with meshes.used(self.mesh, deterministic=train.deterministic, context_by=by):
                sums = training_sums(self.task, model, part, key, augmentation, {**hparams, STEP: step})
            return sums["loss"][0], (nnx.to_pure_dict(split_model(model)[3]), sums)

        def of_one(params: Tree, part: Batch, *keys: jax.Array) -> tuple[jax.Array, Sums]:
            total, (_, sums) = loss(params, variables, part, *keys)
            return total, sums

        if train.federated.on:
            factor = schedules.factor(self.config.schedule, step, self.total_steps)
            rule = self._rule(params, hparams, factor, step)
            local = federated.Local(train, jax.grad(of_one, has_aux=True), rule, trained)
            keys = dropout, augmentation, randomness.key(seed, randomness.CLIENTS, step)
            noise = self._noise(step, hparams)
            grads, sums = federated.average(local, params, batch, keys, noise)
            return thawing.closed(grads, thaw), variables, sums  # noise is added to what waits too
        if train.privacy.on:
            noise = self._noise(step, hparams)
            grads, sums = private.gradients(of_one, params, batch, trained, train.privacy, self.mesh, dropout, noise)
            return thawing.closed(grads, thaw), variables, sums
        gradient = jax.grad(loss, has_aux=True)
        if parts == 1:
            grads, (variables, sums) = gradient(params, variables, batch, dropout)
            return grads, variables, sums

        def accumulate(carry: Tree, part: Tree) -> tuple[Any, None]:
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

    def merge(self, params: Tree, variables: Tree, hparams: Mapping[str, Any]) -> nnx.Module:
        """The model with these weights, rounded (`train.quantize`), cast to the compute type, and with these hparams.

        On several devices each casts its own part, so that it is the narrow ones that are gathered, and their gradients
        that are added up, each device's part on that device.
        """
        form = self.deep if self.deep is not None and stacking.is_stacked(params) else self
        if self.config.train.quantize is not None:
            params = rounded.rounded_weights(params)
        compute_dtype = jnp.dtype(self.config.train.precision)
        if compute_dtype != jnp.float32:
            wide = self.config.model.wide

            def narrowed(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
                name = partition.path_name(path) if wide else ""
                return leaf if any(re.search(pattern, name) for pattern in wide) else leaf.astype(compute_dtype)

            params = jax.tree_util.tree_map_with_path(narrowed, params)
            kept_as, given_as = jax.tree.structure(form.weights.params), jax.tree.structure(params)
            if self.mesh.size > 1 and kept_as == given_as:  # type: ignore[operator]
                params = jax.tree.map(
                    lambda p, kept: jax.lax.with_sharding_constraint(p, kept.sharding), params, form.weights.params
                )
        hyper = {path: jnp.asarray(hparams[name], jnp.float32) for path, name in form.hyperparameters.items()}
        return nnx.merge(form.graphdef, params, nnx.traversals.unflatten_mapping(hyper), variables)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def _evaluate(self, params: Tree, variables: Tree, batch: Batch, hparams: Hparams) -> Sums:
        with meshes.used(self.mesh, context_by=self.config.mesh.context_by):
            return evaluation_sums(self.task, self.merge(params, variables, hparams), batch)


def add_places(batch: Batch, n: int, mask: jax.Array | None = None) -> Batch:
    """A batch with `mask`, its own or 1 where none is given, and each example's place in it."""
    whole = batch.get("mask", jnp.ones((n,), jnp.float32)) if mask is None else mask
    return {**batch, "mask": whole, "number": jnp.arange(len(whole), dtype=jnp.int32)}


def traced_hparams(config: schema.Config) -> Hparams:
    """The numbers of an experiment that enter a program as arguments, by their configuration keys."""
    return {
        dotted: jax.device_put(np.float32(value))
        for dotted, field, value in schema.walk_config(config)
        if field.metadata.get("traced") and value is not None
    }


def split_model(model: nnx.Module) -> Any:
    """(structure, trained weights, hyperparameters, everything else)."""
    return nnx.split(model, nnx.Param, Hyperparameter, ...)


def _replaced(tree: Tree, given: Given) -> Tree:
    """The tree with the leaves that are given by their paths."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: given.get(partition.path_name(path), leaf), tree)
