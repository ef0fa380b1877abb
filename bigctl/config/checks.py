"""What a composed configuration must satisfy beyond its types: the bounds and choices that stand beside each key, and
what spans keys, which each component checks itself.

All of it runs before jax is imported; what only the data or the devices can tell is checked where they are known.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bigctl.config import schema
from bigctl.config.schema import Checked, Config, Problem
from bigctl.errors import ConfigError

Origins = Mapping[str, str]

LARGEST = 2**31
"""Whole numbers are smaller where nothing beside a key says otherwise: steps, examples, tokens and sizes of arrays are
counted in int32 on the devices."""
LONGEST_LIST = 1000
"""Numbers in a list: widths of layers, and the like."""


def check(config: Config, origins: Origins, *, only: str = "") -> None:
    """Raise ConfigError for the first thing that cannot work, naming the key, its origin and the remedy.

    Args:
        config: what was composed.
        origins: where each value comes from.
        only: check only keys that begin with this, such as "data.", where the rest is incomplete.
    """
    for dotted, message, hint in problems(config, only):
        origin, key = origins.get(dotted), "" if dotted in message else dotted
        known = "" if origin in (None, "schema") else origin
        raise ConfigError(message, where=", ".join(filter(None, (known, key))) or None, hint=hint)


def problems(config: Config, only: str = "") -> Iterator[Problem]:
    """All that cannot work: what single keys tell first."""
    for dotted, field, value in schema.walk_config(config):
        if dotted.startswith(only):
            yield from key_problems(dotted, field, value)
    for prefix, node in _nodes(config):
        if isinstance(node, Checked) and prefix.startswith(only):
            for found in node.check(config):
                if not (isinstance(found, tuple) and len(found) == 3):
                    where, given = schema.place_of(type(node)), type(found).__name__
                    raise ConfigError(f"check() must yield (key, problem, remedy), not {given}", where=where)
                yield found


def key_problems(dotted: str, field: dataclasses.Field[Any], value: object) -> Iterator[Problem]:
    """Whether a value, or each one of a list, is among the choices and within the bounds of its key."""
    choices, bounds = field.metadata.get("choices"), field.metadata.get("bounds")
    if bounds is not None and isinstance(value, list) and len(value) > LONGEST_LIST:
        yield dotted, f"{dotted} has {len(value):,} numbers", f"at most {LONGEST_LIST:,}"
        return
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, int) and abs(each) >= LARGEST and getattr(bounds, "le", None) is None:
            digits = str(each) if abs(each) < 10**30 else "a number of more than 30 digits"
            yield dotted, f"{dotted} cannot be {digits}", f"it must be below 2^31{_or_null(field)}"
            continue
        if choices and each is not None and each not in choices:
            some = "some" if isinstance(value, list) else "one"
            yield dotted, f"{dotted} cannot be {each!r}", f"{some} of: {', '.join(map(str, choices))}"
        if bounds is not None and isinstance(each, int | float) and each not in bounds:
            yield dotted, f"{dotted} cannot be {each}", f"it must be {bounds}{_or_null(field)}"


def _or_null(field: dataclasses.Field[Any]) -> str:
    """What null stands for, as the key's sentence says: ", or null for none"."""
    said = re.search(r"null (?:to|for) (?:[^;.:\[]|\.(?=\w))*[^;.:\[\s]", str(field.metadata.get("doc")))
    return f", or {said[0]}" if said else ""


def _nodes(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All dataclasses of a configuration, each with the beginning of its keys, parents first."""
    yield prefix, node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _nodes(value, f"{prefix}{field.name}.")


def require_data(config: Config, hint: str) -> None:
    """Raises ConfigError where no data is chosen, with this hint, or a key that it needs is missing."""
    data = config.data
    if data.kind == schema.MISSING or not data.kind:
        raise ConfigError("no data set is chosen", hint=hint)
    for field in dataclasses.fields(data):
        if field.default == schema.MISSING and getattr(data, field.name) in ("", schema.MISSING):
            doc = field.metadata.get("doc", "")
            raise ConfigError(f"data.{field.name} must be given", hint=f"add data.{field.name}=...: {doc}")
