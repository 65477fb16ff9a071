"""Where a run happens: device, versions, commit, how fast it may be, where compiled programs are kept, and what memory."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import psgjax
from psgjax import own
from psgjax.kept import cache_folder
from psgjax.schema import ConfigError

# Settings of jax that would change a run's numbers, or end it where psgjax has an answer of its own, and what they are here.
SETTINGS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_high_dynamic_range_gumbel": False,
    "jax_disable_jit": False,
    "jax_disable_most_optimizations": False,
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_debug_key_reuse": False,
    "jax_check_tracer_leaks": False,
    "jax_transfer_guard": None,
}
_SHARE_OF_PEAK = (
    0.35  # of the matmul rate that a step reaches (0.2 to 0.4 on a Xeon of two cores): for the forecast alone
)


def device_name() -> str:
    """The device that programs run on, and on a CPU how many cores this process may use."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({cores()} cores)"
    count = jax.device_count()
    return f"{device.platform}: {device.device_kind}" + (f" x {count}" if count > 1 else "")


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle() -> None:
    """Give jax's settings the values that psgjax is made for, whatever the environment says, and find its devices.

    For commands, before any array is made: a program that imports this package keeps its own settings (`provenance` records them).

    Raises:
        ConfigError: If jax finds no device, such as under JAX_PLATFORMS=cuda without a GPU.
    """
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no plugin for that platform is installed
        wanted = jax.config.values["jax_platforms"]
        reason = (str(error).splitlines() or [""])[0] or "nothing for it is installed"
        raise ConfigError(
            f"jax finds no device{f' for JAX_PLATFORMS={wanted}' if wanted else ''}: {reason.rstrip('.')}. Unset JAX_PLATFORMS to "
            "use what there is, or JAX_PLATFORMS=cpu."
        ) from None


def provenance() -> dict[str, Any]:
    """What made a result: command, commit, versions, hardware, settings of jax and XLA that are not the usual ones, time."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(sys.argv[0]).name]
    other = {name: found for name, value in SETTINGS.items() if (found := jax.config.values[name]) != value}
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"]} if os.environ.get("XLA_FLAGS") else {}
    return {
        "command": shlex.join([*program, *sys.argv[1:]]),
        "commit": _commit(Path(psgjax.__file__).parent),
        "versions": versions(),
        **({"parts": own.recorded()} if own.recorded() else {}),
        "device": device_name(),
        "processor": _processor(),
        "cores": cores(),
        **({"flags": other | flags} if other or flags else {}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def other_bits(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """What to say of a run that goes on elsewhere, from its env.json and `provenance`: its last bits will differ; or None."""
    last, said = [before, *before.get("resumed", [])][-1], []
    for name, digest in now.get("parts", {}).items():
        if last.get("parts", {}).get(name, digest) != digest:
            said.append(
                f"{name} has changed since this run was last trained: from here on its parts are those of the new file"
            )
    device = last.get("device", now["device"])
    if device != now["device"]:
        said.append(
            f"so far this run was on {device}, from here on it is on {now['device']}: the last bits of its numbers depend "
            "on that"
        )
    return "; ".join(said) or None


def _commit(package: Path) -> str | None:
    """The commit of the repository whose files these are; None where git is missing or another repository surrounds them."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    try:
        ours = git("ls-files", "--full-name", "__init__.py") == f"{package.name}/__init__.py"
        return (ours and git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")) or None
    except OSError:
        return None


def versions() -> dict[str, str]:
    """Python's, and those of the packages that a result depends on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds_per_operation() -> float:
    """Seconds that an operation of a step may take here, from the matmul rate of this moment; nothing else should be at work."""
    product = jax.jit(lambda a: a @ a * 1e-3)
    a = product(np.ones((1024, 1024), np.float32)).block_until_ready()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a = product(a).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times) / (2 * 1024**3 * _SHARE_OF_PEAK)


def use_compilation_cache() -> None:
    """Keep compiled programs under the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where (empty: none).

    Where that cannot be written nothing is kept, and a line on standard error says so.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "xla"))
    if folder and "://" not in folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            print(f"compiled programs are not kept, and will be compiled again next time: {error}", file=sys.stderr)
            logging.getLogger("matplotlib").setLevel(
                logging.ERROR
            )  # it would say at length that it keeps nothing, either
            folder = ""
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # One that another process is just writing, or was killed over, is compiled again.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
