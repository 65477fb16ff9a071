"""What glibc does with freed memory while operations come and go: a CPU's part of the lowering."""

from __future__ import annotations

import ctypes
import sys

SCRATCH = 32 * 2**20  # bytes that an operation takes for itself, at most: what heaps must grow by for its sake


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def limit_heaps(largest: int = 2**20) -> None:
    """Have glibc put blocks of more bytes than that in memory of their own, given back when they are freed, if no heap has room.

    Left alone it takes heaps for ever larger ones. Elsewhere than under glibc this does nothing.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, largest)


def keep_heaps() -> None:
    """Have glibc keep what is freed of its heaps, until `trim_heaps`, for the next operation that asks for as much.

    Left alone it may give the end of a heap back after an operation and take it anew for the next, page by page, zeroed each time:
    whether it does depends on the sizes that happen to be freed first. Elsewhere than under glibc this does nothing.
    """
    if libc := _glibc():
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


def trim_heaps() -> None:
    """Have glibc give back to the operating system what it keeps of freed memory: after compiling, say, that is much.

    It keeps a heap for each thread, and a long run would hold ever more otherwise. Elsewhere than under glibc this does nothing.
    """
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
