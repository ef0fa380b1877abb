"""Every key a user can set: its type, default, meaning, and what a change of it does to a run that is resumed.

The dataclasses are the schema of the Hydra tree under `conf/`. This package is imported by completion and by `--help`,
so it imports nothing but the standard library. A component (a model, an optimizer, ...) is a dataclass with a
read-only `kind`; the class that implements it is named here, in code, as a lazy "module:Class" string.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from inspect import get_annotations
from typing import Any, get_args, get_origin, get_type_hints

from bigctl.config.schema.adversarial import *
from bigctl.config.schema.augment import *
from bigctl.config.schema.base import *
from bigctl.config.schema.data import *
from bigctl.config.schema.data_files import *
from bigctl.config.schema.decoders import *
from bigctl.config.schema.distil import *
from bigctl.config.schema.experiment import *
from bigctl.config.schema.extensions import *
from bigctl.config.schema.federated import *
from bigctl.config.schema.mixture import *
from bigctl.config.schema.models import *
from bigctl.config.schema.optimizers import *
from bigctl.config.schema.privacy import *
from bigctl.config.schema.probe import *
from bigctl.config.schema.recipes import *
from bigctl.config.schema.sweep import *
from bigctl.config.schema.text_recipes import *
from bigctl.config.schema.tokenizers import *
from bigctl.config.schema.tokens import *
from bigctl.config.schema.vision import *

GROUPS = ("recipe", "model", "optimizer", "schedule", "data", "mesh", "experiment")
"""The groups of the Hydra tree, in the order they are composed."""


def components() -> list[type[Component]]:
    """Every component that can be chosen, those of imported plugins included."""

    def below(base: type[Component]) -> Iterator[type[Component]]:
        for subclass in base.__subclasses__():
            yield subclass
            yield from below(subclass)

    return [c for c in below(Component) if c.group_name and dataclasses.is_dataclass(c) and _kind_of(c) != MISSING]


def component(group: str, name: str) -> type[Component] | None:
    """The dataclass of one component, or None where nothing has that name."""
    return next((c for c in components() if c.group_name == group and _kind_of(c) == name), None)


def _kind_of(cls: type) -> str:
    return str(cls.__dataclass_fields__["kind"].default)  # type: ignore[attr-defined]


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """What `typing.get_type_hints` gives. Our own hundred components have a few dozen types: each is evaluated once."""
    bases = cls.__mro__[-2::-1]
    if not all(base.__module__.startswith(f"{__name__}.") for base in bases):
        return get_type_hints(cls)
    return {name: _evaluated(hint, base.__module__) for base in bases for name, hint in get_annotations(base).items()}


@functools.cache
def _evaluated(hint: str, module: str) -> Any:
    return get_type_hints(type("Holder", (), {"__module__": module, "__annotations__": {"it": hint}}))["it"]


def walk(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """All keys of a dataclass as (dotted key, field, type), nested ones below their parents. Those below names that
    the user gives have a * for the name: data.corpora.*.path."""
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        dotted = f"{prefix}{field.name}"
        yield dotted, field, hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from walk(hints[field.name], f"{dotted}.")
        elif named := _named(hints[field.name]):
            yield from walk(named, f"{dotted}.*.")


def _named(hint: object) -> type | None:
    """The dataclass that a mapping from names of the user's own holds; None for all else."""
    held = get_args(hint)[-1] if get_origin(hint) is dict else None
    return held if dataclasses.is_dataclass(held) and isinstance(held, type) else None


def named_keys() -> frozenset[str]:
    """Keys below which the user gives names, such as data.corpora."""
    return _named_keys(tuple(components()))


@functools.cache
def _named_keys(among: tuple[type[Component], ...]) -> frozenset[str]:
    return frozenset(f"{cls.group_name}.{dotted}" for cls in among for dotted, _, hint in walk(cls) if _named(hint))


def declared(dotted: str) -> str:
    """A key as `walk` has it: data.corpora.*.path for data.corpora.web.path."""
    for above in named_keys():
        if dotted.startswith(f"{above}."):
            name, _, rest = dotted.removeprefix(f"{above}.").partition(".")
            return f"{above}.*.{rest}" if rest else f"{above}.*"
    return dotted


def decided_keys() -> set[str]:
    """Keys that the start of a run fills in where they are open, which the run then keeps."""
    return {
        f"{group}{dotted}"
        for group, cls in [("", Config), *((f"{cls.group_name}.", cls) for cls in components())]
        for dotted, field, _ in walk(cls)
        if field.metadata.get("decided")
    }


def is_open(value: object) -> bool:
    """Whether a value of such a key leaves it to the start of a run."""
    return value is None or value == AUTO


def walk_config(config: Config) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """All leaf keys of a composed configuration as (dotted key, field, value)."""

    def descend(node: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                yield from descend(value, f"{prefix}{field.name}.")
            elif isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
                for name, held in value.items():
                    yield from descend(held, f"{prefix}{field.name}.{name}.")
            else:
                yield f"{prefix}{field.name}", field, value

    return descend(config, "")
