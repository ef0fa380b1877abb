"""From a component's "module:Class" string, which stands in code and never in data, to the class."""

from __future__ import annotations

import importlib
from typing import Any

from bigctl.config.schema import Component


def load_class(component: Component) -> Any:
    """The class that implements a component."""
    module, _, name = component.implementation.partition(":")
    if not module:
        raise TypeError(f"{type(component).__name__} names no implementation")
    return getattr(importlib.import_module(module), name)
