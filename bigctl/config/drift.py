"""Which keys may differ when a run is resumed. Each key's class is declared beside it in the schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bigctl.config import schema
from bigctl.config.compose import all_keys
from bigctl.config.schema import Config
from bigctl.errors import RunError

REWINDING = ("checkpoint.every", "train.log_every")
"""Free keys that decide, where the policy is to rewind, what is gone back to and which batches are left out."""


@dataclass(frozen=True)
class Change:
    """One key that differs between a run and what it is asked to go on as."""

    key: str
    old: Any
    new: Any
    drift: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def changes(old: Config, new: Config) -> list[Change]:
    """All keys whose values differ, a key that only one of them has included."""
    before = {dotted: (field, value) for dotted, field, value in schema.walk_config(old)}
    after = {dotted: (field, value) for dotted, field, value in schema.walk_config(new)}
    found = []
    for dotted in dict.fromkeys([*before, *after]):
        field = (after.get(dotted) or before[dotted])[0]
        values = [side[dotted][1] if dotted in side else None for side in (before, after)]
        drift = field.metadata.get("drift", schema.TRAJECTORY)
        if dotted in REWINDING and old.train.divergence.policy == new.train.divergence.policy == "rewind":
            drift = schema.TRAJECTORY
        if values[0] != values[1]:
            found.append(Change(dotted, values[0], values[1], drift))
    return found


def judge(found: Iterable[Change], allowed: Iterable[str], *, where: str) -> list[Change]:
    """Refuse what cannot differ; gives what goes on record.

    Raises:
        RunError: for a structural change, or a trajectory change that is not allowed by name.
    """
    found, allowed = list(found), set(allowed)
    unknown = sorted(allowed - set(all_keys()))
    if unknown:
        close = difflib.get_close_matches(unknown[0], all_keys(), n=2)
        guess = f"did you mean {' or '.join(close)}?" if close else "`bigctl show` lists the keys"
        raise RunError(f"there is no key {unknown[0]!r}", where="--allow-drift", hint=guess)
    structural = [c for c in found if c.drift == schema.STRUCTURAL]
    if structural:
        raise RunError(
            f"the run was made with another configuration: {'; '.join(map(str, structural))}",
            where=where,
            hint="give its own configuration again, or another --name for a new run",
        )
    trajectory = [c for c in found if c.drift == schema.TRAJECTORY and c.key not in allowed]
    if trajectory:
        flags = " ".join(f"--allow-drift {c.key}" for c in trajectory)
        raise RunError(
            f"the run would go on differently: {'; '.join(map(str, trajectory))}",
            where=where,
            hint=f"{flags} if that is meant, or another --name for a new run",
        )
    return found
