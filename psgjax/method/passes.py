"""The passes through the generators and the discriminator, and their vjps.

On a CPU the generators are applied sequentially, and the images go through D in microbatches: what a layer leaves is then still in
the processor's cache when the next one reads it. Elsewhere the generators are mapped, and the images go all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from psgjax.networks import Discriminator, Generator, stack

Tree = Any
ImagesVjp = Callable[[jax.Array], Tree]
OutputsVjp = Callable[[jax.Array, jax.Array, jax.Array], tuple[Tree, jax.Array]]
Penalty = tuple[Tree, dict[str, jax.Array]]  # gradients for D's parameters, and the values by name

_CACHED = 8 * 2**20  # bytes that the widest layer gives for a microbatch: caches hold these, and what is made of them
_MICROBATCHES = 4  # at most, of the generated and of the real images: each is compiled by itself


def _after(value: Tree, done: Tree) -> tuple[Tree, Tree]:
    """Both as they are, the first not before the second has been computed."""
    return jax.lax.optimization_barrier((value, done))


def _on_cpu(platform: str | None) -> bool:
    return (platform or jax.default_backend()) == "cpu"


def generate_vjp(
    generator: Generator, params: Tree, batch_stats: Tree, latents: jax.Array, platform: str | None = None
) -> tuple[jax.Array, Tree, ImagesVjp]:
    """The images [K, B, H, W, C] that K generators make of latents [K, B, latent_size], their new batch statistics, and the vjp.

    Parameters and batch statistics have a leading axis K. The vjp takes the gradients of the generators' losses with respect
    to their images and gives those with respect to their parameters. The platform is the default one where none is given.
    """

    def generate(params: Tree, batch_stats: Tree, latents: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        images, updated = generator.apply(variables, latents, mutable=["batch_stats"])
        return images, updated.get("batch_stats", {})

    if not _on_cpu(platform):
        images, mapped_vjp, batch_stats = jax.vjp(
            lambda params: jax.vmap(generate)(params, batch_stats, latents), params, has_aux=True
        )
        return images, batch_stats, lambda cotangents: mapped_vjp(cotangents)[0]

    made: list[jax.Array] = []
    vjps, updated = [], []
    for k in range(len(latents)):
        own_params, own_stats, own_latents = jax.tree.map(lambda leaf, k=k: leaf[k], (params, batch_stats, latents))
        own_latents, made = _after(own_latents, made)
        run = partial(generate, batch_stats=own_stats, latents=own_latents)
        images, own_vjp, new_stats = jax.vjp(run, own_params, has_aux=True)
        made.append(images)
        vjps.append(own_vjp)
        updated.append(new_stats)

    def vjp(cotangents: jax.Array) -> Tree:
        grads: list[Tree] = []
        for k, own_vjp in enumerate(vjps):
            own_cotangents, grads = _after(cotangents[k], grads)
            grads.append(own_vjp(own_cotangents)[0])
        return stack(grads)

    return jnp.stack(made), stack(updated), vjp


def score_vjp(
    discriminator: Discriminator,
    params: Tree,
    fakes: jax.Array,
    real: jax.Array,
    platform: str | None = None,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> tuple[jax.Array, jax.Array, OutputsVjp, Penalty | None]:
    """The outputs of D, [k, b, O] for `fakes` [k, b, H, W, C] and [1, n, O] for `real` [1, n, H, W, C], their vjp, and a penalty.

    `vjp(d_fake, d_real, g_cotangents)` takes the gradients of D's loss with respect to these outputs, and of the generators' losses
    with respect to those of their images. It gives those of D's loss with respect to its parameters, and of the generators' losses
    with respect to their images. The platform is the default one where none is given.

    The penalty, for a D of one output an image, is the sum of |grad D(x)|^2 / 2 over the real images, times the weight `r1`, and
    over the generated ones, times `r2`; None without either. It depends on no loss: its passes follow the forward one at once.
    """
    stages = _stages(discriminator)
    cpu = _on_cpu(platform)
    counts = [_microbatches(stages, params, x) if cpu else 1 for x in (fakes, real)]
    after = _after if cpu else lambda value, done: (value, done)

    def cut(fake: jax.Array, real: jax.Array) -> list[jax.Array]:
        flat = [x.reshape(-1, *x.shape[2:]) for x in (fake, real)]
        return [part for x, count in zip(flat, counts, strict=True) for part in jnp.array_split(x, count)]

    outputs: list[jax.Array] = []
    passed: list[tuple[list[Callable], list[jax.Array] | None]] = []  # each stage's vjp, and `_cotangents` if known
    penalty: Penalty | None = None
    for i, microbatch in enumerate(cut(fakes, real)):
        x, (outputs, penalty) = after(microbatch, (outputs, penalty))
        name, known = "r2" if i < counts[0] else "r1", None
        if name in weights:
            x, back, known, grads, value = _penalised(stages, params, x, weights[name])
            more = grads, {each: value if each == name else jnp.zeros(()) for each in weights}
            penalty = jax.tree.map(jnp.add, penalty, more) if penalty else more
        else:
            x, back = _forward(stages, params, x)
        outputs.append(x)
        passed.append((back, known))

    def vjp(d_fake: jax.Array, d_real: jax.Array, g_cotangents: jax.Array) -> tuple[Tree, jax.Array]:
        grads, by_images = jax.tree.map(jnp.zeros_like, params), list[jax.Array]()
        # Generators have no losses on the real images: what stands in their place is not read.
        for i, ((back, known), d, g) in enumerate(
            zip(passed, cut(d_fake, d_real), cut(g_cotangents, d_real), strict=True)
        ):
            start = jnp.ones_like(g) if g.shape[-1] == 1 else g
            (d, start), (grads, by_images) = after((d, start), (grads, by_images))
            more, cotangents = _microbatch_vjp(back, known, d, start if i < counts[0] else None)
            grads = jax.tree.map(jnp.add, grads, more)
            if i < counts[0]:
                by_images.append(_each(g, cotangents) * cotangents if g.shape[-1] == 1 else cotangents)
        return grads, jnp.concatenate(by_images).reshape(fakes.shape)

    split = counts[0]
    fake_outputs, real_outputs = jnp.concatenate(outputs[:split]), jnp.concatenate(outputs[split:])
    return fake_outputs.reshape(*fakes.shape[:2], -1), real_outputs[None], vjp, penalty


def _stages(discriminator: Discriminator) -> list[Callable]:
    """Each stage as a function of D's parameters and of what enters it."""

    def discriminate(stage: int, params: Tree, x: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, x, stage)  # type: ignore[return-value]

    return [partial(discriminate, stage) for stage in range(discriminator.depth)]


