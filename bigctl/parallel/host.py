"""Settings of the host process that must be made before jax starts. Free of jax."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Keep freed memory in the process, where XLA computes on the CPU; whether that was possible.

    XLA takes the temporaries of a step from malloc as one block and frees it after the step. glibc hands a block of
    tens of MiB back to the kernel, which then clears every page again at the next step: half of the time of a small
    convolutional network. The price is that the process stays as large as its largest step. On machines with a GPU or
    TPU, on macOS, and with another malloc, nothing is changed.
    """
    if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_ARENA_MAX, 1) and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
