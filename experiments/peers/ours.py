"""What JAX measures for the benchmark: psgjax itself, its layers and operations, and the machine's matmul peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments import peers
from psgjax.config import Config, Network
from psgjax.lowering import conv_cpu, filtering, heaps
from psgjax.method import epochs, step
from psgjax.method import state as states
from psgjax.networks.layers import Down, Pointwise, Up
from psgjax.switches import named_method

_MATMUL_SECONDS = 0.15


def configuration(case: peers.Case) -> Config:
    """The run that a case stands for."""
    method = named_method(case.method)
    network = Network(case.network, case.width)
    return Config(case.method, method, network, batch_size=case.batch_size, precision=case.precision)  # type: ignore[arg-type]


class Psgjax:
    """The contender: `epochs.make_run`, mapped over replicas if there are several."""

    chunk = 1

    def __init__(self, case: peers.Case) -> None:
        config = configuration(case)
        self.images = jnp.asarray(peers.images())
        run = epochs.make_run(config, peers.TRAIN_IMAGES, peers.IMAGE_SHAPE, replicas=case.replicas > 1)
        if case.replicas == 1:
            self.state = jax.jit(lambda: states.init(config, peers.IMAGE_SHAPE))()
        else:
            init = jax.jit(jax.vmap(partial(states.init, config, peers.IMAGE_SHAPE)))
            self.state = init(jax.random.split(jax.random.key(0), case.replicas))
        started = time.perf_counter()
        self.program = run.lower(self.state, self.images, jnp.int32(1)).compile()
        self.facts = {"compile_seconds": time.perf_counter() - started, "device": jax.devices()[0].device_kind}
        heaps.limit_heaps(heaps.SCRATCH)
        heaps.keep_heaps()
        heaps.trim_heaps()
        self.per_epoch = config.steps_per_epoch(peers.TRAIN_IMAGES)
        self.position = 0

    def run(self, steps: int) -> float:
        """So many updates of every replica; D's mean loss in this epoch."""
        while steps:
            count = min(steps, self.per_epoch - self.position)
            self.state, sums = self.program(self.state, self.images, jnp.int32(count))
            self.position = (self.position + count) % self.per_epoch
            steps -= count
        total = np.asarray(sums["loss"]["discriminator"]).mean()  # waits for the device
        return float(total) / (self.position or self.per_epoch)

    def peak_bytes(self) -> int | None:
        """What JAX's allocator counted, on a device that counts."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


@dataclass(frozen=True)
class Layer:
    """A layer with a kernel, as one image passes through it; `width` is its network's."""

    name: str
    kind: str  # Dense, Pointwise, Down or Up
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int

    @property
    def operations(self) -> int:
        """Of one image in one direction: forward, input gradient and weight gradient take as many."""
        positions = self.inputs if self.kind == "Up" else self.outputs
        return 2 * int(np.prod(self.kernel)) * int(np.prod(positions[:-1]))

    @property
    def convolution(self) -> bool:
        """Whether it is one that is no product with each pixel."""
        return self.kind in ("Down", "Up")


def layers(case: peers.Case) -> tuple[list[Layer], list[Layer]]:
    """The layers with kernels of the generator and of the discriminator, in the order of the forward pass."""
    config = configuration(case)
    inputs = jnp.zeros((1, config.network.latent_size)), jnp.zeros((1, *peers.IMAGE_SHAPE))
    found: list[Layer] = []

    def record(call: Callable, arguments: tuple, keywords: dict, context: Any) -> Any:
        outputs = call(*arguments, **keywords)
        module = context.module
        if isinstance(module, nn.Dense | Down | Pointwise | Up) and context.method_name == "__call__":
            shapes = (arguments[0].shape[1:], outputs.shape[1:], module.variables["params"]["kernel"].shape)
            found.append(Layer(module.name or "", type(module).__name__, *shapes, getattr(module, "stride", 1)))
        return outputs

    lists = []
    for module, example in zip(states.build(config, peers.IMAGE_SHAPE), inputs, strict=True):
        found = []
        with nn.intercept_methods(record):
            jax.eval_shape(partial(module.init, jax.random.key(0)), example)
        lists.append(found)
    return lists[0], lists[1]


