"""A composition, and where each of its values comes from: the schema, a preset, or the command line. Imports Hydra."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import InputDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

from bigctl.config import preset_text, schema
from bigctl.config.schema import Config
from bigctl.errors import ConfigError


class ReadOnce(CachingConfigRepository):
    """What Hydra finds by a path, read once for the composition and for where its values come from.

    Hydra copies its repository each time that it begins, and with it all schemas there are, which takes a third of
    composing. It changes nothing in what it reads.

    Args:
        repository: Hydra's.
        schemas: dataclasses by path. They get into Hydra's store when they are asked for, as most never are, and to
            convert one takes milliseconds.
    """

    def __init__(self, repository: IConfigRepository, schemas: Mapping[str, type]) -> None:
        self.delegate = repository
        self.cache = {}
        self._schemas = schemas

    def config_exists(self, config_path: str) -> bool:
        return config_path.removesuffix(".yaml") in self._schemas or super().config_exists(config_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        known = f"config_path={config_path}" in self.cache
        path = config_path.removesuffix(".yaml")
        if not known and path in self._schemas:
            _store(path, self._schemas[path])
        found = super().load_config(config_path)
        if found is None or known:
            return found
        found.defaults_list = [default for default in found.defaults_list or () if not _is_of_hydra(default)]
        config, package = found.config, found.header.get("package")
        at_root = package == "_global_" or (not package and "/" not in config_path)
        if at_root and isinstance(config, DictConfig) and config._metadata.object_type is dict:
            own = config.pop("hydra", None)
            if isinstance(own, DictConfig) and "searchpath" in own:
                hint = "give each folder with --config-dir, which may be repeated"
                where = _place(config_path, found.provider)
                raise ConfigError("hydra.searchpath adds no folders of presets", where=where, hint=hint)
        return found


_stored: dict[str, type] = {}
"""What Hydra's store has by now."""


def _store(path: str, schema_of: type) -> None:
    from hydra.core.config_store import ConfigStore

    if _stored.get(path) is not schema_of:
        group, _, name = path.rpartition("/")
        ConfigStore.instance().store(group=group or None, name=name, node=schema_of)
        _stored[path] = schema_of


def _is_of_hydra(default: InputDefault) -> bool:
    return (getattr(default, "group", None) or "").removeprefix("/").startswith("hydra/")


def composed_by(
    loader: Any, overrides: Sequence[str], schemas: Mapping[str, type]
) -> tuple[Any, dict[str, str], dict[str, preset_text.Written]]:
    """What Hydra composes of `config.yaml` and overrides, as `hydra.compose` does it, with interpolations resolved.

    Hydra's configuration of itself is left out: its launchers and ways to log take half of the time, and nobody here
    asks for them. The defaults list is made once, for the composition and for its origins.

    Returns:
        The composition; dotted key -> the last file of the defaults list that set it, or "command line", or "schema";
        and of those set in a file of the user's own what stands there.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    repository = ReadOnce(loader.repository, schemas)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    computed = create_defaults_list(repository, "config", parsed, prepend_hydra=False, skip_missing=False)
    node = loader._compose_config_from_defaults_list(defaults=computed.defaults, repo=repository)
    OmegaConf.set_struct(node, True)
    loader._apply_overrides_to_config(computed.config_overrides, node)
    OmegaConf.resolve(node)
    return node, *_origins_of(repository, parsed, computed)


def _origins_of(
    repository: ReadOnce, parsed: Sequence[Override], computed: DefaultsList
) -> tuple[dict[str, str], dict[str, preset_text.Written]]:
    from omegaconf import OmegaConf

    origins: dict[str, str] = {}
    written: dict[str, preset_text.Written] = {}

    places: dict[str, str] = {}
    for default in computed.defaults:
        path = default.config_path
        if path is None:
            continue
        loaded = repository.load_config(path)
        if loaded is None:
            continue
        places[path] = _place(path, loaded.provider)
        with contextlib.suppress(Exception):
            if isinstance(loaded.config, DictConfig):
                _mark(loaded.config, default.package or "", places[path], origins, written)
        if loaded.path.startswith("file://") and loaded.provider != "main":
            prefix = f"{default.package}." if default.package else ""
            texts = preset_text.written(Path(loaded.path.removeprefix("file://"), f"{path}.yaml"))
            written |= {f"{prefix}{name}": text for name, text in texts.items()}
    for field in dataclasses.fields(Config):  # a component's kind is the schema's: more telling is who chose it
        if origins.get(f"{field.name}.kind") == "schema":
            choice = computed.overrides.override_metadata.get(field.name)
            chooser = choice and choice.containing_config_path or "config"
            origins[f"{field.name}.kind"] = (
                "command line" if choice and choice.external_override else places.get(chooser, f"{chooser}.yaml")
            )
    for override in parsed:
        dotted, value = override.key_or_group.replace("/", "."), override.value()
        if isinstance(value, dict):
            _mark(OmegaConf.create(value), dotted, "command line", origins, written)
        elif override.key_or_group not in schema.GROUPS:
            origins[dotted] = "command line"
            written.pop(dotted, None)
    return origins, written


def _place(path: str, provider: str) -> str:
    """What a preset is called: its path in the tree of presets, behind the folder that is the user's own."""
    if path.rsplit("/", 1)[-1].startswith("_"):
        return "schema"
    return f"{path}.yaml" if provider in ("main", "schema") else f"{provider}/{path}.yaml"


def _mark(
    values: DictConfig, prefix: str, origin: str, origins: dict[str, str], written: dict[str, preset_text.Written]
) -> None:
    """All values of a node come from here, and no longer from where they were set before."""
    for name in map(str, values):
        dotted = f"{prefix}.{name}" if prefix else name
        child = values._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _mark(child, dotted, origin, origins, written)
        else:
            origins[dotted] = origin
            written.pop(dotted, None)
