"""The settings of a sweep: a preset of the group `sweep`, and `sweep.KEY=VALUE` from the command line over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bigctl.config import preset_text, presets, suggestions
from bigctl.config.schema import Sweep
from bigctl.errors import ConfigError

GROUP = "sweep"


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """(overrides of the search itself, all others)."""
    own: list[str] = []
    rest: list[str] = []
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        (own if name == GROUP or name.startswith(f"{GROUP}.") else rest).append(override)
    return own, rest


def read_sweep_config(overrides: Iterable[str], roots: Sequence[presets.Root]) -> tuple[Sweep, dict[str, str]]:
    """The settings, and the origin of each that is set.

    Raises:
        ConfigError: for presets and keys that do not exist, and values of the wrong type.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweep = Sweep()
    origins: dict[str, str] = {}
    given: list[tuple[str, Any, str]] = []
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"cannot read {text!r}: {suggestions.first_line(error)}", where="command line") from error
        if parsed.is_delete() or parsed.is_sweep_override():
            message = "the search itself is not searched" if parsed.is_sweep_override() else "cannot be taken away"
            raise ConfigError(message, where=text, hint=f"give {parsed.key_or_group} one value")
        if parsed.key_or_group == GROUP:
            sweep = _preset(str(parsed.value()), roots, sweep, origins)
        else:
            given.append((parsed.key_or_group.removeprefix(f"{GROUP}."), parsed.value(), text))
    for name, value, text in given:
        if name.startswith("space"):
            hint = "give the key itself its values, such as optimizer.lr=1e-3,1e-2"
            raise ConfigError("the space is not set this way", where=text, hint=hint)
        sweep = _merged(sweep, {name: value}, text)
        origins[name] = "command line"
    return sweep, origins


def _preset(option: str, roots: Sequence[presets.Root], base: Sweep, origins: dict[str, str], depth: int = 0) -> Sweep:
    """A preset over the settings so far, after the one that it extends."""
    import yaml

    found = presets.files(roots, GROUP)
    if option not in found or depth > len(found):
        guess = suggestions.did_you_mean(option, list(found), f"{GROUP}=")
        known = f"one of: {', '.join(found)}"
        raise ConfigError(f"there is no {GROUP} named {option!r}{guess}", where="command line", hint=known)
    path = found[option]
    where = f"{GROUP}/{path.name}" if path.is_relative_to(roots[-1].path) else str(path)
    try:
        node = presets.load(path) or {}
        extends = presets.defaults(path).get("", "")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"is not YAML: {suggestions.first_line(error)}", where=where, hint="quote '[..]' and '{..}'"
        ) from error
    if not isinstance(node, dict):
        raise ConfigError("is no list of keys and values", where=where, hint="such as `sampler: random`")
    if extends and not extends.startswith("_"):
        base = _preset(extends, roots, base, origins, depth + 1)
    node = {str(name): value for name, value in node.items() if name != "defaults"}
    if isinstance(node.get("space"), dict):
        texts = preset_text.written(path)
        own = {name: texts.get(f"space.{name}", value) for name, value in node["space"].items()}
        node["space"] = {**base.space, **own}
    origins.update(dict.fromkeys(node, where))
    return _merged(base, node, where)


def _merged(sweep: Sweep, values: Mapping[str, Any], where: str) -> Sweep:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = {field.name: field for field in dataclasses.fields(Sweep)}
    for name in values:
        if name not in fields:
            guess = suggestions.did_you_mean(name, list(fields), f"{GROUP}.")
            raise ConfigError(
                f"there is no key 'sweep.{name}'{guess}", where=where, hint=f"sweep has: {', '.join(fields)}"
            )
    for name, value in values.items():
        try:
            merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(sweep), {name: value}))
        except OmegaConfBaseException as error:
            message = f"sweep.{name} cannot be {value!r}: {suggestions.first_line(error)}"
            raise ConfigError(message, where=where, hint=str(fields[name].metadata["doc"])) from error
        assert isinstance(merged, Sweep)
        allowed = fields[name].metadata["choices"]
        if allowed and value is not None and value not in allowed:
            raise ConfigError(f"sweep.{name} cannot be {value!r}", where=where, hint=f"one of: {', '.join(allowed)}")
        sweep = merged
    return sweep


def check_sweep_config(
    sweep: Sweep, *, space_has_axes: bool, intervals: Sequence[str], origins: Mapping[str, str]
) -> None:
    """Check that the settings fit each other. Raises ConfigError."""

    def wrong(name: str, message: str, hint: str) -> ConfigError:
        return ConfigError(message, where=origins.get(name, "command line"), hint=hint)

    at_least = {"trials": 1, "warmup_trials": 1, "warmup_evaluations": 0, "min_resource": 1, "reduction": 2,
                "brackets": 1, "seed": 0}  # fmt: skip
    for name, low in at_least.items():
        value = getattr(sweep, name)
        if value is not None and value < low:
            raise wrong(name, f"sweep.{name} cannot be {value}", f"it must be at least {low}")
    for name in ("metric", "pareto"):
        metric = getattr(sweep, name)
        if metric is not None and not metric.startswith("val/"):
            message = f"sweep.{name} cannot be {metric!r}: trials are ranked on the validation split"
            raise wrong(name, message, f"such as val/{metric.rsplit('/', 1)[-1] or 'loss'}")
    if sweep.pareto is not None and sweep.pareto == sweep.metric:
        raise wrong("pareto", f"sweep.pareto is {sweep.metric}, as sweep.metric is", "name a second metric")
    if sweep.sampler == "grid":
        if intervals:
            hint = f"sweep.sampler=random sweep.trials=16, or choices: {intervals[0]}=A,B"
            raise wrong("space", f"{intervals[0]} is an interval, of which no grid can be made", hint)
        if sweep.trials is not None:
            hint = "sweep.sampler=random takes so many of its points, sweep.trials=null all"
            raise wrong("trials", f"sweep.trials={sweep.trials} is not for a grid, which has its own number", hint)
    elif sweep.trials is None:
        raise wrong("sampler", f"sweep.sampler={sweep.sampler} does not end by itself", "add sweep.trials=N")
    elif not space_has_axes:
        hint = "give some key several values, such as optimizer.lr=1e-3,1e-2"
        raise wrong("sampler", f"sweep.sampler={sweep.sampler} has nothing to search", hint)
