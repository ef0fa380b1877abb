"""Which trials may be packed, to be trained in one process as one program: those that differ in numbers and seeds only.

What such a number is, `config.numbers` says. Free of jax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from bigctl.config.numbers import NUMBER, SEED, numbers, structure
from bigctl.config.schema import Config
from bigctl.parallel import cluster

T = TypeVar("T")


def refusal(configs: Sequence[Config]) -> str | None:
    """Why these experiments cannot be trained as one pack, naming the keys that differ; None where they can.

    What depends on the data and the machine is only known later, see `training.packed.refusal`.
    """
    if cluster.read_cluster_info() is not None:
        return "several processes that train together cannot train a pack"
    if any(config.train.privacy.on for config in configs):
        return "trainings with differential privacy draw batches of their own (train.privacy)"
    if any(config.train.privacy.canaries for config in configs):
        return "trainings with canaries leave out examples of their own (train.privacy.canaries)"
    if any(config.train.federated.on for config in configs):
        return "federated trainings draw clients, not batches (train.federated)"
    if hasattr(configs[0].recipe, "bucketing"):
        return f"texts in batches of several lengths cannot be packed (recipe={configs[0].recipe.kind})"
    return differences(configs)


def differences(configs: Sequence[Config]) -> str | None:
    """By what these experiments are not alike, in a sentence; None where it is numbers and seeds only."""
    structures = [structure(config) for config in configs]
    keys = list(dict.fromkeys(key for found in structures for key in found))
    differing = {key: list(dict.fromkeys(found.get(key, "") for found in structures)) for key in keys}
    differing = {key: values for key, values in differing.items() if len(values) > 1}
    groups = [key.removesuffix("kind") for key in differing if key.endswith(".kind")]
    reasons = []
    for key, values in differing.items():
        if key.endswith(".kind"):
            reasons.append(f"{key.removesuffix('.kind')} differs: {_few(values)}")
        elif not key.startswith(tuple(groups)):  # another component has other keys
            off = next((value for value in values if value != NUMBER), "")
            reasons.append(f"{key} differs: {f'{off}, which is off, and others' if NUMBER in values else _few(values)}")
    if not reasons:
        return None
    allowed = ", ".join(key for key in numbers(configs[0]) if key != SEED)
    return f"{'; '.join(reasons)}: trials of one pack may differ in {allowed} and seed only"


def _few(values: Sequence[str]) -> str:
    return ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")


def groups(trials: Sequence[T], config: Callable[[T], Config]) -> list[list[T]]:
    """The trials, those together that can be packed, in the order in which the first of each comes."""
    found: dict[tuple[tuple[str, str], ...], list[T]] = {}
    for trial in trials:
        found.setdefault(tuple(structure(config(trial)).items()), []).append(trial)
    return list(found.values())
