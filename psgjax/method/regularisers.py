"""Regularisers: penalties on D that are added to its loss in every update, whatever the gate says.

Each gives values whose mean counts, from a scoring function, real images [B, H, W, C] and generated ones [K, B, H, W, C]; the table
of `parts.py` has their signature, names and papers. With spectral normalisation the scores are those of the normalised D.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from psgjax import parts
from psgjax.config import Method
from psgjax.method import objectives
from psgjax.method.sharding import Shards

Score = Callable[[jax.Array], jax.Array]
Draw = Callable[..., jax.Array]


def squared_norms(score: Score, images: jax.Array) -> jax.Array:
    """|grad D(x)|^2 of each image: [..., H, W, C] -> [...]. Each score depends on one image alone: one pass back gives all."""
    grads = jax.grad(lambda images: score(images).sum())(images)
    return jnp.sum(grads**2, axis=(-3, -2, -1))


def r1(score: Score, real: jax.Array, fake: jax.Array, draw: Draw) -> jax.Array:
    """|grad D(x)|^2 / 2 at the real images, [B]."""
    return squared_norms(score, real) / 2


def r2(score: Score, real: jax.Array, fake: jax.Array, draw: Draw) -> jax.Array:
    """|grad D(x)|^2 / 2 at the generated images, [K, B]."""
    return squared_norms(score, fake) / 2


def gradient_penalty(score: Score, real: jax.Array, fake: jax.Array, draw: Draw) -> jax.Array:
    """(|grad D(x)| - 1)^2 on lines between real and generated images, [K, B] (Gulrajani et al. 2017, equation 3)."""
    t = draw(jax.random.uniform, 1, 1, 1)
    norms = jnp.sqrt(squared_norms(score, t * real[None] + (1 - t) * fake) + 1e-12)
    return (norms - 1) ** 2


def of_the_pass(method: Method, shards: Shards, real: jax.Array, fakes: jax.Array) -> dict[str, float]:
    """R1 and R2 where D's own pass makes them on its way (`passes.score_vjp`): what each of its images weighs.

    They are this device's alone, real ones [1, n, H, W, C] and generated ones [k, b, H, W, C]; D has to give one score.
    """
    if objectives.outputs_needed(method) > 1 or parts.loss_of(method).scores:
        return {}
    images = {"r1": real, "r2": fakes}
    counts = {name: x.shape[0] * x.shape[1] * shards.generator * shards.data for name, x in images.items()}
    return {name: weight / counts[name] for name, weight in method.regularisers if weight and name in counts}


def penalties(
    method: Method, shards: Shards, score: Score, real: jax.Array, fakes: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a method's regularisers add to D's loss, and each one's part of it, times its weight.

    Of this device's images, real [b, H, W, C] and generated [k, b, H, W, C]: the sum over all devices is what is meant.
    """
    whole = method.generators, len(real) * shards.data

    def draw(sampler: Callable[..., jax.Array], *shape: int) -> jax.Array:
        return shards.own(sampler(key, (*whole, *shape)))

    def part(name: str, weight: float) -> jax.Array:
        values = parts.REGULARISERS[name](score, real, fakes, draw)
        return weight * jnp.mean(values) / (shards.generator * shards.data)

    values = {name: part(name, weight) for name, weight in method.regularisers}
    return sum(values.values(), jnp.zeros(())), values
