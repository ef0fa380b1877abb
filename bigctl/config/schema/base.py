"""How a key of the schema is declared, and what a component is. Nothing but the standard library is imported."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

MISSING: Any = "???"
"""OmegaConf's mark for a value that must be given."""

STRUCTURAL = "structural"
"""A resumed run cannot differ in this: parameters or examples would no longer fit."""
TRAJECTORY = "trajectory"
"""A resumed run may differ in this only where it is allowed by name: the results would be another run's."""
FREE = "free"
"""A resumed run may differ in this: it changes nothing that is computed."""


def key(
    default: Any,
    doc: str,
    *,
    drift: str = TRAJECTORY,
    choices: tuple[str, ...] = (),
    traced: bool = False,
    off: float | None = None,
    decided: bool = False,
) -> Any:
    """One key of the schema.

    Args:
        default: the value where nothing else sets one; a list or dict is copied.
        doc: one sentence; ends with the unit in brackets where there is one.
        drift: STRUCTURAL, TRAJECTORY or FREE, see above.
        choices: the values allowed, where they are few.
        traced: whether the compiled step takes the value as an argument, so that another value needs no new compile.
        off: the traced value at which the program leaves out what it steers, and is another one than for all others.
        decided: null leaves the value to the start of a run, which then keeps it.
    """
    metadata = {"doc": doc, "drift": drift, "choices": choices, "traced": traced}
    metadata |= {"off": off, "decided": decided}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def kind(name: str) -> Any:
    return key(name, "Names the component; read-only, choose another by its group.", drift=STRUCTURAL)


class Component:
    """Something chosen by name from a group: `model=cnn` picks the dataclass whose `kind` is "cnn"."""

    group: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    kind: str
