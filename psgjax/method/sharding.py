"""One update spread over many devices: the mesh, what each device holds, and the few collectives between them.

A mesh has three axes. `replica` spreads independent runs, `generator` the K generators, `data` the batch and the data set. Every
device of a replica keeps the discriminator, replicated. It draws images from its own generators for its share of the batch, scores
these and its part of the real images, and all-gathers the scores, which are small: the objectives then see all of them, on every
device. Random numbers are drawn for the whole batch as well, and cut, so that a run is the same run on any mesh.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from psgjax import memory
from psgjax.config import Config, ConfigError, Mesh
from psgjax.environment import settle
from psgjax.shell import explain, one_line

Tree = Any

AXES = ("replica", "generator", "data")
_COMING_SECONDS = 300  # how long a process waits for the others to begin
_SILENT_SECONDS = 30  # after so long without a sign of life a process counts as dead


@dataclass(frozen=True)
class Shards:
    """How many devices share the K generators and the batch of B, and the collectives between them; on one device, none.

    A device holds k = K / generator generators and b = B / data images of each batch.
    """

    generator: int = 1
    data: int = 1

    def _shared(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(axis for axis in axes if getattr(self, axis) > 1)

    def sum(self, tree: Tree, *axes: str) -> Tree:
        """Sum of every leaf over the devices along those axes of the mesh."""
        shared = self._shared(axes)
        return lax.psum(tree, shared) if shared else tree

    def part(self, x: jax.Array, dimension: int, *axes: str) -> jax.Array:
        """This device's part of x along one dimension, which is split over those axes of the mesh."""
        shared = self._shared(axes)
        if not shared:
            return x
        size = x.shape[dimension] // math.prod(getattr(self, axis) for axis in shared)
        return lax.dynamic_slice_in_dim(x, lax.axis_index(shared) * size, size, dimension)

    def own(self, x: jax.Array) -> jax.Array:
        """What belongs to this device's generators and images: [K, B, ...] -> [k, b, ...]."""
        return self.part(self.part(x, 0, "generator"), 1, "data")

    def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What belongs to this device of whole tuples [K + 1, B, ...]: [k, b, ...] generated and [1, b / generator, ...] real."""
        return self.own(x[:-1]), self.part(x[-1:], 1, "data", "generator")

    def gather(self, fake: jax.Array, real: jax.Array) -> jax.Array:
        """The reverse of `split`: the outputs [k, b, O] and [1, b / generator, O] of every device as whole tuples [K + 1, B, O]."""
        if not self._shared(("data", "generator")):
            return jnp.concatenate([fake, real])
        outputs = jnp.concatenate([fake.reshape(-1, fake.shape[2]), real[0]])
        outputs = lax.all_gather(outputs, ("data", "generator")).reshape(self.data, self.generator, *outputs.shape)
        count = fake.shape[0] * fake.shape[1]
        every_fake = outputs[:, :, :count].reshape(*outputs.shape[:2], *fake.shape).transpose(1, 2, 0, 3, 4)
        every_fake = every_fake.reshape(self.generator * fake.shape[0], -1, fake.shape[2])
        return jnp.concatenate([every_fake, outputs[:, :, count:].reshape(1, -1, fake.shape[2])])

    def pick(self, images: jax.Array, chosen: jax.Array) -> jax.Array:
        """This device's share of the chosen images: every device gives those that it holds, [N / data, ...] of N.

        Args:
            images: The part of the data set that this device holds, [N / data, H, W, C].
            chosen: Which images of the whole set make up n batches, int32 [n, B].

        Returns:
            [n, b, H, W, C]; the same images in the same order on every mesh.
        """
        if self.data == 1:
            return images[chosen.reshape(-1)].reshape(*chosen.shape, *images.shape[1:])
        rows = chosen - lax.axis_index("data") * len(images)
        held = (rows >= 0) & (rows < len(images))
        found = images[jnp.where(held, rows, 0)]
        found = jnp.where(held.reshape(*held.shape, *(1 for _ in images.shape[1:])), found, jnp.zeros_like(found))
        return lax.psum_scatter(found, "data", scatter_dimension=1, tiled=True)


def mesh_sizes(
    settings: Mesh, config: Config, replicas: int, devices: int, beside: Sequence[Config] = ()
) -> tuple[int, int, int]:
    """Into how many parts replicas, generators and data are split on the given number of devices.

    Where nothing is asked for, the largest mesh that fits: devices may be left over. Where something is, all devices are used, or
    as many as are asked for. A size left to be chosen prefers `replica`, whose parts need nothing of each other, then `generator`,
    then `data`.

    Args:
        settings: The sizes that are asked for.
        config: The run's.
        replicas: How many independent runs there are.
        devices: How many devices there are.
        beside: Other runs that the same sizes are asked for, which a mesh that is proposed must fit as well.

    Raises:
        ConfigError: If there is no such mesh, with the nearest that works.
    """
    generators, batch = config.method.generators, config.batch_size // config.method.pack
    asked = (settings.replica, settings.generator, settings.data)
    count = math.prod(asked) or devices

    def kept(sizes: tuple[int, int, int]) -> int:
        return sum(given in (0, size) for given, size in zip(asked, sizes, strict=True))

    def largest(generators: int, batch: int) -> tuple[int, int, int]:
        working = [
            (r, g, d)
            for r in _divisors(replicas)
            for g in _divisors(generators)
            for d in _divisors(batch)
            if batch % (g * d) == 0 and r * g * d <= min(count, devices)
        ]
        return max(working, key=lambda sizes: (math.prod(sizes), kept(sizes), sizes))

    best = largest(generators, batch)
    if any(asked) and (math.prod(best) != count or kept(best) < 3):
        best = largest(
            math.gcd(generators, *(other.method.generators for other in beside)),
            math.gcd(batch, *(other.batch_size // other.method.pack for other in beside)),
        )
        given = " x ".join(f"{axis} {size or 'any'}" for axis, size in zip(AXES, asked, strict=True))
        nearest = " ".join(f"--mesh.{axis} {size}" for axis, size in zip(AXES, best, strict=True))
        raise ConfigError(
            f"no mesh of {given} fits {devices} device(s): replica must divide the {replicas} replica(s), generator the "
            f"{generators} generator(s), and generator times data a batch of {batch} images, or tuples. The nearest that works has "
            f"{math.prod(best)} device(s): {nearest}."
        )
    return best


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def make_mesh(
    settings: Mesh,
    config: Config,
    replicas: int = 1,
    devices: Sequence[jax.Device] | None = None,
    beside: Sequence[Config] = (),
) -> jax.sharding.Mesh:
    """A mesh of `mesh_sizes` over the devices of all processes, or over those given.

    Raises:
        ConfigError: If there is no such mesh, or it leaves out devices while there are several processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(settings, config, replicas, len(devices), beside)
    count = math.prod(sizes)
    if count < len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"a mesh of {count} devices leaves out {len(devices) - count} of those that {jax.process_count()} processes have; "
            "every process must take part: choose sizes whose product is the number of devices, or start fewer processes."
        )
    return jax.make_mesh(sizes, AXES, (jax.sharding.AxisType.Auto,) * 3, devices=devices[:count])


