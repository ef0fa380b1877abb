"""What may differ when a run is resumed: keys, by the class declared beside each in the schema, and surroundings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bigctl.config import schema
from bigctl.config.cadence import REWINDING
from bigctl.config.schema import Config
from bigctl.config.suggestions import all_keys
from bigctl.errors import RunError


@dataclass(frozen=True)
class Change:
    """One key that differs between a run and what it is asked to go on as."""

    key: str
    old: object
    new: object
    drift: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def changes(old: Config, new: Config) -> list[Change]:
    """All keys whose values differ, a key that only one of them has included."""
    before = {dotted: (field, value) for dotted, field, value in schema.walk_config(old)}
    after = {dotted: (field, value) for dotted, field, value in schema.walk_config(new)}
    found = []
    for dotted in dict.fromkeys([*before, *after]):
        if dotted == "train.batch_size" and old.train.federated.on and new.train.federated.on:
            continue  # which follows from what clients have
        field = (after.get(dotted) or before[dotted])[0]
        values = [side[dotted][1] if dotted in side else None for side in (before, after)]
        drift = field.metadata.get("drift", schema.TRAJECTORY)
        if dotted in REWINDING and old.train.divergence.policy == new.train.divergence.policy == "rewind":
            drift = schema.TRAJECTORY
            values = [REWINDING[dotted] if value is None else str(value) for value in values]
        if values[0] != values[1]:
            found.append(Change(dotted, values[0], values[1], drift))
    return found


def undecided(found: Change) -> bool:
    """Whether the new side leaves the value of a key to the start of the run, which then keeps what it had."""
    return schema.is_open(found.new) and found.key in schema.decided_keys()


def judge(found: Iterable[Change], allowed: Iterable[str], *, where: str) -> list[Change]:
    """Refuse what cannot differ; gives what goes on record.

    Raises:
        RunError: for a structural change, or a trajectory change that is not allowed by name.
    """
    found, allowed = list(found), set(allowed)
    unknown = sorted(allowed - set(all_keys()) - {change.key for change in found})
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


# ------------------------------------------------------------------------------------------------------- surroundings

REFUSE, WARN, NOTE = "refused", "warning", "noted"


@dataclass(frozen=True)
class Rule:
    """What becomes of a run that is resumed where something besides its keys is not as it was."""

    name: str
    verdict: str
    what: str
    why: str


SURROUNDINGS = (
    Rule("data", REFUSE, "fingerprint of the data", "The examples would be others."),
    Rule("tokenizer", REFUSE, "sha256 of the tokenizer", "The same token ids would stand for other text."),
    Rule("bigctl", WARN, "major or minor version of bigctl", "What a key means may have changed."),
    Rule("jax", WARN, "version of jax", "Other programs may be traced, with other rounding."),
    Rule("jaxlib", WARN, "version of jaxlib", "XLA may order and fuse operations differently."),
    Rule("device kind", WARN, "kind of device", "It rounds and adds in another order."),
    Rule(
        "mesh",
        WARN,
        "number of devices, or their arrangement in a mesh",
        "Sums over devices take another order.",
    ),
    Rule("cores", WARN, "processor cores, on CPU", "XLA splits sums among its threads."),
    Rule("CPU features", WARN, "instruction sets, on CPU", "Vectors of another width add in another order."),
    Rule("XLA_FLAGS", WARN, "the variable XLA_FLAGS", "Flags change what is compiled."),
    Rule("commit", NOTE, "git commit of the working folder, or changes to it", "The change may not concern the run."),
    Rule("packages", NOTE, "versions of the other packages", "They do not decide the numbers of a compiled step."),
)
"""The written rule; `docs/resume.md` shows it as it stands here."""


@dataclass(frozen=True)
class Difference:
    """Something besides the keys that is not as it was at the start before."""

    name: str
    old: object
    new: object
    verdict: str

    @property
    def plain(self) -> str:
        return f"{self.name}: {self.old or 'none'} -> {self.new or 'none'}"

    def __str__(self) -> str:
        return f"{self.plain} ({self.verdict})"


def judge_surroundings(
    old: Mapping[str, Any], new: Mapping[str, Any], *, where: str, told: Callable[[], str] = lambda: ""
) -> list[Difference]:
    """What differs and goes on record; what one side does not know of (None) does not differ. `told` says which files
    have changed, of data that is another.

    Raises:
        RunError: for what the rule refuses.
    """
    found = []
    for rule in SURROUNDINGS:
        before, now = old.get(rule.name), new.get(rule.name)
        if before is None or now is None or before == now:
            continue
        if rule.verdict == REFUSE:
            raise RunError(
                f"the {rule.name} is not what the run was started on{told() if rule.name == 'data' else ''}",
                where=where,
                hint=f"bring the {rule.name} back as it was, or start a new run with another --name",
            )
        found.append(Difference(rule.name, before, now, rule.verdict))
    return found


def table() -> str:
    """The rule as a table in Markdown."""
    rows = [f"| {rule.what} | {rule.verdict} | {rule.why} |" for rule in SURROUNDINGS]
    return "\n".join(["| what differs | is | because |", "|---|---|---|", *rows])
