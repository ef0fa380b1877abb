"""What the user's own step would cost on a machine that may not be here: built as for training, compiled, not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax

from bigctl.config.schema import Config
from bigctl.engine import experiment as experiments
from bigctl.engine import teacher
from bigctl.engine.device_memory import bytes_per_device
from bigctl.engine.experiment import Experiment
from bigctl.errors import ConfigError
from bigctl.formatting import size
from bigctl.parallel import mesh as meshes
from bigctl.planning import costs as costing
from bigctl.planning import devices, hlo, roofline, targets
from bigctl.planning.costs import Costs, Program, Tree
from bigctl.planning.devices import Found
from bigctl.planning.targets import Target
from bigctl.training import plans
from bigctl.training.programs import compiler_options, told_step

_WIDE = 0.01
"""Share of all bytes that messages of one kind must have to stand out."""


@dataclass(frozen=True)
class Plan:
    """What a step costs on a target.

    Attributes:
        target: the machine.
        found: what it was compiled for.
        config: as resolved.
        devices: of the mesh, see `experiment.describe_mesh`.
        parameters: their number.
        active_parameters: how many of them a token is multiplied with.
        kernels: which kernel computes what there are several for.
        compiler: what XLA is asked for, see `accelerators`; nothing where the CPU's program stands in.
        tokens: in a batch; None where examples are not counted in tokens.
        model_flops: of a step by the task's formula; None without one.
        costs: of the step.
        time: of the step, for the target.
        notes: what is to be known of how this was found.
    """

    target: Target
    found: Found
    config: Config
    devices: Mapping[str, Any]
    parameters: int
    active_parameters: int
    kernels: Mapping[str, str]
    compiler: Mapping[str, bool | int | str]
    tokens: int | None
    model_flops: float | None
    costs: Costs
    time: roofline.Time
    notes: Sequence[str]

    @property
    def used(self) -> int:
        """Devices of the mesh."""
        return int(self.devices["count"])

    @property
    def mfu(self) -> tuple[float, float] | None:
        """Range of the model FLOPs utilisation, see `training.throughput`; None for a CPU, which has no data sheet."""
        if self.target.chip.platform == "cpu" or not self.time.low:
            return None
        flops = self.model_flops or self.costs.flops_per_step
        peak = self.used * self.target.chip.peak(self.config.train.precision)
        return flops / (peak * self.time.high), flops / (peak * self.time.low)

    def to_json(self) -> dict[str, Any]:
        memory, time, costs, mfu = self.costs.memory, self.time, self.costs, self.mfu
        examples = self.config.train.batch_size
        return {
            "target": self.target.text,
            "machine": self.target.said,
            "exact": self.found.exact,
            "notes": list(self.notes),
            "recipe": self.config.recipe.kind,
            "model": self.config.model.kind,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "mesh": dict(self.devices["mesh"]),
            "devices": self.used,
            "batch_size": examples,
            "accumulate": self.config.train.accumulate,
            "precision": self.config.train.precision,
            "memory": memory.to_json(),
            "flops_per_step": costs.flops_per_step,
            "flops_per_token": costs.flops_per_step / self.tokens if self.tokens else None,
            "flops_per_example": costs.flops_per_step / examples,
            "flops_by": dict(costs.flops),
            "flops_per_device": costs.flops_per_device,
            "model_flops_per_step": self.model_flops,
            "memory_traffic_bytes": costs.traffic,
            "collectives": costs.collectives_json(),
            "step_seconds": {"low": time.low, "high": time.high, "terms": dict(time.terms), "binds": time.binds},
            "examples_per_s": {"low": examples / time.high, "high": examples / time.low},
            "tokens_per_s": {"low": self.tokens / time.high, "high": self.tokens / time.low} if self.tokens else None,
            "mfu": {"low": mfu[0], "high": mfu[1]} if mfu else None,
            "kernels": dict(self.kernels),
            "compiler_options": dict(self.compiler),
            "stands_out": stands_out(self),
        }


def target_of(text: str) -> Target:
    """The target of a name. Raises ConfigError where there is none."""
    target = targets.parse(text, devices.this_cpu())
    if target.chip.platform == "cpu":
        chip = dataclasses.replace(target.chip, memory=target.chip.memory // target.devices)
        target = dataclasses.replace(target, chip=chip)
    return target


class TooLarge(ConfigError):
    """What is there before a step takes so many `bytes` of each device, more than it has."""

    def __init__(self, taken: int, target: Target):
        what = f"its parameters and what the optimizer keeps take {size(taken)} a device"
        super().__init__(f"{what}, which has {size(target.chip.memory)}", where="--target")
        self.bytes = taken


def plan(config: Config, target: Target, found: Found | None = None, *, fitting: bool = False) -> Plan:
    """Compile the step of a configuration for a target and say what it costs there. Nothing is run.

    Args:
        config: as composed.
        target: the machine.
        found: its devices, where they have been found before.
        fitting: whether to do without what cannot fit, whatever the step takes: large steps compile for minutes.

    Raises:
        BigctlError: for whatever would keep the training from starting there.
        TooLarge: with `fitting`, where the state alone does not fit.
    """
    found = devices.find(target) if found is None else found
    try:
        return _plan(config, target, found, fitting)
    except jax.errors.JaxRuntimeError as error:
        if not found.exact or target.chip.platform == "cpu":
            raise
        full = "RESOURCE_EXHAUSTED" in str(error)
        reason = "for it does not fit its memory" if full else f"saying {str(error).strip().splitlines()[0][:200]!r}"
        why = "an estimate, from the program that a CPU would run: "
        why += f"the compiler for {target.chip.name} refuses the step, {reason}"
        return _plan(config, target, devices.stand_in(target, why), fitting)


def _plan(config: Config, target: Target, found: Found, fitting: bool) -> Plan:
    with meshes.over(found.devices):
        experiment = experiments.build(config)
        if fitting and (taken := bytes_per_device(experiment.programs.carried_state)) > target.chip.memory:
            raise TooLarge(taken, target)
        traced, compiled, batch = compiled_step(experiment, found.options)
    return of_compiled(experiment, of_experiment(experiment, traced, compiled, batch, target), target, found)


def of_compiled(experiment: Experiment, costs: Costs, target: Target, found: Found) -> Plan:
    """The plan of an experiment whose step has been compiled."""
    config, task = experiment.config, experiment.task
    per_example = task.flops_per_example(experiment.parameter_shapes)
    tokens = task.tokens_per_example
    notes = [*found.notes, *teacher.uncounted(config, experiment.dataset)]
    if costs.untold:
        notes.append(f"{costs.untold} loops are as long as the data makes them; they are counted once")
    if target.chip.platform == "cpu":
        notes.append("times are of simulated devices that share this machine, by its rate in a short trial")
    return Plan(
        target=target,
        found=found,
        config=config,
        devices=experiment.devices,
        parameters=experiment.parameter_count,
        active_parameters=experiment.active_parameters,
        kernels=dict(experiment.programs.kernels),
        compiler=compiler_options(experiment.programs.step),
        tokens=None if tokens is None else tokens * config.train.batch_size,
        model_flops=None if per_example is None else per_example * config.train.batch_size,
        costs=costs,
        time=costs.time(_of_size(target, experiment.programs.mesh.size), config.train.precision),
        notes=notes,
    )


def _of_size(target: Target, devices: int) -> Target:
    """The target as the mesh uses it: simulated devices that are not in it take no time."""
    return dataclasses.replace(target, shape=(devices,)) if target.chip.platform == "cpu" else target


def compiled_step(experiment: Experiment, options: Mapping[str, bool] | None = None) -> tuple[Program, Program, Tree]:
    """The step on a batch that the host sends: traced, compiled, and the batch that it is given.

    options: of the compiler, besides its own.
    """
    programs, dataset = experiment.programs, experiment.dataset
    batch = plans.batch_shapes(programs, dataset.batches, dataset.splits["train"], experiment.config)
    hparams = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), programs.hparams)
    step = cast(Program, told_step(programs))
    traced = step.trace(programs.carried_state, batch, hparams)
    return traced, traced.lower().compile(dict(options or {})), batch


def of_experiment(experiment: Experiment, traced: Program, compiled: Program, batch: Tree, target: Target) -> Costs:
    """The costs of the step of an experiment, its state by what it is for."""
    mesh = dict(experiment.programs.mesh.shape)
    return costing.of_step(traced, compiled, _kept(experiment), batch, mesh, target)


def memory_at_hand(
    experiment: Experiment, compiled: Program, batch: Tree, available: int | None, analysis: Program | None = None
) -> costing.Memory:
    """The memory of a step on the devices of this machine, which have so many bytes for it; `analysis` is that of the
    step as it is trained, where that is not this one."""
    kept = {**_kept(experiment), costing.BATCH: batch}
    return costing.memory_of(hlo.parse(compiled.as_text()), analysis or compiled.memory_analysis(), kept, available)


def _kept(experiment: Experiment) -> dict[str, Tree]:
    """What is there before a step, by what it is for."""
    state = experiment.programs.carried_state
    others = {"ema": state.ema, "variables": state.variables, "sums": state.sums, "anomaly": state.anomaly_state}
    return {
        costing.PARAMETERS: state.params,
        costing.OPTIMIZER: state.opt_state,
        costing.OTHER: {**others, "step": state.step, "bad_step": state.bad_step},
    }


def stands_out(plan: Plan) -> list[str]:
    """What a reader should look at first."""
    found, costs, memory = [], plan.costs, plan.costs.memory
    if not memory.fits:
        names = ", ".join(f"{each.path} ({size(each.bytes)})" for each in memory.largest[:3])
        found.append(
            f"it does not fit: {size(memory.peak)} a device, which has {size(memory.available or 0)}; largest: {names}"
        )
    idle = plan.target.devices - plan.used
    if idle > 0:
        found.append(f"{idle:,} of {plan.target.devices:,} devices are not in the mesh; mesh=data takes all")
    repeated = costs.repeated(plan.used)
    if repeated > 1.1:
        found.append(f"devices compute the same things: {repeated:.1f} times what the step needs")
    total = sum(each.bytes for each in costs.collectives)
    for each in costs.collectives:
        if each.dtype == "f32" and plan.config.train.precision != "float32" and each.bytes > _WIDE * total:
            place = next(iter(each.places), "")
            over = " and ".join(each.axes) or "some devices"
            found.append(
                f"{each.kind} over {over} in float32, {size(each.bytes)} a step" + (f", from {place}" if place else "")
            )
    found += _fallen_back(plan.kernels, plan)
    return found


def _fallen_back(kernels: Mapping[str, str], plan: Plan) -> list[str]:
    platform, attention = plan.target.chip.platform, kernels.get("attention", "")
    if platform == "gpu" and plan.found.exact and attention and not attention.startswith("cudnn"):
        why = " as train.precision=float32" if plan.config.train.precision == "float32" else ""
        suits = "train.precision=bfloat16, texts of even length and heads of 8, 16, ... to 128 features"
        return [f"attention is not fused: by {attention}{why}; cuDNN's kernel is for {suits}"]
    return []
