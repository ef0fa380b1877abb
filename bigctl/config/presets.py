"""The Hydra tree as files: which groups and options there are, and what each says of itself.

Read straight from the folders, without Hydra, because `ls` and completion must answer at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl.config import schema
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    import yaml


@dataclass(frozen=True)
class Root:
    """One folder with presets; `label` is what errors and `show` call it."""

    path: Path
    label: str


def roots(config_dirs: Sequence[Path] = ()) -> list[Root]:
    """The user's folders, first one strongest, then the packaged tree.

    Raises:
        ConfigError: if a folder does not exist, or would replace config.yaml.
    """
    found = []
    environment = os.environ.get("BIGCTL_CONFIG_DIR")
    dirs = [*config_dirs, *([Path(environment)] if environment else [])]
    for path in dirs:
        if not path.is_dir():
            raise ConfigError(
                "is not a folder", where=str(path), hint="--config-dir takes the folder with model/, data/, ..."
            )
        if (path / "config.yaml").exists():
            raise ConfigError(
                "would replace the root of the configuration",
                where=str(path / "config.yaml"),
                hint="put what it sets into experiment/NAME.yaml and choose it with experiment=NAME",
            )
        found.append(Root(path.resolve(), str(path)))
    return [*found, Root(packaged(), "conf")]


def packaged() -> Path:
    """The tree that comes with bigctl."""
    beside = Path(__file__).resolve().parents[2] / "conf" / "config.yaml"  # a checkout
    return beside.parent if beside.exists() else Path(__file__).resolve().parents[1] / "conf"


def groups(found: Sequence[Root]) -> list[str]:
    """Names of the groups that exist in some root."""
    names = {entry.name for root in found for entry in root.path.iterdir() if entry.is_dir()}
    return sorted(name for name in names if not name.startswith(("_", ".")))


def options(found: Sequence[Root], group: str) -> list[str]:
    """Options of a group, sorted; those that start with an underscore are schemas and not shown."""
    return sorted(files(found, group))


def files(found: Sequence[Root], group: str) -> dict[str, Path]:
    """Option -> its file, the strongest root winning."""
    result: dict[str, Path] = {}
    for root in reversed(found):
        folder = root.path / group
        if folder.is_dir():
            result.update({p.stem: p for p in sorted(folder.glob("*.yaml")) if not p.name.startswith("_")})
    return result


def headline(path: Path) -> str:
    """The first comment of a preset: its own one-line description."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.strip()
            if text.startswith("# @package"):
                continue
            if text.startswith("#"):
                return text.lstrip("# ").strip()
            if text:
                break
    return ""


def load(path: Path) -> Any:
    """The values in a preset. Raises yaml.YAMLError, with the place, also for a value of which YAML's own reader only
    complains in the words of Python: `!!int abc`, a date without a month, a number of thousands of digits."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                problem = f"{str(node.value)[:60]!r} cannot be read as {node.tag.rpartition(':')[2]}"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    with path.open(encoding="utf-8") as stream:
        return yaml.load(stream, Loader=Loader)


def defaults(path: Path) -> dict[str, str]:
    """What the defaults list of a preset chooses: group -> option; the one it extends stands under ""."""
    chosen: dict[str, str] = {}
    for entry in (load(path) or {}).get("defaults", []):
        if isinstance(entry, dict):
            pairs = ((str(group).removeprefix("override ").strip("/ "), option) for group, option in entry.items())
            chosen.update({group: str(option) for group, option in pairs if option is not None})
        elif entry != "_self_":
            chosen.setdefault("", str(entry).split("@")[0].rsplit("/", 1)[-1])
    return chosen


def component(found: Sequence[Root], group: str, option: str) -> type[schema.Component] | None:
    """The schema behind an option: its preset extends `_kind`, or another option that does."""
    path = files(found, group).get(option)
    base = defaults(path).get("", "") if path else ""
    if base.startswith("_") or not base:
        return schema.component(group, base[1:])
    return component(found, group, base) if base != option else None
