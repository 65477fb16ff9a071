"""The plain reading of the update (`psgjax.method.reference`) as a first port to Flax would run it: in a compiled `lax.scan`.

On a CPU XLA runs the gradients of its convolutions some thirty times slower inside the scan than outside it (jax issue 12868).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import peers
from experiments.peers.ours import configuration
from psgjax.method import reference
from psgjax.method import state as states
from psgjax.method.state import TrainState


class FlaxPlain:
    """The contender: a compiled scan of a few steps, mapped over replicas."""

    def __init__(self, case: peers.Case) -> None:
        # XLA takes a loop of one step apart, and what stays is no loop; on an accelerator a longer one hides the call.
        self.chunk = 2 if jax.default_backend() == "cpu" else 64
        if jax.default_backend() != "cpu":
            precision = {"tf32": "tensorfloat32"}.get(case.precision, case.precision)
            jax.config.update("jax_default_matmul_precision", precision)
        config = configuration(case)
        update = reference.Plain(config, peers.IMAGE_SHAPE).step

        def step(images: jax.Array, state: TrainState, _: Any) -> tuple[TrainState, jax.Array]:
            key = jax.random.fold_in(state.key, state.step)
            chosen = jax.random.randint(key, (case.batch_size,), 0, len(images))
            state, losses = update(state, images[chosen][None])
            return state, losses["discriminator"]

        def chunk(state: TrainState, images: jax.Array) -> tuple[TrainState, jax.Array]:
            state, d_losses = jax.lax.scan(partial(step, images), state, None, length=self.chunk)
            return state, d_losses[-1]

        init = jax.jit(jax.vmap(partial(states.init, config, peers.IMAGE_SHAPE)))
        self.state = init(jax.random.split(jax.random.key(0), case.replicas))
        self.images = jnp.asarray(peers.images())
        started = time.perf_counter()
        program = jax.jit(jax.vmap(chunk, in_axes=(0, None)), donate_argnums=0)
        self.program = program.lower(self.state, self.images).compile()
        self.facts = {"compile_seconds": time.perf_counter() - started, "device": jax.devices()[0].device_kind}

    def run(self, steps: int) -> float:
        """The given number of updates of every replica; D's last loss."""
        loss: Any = None
        for _ in range(steps // self.chunk):
            self.state, loss = self.program(self.state, self.images)
        return float(loss[-1])

    def peak_bytes(self) -> int | None:
        """What JAX's allocator counted, on a device that counts."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
