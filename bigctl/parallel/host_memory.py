"""Settings of the host process that must be made before jax starts. Free of jax."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

_LARGE = 2**30
"""Blocks that are given back all the same [bytes]: kept ones of several sizes would lie beside each other, and what
clearing their pages costs is little beside the work of a step that needs so much."""

_SMALL, _LID, _TRIED = 64 * 2**20, 2**20, 256
"""Bytes that are set apart for small blocks, and of the block above them; how often it is tried to have it there."""

_MANY, _WORTH = 4096, 4 * 2**20
"""Holes that are worth filling, and temporaries of a step [bytes] for which it is done: filling takes 35 ms."""
_PIECES = (*(2**power for power in range(26, 12, -1)), *range(7936, 1023, -256), *range(1008, 511, -32))
"""Sizes of those blocks [bytes]; holes that are smaller are found without a search."""

_keeps = False
_largest = 0
_filling: list[int] = []
_FILLING = threading.Lock()


def keep_memory() -> bool:
    """Keep freed memory in the process, where XLA computes on the CPU; whether that was possible.

    XLA takes the temporaries of a step from malloc as one block and frees it after the step. glibc hands a block of
    tens of MiB back to the kernel, which then clears every page again at the next step: half of the time of a small
    convolutional network. The price is that the process stays as large as its largest step. On machines with a GPU or
    TPU, on macOS, and with another malloc, nothing is changed.

    It is for a process that has one thread as yet: where a second one has taken memory, glibc has decided on an arena a
    thread, and such arenas hand large blocks back whatever is set here.
    """
    global _keeps
    if any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    large = mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_MAX, 0)  # older ones know no threshold above 32 MiB
    _keeps = bool(mallopt(_M_ARENA_MAX, 1) and large and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    return _keeps


def set_apart() -> None:
    """Room for small blocks below that for the temporaries of steps: to be called once all that lasts is in memory.

    A small block that is taken while a step computes would lie right above the step's temporaries. Steps of another
    size could not grow over it, and each size would keep a place of its own. What is set apart takes no memory until it
    is used.
    """
    if not _keeps:
        return
    give_back()
    libc = _malloc()
    room, taken = libc.malloc(_SMALL), []
    for _ in range(_TRIED if room else 0):
        taken.append(libc.malloc(_LID))  # a hole below may be taken first
        if (taken[-1] or room) >= room:
            taken.pop()  # what lies above the room stays, or it would become one with what is above
            break
    for block in (*taken, room):
        libc.free(block)


def fill_holes(size: int) -> None:
    """Take the free memory below where the temporaries of steps go, so that glibc does not search it in each step.

    A compiler leaves tens of thousands of holes, and each product of matrices takes a block to arrange them in. The
    holes' whole pages should have been given back: of each hole that is filled one page is taken, of what is left over
    nothing; some room for small blocks stays free. `open_holes` is for what is compiled next.

    Args:
        size: of the temporaries of what was compiled last [bytes]; those of the largest step so far are what counts.
    """
    global _largest
    with _FILLING:
        _largest = max(_largest, size)
        if not _keeps or _largest < _WORTH:
            return
        libc, holes, free = _malloc(), *_free_blocks()
        if holes < _MANY:
            return
        above = min(max(_largest, _SMALL), _LARGE // 2)  # larger ones are not of the heap, smaller ones of a hole
        room, mark = libc.malloc(_SMALL), libc.malloc(above)
        for piece in _PIECES if room and mark else ():
            while free >= piece and (block := libc.malloc(piece)):
                if block > mark:
                    libc.free(block)
                    break
                _filling.append(block)
                free -= piece
        for block in (mark, room):
            libc.free(block)


def open_holes() -> None:
    """Give up what `fill_holes` has taken."""
    with _FILLING:
        libc = _malloc() if _filling else None
        while libc is not None and _filling:
            libc.free(_filling.pop())


class _Account(ctypes.Structure):
    """glibc's `mallinfo2`."""

    names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in names]


def _free_blocks() -> tuple[int, int]:
    """How many free blocks malloc keeps lists of, and their bytes; none where it does not tell."""
    account = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if account is None:
        return 0, 0
    account.restype = _Account
    found = account()
    return int(found.ordblks), int(found.fordblks)


def give_back() -> None:
    """Give unused memory back to the kernel, where it is kept otherwise: what a compiler or a reader of weights has
    used once is not what steps take again."""
    if _keeps:
        _malloc().malloc_trim(0)


def _malloc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


def keeps() -> bool:
    """Whether memory is kept, see `keep_memory`."""
    return _keeps


def is_large(size: int) -> bool:
    """Whether a computation with temporaries of so many bytes waits for the one before, on a machine whose memory they
    are taken from."""
    return _keeps and size > _SMALL
