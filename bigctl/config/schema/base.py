"""How a key of the schema is declared, and what a component is. Imports no library."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from bigctl.errors import ConfigError

MISSING: Any = "???"
"""OmegaConf's mark for a value that must be given."""

STRUCTURAL = "structural"
"""A resumed run cannot differ in this: parameters or examples would no longer fit."""
TRAJECTORY = "trajectory"
"""A resumed run may differ in this only where it is allowed by name: the results would be another run's."""
FREE = "free"
"""A resumed run may differ in this: it changes nothing that is computed, or says where files lie whose content is
compared."""

Problem = tuple[str, str, str]
"""Key, what is wrong with it, what to do."""


def idle(keys: object, uses: Mapping[str, tuple[bool, str]]) -> list[str]:
    """Keys of a dataclass that are not as by default and do nothing, each with why.

    Args:
        uses: name of a key -> whether it is used, and beside what it is.
    """
    plain = type(keys)()
    return [
        f"{name} does nothing here: it is for {where} alone"
        for name, (used, where) in uses.items()
        if not used and getattr(keys, name) != getattr(plain, name)
    ]


@dataclass(frozen=True)
class Bounds:
    """What a number must satisfy: >= ge, > gt, <= le, < lt. Neither NaN nor an infinity satisfies any."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) < math.inf
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """The rule in words, as in "it must be above 0"."""
        ge, gt, le, lt = (None if bound is None else _number(bound) for bound in dataclasses.astuple(self))
        if ge and (le or lt):
            return f"from {ge} to {le}" if le else f"in [{ge}, {lt})"
        if gt and (le or lt):
            return f"above {gt}, at most {le}" if le else f"between {gt} and {lt}"
        if ge:
            return "0 or more" if ge == "0" else f"at least {ge}"
        return f"above {gt}" if gt else f"at most {le}" if le else f"below {lt}"


def _number(bound: float) -> str:
    if isinstance(bound, int) and bound > 2**16 and bound & (bound + 1) == 0:
        return f"2^{bound.bit_length()}-1"
    return f"{bound:g}"


def key(
    default: Any,
    doc: str,
    *,
    drift: str = TRAJECTORY,
    choices: tuple[str, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    traced: bool = False,
    off: float | None = None,
    decided: bool = False,
) -> Any:
    """One key of the schema.

    Args:
        default: the value where nothing else sets one; a list or dict is copied.
        doc: one sentence; ends with the unit in brackets where there is one.
        drift: STRUCTURAL, TRAJECTORY or FREE, see above.
        choices: the values allowed, where they are few; of a list, those of each element.
        ge, gt, le, lt: what the number, or each number of a list, must be at least, above, at most, below.
        traced: whether the compiled step takes the value as an argument, so that another value needs no new compile.
        off: the traced value at which the program leaves out what it steers, and is another one than for all others.
        decided: null, or the word auto, leaves the value to the start of a run, which then keeps it.
    """
    bounds = None if (ge, gt, le, lt) == (None,) * 4 else Bounds(ge, gt, le, lt)
    metadata: dict[str, object] = {"doc": doc, "drift": drift, "choices": choices, "bounds": bounds}
    metadata |= {"traced": traced, "off": off, "decided": decided}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def kind(name: str) -> Any:
    return key(name, "Names the component; read-only, choose another by its group.", drift=STRUCTURAL)


class Whole(Protocol):
    """A whole configuration, `Config`, as the check of one of its parts sees it."""

    @property
    def recipe(self) -> Any: ...

    @property
    def model(self) -> Any: ...

    @property
    def data(self) -> Any: ...

    @property
    def optimizer(self) -> Any: ...

    @property
    def train(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def block(self) -> int | None: ...


class Checked:
    """A dataclass of keys that must fit each other, or fit those of another part of the experiment."""

    def check(self, config: Whole) -> Iterator[Problem]:
        """What cannot work, as (dotted key, what is wrong, what to do). What one key alone tells is not asked here:
        its bounds and choices stand beside it."""
        return iter(())


class Component(Checked):
    """Something chosen by name from a group: `model=cnn` picks the dataclass whose `kind` is "cnn"."""

    group_name: ClassVar[str] = ""
    implementation: ClassVar[str] = ""
    """"module:name" of the class or function that does what the component stands for; imported when it is built."""
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Keys that need not be given where another one is."""
    before: ClassVar[Mapping[str, object]] = {}
    """What keys stood for before they were there, where that is not their default: in a saved configuration without."""
    kind: str

    def implementing(self) -> Any:
        """What `implementation` names. The string stands in code and never in data."""
        module, _, name = self.implementation.partition(":")
        if not name:
            raise self.incomplete('names no `implementation`, such as "my_module:MyClass"')
        return getattr(importlib.import_module(module), name)

    def incomplete(self, what: str) -> ConfigError:
        """The error for a component that lacks something: `what` completes "optimizer 'own' ..."."""
        return ConfigError(f"{self.group_name} {self.kind!r} {what}", where=place_of(type(self)))

    @classmethod
    def require(cls, component: Component, by: str, hint: str | None = None) -> Self:
        """The component as one of this class, whose keys are then known to be there.

        Args:
            component: what was chosen.
            by: what needs it, for the message, such as "recipe=bert_mlm".
            hint: what to choose instead.

        Raises:
            ConfigError: if it is of another class.
        """
        if not isinstance(component, cls):
            raise ConfigError(
                f"{by} does not work with {component.group_name}={component.kind}, which lacks keys that it reads",
                where=component.group_name,
                hint=hint or f"derive {type(component).__name__} from bigctl.config.schema.{cls.__name__}",
            )
        return component


def place_of(cls: type) -> str:
    """Where a class is defined, for errors about classes of plugins."""
    try:
        return f"{inspect.getsourcefile(cls)}, line {inspect.getsourcelines(cls)[1]}, class {cls.__qualname__}"
    except (OSError, TypeError):
        return f"class {cls.__qualname__} of {cls.__module__}"


def steps_of(cadence: str, *, steps_per_epoch: float) -> int:
    """Steps between events for a cadence such as "500", "500 steps", "1 epoch" or "0.5 epochs"; at least 1.

    Raises:
        ValueError: if it is no such text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(steps?|ep|epochs?)?\s*", str(cadence))
    if not match or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{cadence!r} is no cadence")
    number, unit = float(match[1]), match[2] or "step"
    if unit.startswith("step"):
        if number != int(number):
            raise ValueError(f"{cadence!r} is no whole number of steps")
        return int(number)
    return max(1, round(number * steps_per_epoch))


def cadence_problems(dotted: str, cadence: str, or_null: str = "") -> Iterator[Problem]:
    """Whether a key holds a cadence."""
    try:
        steps_of(cadence, steps_per_epoch=1)
    except ValueError:
        remedy = f"'1 epoch', or {or_null}" if or_null else "or '1 epoch'"
        yield dotted, f"{dotted} cannot be {cadence!r}", f"write 500, '500 steps'{',' if or_null else ''} {remedy}"
