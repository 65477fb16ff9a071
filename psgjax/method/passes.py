"""The passes through the generators and the discriminator, and the ways back through them.

On a CPU the generators take turns, and the images go through D in pieces, one after the other: what a layer leaves is then still
in the processor's cache when the next one reads it. Elsewhere the generators are mapped, and the images go all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from psgjax.networks import Discriminator, Generator, stack

Tree = Any
PullImages = Callable[[jax.Array], Tree]
PullScores = Callable[[jax.Array, jax.Array, jax.Array], tuple[Tree, jax.Array]]

_CACHED = 8 * 2**20  # bytes that the widest layer gives for a piece: caches hold these, and what is made of them
_PIECES = 4  # at most, of the generated and of the real images: each is compiled by itself


def _in_turn(value: Tree, done: Tree) -> tuple[Tree, Tree]:
    """Both as they are, the first not before the second has been computed."""
    return jax.lax.optimization_barrier((value, done))


def _on_cpu(platform: str | None) -> bool:
    return (platform or jax.default_backend()) == "cpu"


def generate_and_pull(
    generator: Generator, params: Tree, batch_stats: Tree, latents: jax.Array, platform: str | None = None
) -> tuple[jax.Array, Tree, PullImages]:
    """The images [K, B, H, W, C] that K generators make of latents [K, B, latent_size], their new batch statistics, and `pull`.

    Parameters and batch statistics have a leading axis K. `pull` takes the generators' losses by their images and gives them by
    their parameters. The platform is the default one where none is given.
    """

    def generate(params: Tree, batch_stats: Tree, latents: jax.Array) -> tuple[jax.Array, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        images, updated = generator.apply(variables, latents, mutable=["batch_stats"])
        return images, updated.get("batch_stats", {})

    if not _on_cpu(platform):
        images, pull, batch_stats = jax.vjp(
            lambda params: jax.vmap(generate)(params, batch_stats, latents), params, has_aux=True
        )
        return images, batch_stats, lambda slopes: pull(slopes)[0]

    made: list[jax.Array] = []
    pulls, updated = [], []
    for k in range(len(latents)):
        own_params, own_stats, own_latents = jax.tree.map(lambda leaf, k=k: leaf[k], (params, batch_stats, latents))
        own_latents, made = _in_turn(own_latents, made)
        run = partial(generate, batch_stats=own_stats, latents=own_latents)
        images, pull, new_stats = jax.vjp(run, own_params, has_aux=True)
        made.append(images)
        pulls.append(pull)
        updated.append(new_stats)

    def pull_all(slopes: jax.Array) -> Tree:
        grads: list[Tree] = []
        for k, pull in enumerate(pulls):
            own_slopes, grads = _in_turn(slopes[k], grads)
            grads.append(pull(own_slopes)[0])
        return stack(grads)

    return jnp.stack(made), stack(updated), pull_all


def score_and_pull(
    discriminator: Discriminator, params: Tree, fakes: jax.Array, real: jax.Array, platform: str | None = None
) -> tuple[jax.Array, jax.Array, PullScores]:
    """The outputs of D, [k, b, O] for `fakes` [k, b, H, W, C] and [1, n, O] for `real` [1, n, H, W, C], and `pull`.

    `pull(d_fake, d_real, g_slopes)` takes the derivatives of D's loss by these outputs, and of the generators' losses by those of
    their images. It gives D's loss by its parameters, and the generators' losses by their images. The platform is the default one
    where none is given.
    """

    def discriminate(stage: int, params: Tree, x: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, x, stage)  # type: ignore[return-value]

    stages = [partial(discriminate, stage) for stage in range(discriminator.depth)]
    cpu = _on_cpu(platform)
    counts = [_pieces(stages, params, x) if cpu else 1 for x in (fakes, real)]
    in_turn = _in_turn if cpu else lambda value, done: (value, done)

    def cut(fake: jax.Array, real: jax.Array) -> list[jax.Array]:
        flat = [x.reshape(-1, *x.shape[2:]) for x in (fake, real)]
        return [piece for x, count in zip(flat, counts, strict=True) for piece in jnp.array_split(x, count)]

    outputs: list[jax.Array] = []
    pulls: list[list[Callable]] = []
    for piece in cut(fakes, real):
        x, outputs = in_turn(piece, outputs)
        back = []
        for stage in stages:
            x, pull_stage = jax.vjp(stage, params, x)
            back.append(pull_stage)
        outputs.append(x)
        pulls.append(back)

    def pull(d_fake: jax.Array, d_real: jax.Array, g_slopes: jax.Array) -> tuple[Tree, jax.Array]:
        grads, by_images = jax.tree.map(jnp.zeros_like, params), list[jax.Array]()
        # Generators have no losses by the real images: what stands in their place is not read.
        for i, (back, d, g) in enumerate(zip(pulls, cut(d_fake, d_real), cut(g_slopes, d_real), strict=True)):
            generated = i < counts[0]
            start = jnp.ones_like(g) if g.shape[-1] == 1 else g
            (d, start), (grads, by_images) = in_turn((d, start), (grads, by_images))
            more, slopes = _pull_piece(back, d, start if generated else None)
            grads = jax.tree.map(jnp.add, grads, more)
            if generated:
                by_images.append(_each(g, slopes) * slopes if g.shape[-1] == 1 else slopes)
        return grads, jnp.concatenate(by_images).reshape(fakes.shape)

    split = counts[0]
    fake_outputs, real_outputs = jnp.concatenate(outputs[:split]), jnp.concatenate(outputs[split:])
    return fake_outputs.reshape(*fakes.shape[:2], -1), real_outputs[None], pull


def _pieces(stages: Sequence[Callable], params: Tree, images: jax.Array) -> int:
    """In how many pieces images [k, b, ...] go through D."""
    count, widest = images.shape[0] * images.shape[1], 0
    x: Any = jax.ShapeDtypeStruct((count, *images.shape[2:]), images.dtype)
    for stage in stages:
        x = jax.eval_shape(stage, params, x)
        widest = max(widest, x.size * x.dtype.itemsize)
    return min(_PIECES, count, -(-widest // _CACHED))


def _pull_piece(back: list[Callable], d: jax.Array, slopes: jax.Array | None) -> tuple[Tree, Any]:
    """D's loss by its parameters, from its derivatives by the outputs [n, O]; and `slopes`, [n, O], by the images, if given.

    Where there is one output an image, one pass serves both: the derivatives of the outputs by the activations are those of that
    image alone, so they are weighted with D's slopes on the way to the parameters, with the generators' at the end.
    """
    weights, one_output, grads = d, d.shape[-1] == 1, []
    for pull_stage in reversed(back):
        if slopes is not None and one_output:
            d = _each(weights, slopes) * slopes
        by_params, d = pull_stage(d)
        grads.append(by_params)
        if slopes is not None:
            slopes = pull_stage(slopes)[1]
    return jax.tree.map(lambda *leaves: sum(leaves), *grads), slopes


def _each(weights: jax.Array, x: jax.Array) -> jax.Array:
    """A weight for each image, [n, 1], in the shape and type that multiplies x [n, ...]."""
    return weights.reshape(-1, *(1 for _ in x.shape[1:])).astype(x.dtype)
