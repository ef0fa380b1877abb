"""A saved configuration as dotted keys: those that it has, and those that it is too old to have. Free of jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from bigctl.config import schema


def whole(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Dotted key -> value; keys that it is too old to know have the value that is their default now."""
    flat = dict(_flat(found))
    return {**{key: value for key, value in defaults(flat).items() if key not in flat}, **flat}


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of every key that there is now for the components that a configuration has."""
    found: dict[str, Any] = {}
    for dotted, field, hint in schema.walk(schema.Config):
        if isinstance(hint, type) and issubclass(hint, schema.Component):
            chosen = schema.component(dotted, str(config.get(f"{dotted}.kind")))
            for key, own, kind in schema.walk(chosen, f"{dotted}.") if chosen else ():
                _put_default(found, key, own, kind)
        elif dotted.split(".")[0] not in schema.GROUPS:
            _put_default(found, dotted, field, hint)
    return found


def _put_default(found: dict[str, Any], key: str, field: dataclasses.Field[Any], hint: Any) -> None:
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if not dataclasses.is_dataclass(hint) and value is not dataclasses.MISSING and value != schema.MISSING:
        found[key] = value
