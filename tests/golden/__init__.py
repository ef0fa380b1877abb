"""What every recipe and every model resolves to, as reviewed text files: `recipe/NAME.yaml` is the whole configuration,
`model/NAME.yaml` the model's part. `python -m tests.golden` writes them anew."""

from __future__ import annotations

from pathlib import Path

import yaml

from bigctl.config import compose, presets

FOLDER = Path(__file__).parent


def options(group: str) -> list[str]:
    return presets.options([presets.Root(presets.packaged(), "conf")], group)


def names() -> list[str]:
    """All that is kept here, such as "recipe/cnn_cls"."""
    return [f"{group}/{option}" for group in ("recipe", "model") for option in options(group)]


def resolved(name: str) -> str:
    group, _, option = name.partition("/")
    composed = compose.compose([f"{group}={option}"], partial=group == "model")
    text = compose.to_yaml(composed.config)
    return text if group == "recipe" else yaml.safe_dump(yaml.safe_load(text)["model"], sort_keys=False)
