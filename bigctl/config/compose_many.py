"""Many experiments that differ in a few numbers, composed in the time of a few: a sweep has hundreds of them.

Composing takes a fifth of a second. Where overrides differ only in the values of numbers that no other key depends on,
one composed configuration is enough: in the others those values are put in its place, and checked as always. Whether
nothing depends on them is tried on some that are composed in full as well, in which each of them has another value.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigctl.config import checks, schema
from bigctl.config.compose import Composed, compose

_NUMBER = re.compile(r"(seed|[a-z_]+\.[a-z_0-9]+)=(\d{1,15}|\d{1,15}\.\d+|\d{1,15}(?:\.\d+)?[eE][-+]?\d+)")
Overrides = tuple[str, ...]


def compose_all(
    experiments: Sequence[Sequence[str]], *, config_dirs: Sequence[Path] = (), plugins: Sequence[str] = ()
) -> list[Composed]:
    """What `compose` gives for each of these lists of overrides, in order.

    Raises:
        ConfigError: as `compose` does, for one that is wrong.
    """

    def whole(overrides: Sequence[str]) -> Composed:
        return compose(overrides, config_dirs=config_dirs, plugins=plugins)

    alike: dict[Overrides, list[int]] = {}
    for number, overrides in enumerate(experiments):
        alike.setdefault(tuple(_without_number(each) for each in overrides), []).append(number)
    found: dict[int, Composed] = {}
    for numbers in alike.values():
        base = found[numbers[0]] = whole(experiments[numbers[0]])
        tried = _probes([experiments[number] for number in numbers])
        found |= {numbers[place]: whole(experiments[numbers[place]]) for place in tried}
        simple = all(_varied(base, experiments[numbers[place]]) == found[numbers[place]] for place in tried)
        for number in numbers:
            if number in found:
                continue
            varied = _varied(base, experiments[number]) if simple else None
            if varied is not None:
                checks.check(varied.config, varied.origins)
            found[number] = varied or whole(experiments[number])
    return [found[number] for number in range(len(experiments))]


def _probes(experiments: Sequence[Sequence[str]]) -> list[int]:
    """Places of a few that differ from the first one in everything that differs at all."""
    differing = [{n for n, each in enumerate(given) if each != experiments[0][n]} for given in experiments]
    left, found = set().union(*differing), []
    while left:
        found.append(max(range(len(experiments)), key=lambda place: len(left & differing[place])))
        left -= differing[found[-1]]
    return found


def _without_number(override: str) -> str:
    parts = _NUMBER.fullmatch(override)
    return f"{parts[1]}=" if parts else override


def _varied(base: Composed, overrides: Sequence[str]) -> Composed | None:
    """The configuration with those numbers of these overrides that are others; None where one is of another kind."""
    config: Any = base.config
    spelled = list(base.overrides)
    for place, override in enumerate(overrides):
        parts = _NUMBER.fullmatch(override)
        if parts is None or override == spelled[place]:
            continue
        spelled[place] = override
        if (value := _typed(base.config, parts[1], parts[2])) is None:
            return None
        group, _, name = parts[1].rpartition(".")
        if group:
            name, value = group, dataclasses.replace(getattr(config, group), **{name: value})
        config = dataclasses.replace(config, **{name: value})
    return dataclasses.replace(base, config=config, overrides=tuple(spelled))


def _typed(config: schema.Config, key: str, text: str) -> float | int | None:
    """A number as its key has it, if the key is one that holds a number already."""
    for dotted, _, value in schema.walk_config(config):
        if dotted == key and type(value) is float:
            return float(text)
        if dotted == key and type(value) is int and text.isdigit():
            return int(text)
    return None
