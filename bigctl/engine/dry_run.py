"""What an experiment would cost, from its compiled step, without training anything."""

from __future__ import annotations

import math
from typing import Any

from bigctl.config.schema import Config
from bigctl.data import notes
from bigctl.data.dataset import Dataset
from bigctl.engine import doubts, privacy, teacher
from bigctl.runs import corpora


def report(config: Config) -> dict[str, Any]:
    """Shapes, parameter count, sharding, memory and floating-point operations of one training step.

    Raises:
        BigctlError: for whatever would keep the training from starting.
    """

    from bigctl.engine import batch_size, compile_cache, device_memory, federated, plan, restore, step_memory
    from bigctl.engine import experiment as experiments
    from bigctl.optim import thawing
    from bigctl.training import feed
    from bigctl.training.checkpoints import arrays

    if config.train.compile_cache:
        compile_cache.use_compile_cache()
    config, measured = batch_size.settled(config)
    experiment = experiments.build(config)
    programs, dataset = experiment.programs, experiment.dataset
    state = programs.abstract_state
    thawed = thawing.told(config, programs.trained(state.params), experiment.cadence.total)
    taken = restore.taken_over(experiment)
    config = experiment.config
    columns = dataset.splits["train"]
    _, compiled, examples = plan.compiled_step(experiment)
    trained = step_memory.as_trained(experiment, compiled, examples)
    memory = trained.memory_analysis()
    available = step_memory.require_planned(experiment, trained).free
    parts = plan.memory_at_hand(experiment, compiled, examples, available, memory)
    cost = compiled.cost_analysis() or {}  # of the program of each device
    flops = cost["flops"] * programs.mesh.size if "flops" in cost else None
    shardings = {name: str(leaf.sharding.spec) for name, leaf in arrays.flatten(state.params).items()}
    return {
        "recipe": config.recipe.kind,
        "model": config.model.kind,
        "parameters": experiment.parameter_count,
        "active_parameters": experiment.active_parameters,
        "shapes": {name: list(shape) for name, shape in experiment.parameter_shapes.items()},
        "sharding": shardings,
        "devices": experiment.devices,
        "kernels": dict(programs.kernels),
        "data": {split: dataset.size(split) for split in dataset.splits},
        "drawn": (drawn := experiment.drawn()),
        "notes": [*_notes(config, dataset), *corpora.notes(drawn)],
        "init_from": None if taken is None else list(taken.said),
        "unfreeze": thawed,
        "federated": list(federated.announcement(config, dataset)),
        "privacy": list(privacy.announcement(config, dataset, experiment.cadence.total)),
        "sight": experiment.sight,
        "batch": {name: list(value.shape) for name, value in examples.items()},
        "batch_size": None if measured is None else measured.to_json(),
        "resident": feed.fits_on_device(columns, config),
        "steps": experiment.cadence.total,
        "state_bytes_per_device": device_memory.bytes_per_device(state),
        "memory": parts.to_json(),
        "step_temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "flops_per_step": flops,
        "flops_per_example": math.nan if flops is None else flops / config.train.batch_size,
    }


def _notes(config: Config, dataset: Dataset) -> list[str]:
    return [*notes.notes_of(dataset), *teacher.uncounted(config, dataset), *doubts.notes(config, dataset.features)]


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    from bigctl.engine import plan_text
    from bigctl.formatting import parameters, size

    count = parameters(report["parameters"], report["active_parameters"])
    lines = [f"{report['recipe']}: model {report['model']}, {count}"]
    width = max(len(name) for name in report["shapes"])
    for name, shape in report["shapes"].items():
        lines.append(f"  {name:<{width}}  {'x'.join(map(str, shape)) or 'scalar':<16}  {report['sharding'][name]}")
    devices = report["devices"]
    mesh = " x ".join(f"{axis} {n}" for axis, n in devices["mesh"].items())
    lines.append(f"devices: {devices['count']} {devices['kind']} ({mesh})")
    if report["kernels"]:
        lines.append("kernels: " + ", ".join(f"{purpose} by {kernel}" for purpose, kernel in report["kernels"].items()))
    lines.append("data: " + ", ".join(f"{split} {n:,}" for split, n in report["data"].items()))
    lines += [f"  {line}" for line in corpora.lines(report["drawn"])]
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [*(report["init_from"] or []), *report["unfreeze"], *report["federated"], *report["privacy"]]
    lines += report["sight"]
    batch = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in report["batch"].items())
    if report["batch_size"] is not None:
        lines.append(report["batch_size"]["sentence"])
    place = "kept on the device" if report["resident"] else "sent batch by batch"
    lines.append(f"batch: {batch}; training split {place}")
    memory = f"memory: state {size(report['state_bytes_per_device'])}"
    if report["step_temporary_bytes"]:
        memory += f", one step {size(report['step_temporary_bytes'])}"
    lines.append(memory)
    lines += plan_text.table_lines(*plan_text.memory_section(report["memory"]))
    if report["flops_per_step"]:
        lines.append(f"compute: {report['flops_per_step'] / 1e9:.3g} GFLOP a step, by the compiler's count")
    lines.append(f"length: {report['steps']:,} steps; nothing was trained")
    return "\n".join(lines)