def left_over(mesh: jax.sharding.Mesh) -> str:
    """Which devices a mesh leaves idle, and why, in a sentence; empty where it takes all."""
    idle = [str(device) for device in jax.devices() if device not in set(mesh.devices.flat)]
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    told = (
        f"{mesh.size} of {jax.device_count()} devices are used ({sizes}), {', '.join(idle)} idle: replica must divide the runs, "
        "generator the generators, and generator times data the batch size"
    )
    return told if idle else ""


def place_images(images: np.ndarray, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
    """The data set [N, H, W, C] on the device, or split over `data`, with zeros behind it to divide; each process places its part.

    Raises:
        ConfigError: If a device's memory does not hold it.
    """
    device = jax.local_devices()[0]
    usage, needed = device.memory_stats() or {}, images.nbytes // (mesh.shape["data"] if mesh else 1)
    what = f"{len(images):,} training images of {'x'.join(map(str, images.shape[1:]))}"
    if "bytes_limit" in usage:
        memory.check(needed, what, usage["bytes_limit"] - usage["bytes_in_use"], f"the memory of {device.device_kind}")
    else:
        memory.check(needed, what)
    if mesh is None:
        return jnp.asarray(images)
    padding = -len(images) % mesh.shape["data"]
    shape = (len(images) + padding, *images.shape[1:])

    def rows(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        found = images[start:stop]
        return np.pad(found, ((0, stop - start - len(found)), *((0, 0) for _ in shape[1:])))

    return jax.make_array_from_callback(shape, NamedSharding(mesh, PartitionSpec("data")), rows)


def gathered(tree: Tree, mesh: jax.sharding.Mesh) -> Tree:
    """A tree of arrays on a mesh, replicated, on one device of this process. Nothing is waited for; all processes must call it."""
    replicated = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), replicated)


@contextmanager
def joined(coordinator: str | None, processes: int | None, process: int | None) -> Iterator[bool]:
    """Train with other processes within this context; it gives whether this is the first, the one that writes.

    To be entered before anything asks for a device. When this process fails it ends at once, so that the others do not wait for
    it; when another ends, this one says so and ends with status 1.

    Args:
        coordinator: HOST:PORT of the first process. Found out, with the other two, under SLURM, Kubernetes and on Cloud TPUs.
        processes: How many there are.
        process: The number of this one, from 0.

    Raises:
        ConfigError: If the others cannot be found or do not come.
    """
    given = (coordinator, processes, process)
    if None in given and given != (None, None, None):
        raise ConfigError(
            f"--coordinator {coordinator} --processes {processes} --process {process}: give all three, or none of them where "
            "the cluster tells."
        )
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=_COMING_SECONDS,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
            shutdown_timeout_seconds=_SILENT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"the other processes were not found: {reason} Give --coordinator HOST:PORT --processes N --process I, all three."
        ) from None
    try:
        settle()
        yield jax.process_index() == 0
    except jax.errors.JaxRuntimeError as error:
        if known := explain(error):
            _end(*known)
        reason = (str(error).splitlines() or [""])[0]
        _end(
            f"error: another process has ended ({reason}); start all of them again to go on from the last checkpoint", 1
        )
    except (Exception, KeyboardInterrupt) as error:
        if known := explain(error):
            _end(*known)
        traceback.print_exc()
        _end(f"error: {type(error).__name__}: {error}", 1)


def _end(message: str, status: int) -> NoReturn:
    """End this process now: an ordinary exit would wait for the others first, and abort when they do not come."""
    print(one_line(message), file=sys.stderr, flush=True)
    os._exit(status)


def agreed(*values: int) -> tuple[int, ...]:
    """Numbers that all processes go on with: the greatest that any has of each."""
    if jax.process_count() == 1:
        return values
    return tuple(map(int, multihost_utils.process_allgather(np.array(values)).max(0)))
