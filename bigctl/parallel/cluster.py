"""Which of several processes this is, as its environment says. Free of jax."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from bigctl.errors import ConfigError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
ELASTIC = "BIGCTL_ELASTIC"
"""Set for a process that is started again by itself, see `engine.elastic`."""


@dataclass(frozen=True)
class ClusterInfo:
    """Which of how many processes this is.

    Attributes:
        index: from 0 on.
        count: of all processes.
        address: "host:port" of process 0.
        devices: the local GPUs it may use, by number; None for all of them.
    """

    index: int
    count: int
    address: str
    devices: list[int] | None = None


def read_cluster_info() -> ClusterInfo | None:
    """What the environment says: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else what SLURM
    tells the tasks of a step, or Open MPI and indexed Kubernetes jobs their processes; None for a process alone.

    Raises:
        ConfigError: where it says half of it, or what cannot be.
    """
    count = _number(COUNT, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if count is None and ADDRESS in os.environ:
        raise ConfigError("is set, and the number of processes is not", where=ADDRESS, hint=f"set {COUNT} too")
    if count is None or count[1] == 1:
        return None
    index = _number(INDEX, "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JOB_COMPLETION_INDEX")
    if index is None:
        raise ConfigError(f"{count[1]} processes, and which of them this is is not said", where=count[0],
                          hint=f"set {INDEX}, or {COUNT}=1 to train in this process alone")  # fmt: skip
    if not 0 <= index[1] < count[1]:
        raise ConfigError(f"{index[1]} is none of {count[1]} processes", where=index[0], hint="they count from 0")
    address = os.environ.get(ADDRESS) or _slurm_address()
    if address is None or not re.fullmatch(r".+:\d+", address):
        raise ConfigError(
            f"{count[1]} processes, and the address of process 0 is "
            f"{'not set' if address is None else f'{address!r}, without a port'}",
            where=ADDRESS,
            hint=f"set it to HOST:PORT, the same for all; or {COUNT}=1 to train in this process alone",
        )
    shared = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0] != "1"
    local = _number("SLURM_LOCALID") if shared and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None
    return ClusterInfo(index[1], count[1], address, None if local is None else [local[1]])


def is_follower() -> bool:
    """Whether this process is one of several, and not the first."""
    found = read_cluster_info()
    return found is not None and found.index > 0


def _number(*names: str) -> tuple[str, int] | None:
    """The first of these variables that is set, and its value."""
    for name in names:
        if value := os.environ.get(name):
            if not value.isdecimal():
                raise ConfigError(f"{value!r} is no number", where=name)
            return name, int(value)
    return None


def _slurm_address() -> str | None:
    """The first host of a SLURM step, with a port that follows from the number of the job."""
    nodes, job = os.environ.get("SLURM_STEP_NODELIST"), _number("SLURM_JOB_ID")
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes or "")  # node001,host2 or node[001-015,020]
    return f"{found[1]}{found[2] or ''}:{61440 + job[1] % 4096}" if found and job else None
