"""Where a run happens: device, versions, commit, how fast it may be, where compiled programs are kept, and what memory."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

SCRATCH = 32 * 2**20  # bytes that an operation takes for itself, at most: what heaps must grow by for its sake
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SHARE_OF_PEAK = 0.45  # of the matmul rate that a step reaches, roughly: for the forecast alone


def device_name() -> str:
    """The device that programs run on, and on a CPU how many cores this process may use."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores)"
    count = jax.device_count()
    return f"{device.platform}: {device.device_kind}" + (f" x {count}" if count > 1 else "")


def provenance() -> dict[str, Any]:
    """What made a result: command, commit, versions, hardware, time."""
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return {
        "command": shlex.join([*program, *sys.argv[1:]]),
        "commit": commit or None,
        "versions": versions(),
        "device": device_name(),
        "processor": _processor(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Python's, and those of the packages that a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds_per_operation() -> float:
    """Seconds that an operation of a step may take here, from the matmul rate of this moment."""
    product = jax.jit(lambda a: a @ a * 1e-3)
    a = product(np.ones((1024, 1024), np.float32)).block_until_ready()
    started = time.perf_counter()
    for _ in range(5):
        a = product(a)
    a.block_until_ready()
    return (time.perf_counter() - started) / (5 * 2 * 1024**3 * _SHARE_OF_PEAK)


def cache_folder() -> Path:
    """Where the user keeps what can be made again: psgjax/ under $XDG_CACHE_HOME, or else under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psgjax"


def use_compilation_cache() -> None:
    """Keep compiled programs under the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where (empty: none)."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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
