"""What two experiments may differ in and still be one program: numbers that the compiled step takes as arguments, and
the seed.

Such a number is `traced` in the schema: learning rate, weight decay, dropout, clipping, smoothing. All else decides
what the program is. So does a number that turns a part of it off: no clipping at all, or no dropout, is another program
than a little of it.
"""

from __future__ import annotations

import dataclasses

from bigctl.config import schema
from bigctl.config.schema import Config

SEED = "seed"
NUMBER = "a number"


def numbers(config: Config) -> list[str]:
    """The keys that experiments of one program may differ in."""
    return [SEED, *(key for key, field, value in schema.walk_config(config) if _traced(field) and value is not None)]


def structure(config: Config) -> dict[str, str]:
    """What two experiments must have in common to be one program: {key: value as text}."""
    found = {}
    for key, field, value in schema.walk_config(config):
        if key == SEED:
            continue
        if not _traced(field) or value is None or value == field.metadata.get("off"):
            found[key] = str(value)
        else:
            found[key] = NUMBER
    return found


def _traced(field: dataclasses.Field[object]) -> bool:
    return bool(field.metadata.get("traced"))
