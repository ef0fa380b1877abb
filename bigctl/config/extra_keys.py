"""Keys that Hydra by itself would take wrongly: those below names of the user's own, and those that no schema has.

Free of jax.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bigctl.config import schema, suggestions
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def as_mapping(override: str) -> str:
    """What sets a key below a name of the user's own as a mapping to be merged, which makes a name that is new:
    `++data.corpora={web: {path: x}}` for `++data.corpora.web.path=x`."""
    key, _, value = override.lstrip("+").partition("=")
    above = next((above for above in schema.named_keys() if key.startswith(f"{above}.")), None)
    if above is None:
        return override
    names = key.removeprefix(f"{above}.").split(".")
    return f"++{above}={'{'}{': {'.join(names)}: {value}{'}' * len(names)}"


def reject(node: Any, cls: type, origins: dict[str, str], prefix: str = "") -> None:
    """`+model.typo=3` slips past structured configs: hold the result against the schema once more."""
    from omegaconf import DictConfig, OmegaConf

    known = {field.name for field in dataclasses.fields(cls)}
    for name in node:
        dotted = f"{prefix}{name}"
        if name not in known:
            raise ConfigError(
                f"there is no key {dotted!r}{suggestions.did_you_mean(str(name), sorted(known), prefix)}",
                where=origins.get(dotted, "command line"),
                hint=f"{prefix.rstrip('.') or 'the top level'} has: {', '.join(sorted(known))}",
            )
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            child_cls = OmegaConf.get_type(child)
            if child_cls is not None and dataclasses.is_dataclass(child_cls):
                reject(child, child_cls, origins, f"{dotted}.")
            elif dotted in schema.named_keys():
                _reject_below(child, origins, f"{dotted}.")


def _reject_below(named: DictConfig, origins: dict[str, str], prefix: str) -> None:
    """The same of what names of the user's own stand for."""
    from omegaconf import DictConfig, OmegaConf

    for name in map(str, named):
        child = named._get_node(name)
        held = OmegaConf.get_type(child) if isinstance(child, DictConfig) and not child._is_none() else None
        if held is None or not dataclasses.is_dataclass(held):
            where = origins.get(f"{prefix}{name}", "command line")
            raise ConfigError(f"{prefix}{name} is empty", where=where, hint=f"write {prefix}{name}.path=...")
        reject(child, held, origins, f"{prefix}{name}.")
