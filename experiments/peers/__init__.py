"""The subjects of `experiments.bench`: a case, the contender that trains it, and the contender's process.

One process per contender: its peak memory is its own, two thread pools never share a process, and a program that takes too long
can be ended, for which XLA offers no other way. A contender that waits sleeps on its pipe. Nothing here imports jax or
torch, which would count towards the memory of a contender that does not use them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from psgjax.shell import Failure

_PATIENCE = 5.0  # seconds that a process has to end before it is killed

IMAGE_SHAPE = (28, 28, 1)
TRAIN_IMAGES = 60_000


@dataclass(frozen=True)
class Case:
    """The step to train: the reference step of `docs/performance.md` with these sizes."""

    method: str
    width: int = 64
    batch_size: int = 128
    replicas: int = 1
    precision: str = "float32"  # or tf32, where the device has it
    network: str = "dcgan"  # or resnet


class Contender(Protocol):
    """A training loop: data and state on the device, compiled where it compiles."""

    facts: dict[str, Any]  # compile_seconds (None where nothing is compiled) and device
    chunk: int  # steps are made in multiples of this

    def run(self, steps: int) -> float:
        """Make the given number of updates, wait for the device, and return D's loss in the last one."""

    def peak_bytes(self) -> int | None:
        """The peak of the device's memory, or None if that is the process's memory."""


class TooSlow(Exception):
    """An answer that did not come in time; its process has been ended."""


class Failed(Failure):
    """A contender's exception, in one line."""


class Worker:
    """An object in a process of its own, built there by `module:name` of the arguments; its methods are called over a pipe."""

    def __init__(self, factory: str, *arguments: Any, limit: float | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, factory, arguments), daemon=True)
        self._process.start()
        remote.close()
        self.facts: dict[str, Any] = self._answer(limit)

    def call(self, method: str, *arguments: Any, limit: float | None = None) -> Any:
        """The method's result.

        Raises:
            TooSlow: If it does not come within `limit` seconds.
            Failed: If the method raises, or the process dies.
        """
        self._pipe.send((method, arguments))
        return self._answer(limit)

    def _answer(self, limit: float | None) -> Any:
        if not self._pipe.poll(limit):
            self._process.kill()
            self.close()
            raise TooSlow(f"no answer within {limit:g} s")
        try:
            succeeded, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"its process ended with exit status {self._process.exitcode}") from None
        if not succeeded:
            self.close()
            raise Failed(value)
        return value

    def close(self) -> None:
        """Let the process end, or end it."""
        self._pipe.close()
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection, factory: str, arguments: tuple) -> None:
    """The worker's side: build, then answer calls until the other side is gone."""
    # Several processes share one GPU; and compile times must be those of a cold cache.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    try:
        try:
            target = load(factory)(*arguments)
            pipe.send((True, target.facts))
            while True:
                method, values = pipe.recv()
                pipe.send((True, getattr(target, method)(*values)))
        except (EOFError, BrokenPipeError):
            return
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            pipe.send((False, f"{type(error).__name__}: {lines[0][:300]}"))
    except (BrokenPipeError, KeyboardInterrupt):
        return


def load(name: str) -> Callable[..., Any]:
    """The object that `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Timed:
    """A contender as the benchmark calls it: with the seconds that its own process measured."""

    def __init__(self, factory: str, case: Case) -> None:
        build = load(factory)
        imported = host_peak_bytes()
        self._contender: Contender = build(case)
        self.facts = {**self._contender.facts, "chunk": self._contender.chunk, "imported_bytes": imported}

    def run(self, steps: int) -> tuple[float, float]:
        """Make the given number of updates: seconds, and D's last loss."""
        started = time.perf_counter()
        loss = self._contender.run(steps)
        return time.perf_counter() - started, loss

    def peak_bytes(self) -> int:
        """The peak of the device's memory; of this process's if the device is the CPU."""
        return self._contender.peak_bytes() or host_peak_bytes()

    def profile(self, folder: str, steps: int) -> None:
        """Write a trace of the given number of updates, which Perfetto and TensorBoard open."""
        import jax

        with jax.profiler.trace(folder, create_perfetto_trace=True):
            self._contender.run(steps)


def host_peak_bytes() -> int:
    """The peak of this process's resident memory."""
    try:  # since this program began: `getrusage` may report a peak of the process that started it
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def images() -> np.ndarray:
    """The training set of all contenders: smooth random pictures, uint8 [TRAIN_IMAGES, *IMAGE_SHAPE], as large a set as MNIST's.

    Blocks of four by four pixels, which a generator learns to draw: on noise D would win at once, and gradients that vanish cost
    some processors more time than others.
    """
    coarse = np.random.default_rng(0).integers(0, 256, (TRAIN_IMAGES, 7, 7, 1), np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)
