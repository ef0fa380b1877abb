"""argv -> one typed, validated `Config`: Hydra's Compose API, made strict, with an answer to every typo.

Free of jax. Errors name the key, the file it comes from, and what to type instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from bigctl.config import checks, extra_keys, lengths, preset_text, presets, saved, schema, suggestions
from bigctl.config.explain import explain
from bigctl.config.plugins import blaming, load
from bigctl.config.schema import Config
from bigctl.errors import ConfigError
from bigctl.formatting import is_utf8


class UnknownComponent(ConfigError):
    """A saved configuration has a component of a plugin that is not imported."""


@dataclass(frozen=True)
class Composed:
    """A configuration and how it came about.

    Attributes:
        config: the typed result.
        overrides: what the user gave, as Hydra overrides.
        origins: dotted key -> where its value was set last ("model/cnn.yaml", "command line", "schema"); for the
            `kind` of a component, where it was chosen.
        missing: keys that must still be given, and groups of which nothing is chosen; empty unless partial.
    """

    config: Config
    overrides: tuple[str, ...]
    origins: dict[str, str]
    missing: tuple[str, ...] = ()


def compose(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[Path] = (),
    plugins: Sequence[str] | None = (),
    partial: bool = False,
) -> Composed:
    """Compose and validate an experiment.

    Args:
        overrides: Hydra overrides: `group=option`, `key=value`, `~key`.
        config_dirs: folders with presets of the user's own, which shadow the packaged ones.
        plugins: modules to import first; they define components. None to import none, not even what is installed.
        partial: allow what is missing and check the data alone, for commands that need a part only.

    Raises:
        ConfigError: for anything that is wrong, before anything is started.
    """
    if plugins is not None:
        load(plugins)
    roots = presets.roots(config_dirs)
    for override in overrides:
        require_text(override)
    given = [suggestions.spelling(override) for override in overrides]
    suggestions.reject_unknown(given, roots)
    node, origins = _hydra_compose(given, roots)
    extra_keys.reject(node, schema.Config, origins)
    config, missing = _to_config(node, origins, partial=partial)
    config = lengths.settle(config, origins)
    with blaming(ConfigError):
        checks.check(config, origins, only="data." if partial else "")
    return Composed(config, tuple(given), origins, tuple(missing))


def require_text(override: str) -> None:
    """Raises ConfigError for what could not be written down, or read as a number."""
    if not is_utf8(override):
        key = override.partition("=")[0].encode("ascii", "backslashreplace").decode()
        hint = "a path in another encoding needs another name, or a link to it: ln -s PATH NAME"
        raise ConfigError("the value is not UTF-8", where=key, hint=hint)
    if re.search(r"\d{4000}", override):  # which Python does not read as a number
        key = override.partition("=")[0][:100]
        raise ConfigError("the value has thousands of digits", where=key, hint="give a number of fewer digits")


def from_yaml(text: str, *, where: str) -> Config:
    """Read back a configuration that `to_yaml` wrote.

    Raises:
        ConfigError: if it is not one, or names keys that this version does not know.
        UnknownComponent: if it names components that are not known here.
    """
    from omegaconf import OmegaConf

    values = saved.values(text, where=where)
    try:
        node = OmegaConf.create(values)
        components = []
        for group in _PLACEHOLDERS:
            name = OmegaConf.select(node, f"{group}.kind")
            if name is None:
                raise ConfigError(f"{group} is missing", where=where)
            found = schema.component(group, str(name))
            if found is None:
                raise UnknownComponent(
                    f"{group} {str(name)[:100]!r} is not known here",
                    where=where,
                    hint="give the --plugin that the run was made with",
                )
            components.append(found)
        merged = OmegaConf.merge(_unset(tuple(components)), node)
        config = OmegaConf.to_object(merged)
    except ConfigError:
        raise
    except Exception as error:  # of YAML, of OmegaConf, of whatever stands in the file
        problem = f"cannot be read: {suggestions.first_line(error)}"
        raise ConfigError(problem, where=where, hint="bring the file back as bigctl wrote it") from error
    assert isinstance(config, Config)
    for dotted, field, value in schema.walk_config(config):  # a number may be left open by a word, and by one alone
        if field.metadata.get("bounds") and isinstance(value, str) and not schema.is_open(value):
            hint = "bring the file back as bigctl wrote it"
            raise ConfigError(f"cannot be read: {dotted} cannot be {value[:100]!r}", where=where, hint=hint)
    return config


@functools.cache
def _unset(components: tuple[type[schema.Component], ...]) -> Any:
    """What a saved configuration is put into, which merging copies: making it is half of the time of reading one."""
    from omegaconf import OmegaConf

    base = OmegaConf.structured(Config)
    for group, component in zip(_PLACEHOLDERS, components, strict=True):
        base[group] = OmegaConf.structured(component)
        base[group].update(component.before)
    return base


def change(config: Config, overrides: Sequence[str]) -> Config:
    """A composed configuration with some keys set otherwise: `key=value`, no groups.

    Raises:
        ConfigError: for a key that it does not have, and for what does not fit.
    """
    origins = dict.fromkeys((override.partition("=")[0].lstrip("+") for override in overrides), lengths.TYPED)
    changed = lengths.settle(merged(config, overrides), origins)
    checks.check(changed, origins)
    return changed


def merged(config: Config, overrides: Sequence[str]) -> Config:
    """The same without asking whether the keys fit each other: their names and types alone are checked."""
    from omegaconf import OmegaConf

    node = as_node(config)
    for override in overrides:
        put(node, override)
    changed = OmegaConf.to_object(node)
    assert isinstance(changed, Config)
    return changed


def as_node(config: Config) -> Any:
    """A configuration as OmegaConf has it, which converts what is put into it and takes no new keys."""
    from omegaconf import OmegaConf

    node = OmegaConf.structured(config)
    OmegaConf.set_struct(node, True)
    return node


def put(node: Any, override: str) -> object:
    """Set one key of what `as_node` gave; gives the value as the key's type has it. Raises ConfigError."""
    from hydra.errors import HydraException
    from omegaconf import Container, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    require_text(override)
    given = suggestions.quoted(override)
    parsed = suggestions.parse(given)
    name = str(parsed.key_or_group)
    if name in schema.GROUPS or name.startswith("experiment") or parsed.is_sweep_override():
        raise ConfigError(
            f"{parsed.input_line} does not change one key",
            where="command line",
            hint="a run keeps its components; `bigctl train` starts another",
        )
    suggestions.reject_inside(name)
    try:
        OmegaConf.update(node, name, parsed.value())
        found = OmegaConf.select(node, name)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, [given]) from error
    return OmegaConf.to_object(found) if isinstance(found, Container) else found


