"""The reference step as a first port to Flax has it: linen's own layers, `vmap` over generators, `value_and_grad`, `lax.scan`.

The layers, losses and gates of `psgjax` for the methods psg, sngan and gan. On a CPU XLA runs the gradients of its convolutions
some thirty times slower inside the scan than outside it (jax issue 12868).
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.nn import log_softmax, softplus

from experiments import peers
from psgjax.config import Method, Optimizer, named_method

LATENT_SIZE = 100
Tree = Any

_NORMAL = nn.initializers.normal(0.02)


class Generator(nn.Module):
    """Latents [B, 100] to images [B, 28, 28, 1] in [-1, 1]."""

    width: int

    @nn.compact
    def __call__(self, latents: jax.Array) -> jax.Array:
        """With the batch's own statistics."""
        x = nn.Dense(7 * 7 * 2 * self.width, use_bias=False, kernel_init=_NORMAL)(latents)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x.reshape(-1, 7, 7, 2 * self.width)))
        x = nn.ConvTranspose(self.width, (4, 4), (2, 2), use_bias=False, kernel_init=_NORMAL)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9)(x))
        return jnp.tanh(nn.ConvTranspose(1, (4, 4), (2, 2), kernel_init=_NORMAL)(x))


class Discriminator(nn.Module):
    """Images [B, 28, 28, 1] to scores [B]; spectrally normalised, one power iteration a call that updates, if asked for."""

    width: int
    spectral_norm: bool

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """The scores, and new spectral vectors where that collection is mutable."""

        def apply(layer: nn.Module, x: jax.Array) -> jax.Array:
            return nn.SpectralNorm(layer)(x, update_stats=True) if self.spectral_norm else layer(x)

        x = nn.leaky_relu(apply(nn.Conv(self.width, (4, 4), (2, 2), kernel_init=_NORMAL), images), 0.2)
        x = nn.leaky_relu(apply(nn.Conv(2 * self.width, (4, 4), (2, 2), kernel_init=_NORMAL), x), 0.2)
        return apply(nn.Dense(1, kernel_init=_NORMAL), x.reshape(len(x), -1))[:, 0]


