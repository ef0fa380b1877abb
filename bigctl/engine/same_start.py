"""That all processes of a run were started with the same configuration and versions. Free of jax."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigctl.config import compose as composing
from bigctl.config import drift
from bigctl.config.schema import Config
from bigctl.data.files.remote import is_place
from bigctl.errors import BigctlError, ConfigError
from bigctl.parallel.distributed import ProcessGroup, SingleProcess
from bigctl.runs import provenance

TOGETHER = ("bigctl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
"""Packages that processes of one run have in one version."""


@dataclass(frozen=True)
class Started:
    """With what a process was started.

    Attributes:
        versions: of Python and of `TOGETHER`.
        config: the composed configuration, as YAML.
    """

    versions: Mapping[str, str]
    config: str

    @classmethod
    def here(cls, config: Config) -> Started:
        found = {name: version for name, version in provenance.packages().items() if name in TOGETHER}
        python = ".".join(platform.python_version_tuple()[:2])
        return cls({"Python": python, **found}, composing.to_yaml(config))

    def differences(self, other: Started) -> list[str]:
        """What another process has otherwise; where its files lie is its own affair."""
        found = [
            f"{name} {self.versions.get(name, 'none')} -> {other.versions.get(name, 'none')}"
            for name in dict.fromkeys([*self.versions, *other.versions])
            if self.versions.get(name) != other.versions.get(name)
        ]
        if self.config == other.config:
            return found
        try:
            configs = [composing.from_yaml(side.config, where="another process") for side in (self, other)]
        except BigctlError:  # of another version, or with a component that is not known here
            return [*found, "its configuration cannot be read here"]
        changes = drift.changes(*configs)
        return found + [str(change) for change in changes if not is_place(change.key.rpartition(".")[2])]

    def to_json(self) -> dict[str, Any]:
        return {"versions": dict(self.versions), "config": self.config}


def require(group: SingleProcess, config: Config) -> None:
    """Compare the processes of a run, once they are connected.

    Raises:
        ConfigError: in all of them, for the first that was started otherwise than process 0: by its number, and the
            keys or packages that differ.
    """
    if not isinstance(group, ProcessGroup):
        return
    own = Started.here(config)
    group.say("bigctl/started", json.dumps(own.to_json()))
    group.first(lambda: _compare(own, [group.get(f"bigctl/started/{index}") for index in range(1, group.count)]))


def _compare(own: Started, others: Sequence[str]) -> None:
    for index, text in enumerate(others, start=1):
        if found := own.differences(Started(**json.loads(text))):
            raise ConfigError(
                f"process {index} was started otherwise than process 0: {', '.join(found)}",
                hint="start all processes with the same command and the same versions",
            )
