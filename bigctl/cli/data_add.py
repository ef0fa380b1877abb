"""`bigctl data add NAME PATH`: look at files, and write what they are as a preset that any command can name."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.cli import render
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.data.look.inspection import Entry

USAGE = "bigctl data add NAME PATH [data.key=value ...]"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Write the preset of a data set, and say what was assumed. Raises ConfigError or DataError."""
    name, path, given = _parsed(words)
    folder = _folder(options)
    file = folder / "data" / f"{name}.yaml"
    _check_name(name, file)
    entry = _looked_at(path, given)
    _compose(options, entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(_preset(entry))
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(file)) from error
    sources = [] if os.environ.get("BIGCTL_CONFIG_DIR") == str(folder) else ["--config-dir", str(folder)]
    sources += [word for module in options.plugin for word in ("--plugin", module)]
    regression = [word for word in entry.training if word.startswith("model.")]
    commands = [["bigctl", "data", name, *(["model=mlp", *regression] if regression else []), *sources]]
    if entry.training:
        commands.append(["bigctl", "train", entry.training[0], f"data={name}", *entry.training[1:], *sources])
    _say(options, entry, file, [shlex.join(command) for command in commands])
    return 0


def _looked_at(path: str, given: Mapping[str, Any]) -> Entry:
    """What a path, or an address, was found to be; of an address the keys name what is there, not the copy."""
    from bigctl.data.files import remote
    from bigctl.data.look.inspection import inspect

    if not remote.is_remote(path):
        return inspect(path, given)
    place = remote.fetch(path, "PATH")
    entry = inspect(place, given)
    inside = {key: value for key, value in entry.keys.items() if isinstance(value, str) and value.startswith(place)}
    keys = {**entry.keys, **{key: path.rstrip("/") + value.removeprefix(place) for key, value in inside.items()}}
    return dataclasses.replace(entry, keys=keys)


def _parsed(words: Sequence[str]) -> tuple[str, str, dict[str, Any]]:
    """The name, the path, and the keys of `data` that were typed, with their values."""
    import yaml

    places = [word for word in words if not re.match(r"[~+]*data\.\w+=", word)]
    given: dict[str, Any] = {}
    for word in words:
        if word not in places:
            key, _, value = word.partition("=")
            try:
                given[key.rpartition(".")[2]] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError, KeyError):
                given[key.rpartition(".")[2]] = value
    if isinstance(given.get("path"), str):
        places.append(given.pop("path"))
    if len(places) != 2:
        what = "lacks a name and a path" if not places else "lacks a path" if len(places) == 1 else "takes one path"
        raise ConfigError(f"bigctl data add {what}", where=places[2] if len(places) > 2 else None, hint=USAGE)
    return places[0], places[1], given


def _folder(options: argparse.Namespace) -> Path:
    """Where presets of the user's own are: the first that is named, else presets/ here, as `bigctl new` has it."""
    environment = os.environ.get("BIGCTL_CONFIG_DIR")
    return Path(options.config_dir[0] if options.config_dir else environment or "presets")


def _check_name(name: str, file: Path) -> None:
    from bigctl.config import presets

    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a data set", where="NAME", hint="lower case letters, digits and _")
    if name in presets.options([presets.Root(presets.packaged(), "conf")], "data"):
        raise ConfigError(f"there is a data set named {name!r} already", where="NAME", hint="choose another name")
    if file.exists():
        raise ConfigError("is there already", where=str(file), hint="choose another name, or remove the file")


def _compose(options: argparse.Namespace, entry: Entry) -> None:
    """Raises ConfigError where the keys do not make a configuration, above all those that the user typed."""
    from bigctl.config import checks, compose

    words = [f"data={entry.kind}", *(f"data.{key}={_hydra(value)}" for key, value in entry.keys.items())]
    dirs = [folder for folder in options.config_dir if folder.is_dir()]
    config = compose.compose(words, config_dirs=dirs, plugins=options.plugin, partial=True).config
    checks.require_data(config, USAGE)


def _hydra(value: object) -> str:
    """A value in the syntax of overrides."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _preset(entry: Entry) -> str:
    comments = [f"# {_one_line(text)}." for text in (entry.summary, *entry.assumed)]
    keys = [f"{key}: {_yaml(value)}" for key, value in entry.keys.items()]
    return "\n".join([*comments, f"defaults: [_{entry.kind}, _self_]", *keys, ""])


def _yaml(value: object) -> str:
    """A value on one line, quoted where it must be."""
    import yaml

    return str(yaml.safe_dump([value], allow_unicode=True, default_flow_style=True, width=10**6)).strip()[1:-1]


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _say(options: argparse.Namespace, entry: Entry, file: Path, commands: Sequence[str]) -> None:
    if options.json:
        facts = {"kind": entry.kind, "keys": entry.keys, "summary": entry.summary, "found": list(entry.found)}
        render.print_json({**facts, "assumed": list(entry.assumed), "file": str(file), "commands": list(commands)})
        return
    print(f"{'found':<10} {entry.summary}")
    for line in entry.found:
        print(f"{'':<10} {line}")
    for place, line in enumerate(entry.assumed):
        print(f"{'' if place else 'assumed':<10} {line}")
    print(f"{'wrote':<10} {file}")
    print("\n".join(["", *commands]))