def losses(method: Method, scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Scores [K + 1, B], the real images' last, to D's objective, each generator's [K], and who has an update: bool, bool [K]."""
    fake, real = scores[:-1], scores[-1]
    if method.gate == "none":
        d_loss = softplus(-real).mean() + softplus(fake).mean()
        return d_loss, softplus(-fake).mean(1), jnp.array(True), jnp.ones(len(fake), bool)
    chosen, log_p = scores.argmax(0), log_softmax(scores, axis=0)
    right = chosen == len(fake)
    others = (chosen[None] != jnp.arange(len(fake))[:, None]) & ~right[None]
    g_loss = -(log_p[:-1] * others + (log_p[:-1].mean(0) * right)[None]).mean(1)
    return -(log_p[-1] * ~right).mean(), g_loss, (~right).any(), (others | right[None]).any(1)


class Training:
    """The networks' modules, the initial state, and the update as a pure function of it."""

    def __init__(self, case: peers.Case) -> None:
        self.method = named_method(case.method)
        self.generator, self.discriminator = (
            Generator(case.width),
            Discriminator(case.width, self.method.spectral_norm),
        )
        settings = Optimizer()
        self.adam = optax.adam(settings.learning_rate, settings.beta1, settings.beta2)

    def init(self, key: jax.Array) -> Tree:
        """Variables and optimiser states; the generators' have a leading axis K."""
        g_key, d_key = jax.random.split(key)
        latents, images = jnp.zeros((1, LATENT_SIZE)), jnp.zeros((1, *peers.IMAGE_SHAPE))
        g = jax.vmap(lambda key: self.generator.init(key, latents))(jax.random.split(g_key, self.method.generators))
        d = self.discriminator.init(d_key, images)
        return {
            "g": {**g, "opt_state": jax.vmap(self.adam.init)(g["params"])},
            "d": {"batch_stats": {}, **d, "opt_state": self.adam.init(d["params"])},
        }

    def step(self, state: Tree, real: jax.Array, latents: jax.Array) -> tuple[Tree, tuple[jax.Array, jax.Array]]:
        """Update on images [B, 28, 28, 1] in [-1, 1] and latents [B, 100]; D's loss and each generator's."""
        g, d = state["g"], state["d"]

        def score(params: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
            variables = {"params": params, "batch_stats": d["batch_stats"]}
            scores, updated = self.discriminator.apply(
                variables, images.reshape(-1, *images.shape[2:]), mutable=["batch_stats"]
            )
            return scores.reshape(images.shape[:2]), updated.get("batch_stats", {})

        def g_objective(params: Tree) -> tuple[jax.Array, Any]:
            def generate(params: Tree, batch_stats: Tree) -> tuple[jax.Array, Tree]:
                variables = {"params": params, "batch_stats": batch_stats}
                return self.generator.apply(variables, latents, mutable=["batch_stats"])

            fakes, updated = jax.vmap(generate)(params, g["batch_stats"])
            scores, _ = score(d["params"], jnp.concatenate([fakes, real[None]]))
            constant = jax.lax.stop_gradient(scores)

            def own_loss(index: jax.Array) -> jax.Array:  # each generator sees the others' scores as constants
                mine = (jnp.arange(len(scores)) == index)[:, None]
                return losses(self.method, jnp.where(mine, scores, constant))[1][index]

            each = jax.vmap(own_loss)(jnp.arange(len(fakes)))
            return each.sum(), (each, fakes, updated["batch_stats"])

        def d_objective(params: Tree) -> tuple[jax.Array, Any]:
            scores, updated = score(params, jnp.concatenate([fakes, real[None]]))
            d_loss, _, d_any, g_any = losses(self.method, scores)
            return d_loss, (d_any, g_any, updated)

        (_, (g_losses, fakes, g_stats)), g_grads = jax.value_and_grad(g_objective, has_aux=True)(g["params"])
        (d_loss, (d_any, g_any, d_stats)), d_grads = jax.value_and_grad(d_objective, has_aux=True)(d["params"])

        def update(old: Tree, stats: Tree, grads: Tree, keep: jax.Array) -> Tree:
            updates, opt_state = self.adam.update(grads, old["opt_state"])
            params = optax.apply_updates(old["params"], updates)
            new = {**old, "params": params, "batch_stats": stats, "opt_state": opt_state}
            return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)

        new = {"g": jax.vmap(update)(g, g_stats, g_grads, g_any), "d": update(d, d_stats, d_grads, d_any)}
        return new, (d_loss, g_losses)


class FlaxPlain:
    """The contender: a compiled scan of a few steps, mapped over replicas."""

    def __init__(self, case: peers.Case) -> None:
        # XLA takes a loop of one step apart, and what stays is no loop; on an accelerator a longer one hides the call.
        self.chunk = 2 if jax.default_backend() == "cpu" else 64
        if jax.default_backend() != "cpu":
            precision = {"tf32": "tensorfloat32"}.get(case.precision, case.precision)
            jax.config.update("jax_default_matmul_precision", precision)
        training = Training(case)

        def step(images: jax.Array, carry: Tree, _: Any) -> tuple[Tree, jax.Array]:
            state, key = carry
            key, image_key, latent_key = jax.random.split(key, 3)
            chosen = jax.random.randint(image_key, (case.batch_size,), 0, len(images))
            real = images[chosen].astype(jnp.float32) / 127.5 - 1
            state, (d_loss, _) = training.step(
                state, real, jax.random.normal(latent_key, (case.batch_size, LATENT_SIZE))
            )
            return (state, key), d_loss

        def chunk(carry: Tree, images: jax.Array) -> tuple[Tree, jax.Array]:
            carry, d_losses = jax.lax.scan(partial(step, images), carry, None, length=self.chunk)
            return carry, d_losses[-1]

        keys = jax.random.split(jax.random.key(0), case.replicas)
        self.carry = jax.jit(jax.vmap(lambda key: (training.init(key), key)))(keys)
        self.images = jnp.asarray(peers.images())
        started = time.perf_counter()
        program = jax.jit(jax.vmap(chunk, in_axes=(0, None)), donate_argnums=0)
        self.program = program.lower(self.carry, self.images).compile()
        self.facts = {
            "compile_seconds": time.perf_counter() - started,
            "device": jax.devices()[0].device_kind,
        }

    def run(self, steps: int) -> float:
        """So many updates of every replica; D's last loss."""
        loss: Any = None
        for _ in range(steps // self.chunk):
            self.carry, loss = self.program(self.carry, self.images)
        return float(loss[-1])

    def peak_bytes(self) -> int | None:
        """What JAX's allocator counted, on a device that counts."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
