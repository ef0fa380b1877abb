"""`bigctl plan --search`: other meshes, then remat, accumulation and batch sizes on the best, ranked by examples/s.

Each point is compiled, so few are: all meshes as the configuration stands; then, where its step fits, larger batches;
where it does not, what takes less memory, the smallest change first. What cannot fit is not compiled: a mesh whose
share of the state is larger than the memory, a change that would leave too much even if all else shrank with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bigctl.config.schema import Config
from bigctl.engine.plan import Plan, TooLarge, plan
from bigctl.engine.step_memory import Changes, changed, may_fit, smaller
from bigctl.errors import ConfigError
from bigctl.formatting import size
from bigctl.planning import costs, devices, targets
from bigctl.planning.targets import Target


@dataclass(frozen=True)
class Tried:
    """One point.

    Attributes:
        changes: keys that differ from what was given.
        plan: what it costs; None where it was refused.
        refused: why.
        state: bytes that it takes of each device before a step, where that was too much to compile it.
    """

    changes: Changes
    plan: Plan | None = None
    refused: str = ""
    state: int = 0

    @property
    def fits(self) -> bool:
        return self.plan is not None and self.plan.costs.memory.fits

    @property
    def rate(self) -> float:
        """Examples a second, in the middle of the range."""
        if self.plan is None:
            return 0.0
        return self.plan.config.train.batch_size / math.sqrt(self.plan.time.low * self.plan.time.high)

    @property
    def overrides(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items()) or "as given"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"overrides": self.overrides, "fits": self.fits, "refused": self.refused or None}
        if self.plan is not None:
            time = self.plan.time
            found["peak_bytes"] = self.plan.costs.memory.peak
            found["step_seconds"] = {"low": time.low, "high": time.high, "binds": time.binds}
            found["examples_per_s"] = self.rate
        return found


def search(config: Config, target: Target, say: Callable[[str], None]) -> list[Tried]:
    """All points that were tried, those that fit first, the quickest first among them.

    Args:
        config: as composed.
        target: the machine.
        say: is told of each point before it is compiled.

    Raises:
        ConfigError: where no mesh can be built, or nothing that was tried fits: with what would.
    """
    found, errors = devices.find(target), []

    def attempt(changes: Changes) -> Tried:
        tried = Tried(changes)
        say(tried.overrides)
        try:
            return Tried(changes, plan(changed(config, changes), target, found, fitting=True))
        except TooLarge as error:
            return Tried(changes, refused=error.message, state=error.bytes)
        except ConfigError as error:
            errors.append(error)
            return Tried(changes, refused=error.message)

    tried = [attempt(changes) for changes in meshes_of(config, target)]
    built = [each for each in tried if each.plan is not None]
    if not built and any(each.state for each in tried):
        raise _too_large(target, min(each.state for each in tried if each.state))
    if not built and len({(error.where, error.message) for error in errors}) == 1:
        raise errors[0]  # which has nothing to do with meshes
    if not built:
        raise ConfigError(f"no mesh of {target.text} can be built: {tried[0].refused}", where="mesh")
    best = max(built, key=lambda each: (each.fits, each.rate if each.fits else -_peak(each)))
    if best.fits:
        tried += [attempt({**best.changes, "train.batch_size": config.train.batch_size * n}) for n in (2, 4)]
    else:
        fixed, temporary = _apart(best)
        for less in smaller(config):
            if not may_fit(config, less, fixed, temporary, target.chip.memory):
                continue
            tried.append(attempt({**best.changes, **less}))
            if tried[-1].fits:
                break
        else:
            least = min(_peak(each) for each in tried if each.plan is not None)
            raise ConfigError(
                f"nothing that was tried fits {target.text}: the least takes {size(least)} on each device, "
                f"which has {size(target.chip.memory)}",
                where="--search",
                hint="plan for more devices, or make the model smaller",
            )
    return sorted(tried, key=lambda each: (not each.fits, -each.rate))


def _too_large(target: Target, state: int) -> ConfigError:
    """Of a state that no mesh of the target holds."""
    count = -(-state * target.devices // target.chip.memory)
    larger = targets.of_at_least(target, count)
    hold = f"about {count:,} devices would hold them" + (f": plan for {larger}" if larger else "")
    return ConfigError(
        f"nothing fits {target.text}: parameters and what the optimizer keeps take at least {size(state)} on each "
        f"device, however they are shared out, and a device has {size(target.chip.memory)}",
        where="--search",
        hint="make the model smaller" if target.chip.platform == "cpu" else f"{hold}, or make the model smaller",
    )


def _apart(tried: Tried) -> tuple[int, int]:
    """Bytes of each device that a step takes: what is there before, and all else."""
    assert tried.plan is not None
    memory = tried.plan.costs.memory
    fixed = sum(memory.parts[part] for part in (costs.PARAMETERS, costs.OPTIMIZER, costs.OTHER))
    return fixed, memory.peak - fixed


def _peak(tried: Tried) -> int:
    assert tried.plan is not None
    return tried.plan.costs.memory.peak


def meshes_of(config: Config, target: Target) -> Iterator[Changes]:
    """Meshes that take all devices of a target: by data, by fsdp, both across hosts, and by other axes within. Slices
    of a TPU share the batch."""
    count, near = target.devices // target.slices, target.near
    others = [name for name in config.mesh.layer_axes() if name != "tensor"]
    rest = {**dict.fromkeys(others, 1), "dcn": target.slices}
    rest = {f"mesh.{name}": size for name, size in rest.items() if config.mesh.axes[name] != size}
    yield {"mesh.data": count, "mesh.fsdp": 1, "mesh.tensor": 1, **rest}
    if count == 1:
        return
    yield {"mesh.data": 1, "mesh.fsdp": count, "mesh.tensor": 1, **rest}
    if near < count:
        yield {"mesh.data": count // near, "mesh.fsdp": near, "mesh.tensor": 1, **rest}
    for axis in ("tensor", *others):
        for shards in (2, 4, 8):
            if shards <= near and count % shards == 0 and not any(config.mesh.layer_problems(config, {axis: shards})):
                sizes = {"mesh.tensor": 1, **rest, f"mesh.{axis}": shards}
                yield {"mesh.data": 1, "mesh.fsdp": count // shards, **sizes}


def lines(tried: list[Tried]) -> list[str]:
    """The ranking for people."""
    from bigctl.engine.plan_text import seconds

    found = []
    for number, each in enumerate(tried, 1):
        if each.plan is None:
            found.append(f"{number:>3}  {each.overrides}: {each.refused}")
            continue
        time = each.plan.time
        fits = "" if each.fits else "  DOES NOT FIT"
        found.append(
            f"{number:>3}  {each.overrides}: {seconds(time.low)} to {seconds(time.high)} a step by {time.binds}, "
            f"{each.rate:,.0f} examples/s, peak {size(_peak(each))}{fits}"
        )
    return found