def operations(case: peers.Case, done: bool = False) -> int:
    """Floating-point operations of one update of every replica, counted in its layers' kernels: written out, or those done here.

    Generators: forward, weight gradients, and input gradients but for the first layer's. D, on K generated and one real image a
    tuple: the same, and the gradients of the generated images. Zeros of padding count.
    """
    dtype = np.dtype(jnp.bfloat16 if case.precision == "bfloat16" else jnp.float32)
    generator, discriminator = (
        [layer.operations * (share_done(layer, dtype) if done else 1) for layer in found] for found in layers(case)
    )
    count = named_method(case.method).generators
    of_generators = count * (3 * sum(generator) - generator[0])
    of_discriminator = (count + 1) * (3 * sum(discriminator) - discriminator[0]) + count * discriminator[0]
    return round(case.replicas * case.batch_size * (of_generators + of_discriminator))


def share_done(layer: Layer, dtype: np.dtype) -> float:
    """The part of a layer's operations that minimal filtering leaves, here and in any direction."""
    images, features = (layer.inputs, layer.outputs) if layer.kind == "Down" else (layer.outputs, layer.inputs)
    if jax.default_backend() != "cpu" or not layer.convolution or images[-1] < conv_cpu.NARROW:
        return 1.0
    size, height = layer.kernel[0], features[0]
    points, tiles, _ = filtering.mixing(height, layer.stride, size, dtype).features.shape
    return points * tiles * layer.stride / (height * size)


def xla_operations(case: peers.Case, done: bool = False) -> float | None:
    """XLA's count of operations in the same update before optimisation: with elementwise arithmetic, without taps on padding.

    None on a backend that does not count.
    """
    config = configuration(case)
    state = states.abstract(states.make_init(config, peers.IMAGE_SHAPE))
    images = jax.ShapeDtypeStruct((1, case.batch_size, *peers.IMAGE_SHAPE), jnp.uint8)
    traced = jax.jit(step.make_step(config, peers.IMAGE_SHAPE)).trace(state, images)
    lowered = traced.lower() if done else traced.lower(lowering_platforms=("tpu",))  # native convolutions
    counted = (lowered.cost_analysis() or {}).get("flops")
    return case.replicas * float(counted) if counted else None


class Machine:
    """The device: its name, its matmul peak, and the operations of a case."""

    def __init__(self, precision: str) -> None:
        device = jax.devices()[0]
        self.facts = {"platform": device.platform, "device": device.device_kind, "count": jax.device_count()}
        sizes = (512, 1024, 2048) if device.platform == "cpu" else (2048, 4096, 8192)
        keys = jax.random.split(jax.random.key(0))
        self.factors = [tuple(jax.random.normal(key, (size, size)) for key in keys) for size in sizes]

        def product(a: jax.Array, b: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "float32"):
                return a @ b

        self.product = jax.jit(product)

    def matmul(self) -> float:
        """Operations a second of the fastest of a few square products of float32."""
        return max(self._rate(*factors) for factors in self.factors)

    def _rate(self, a: jax.Array, b: jax.Array) -> float:
        self.product(a, b).block_until_ready()
        calls, seconds = 1, 0.0
        while True:
            started = time.perf_counter()
            for _ in range(calls):
                result = self.product(a, b)
            result.block_until_ready()
            seconds = time.perf_counter() - started
            if seconds > _MATMUL_SECONDS / 2:
                return calls * 2 * len(a) ** 3 / seconds
            calls = max(2 * calls, int(calls * _MATMUL_SECONDS / seconds))

    def operations(self, case: peers.Case) -> dict[str, float | None]:
        """Of one update, counted here and by XLA: written out, and those done on this device."""
        return {
            "operations": operations(case),
            "xla_operations": xla_operations(case),
            "operations_done": operations(case, done=True),
            "xla_operations_done": xla_operations(case, done=True),
        }

    def convolutions(self, case: peers.Case) -> list[tuple[str, Layer]]:
        """The convolutions of a case's step, and whose they are."""
        names = ("generator", "discriminator")
        pairs = zip(names, layers(case), strict=True)
        return [(name, layer) for name, found in pairs for layer in found if layer.convolution]