def to_yaml(config: Config) -> str:
    """What `OmegaConf.to_yaml` gives for it, without a node and a check for each value, which take most of its time."""
    import yaml
    from omegaconf import OmegaConf

    written: list[str] = []
    try:
        values = _plain(config, written)
    except TypeError:
        return OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True)
    dumper = _dumper(all(text.isascii() and text.isprintable() for text in written))
    return yaml.dump(values, Dumper=dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


@functools.cache
def _dumper(simple: bool) -> Any:
    """OmegaConf's; of libyaml where all texts are simple ones, which it writes alike, in a third of the time."""
    import yaml
    from omegaconf._utils import get_omega_conf_dumper

    dumper = cast(Any, get_omega_conf_dumper())
    if not simple or not hasattr(yaml, "CDumper"):
        return dumper

    class Quick(yaml.CDumper):
        pass

    Quick.add_representer(str, dumper.str_representer)
    return Quick


def _plain(value: object, written: list[str], annotation: str = "") -> object:
    """A configuration as dicts, lists and scalars; its texts are added to `written`. Raises TypeError for what
    OmegaConf would make something else of."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), written, str(f.type)) for f in fields(value)}
    if isinstance(value, dict):
        written.extend(str(name) if 0 < len(str(name)) < 100 else "\n" for name in value)  # others are no simple ones
        return {name: _plain(each, written, annotation) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, written, annotation) for each in value]
    if type(value) is str and "${" not in value:
        written.append(value)
        return value
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and "float" not in annotation:
        return value
    raise TypeError(value)


# ----------------------------------------------------------------------------------------------------------- compose


def _schemas() -> dict[str, type]:
    """The dataclasses that presets name among their defaults, by the paths that Hydra knows them by."""
    components = {f"{cls.group_name}/_{schema._kind_of(cls)}": cls for cls in schema.components()}
    return {"_config": Config, **components}


def _hydra_compose(overrides: Sequence[str], roots: Sequence[presets.Root]) -> tuple[Any, dict[str, str]]:
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.plugins.search_path_plugin import SearchPathPlugin
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from bigctl.config.value_origins import composed_by

    class UserPresets(SearchPathPlugin):
        """Folders of the user's own come first, so that they shadow what is packaged."""

        def manipulate_search_path(self, search_path: Any) -> None:
            for root in reversed(roots[:-1]):
                search_path.prepend(provider=root.label, path=f"file://{root.path}")

    plugins = Plugins.instance()
    plugins.register(UserPresets)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(roots[-1].path), version_base="1.3"):
            loader: Any = GlobalHydra.instance().config_loader()
            given = [extra_keys.as_mapping(override) for override in overrides]
            node, origins, written = composed_by(loader, given, _schemas())
            preset_text.keep(node, written)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    except UnicodeDecodeError as error:
        raise ConfigError("one of the presets chosen is not UTF-8 text", hint="save it as UTF-8") from error
    except (YAMLError, ValueError, KeyError) as error:
        found = error if isinstance(error, YAMLError) else _misread(roots)
        if found is None:
            raise
        mark = getattr(found, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else None
        hint = 'quote what holds braces, brackets or colons: "${seed}"'
        raise ConfigError(f"is not YAML: {getattr(found, 'problem', found)}", where=place, hint=hint) from error
    finally:
        plugins.class_name_to_class.pop(UserPresets.__name__, None)
        for registered in plugins.plugin_type_to_subclass_list.values():
            if UserPresets in registered:
                registered.remove(UserPresets)
    OmegaConf.set_struct(node, True)
    return node, origins


def _misread(roots: Sequence[presets.Root]) -> Exception | None:
    """What is wrong with the first preset of the user's that cannot be read."""
    from yaml import YAMLError

    for path in (path for root in roots[:-1] for path in sorted(root.path.rglob("*.yaml"))):
        try:
            presets.load(path)
        except YAMLError as error:
            return error
        except (OSError, ValueError):
            continue
    return None


def _to_config(node: Any, origins: dict[str, str], *, partial: bool) -> tuple[Config, list[str]]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    unchosen = []
    for group in _PLACEHOLDERS:
        child = node._get_node(group)
        if child is None or child._is_missing() or child._is_none():
            if partial:
                OmegaConf.set_struct(node, False)
                node[group] = OmegaConf.structured(_PLACEHOLDERS[group])
                unchosen.append(group)
                continue
            raise ConfigError(f"no {group} is chosen", where="command line", hint=f"{group}=NAME; see `bigctl ls`")
        cls = OmegaConf.get_type(child)
        assert cls is not None
        if child._get_node("kind")._is_missing():
            raise ConfigError(
                f"the preset does not say which {group} it is for",
                where=next((o for k, o in origins.items() if k.startswith(f"{group}.") and o != "schema"), group),
                hint=f"begin it with `defaults: [_NAME, _self_]`, NAME one of: {', '.join(_kinds(group))}",
            )
        if child["kind"] != schema._kind_of(cls):
            raise ConfigError(
                f"{group}.kind is read-only",
                where=origins.get(f"{group}.kind", "command line"),
                hint=f"choose another {group} with {group}=NAME",
            )
        for name, others in cls.instead.items():
            if child._get_node(name)._is_missing() and any(child.get(other) is not None for other in others):
                child[name] = None
    unlabelled = getattr(OmegaConf.get_type(node, "recipe"), "unlabelled", False)
    if unlabelled and "label" in set(node.data) and OmegaConf.is_missing(node.data, "label"):
        node.data.label = None
    missing = sorted(OmegaConf.missing_keys(node))
    if missing and not partial:
        dotted = missing[0]
        origin = origins.get(dotted)
        where = None if origin == "schema" else origin
        raise ConfigError(f"{dotted} must be given", where=where, hint=f"add {dotted}=...")
    try:
        config = OmegaConf.to_object(node) if not missing else OmegaConf.to_object(_fill_missing(node, missing))
    except OmegaConfBaseException as error:
        raise explain(error, ()) from error
    assert isinstance(config, Config)
    return config, [*unchosen, *(dotted for dotted in missing if dotted.removesuffix(".kind") not in unchosen)]


def _kinds(group: str) -> list[str]:
    return sorted(schema._kind_of(cls) for cls in schema.components() if cls.group_name == group)


_PLACEHOLDERS: dict[str, type] = {
    "recipe": schema.Recipe,
    "model": schema.Model,
    "optimizer": schema.Optimizer,
    "schedule": schema.Schedule,
    "data": schema.Data,
    "mesh": schema.Mesh,
}


def _fill_missing(node: Any, missing: Sequence[str]) -> Any:
    from omegaconf import OmegaConf

    for dotted in missing:
        OmegaConf.update(node, dotted, "")
    return node
