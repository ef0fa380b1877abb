"""What tests of composition share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigctl.config.compose import compose
from bigctl.errors import ConfigError

MLP = "recipe=mlp_cls"


def refused(*overrides: str, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, **options)
    assert "\n" not in str(caught.value) and "DictConfig" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def write(folder: Path, **presets: str) -> Path:
    """A folder of presets; `model__own` is model/own.yaml."""
    for name, text in presets.items():
        file = folder / (name.replace("__", "/") + ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder
