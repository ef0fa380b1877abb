"""Many experiments that differ in a few values, composed in the time of a few: a sweep has hundreds of them.

Composing takes a fifth of a second. Experiments that choose the same options of groups and set the same keys are
composed once; in the others, each value is converted to the type of its key and put in its place. Where presets or
values refer to other keys (`${...}`), every experiment is composed in full.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigctl.config import checks, lengths, presets, schema, suggestions
from bigctl.config.compose import Composed, as_node, compose, put
from bigctl.config.plugins import load
from bigctl.config.schema import Config
from bigctl.errors import ConfigError


class ManyComposer:
    """Composes as `compose` does, reusing what was composed and converted before.

    Args:
        config_dirs: folders with presets of the user's own.
        plugins: modules with components of the user's own.
    """

    def __init__(self, config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()):
        load(plugins)
        self._config_dirs, self._plugins = config_dirs, plugins
        roots = presets.roots(config_dirs)
        self._groups = set(presets.groups(roots))
        self._refers = any(_refers(path.read_text(encoding="utf-8", errors="replace")) for path in _own(roots))
        self._refers |= any(_refers(str(f.default)) for cls in schema.components() for _, f, _ in schema.walk(cls))
        self._bases: dict[tuple[str, ...], Composed] = {}
        self._nodes: dict[tuple[str, ...], Any] = {}
        self._values: dict[tuple[tuple[str, ...], str], object] = {}
        self._spelled: dict[str, str] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """What `compose` gives for these overrides.

        Raises:
            ConfigError: as `compose` does; for a value that does not fit, its override is the error's place.
        """
        if self._refers or _refers("".join(overrides)):
            return self._whole(overrides)
        structure = tuple(map(self._structure, overrides))
        if len(set(structure)) < len(structure):  # a key that is set twice
            return self._whole(overrides)
        if structure not in self._bases:
            self._bases[structure] = self._whole(overrides)
            return self._bases[structure]
        base = self._bases[structure]
        spelled = tuple(map(self._spelling, overrides))
        changed = [new for new, old in zip(spelled, base.overrides, strict=True) if new != old]
        config = copy.deepcopy(base.config)
        for override in changed:
            _put(config, _key(override), self._value(structure, override))
        config = lengths.settle(config, base.origins)
        checks.check(config, base.origins | {_key(override): override for override in changed})
        return Composed(config, spelled, base.origins)

    def reuse(self, composed: Composed) -> None:
        """Make others of what was composed elsewhere."""
        self._bases[tuple(map(self._structure, composed.overrides))] = composed

    def _whole(self, overrides: Sequence[str]) -> Composed:
        return compose(overrides, config_dirs=self._config_dirs, plugins=self._plugins)

    def _structure(self, override: str) -> str:
        """The key of an override that sets one; what chooses a group, or merges a mapping, as a whole."""
        key, _, value = override.partition("=")
        single = key.replace(".", "").replace("_", "").isalnum() and key not in self._groups
        return key if single and not value.startswith("{") else override

    def _spelling(self, override: str) -> str:
        if override not in self._spelled:
            self._spelled[override] = suggestions.spelling(override)
        return self._spelled[override]

    def _value(self, structure: tuple[str, ...], override: str) -> object:
        if (structure, override) not in self._values:
            if structure not in self._nodes:
                self._nodes[structure] = as_node(self._bases[structure].config)
            try:
                self._values[structure, override] = put(self._nodes[structure], override)
            except ConfigError as error:
                error.where = override
                raise
        return copy.copy(self._values[structure, override])


_kept: dict[tuple[tuple[Path, ...], tuple[str, ...]], ManyComposer] | None = None


def keep() -> None:
    """From here on `compose_next` makes an experiment of those that it composed before."""
    global _kept
    _kept = {}


def compose_next(
    overrides: Sequence[str], *, config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()
) -> Composed:
    """What `compose` gives for the next experiment of this process, which raises ConfigError as it does."""
    if _kept is None:
        return compose(overrides, config_dirs=config_dirs, plugins=plugins)
    given = tuple(config_dirs), tuple(plugins)
    if given not in _kept:
        _kept[given] = ManyComposer(*given)
    return _kept[given].compose(overrides)


def compose_all(
    experiments: Sequence[Sequence[str]], *, config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()
) -> list[Composed]:
    """What `compose` gives for each of these lists of overrides, in order. Raises ConfigError as it does."""
    composer = ManyComposer(config_dirs, plugins)
    return [composer.compose(overrides) for overrides in experiments]


def _refers(text: str) -> bool:
    return "${" in text


def _own(roots: Sequence[presets.Root]) -> list[Path]:
    """The user's presets, apart from those of sweeps."""
    return [path for root in roots[:-1] for path in sorted(root.path.glob("*/*.yaml")) if path.parent.name != "sweep"]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _get(config: Config, key: str) -> object:
    node: object = config
    for name in key.split("."):
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    return node


def _put(config: Config, key: str, value: object) -> None:
    parent, _, name = key.rpartition(".")
    setattr(_get(config, parent) if parent else config, name, value)
