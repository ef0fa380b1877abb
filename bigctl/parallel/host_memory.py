"""Settings of the host process that must be made before jax starts. Free of jax."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

_LARGE = 2**30
"""Blocks that are given back all the same [bytes]: kept ones of several sizes would lie beside each other, and what
clearing their pages costs is little beside the work of a step that needs so much."""


def keep_memory() -> bool:
    """Keep freed memory in the process, where XLA computes on the CPU; whether that was possible.

    XLA takes the temporaries of a step from malloc as one block and frees it after the step. glibc hands a block of
    tens of MiB back to the kernel, which then clears every page again at the next step: half of the time of a small
    convolutional network. The price is that the process stays as large as its largest step. On machines with a GPU or
    TPU, on macOS, and with another malloc, nothing is changed.

    It is for a process that has one thread as yet: where a second one has taken memory, glibc has decided on an arena a
    thread, and such arenas hand large blocks back whatever is set here.
    """
    if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    large = mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_MAX, 0)  # older ones know no threshold above 32 MiB
    return bool(mallopt(_M_ARENA_MAX, 1) and large and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
