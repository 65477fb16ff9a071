"""The cost of a training run besides its updates: the time to its first step, and memory.

    python -m experiments.footprint --json results.json      # eight minutes on two quiet CPU cores; Linux

Real runs of `python -m experiments.mnist` are started and watched from outside. The first step: seconds from the command to
the first line of metrics.jsonl, of a run of one step (reference network, batch size 128), with an empty compilation cache
and with a warm one. Memory: the peak of a run that writes checkpoints, minus its memory before the first update (everything
imported and compiled, data set and state in place), minus the activations as XLA counts them; and the growth over 10,000 steps
of a smaller network.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import tyro
from typing_extensions import Doc

from psgjax.commands import line
from psgjax.config import ConfigError
from psgjax.files import write_atomically
from psgjax.runs.metrics import read_lines
from psgjax.shell import check_output

_COMMON = ("--methods", "psg", "--data.source", "packaged", "--evaluation-epochs", "0")
_REFERENCE = ("--network.width", "64", "--batch-size", "128")
_GROWTH_STEPS = 10_000
_SAVE_SECONDS = 5.0  # between the checkpoints of a run whose memory is measured, so that it has several
_COMMAND = ("-m", "experiments.mnist")


@dataclass(frozen=True)
class Options:
    """Measure the first step and the memory of training."""

    repeats: Annotated[int, Doc("Starts with a warm cache; the median counts.")] = 5
    json: Annotated[Path | None, Doc("File for the measurements.")] = None


def _resident(process: int) -> int:
    """Bytes of memory that a process holds now; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def watch(arguments: tuple[str, ...], cache: Path, begin: tuple[str, ...] = _COMMAND) -> list[tuple[float, int, int]]:
    """Run `experiments.mnist` and look at it every 20 ms until its last line is written: seconds, step in it, resident bytes.

    Args:
        arguments: Of the command, in addition to those of every run here.
        cache: Folder for compiled programs.
        begin: What starts the command.

    Raises:
        ConfigError: If the run fails.
    """
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *begin, *_COMMON, *arguments, "--out", f"{folder}/run"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        started = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        target, step = int(arguments[arguments.index("--steps") + 1]), 0
        while process.poll() is None and step < target:
            time.sleep(0.02)
            lines = read_lines(Path(folder, "run", "psg", "metrics.jsonl"))
            step = lines[-1]["step"] if lines else 0
            seen.append((time.monotonic() - started, step, _resident(process.pid)))
        _, errors = process.communicate()
    if process.returncode:
        raise ConfigError(f"the run that was measured ended with status {process.returncode}: {errors.strip()[-300:]}")
    return seen


def noting(file: str, *arguments: str) -> int:
    """The command `experiments.mnist` with frequent saves; the bytes of memory before its first update go to a file."""
    from experiments import mnist
    from psgjax.lowering import heaps
    from psgjax.training import loop

    def trim_heaps() -> None:  # first called right before the first update
        heaps.trim_heaps()
        if not Path(file).exists():
            Path(file).write_text(str(_resident(os.getpid())), encoding="utf-8")

    with mock.patch.multiple(loop, trim_heaps=trim_heaps, _SAVE_SECONDS=_SAVE_SECONDS):
        return mnist.main(list(arguments))


def memory(arguments: tuple[str, ...], cache: Path) -> tuple[int, int]:
    """Bytes of memory that a run has before its first update, and at its peak.

    Raises:
        ConfigError: If the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "before")
        program = "import sys; from experiments import footprint; sys.exit(footprint.noting(*sys.argv[1:]))"
        seen = watch(arguments, cache, ("-c", program, str(file)))
        before = int(file.read_text(encoding="utf-8"))
    return before, max(resident for *_, resident in seen)


def activations(arguments: tuple[str, ...]) -> int:
    """Bytes of an update's temporary arrays, as XLA counts them."""
    import jax

    from experiments import mnist
    from psgjax.commands import train
    from psgjax.data import dataset as data
    from psgjax.method.epochs import make_run
    from psgjax.method.state import abstract, make_init

    options = tyro.cli(mnist.Options, args=[*_COMMON, *arguments])
    preset = mnist.preset_of(options)
    config = next(iter(train.configure(options, preset).values()))
    dataset = data.load(config.data)
    config = train.complete(options, preset, config, dataset)
    shape = dataset.images.shape[1:]
    images, count = jax.ShapeDtypeStruct(dataset.images.shape, "uint8"), jax.ShapeDtypeStruct((), "int32")
    state = abstract(make_init(config, shape))
    program = make_run(config, len(dataset.images), shape).lower(state, images, count).compile()
    sizes: Any = program.memory_analysis()
    return sizes.temp_size_in_bytes


def measure(options: Options) -> dict[str, Any]:
    """All figures: seconds and bytes.

    Raises:
        ConfigError: If a run fails, or where there is no /proc to read memory from.
    """
    if not Path("/proc/self/statm").exists():
        raise ConfigError("experiments.footprint reads a process's memory from /proc, which only Linux has.")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        one = (*_REFERENCE, "--steps", "1")
        cold = watch(one, cache)[-1][0]
        warm = [watch(one, cache)[-1][0] for _ in range(options.repeats)]
        print(
            f"first step: {cold:.1f} s with an empty cache, {statistics.median(warm):.1f} s with a warm one", flush=True
        )
        many = (*_REFERENCE, "--steps", "300")
        watch(many, cache)
        (before, most), temporary = memory(many, cache), activations(many)
        added = most - before - temporary
        print(
            f"memory: {most / 1e6:.0f} MB at most, of which {before / 1e6:.0f} before the first update, "
            f"{temporary / 1e6:.0f} activations, {added / 1e6:.0f} besides",
            flush=True,
        )
        seen = watch(("--steps", str(_GROWTH_STEPS)), cache)
        tenths = [
            max(resident for _, step, resident in seen if low < 10 * step / _GROWTH_STEPS <= low + 1)
            for low in range(10)
        ]
        print(f"over {_GROWTH_STEPS:,} steps, MB at most in each tenth: {' '.join(f'{t / 1e6:.0f}' for t in tenths)}")
    return {
        "first_step_seconds": {"cold": cold, "warm": warm},
        "memory_bytes": {
            "most": most,
            "before_the_first_update": before,
            "activations": temporary,
            "added": added,
        },
        "memory_bytes_by_tenth": tenths,
        "growth_steps": _GROWTH_STEPS,
    }


def run(options: Options) -> None:
    """Measure, print and keep."""
    from psgjax.environment import provenance

    check_output("--json", options.json)
    load = os.getloadavg()
    results = measure(options)
    if options.json:
        document = {**provenance(), "load_average": {"begin": load, "end": os.getloadavg()}, **results}
        write_atomically(options.json, json.dumps(document, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return line.command(Options, run, arguments, "experiments.footprint", __doc__)


if __name__ == "__main__":
    sys.exit(main())
