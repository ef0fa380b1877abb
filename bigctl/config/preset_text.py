"""What stands in a preset for a key of text, letter by letter.

YAML makes a number of 1.10 and of 2024_01, and a truth value of no: as text again these would be 1.1, 202401 and False,
and mean another folder or column than the one that was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.config import schema, suggestions

if TYPE_CHECKING:
    import yaml
    from omegaconf import DictConfig

Written = str | list[str]
_DEEPEST, _MOST = 16, 10_000
_NULL = ("", "~", "null", "Null", "NULL")


def written(file: Path) -> dict[str, Written]:
    """What is written for each dotted key, and for each that has a list of single values. Null, what refers to another
    key, and what cannot be read are left out."""
    import yaml

    found: dict[str, Written] = {}
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):  # which is told by whatever reads the values
        return found
    if isinstance(root, yaml.MappingNode):
        _walk(root, "", found, 0)
    return found


def keep(node: DictConfig, written: Mapping[str, Written]) -> None:
    """Put what stands in presets for keys of text in place of what YAML made of it."""
    from omegaconf import OmegaConf

    if not written:
        return
    keys = suggestions.text_keys(choices=True) | suggestions.text_keys(many=True, choices=True)
    for dotted in [dotted for dotted in written if schema.declared(dotted) in keys]:
        text, value = written[dotted], OmegaConf.select(node, dotted)
        if value is not None and value != text and isinstance(value, str) == isinstance(text, str):
            OmegaConf.update(node, dotted, text)


def _walk(node: yaml.MappingNode, prefix: str, found: dict[str, Written], depth: int) -> None:
    import yaml

    for name, value in node.value:
        dotted = f"{prefix}{name.value}"
        if isinstance(value, yaml.MappingNode):
            if depth < _DEEPEST and len(found) < _MOST:  # an alias may lead back to where it stands
                _walk(value, f"{dotted}.", found, depth + 1)
        elif isinstance(value, yaml.SequenceNode):
            texts = [_text(each) for each in value.value]
            if None not in texts:
                found[dotted] = [text for text in texts if text is not None]
        elif (text := _text(value)) is not None:
            found[dotted] = text


def _text(node: yaml.Node) -> str | None:
    import yaml

    if not isinstance(node, yaml.ScalarNode) or "${" in node.value:
        return None
    return None if node.style is None and node.value in _NULL else str(node.value)
