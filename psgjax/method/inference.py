"""A state applied and not changed: samples drawn from it, and its discriminator's accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from psgjax import networks
from psgjax.config import Config
from psgjax.lowering import conv
from psgjax.method import objectives, spectral
from psgjax.method.packing import packed
from psgjax.method.state import Stream, TrainState, build
from psgjax.method.step import draw_latents, scale

Tree = Any

_GRID = 32  # images a generator in a sample grid
_BATCH = 500  # images a generator drawn in one call
_CALIBRATED = 512  # images, at least, of which the batch statistics of averaged parameters are taken
_BLOCK = 50  # of these, or of the images judged, at a time, at most: more take more memory than training does


def make_variables(config: Config, image_shape: tuple[int, int, int]) -> Callable[[TrainState], Tree]:
    """`variables(state) -> {"params", "batch_stats"}` of the K generators, as they are sampled. Pure: to be jitted from outside.

    These are the state's own, or, where averages of the parameters are kept, the averages. No batch has gone through these: their
    batch statistics are the means over at least 512 images in batches of the training's size (Wu and Johnson 2021, section 3),
    of the same latents at every step. The running statistics of the generators in training would be those of others.
    """
    generator, _ = build(config, image_shape)

    def statistics(params: Tree, latents: jax.Array) -> Tree:
        """Of one batch, from how the generator moves running ones: `old` to `momentum * old + (1 - momentum) * batch`."""
        like = jax.eval_shape(generator.init, jax.random.key(0), latents).get("batch_stats", {})
        from_zero, from_one = (
            generator.apply({"params": params, "batch_stats": old}, latents, mutable=["batch_stats"])[1].get(
                "batch_stats", {}
            )
            for old in (jax.tree.map(lambda leaf, n=n: jnp.full(leaf.shape, n, leaf.dtype), like) for n in (0, 1))
        )
        return jax.tree.map(lambda zero, one: zero / (1 - (one - zero)), from_zero, from_one)

    def variables(state: TrainState) -> Tree:
        if not config.optimizer.averages:
            return _live(state)
        params, batches = state.generators.average.ema, -(-_CALIBRATED // config.batch_size)
        latents = draw_latents(config, jax.random.fold_in(state.key, Stream.STATISTICS), batches * config.batch_size)
        latents = latents.reshape(len(latents), batches, config.batch_size, -1).swapaxes(0, 1)
        each = jax.lax.map(lambda batch: jax.vmap(statistics)(params, batch), latents)
        return {"params": params, "batch_stats": jax.tree.map(lambda leaf: leaf.mean(0), each)}

    return variables


def _live(state: TrainState) -> Tree:
    """The variables of the generators in training, with their running batch statistics."""
    return {"params": state.generators.params, "batch_stats": state.generators.batch_stats}


def make_generate(config: Config, image_shape: tuple[int, int, int]) -> Callable[[Tree, jax.Array], jax.Array]:
    """`generate(variables, latents [K, B, latent_size]) -> images [K, B, H, W, C]` in [-1, 1], in evaluation mode; pure."""
    generator, _ = build(config, image_shape)

    def generate(variables: Tree, latents: jax.Array) -> jax.Array:
        def one(variables: Tree, latents: jax.Array) -> jax.Array:
            return jnp.asarray(generator.apply(variables, latents, train=False))

        return networks.crop_to(jax.vmap(one)(variables, latents), image_shape)

    return generate


def make_sampler(config: Config, image_shape: tuple[int, int, int]) -> Callable[[TrainState, jax.Array], jax.Array]:
    """`sample(state, latents [K, B, latent_size]) -> images [K, B, H, W, C]` in [-1, 1], float32. Pure: to be jitted."""
    variables, generate = make_variables(config, image_shape), make_generate(config, image_shape)
    return lambda state, latents: generate(variables(state), latents)


def make_grid(config: Config, image_shape: tuple[int, int, int]) -> Callable[[TrainState], jax.Array]:
    """`grid(state) -> images`: 32 of each generator, [K, 32, H, W, C] in [-1, 1], of the same latents at every step."""
    sample = make_sampler(config, image_shape)

    @partial(jax.jit, compiler_options=conv.compiler_options(seldom=True))
    def grid(state: TrainState) -> jax.Array:
        return sample(state, draw_latents(config, jax.random.fold_in(state.key, Stream.GRID), _GRID))

    return grid


def make_batch_sampler(
    config: Config, image_shape: tuple[int, int, int]
) -> Callable[[TrainState, jax.Array, int], list[jax.Array]]:
    """`draw(state, key, count) -> batches`: `count` images of each generator, uint8 [K, <= 500, H, W, C] each, in evaluation mode.

    The same for the same key, however many are drawn. Nothing is waited for.
    """
    options = conv.compiler_options(seldom=True)
    variables, generate = (
        jax.jit(make_variables(config, image_shape), compiler_options=options),
        make_generate(config, image_shape),
    )

    @partial(jax.jit, compiler_options=options)
    def batch(weights: Tree, key: jax.Array) -> jax.Array:
        def block(latents: jax.Array) -> jax.Array:
            return jnp.clip(jnp.rint((generate(weights, latents) + 1) * 127.5), 0, 255).astype(jnp.uint8)

        return _join(jax.lax.map(block, _cut(draw_latents(config, key, _BATCH))))

    def draw(state: TrainState, key: jax.Array, count: int) -> list[jax.Array]:
        key, starts, weights = jax.random.fold_in(key, Stream.SAMPLES), range(0, count, _BATCH), variables(state)
        return [batch(weights, jax.random.fold_in(key, start))[:, : count - start] for start in starts]

    return draw


def make_accuracy(
    config: Config, image_shape: tuple[int, int, int]
) -> Callable[[TrainState, jax.Array], objectives.Metrics]:
    """`accuracy(state, images [B, H, W, C])`: D's accuracies and calibrated losses on held-out real images against fresh samples.

    The generators are those that D was trained against, never their averages, in evaluation mode; the spectral vectors as they
    stand.
    """
    _, discriminator = build(config, image_shape)
    generate, pack = make_generate(config, image_shape), config.method.pack

    @partial(jax.jit, compiler_options=conv.compiler_options(seldom=True))
    def accuracy(state: TrainState, images: jax.Array) -> objectives.Metrics:
        key, d = jax.random.fold_in(state.key, Stream.JUDGE), state.discriminator
        params = spectral.normalise(d.params, d.spectral_vectors, 0)[0]

        def outputs_of(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
            latents, real = inputs
            tuples = jnp.concatenate([generate(_live(state), latents), scale(real)])
            padded = networks.pad_to(tuples.reshape(-1, *image_shape), config.network)
            flat: jax.Array = discriminator.apply({"params": params}, packed(pack, padded))  # type: ignore[assignment]
            return flat.reshape(len(tuples), -1, flat.shape[-1])

        images = images[: len(images) - len(images) % pack]
        latents = draw_latents(config, key, len(images))
        outputs = _join(jax.lax.map(outputs_of, (_cut(latents, pack), _cut(images[None], pack))))
        accuracies = objectives.accuracy(objectives.read_scores(config.method, outputs), key)
        return {**accuracies, **objectives.calibrated(config.method, outputs)}

    return accuracy


def _cut(x: jax.Array, multiple: int = 1) -> jax.Array:
    """[K, n, ...] in blocks of equal length: [blocks, K, b, ...]; b a multiple, which n must be, too."""
    size = max(b for b in range(multiple, max(_BLOCK, multiple) + 1, multiple) if x.shape[1] % b == 0)
    return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)


def _join(blocks: jax.Array) -> jax.Array:
    """The reverse of `_cut`."""
    return blocks.swapaxes(0, 1).reshape(blocks.shape[1], -1, *blocks.shape[3:])
