"""How glibc keeps and returns the memory that operations on a CPU free."""

from __future__ import annotations

import ctypes
import sys

SCRATCH = 32 * 2**20  # the most bytes of scratch memory that an operation takes from a heap
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def limit_heaps(largest: int = 2**20) -> None:
    """Have glibc map larger blocks on their own, unless a heap has room for them: they are unmapped when they are freed.

    By default it puts ever larger blocks into heaps. Without glibc this does nothing.

    Args:
        largest: Bytes.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, largest)


def keep_heaps() -> None:
    """Have glibc keep the memory freed in its heaps, until `trim_heaps`, for the next operations.

    By default it may return the end of a heap after an operation and ask for it again for the next, page by page, zeroed each time;
    whether it does depends on which sizes are freed first. Without glibc this does nothing.
    """
    if libc := _glibc():
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


def trim_heaps() -> None:
    """Have glibc return freed memory to the operating system: after compiling that is much.

    It has one heap per thread, and without this the memory of a long run would keep growing. Without glibc this does nothing.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
