"""The discriminator's pass over generated and real images, and the way back through it, which serves both sides of an update.

On a CPU the images go through D in pieces, one after the other: what a layer leaves is then still in the processor's cache when
the next one reads it. Elsewhere they go all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from psgjax.networks import Discriminator

Tree = Any
Pull = Callable[[jax.Array, jax.Array, jax.Array], tuple[Tree, jax.Array]]

_CACHED = 4 * 2**20  # bytes that the widest layer gives for a piece: caches hold these, and what is made of them
_PIECES = 4  # at most, of the generated and of the real images: each is compiled by itself


def score_and_pull(
    discriminator: Discriminator, params: Tree, fakes: jax.Array, real: jax.Array, platform: str | None = None
) -> tuple[jax.Array, jax.Array, Pull]:
    """The outputs of D, [k, b, O] for `fakes` [k, b, H, W, C] and [1, n, O] for `real` [1, n, H, W, C], and `pull`.

    `pull(d_fake, d_real, g_slopes)` takes the derivatives of D's loss by these outputs, and of the generators' losses by those of
    their images. It gives D's loss by its parameters, and the generators' losses by their images. The platform is the default one
    where none is given.
    """

    def discriminate(stage: int, params: Tree, x: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, x, stage)  # type: ignore[return-value]

    stages = [partial(discriminate, stage) for stage in range(discriminator.depth)]
    in_pieces = (platform or jax.default_backend()) == "cpu"
    counts = [_pieces(stages, params, x) if in_pieces else 1 for x in (fakes, real)]

    def cut(fake: jax.Array, real: jax.Array) -> list[jax.Array]:
        flat = [x.reshape(-1, *x.shape[2:]) for x in (fake, real)]
        return [piece for x, count in zip(flat, counts, strict=True) for piece in jnp.array_split(x, count)]

    def in_turn(value: Tree, done: Tree) -> Tree:
        """Both as they are, the first not before the second has been computed."""
        return jax.lax.optimization_barrier((value, done)) if in_pieces else (value, done)

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
