"""Sound experiments with some keys changed, and what refuses them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bigctl.config import schema
from bigctl.config.checks import check
from bigctl.config.schema import Config
from bigctl.errors import ConfigError

NAN, INF = float("nan"), float("inf")


def config(**changed: Any) -> Config:
    """A valid experiment with some keys changed; `optimizer__lr` is optimizer.lr."""
    made = Config(
        recipe=schema.CnnCls(), model=schema.Cnn(), optimizer=schema.AdamW(), schedule=schema.Cosine(),
        data=schema.ImageFolder(path="x"), mesh=schema.Mesh(), train=schema.Train(steps=100),
    )  # fmt: skip
    for dotted, value in changed.items():
        *parents, name = dotted.split("__")
        node: Any = made
        for parent in parents:
            node = getattr(node, parent)
        assert name in {field.name for field in dataclasses.fields(node)}
        setattr(node, name, value)
    return made


def refused(made: Config, match: str, hint: str = "") -> ConfigError:
    with pytest.raises(ConfigError, match=match) as caught:
        check(made, {})
    assert hint in str(caught.value.hint) and "\n" not in str(caught.value)
    return caught.value