def _microbatches(stages: Sequence[Callable], params: Tree, images: jax.Array) -> int:
    """In how many microbatches images [k, b, ...] go through D."""
    count, widest = images.shape[0] * images.shape[1], 0
    x: Any = jax.ShapeDtypeStruct((count, *images.shape[2:]), images.dtype)
    for stage in stages:
        x = jax.eval_shape(stage, params, x)
        widest = max(widest, x.size * x.dtype.itemsize)
    return min(_MICROBATCHES, count, -(-widest // _CACHED))


def _forward(stages: Sequence[Callable], params: Tree, x: jax.Array) -> tuple[jax.Array, list[Callable]]:
    """The outputs [n, O] of images [n, H, W, C], and the vjp of each stage."""
    back = []
    for stage in stages:
        x, stage_vjp = jax.vjp(stage, params, x)
        back.append(stage_vjp)
    return x, back


def _cotangents(back: list[Callable], start: jax.Array) -> list[jax.Array]:
    """Cotangents of the images, and of what leaves each stage; `start`, those of the outputs, is the last of them."""
    cotangents = [start]
    for stage_vjp in reversed(back):
        cotangents.append(stage_vjp(cotangents[-1])[1])
    return cotangents[::-1]


def _penalised(
    stages: Sequence[Callable], params: Tree, x: jax.Array, weight: float
) -> tuple[jax.Array, list[Callable], list[jax.Array], Tree, jax.Array]:
    """What `_forward` gives, `_cotangents` of ones, and the weighted sum of |grad D(x)|^2 / 2: its gradients, and itself."""

    def by_images(params: Tree) -> tuple[jax.Array, tuple]:
        outputs, back = _forward(stages, params, x)
        cotangents = _cotangents(back, jnp.ones_like(outputs))
        return cotangents[0], (outputs, back, cotangents)

    grad, grad_vjp, passed = jax.vjp(by_images, params, has_aux=True)
    return *passed, *grad_vjp(weight * grad), weight / 2 * jnp.sum(grad**2)


def _microbatch_vjp(
    back: list[Callable], cotangents: list[jax.Array] | None, d: jax.Array, start: jax.Array | None
) -> tuple[Tree, Any]:
    """Gradients for the parameters, from D's for the outputs `d` [n, O]; and for the images from `start` [n, O], if given.

    Where there is one output per image, one pass serves both: the gradients of the outputs with respect to the activations are
    those of that image alone: weighted with D's cotangents on the way to the parameters, with the generators' at the end.
    """
    if cotangents is None and start is not None:
        cotangents = _cotangents(back, start)
    weights, one_output, grads = d, d.shape[-1] == 1, []
    for i in reversed(range(len(back))):
        if cotangents and one_output:
            d = _each(weights, cotangents[i + 1]) * cotangents[i + 1]
        by_params, d = back[i](d)
        grads.append(by_params)
    return jax.tree.map(lambda *leaves: sum(leaves), *grads), cotangents[0] if cotangents else None


def _each(weights: jax.Array, x: jax.Array) -> jax.Array:
    """A weight for each image, [n, 1], in the shape and type that multiplies x [n, ...]."""
    return weights.reshape(-1, *(1 for _ in x.shape[1:])).astype(x.dtype)
