"""The resolved configuration of every recipe as a reviewed text file. `python -m tests.golden` writes them anew."""

from __future__ import annotations

from pathlib import Path

from bigctl.config import compose, presets

FOLDER = Path(__file__).parent


def recipes() -> list[str]:
    return presets.options([presets.Root(presets.packaged(), "conf")], "recipe")


def resolved(recipe: str) -> str:
    return compose.to_yaml(compose.compose([f"recipe={recipe}"]).config)
