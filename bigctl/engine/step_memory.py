"""Whether the devices have memory for a step: asked of the compiled step before it runs first, and what would fit.

The compiler has said by then what the step takes, so a step that fits costs nothing more. For one that does not,
smaller changes are compiled one after the other until one fits, and the largest arrays are read from the compiled text.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bigctl import memory
from bigctl.config.schema import Config
from bigctl.engine import resolve
from bigctl.engine.device_memory import Room, peak, room, too_large
from bigctl.errors import ConfigError
from bigctl.formatting import size
from bigctl.training import feed
from bigctl.training.compiled import Executable
from bigctl.training.compiled import compiled as compile_for
from bigctl.training.state import Tree

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from bigctl.engine.experiment import Experiment

log = logging.getLogger("bigctl")
Changes = Mapping[str, int | str]

_COMPILED = 4
"""Smaller steps that are compiled at most, to find one that fits."""


def require_step(experiment: Experiment, compiled: Executable) -> None:
    """Refuse a compiled step that the devices have no memory for; warn where it is scarce at the moment.

    Raises:
        ConfigError: naming the largest arrays, and the smallest change that would fit.
    """
    analysis = compiled.memory_analysis()
    if analysis is None:
        return
    arguments = int(analysis.argument_size_in_bytes)
    found, needed = room(experiment.programs.mesh, arguments), peak(compiled)
    if needed > found.free:
        raise refusal(experiment, compiled, found)
    if found.sharing * needed > found.sharing * arguments + memory.available() and not _on_accelerator(experiment):
        log.warning(
            "a step takes %s, and %s of memory are free at the moment: the machine may end this process",
            size(found.sharing * (needed - arguments)),
            size(memory.available()),
        )


def require_planned(experiment: Experiment, compiled: Executable) -> Room:
    """As `require_step`, of a step whose arguments are not there yet; gives the memory that there is."""
    columns = experiment.dataset.splits["train"]
    resident = feed.fits_on_device(columns, experiment.config)
    taken = sum(values.nbytes for values in columns.values()) if resident else 0
    found = room(experiment.programs.mesh)
    found = dataclasses.replace(found, taken=found.taken + taken)
    if compiled.memory_analysis() is not None and peak(compiled) > found.free:
        raise refusal(experiment, compiled, found)
    return found


def as_trained(experiment: Experiment, whole: Executable, batch: Tree) -> Executable:
    """The step as training runs it: the `whole`, or where that is so two programs, compiled for this batch."""
    programs, dataset = experiment.programs, experiment.dataset
    step = feed.step_on_sent(programs, dataset.batches, dataset.splits["train"], experiment.config)
    if step is programs.step_sent:
        return whole
    return compile_for(step, programs.carried_state, batch, programs.hparams)


def refusal(experiment: Experiment, compiled: Executable, found: Room) -> ConfigError:
    """What is said of a step that does not fit."""
    from bigctl.engine import plan

    log.warning("the step does not fit the memory: smaller ones are compiled, to find one that does")
    _, named, batch = plan.compiled_step(experiment)  # the same step, with the places of its operations
    largest = plan.memory_at_hand(experiment, named, batch, found.free).largest
    message = too_large("a step", peak(compiled), found, largest)
    besides = max(0, peak(compiled) - peak(named))  # that a program of several steps takes, or data on the device
    found = dataclasses.replace(found, taken=found.taken + besides)
    return ConfigError(message, where="train.batch_size", hint=_advice(experiment, named, found))


def _advice(experiment: Experiment, compiled: Executable, found: Room) -> str:
    """The smallest change that fits, by the compiler's account."""
    least, tried, temporary = peak(compiled), 0, int(compiled.memory_analysis().temp_size_in_bytes)
    fixed = least - temporary
    for changes in smaller(experiment.config, experiment.programs.mesh):
        if tried == _COMPILED:
            break
        if not may_fit(experiment.config, changes, fixed, temporary, found.free):
            continue
        tried += 1
        try:
            takes = _peak_with(experiment, changes)
        except ConfigError:  # a batch that cannot be divided so
            continue
        least = min(least, takes)
        if takes <= found.free:
            said = " ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
            return f"the smallest change that fits: {said}, {size(takes)}"
    return f"the least of what was tried takes {size(least)}: make the model smaller, or share it by mesh=fsdp"


def _peak_with(experiment: Experiment, changes: Changes) -> int:
    from bigctl.engine import experiment as experiments
    from bigctl.engine import plan

    config = changed(experiment.config, changes)
    resolved = resolve.with_data(config, experiment.dataset, experiment.source)
    return peak(plan.compiled_step(experiments.build_resolved(resolved))[1])


def may_fit(config: Config, changes: Changes, fixed: int, temporary: int, free: int) -> bool:
    """Whether a step that has changed may fit into the `free` bytes: if all that is `temporary` now, and nothing that
    is `fixed`, shrinks with the examples in a part."""
    return fixed + temporary * _share(config, changes) <= free


def _share(config: Config, changes: Changes) -> float:
    """What the changes leave of the examples that are computed at once; 0 where they change more than that."""
    if changes.keys() - {"train.accumulate", "train.batch_size"}:
        return 0.0
    parts = int(changes.get("train.accumulate", config.train.accumulate))
    rows = int(changes.get("train.batch_size", config.train.batch_size))
    return rows / parts / (config.train.batch_size / config.train.accumulate)


def _on_accelerator(experiment: Experiment) -> bool:
    return bool(experiment.programs.mesh.devices.flat[0].platform != "cpu")


def smaller(config: Config, mesh: Mesh | None = None) -> Iterator[Changes]:
    """Changes that take less memory, the smallest change of training first.

    Args:
        config: what does not fit.
        mesh: with it, another placement on its devices is among them.
    """
    kept: dict[str, int | str] = {}
    loops = getattr(config.model, "scan", True) or mesh is None or mesh.devices.flat[0].platform != "cpu"
    if getattr(config.model, "remat", "full") != "full" or not loops:
        kept["model.remat"] = "full"
        if not loops:  # of layers that are written out a CPU's compiler undoes it
            kept["model.scan"] = True
        yield dict(kept)
    if mesh is not None and mesh.size > 1 and mesh.shape["data"] == mesh.size:
        yield {"mesh.data": 1, "mesh.fsdp": mesh.size}
        yield {**kept, "mesh.data": 1, "mesh.fsdp": mesh.size}
    parts = config.train.accumulate
    while config.train.batch_size % (2 * parts) == 0 and config.train.batch_size // (2 * parts) >= 1 and parts < 64:
        parts *= 2
        yield {**kept, "train.accumulate": parts}
    batch = config.train.batch_size // 2
    while batch >= 1 and batch > config.train.batch_size // 64:
        yield {**kept, "train.batch_size": batch}
        batch //= 2


def changed(config: Config, changes: Changes) -> Config:
    """The configuration with other values of some keys."""
    for key, value in changes.items():
        group, _, name = key.partition(".")
        whole: dict[str, Any] = {group: dataclasses.replace(getattr(config, group), **{name: value})}
        config = dataclasses.replace(config, **whole)
    return config
