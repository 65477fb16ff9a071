"""How much memory there is, asked before much is taken: what does not fit is refused with both numbers."""

from __future__ import annotations

import os
from pathlib import Path

from psgjax.schema import ConfigError

_CONTAINER = Path("/sys/fs/cgroup")  # of Linux's control groups, version 2


def available() -> int:
    """Bytes of main memory that this process can still take: what the system has free, or less where a container may not."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration, ValueError, IndexError):  # not on Linux: all that there is
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit, used = (
            int((_CONTAINER / name).read_text(encoding="utf-8")) for name in ("memory.max", "memory.current")
        )
        statistics = dict(
            line.split() for line in (_CONTAINER / "memory.stat").read_text(encoding="utf-8").splitlines()
        )
        found.append(max(0, limit - used + int(statistics["inactive_file"])))  # files in memory make room
    except (OSError, ValueError, KeyError):  # no container, or "max"
        pass
    return min(found)


def check(needed: int, what: str, free: int | None = None, where: str = "memory", advice: str = "") -> None:
    """Refuse what does not fit.

    Args:
        needed: Bytes.
        what: Needs them, such as "2,000 images of 64x64x3"; a plural.
        free: Bytes that there are; those of main memory if not given.
        where: They are.
        advice: What to do, as a sentence.

    Raises:
        ConfigError: With both numbers.
    """
    free = available() if free is None else free
    if needed > free:
        raise ConfigError(
            f"{what} need {size(needed)}, and {size(free)} of {where} are free"
            + (f". {advice}" if advice else "; use fewer (--data.train-images) or smaller ones (--data.size).")
        )


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
