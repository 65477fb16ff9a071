"""One update as a pure function.

`reference.py` has the same update on one page, as the paper and JAX have it; whoever wants to understand reads that first.

`make_step(config, image_shape)` returns `step(state, images) -> (state, metrics)`; everything that changes lives in
`TrainState`, and all randomness follows from `state.key` and `state.step`. `epochs.py` makes many updates in one program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from psgjax import networks
from psgjax.config import Config
from psgjax.method import objectives, regularisers, schedules, spectral
from psgjax.method.packing import packed, unpacked
from psgjax.method.passes import ImagesVjp, Penalty, generate_vjp, score_vjp
from psgjax.method.sharding import Shards
from psgjax.method.state import (
    Discriminator,
    Generators,
    Stream,
    TrainState,
    averaged,
    build,
    optimizers,
    scheduled,
)

Tree = Any

Step = Callable[[TrainState, jax.Array], tuple[TrainState, objectives.Metrics]]


@dataclass(frozen=True)
class Update:
    """What an update is made of: everything that does not change with it."""

    config: Config
    generator: networks.Generator
    discriminator: networks.Discriminator
    shards: Shards
    platform: str | None


class Batch(NamedTuple):
    """What one pass of D is about: this device's share of a batch, and the way back to the generators."""

    real: jax.Array  # [b, H, W, C] in [-1, 1], as large as the network works on; as D sees them (`packing.packed`)
    fakes: jax.Array  # [k, b, H, W, C], alike
    batch_stats: Tree  # the generators', with this batch in them
    vjp: ImagesVjp
    key: jax.Array  # for everything random that follows


def make_step(
    config: Config, image_shape: tuple[int, int, int], shards: Shards | None = None, platform: str | None = None
) -> Step:
    """The update of a method as `step(state, images) -> (state, metrics)`.

    >>> import jax, numpy, psgjax
    >>> from psgjax.method.state import init
    >>> config = psgjax.Config(network=psgjax.Network(width=2, latent_size=4), batch_size=4)
    >>> step = jax.jit(psgjax.make_step(config, (8, 8, 1)))
    >>> state, metrics = step(init(config, (8, 8, 1)), numpy.zeros((1, 4, 8, 8, 1), numpy.uint8))
    >>> int(state.step), metrics["loss"]["generators"].shape
    (1, (2,))

    `images` is [n, B, H, W, C], uint8, or float in [-1, 1]; n = `method.discriminator_steps`. Pure: it can be jitted, mapped over
    replicas, scanned and sharded from outside. `metrics` are those of `objectives.evaluate`, and `regularisers`, the penalties that
    were added to D's loss, if there are any. In the alternating order, what they say of D is the mean over its own passes.

    With `shards`, the step of one device of a mesh, inside `jax.shard_map`: `images` are its share [n, b, H, W, C], the generators
    of the state are its own, and everything else is replicated. The platform is what the step is compiled for (None: the default).
    """
    shards = shards or Shards()
    modules = build(config, image_shape, "data" if shards.data > 1 else None)
    update = Update(config, *modules, shards, platform)
    order = {"simultaneous": simultaneous, "alternating": alternating}[config.method.update_order]

    def step(state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        with jax.default_matmul_precision("tensorfloat32" if config.precision == "tf32" else "float32"):
            state, metrics = order(update, state, images)
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def simultaneous(update: Update, state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
    """Both sides from one forward pass of the generators and one of D, and one pass back through each where that is enough."""
    method, shards, d = update.config.method, update.shards, state.discriminator
    batch = draw(update, state, images[0], 0)
    params, vectors, norm_vjp = normalised(update, d)
    real_part = shards.part(batch.real[None], 1, "generator")
    weights = regularisers.of_the_pass(method, shards, real_part, batch.fakes)
    passed = score_vjp(update.discriminator, params, batch.fakes, real_part, update.platform, weights)
    *outputs, outputs_vjp, made = passed
    found = objectives.evaluate(method, shards.gather(*outputs), batch.key)
    d_cotangents, g_cotangents, d_any, g_any, metrics = found
    d_grads, image_cotangents = outputs_vjp(*shards.split(d_cotangents), shards.own(g_cotangents))
    d_grads, penalties = regularised(update, params, batch, d_grads, state.step, made)
    (d_grads,) = norm_vjp(d_grads)
    g_grads = batch.vjp(image_cotangents)
    d, penalties = update_discriminator(update, d, vectors, d_grads, penalties, d_any, state.step)
    g = update_generators(update, state.generators, batch.batch_stats, g_grads, g_any, state.step)
    return dataclasses.replace(state, generators=g, discriminator=d), {**metrics, **penalties}


def alternating(update: Update, state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
    """D first, `discriminator_steps` times, each with its own images and latents; then the generators against the new D."""
    method, shards = update.config.method, update.shards

    def discriminator_pass(d: Discriminator, inputs: tuple) -> tuple[Discriminator, objectives.Metrics]:
        index, own_images = inputs
        batch = draw(update, state, own_images, index)
        params, vectors, norm_vjp = normalised(update, d)
        real_part = shards.part(batch.real, 0, "generator")
        outputs, outputs_vjp = jax.vjp(lambda params: score_tuples(update, params, batch.fakes, real_part), params)
        cotangents, _, any_selected, _, metrics = objectives.evaluate(method, shards.gather(*outputs), batch.key)
        (grads,) = outputs_vjp(shards.split(cotangents))
        now = state.step + index / method.discriminator_steps
        grads, penalties = regularised(update, params, batch, grads, now)
        (grads,) = norm_vjp(grads)
        d, penalties = update_discriminator(update, d, vectors, grads, penalties, any_selected, now)
        return d, {**metrics, **penalties}

    indices = jnp.arange(method.discriminator_steps)
    d, passes = jax.lax.scan(discriminator_pass, state.discriminator, (indices, images))

    batch = draw(update, state, images[-1], method.discriminator_steps)
    params = spectral.normalise(d.params, d.spectral_vectors, 0)[0]
    fake_outputs, fake_vjp = jax.vjp(lambda images: score(update, params, images), batch.fakes)
    outputs = shards.gather(fake_outputs, score(update, params, shards.part(batch.real[None], 1, "generator")))
    _, cotangents, _, any_selected, metrics = objectives.evaluate(method, outputs, batch.key)
    grads = batch.vjp(*fake_vjp(shards.own(cotangents)))
    g = update_generators(update, state.generators, batch.batch_stats, grads, any_selected, state.step)
    metrics = objectives.of_each_side(jax.tree.map(lambda each: each.mean(0), passes), metrics)
    return dataclasses.replace(state, generators=g, discriminator=d), metrics


def pass_keys(state: TrainState, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The keys of the latents and of everything else in pass `index` of D in the current step."""
    step_key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.STEPS), state.step)
    latents, other = jax.random.split(jax.random.fold_in(step_key, index))
    return latents, other


def scale(images: jax.Array) -> jax.Array:
    """Pixels uint8 in [0, 255] to float32 in [-1, 1]; what is float already passes through."""
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


def draw_latents(config: Config, key: jax.Array, count: int) -> jax.Array:
    """Latents z ~ N(0, I), [K, count, latent_size]: the same for every generator, or each its own (`method.latents`)."""
    size = config.network.latent_size
    if config.method.latents == "shared":
        return jnp.broadcast_to(jax.random.normal(key, (count, size)), (config.method.generators, count, size))
    return jax.random.normal(key, (config.method.generators, count, size))


def draw(update: Update, state: TrainState, images: jax.Array, index: jax.Array | int) -> Batch:
    """The batch of pass `index`: images [b, H, W, C] scaled, and as many from each generator."""
    config, shards, g = update.config, update.shards, state.generators
    real = networks.pad_to(scale(images), config.network)
    latents_key, other_key = pass_keys(state, index)
    latents = shards.own(draw_latents(config, latents_key, len(real) * shards.data))
    fakes, batch_stats, vjp = generate_vjp(update.generator, g.params, g.batch_stats, latents, update.platform)
    pack = config.method.pack
    return Batch(
        packed(pack, real),
        packed(pack, fakes),
        batch_stats,
        lambda cotangents: vjp(unpacked(pack, cotangents)),
        other_key,
    )


def normalised(update: Update, d: Discriminator) -> tuple[Tree, spectral.Vectors, Callable[[Tree], tuple[Tree]]]:
    """D's parameters as they are applied in its own update, its next spectral vectors, and the vjp to the raw parameters."""
    iterations = update.config.method.power_iterations  # (without spectral normalisation there is no vector to iterate)
    params, vjp, vectors = jax.vjp(
        lambda params: spectral.normalise(params, d.spectral_vectors, iterations), d.params, has_aux=True
    )
    return params, vectors, vjp


def score(update: Update, params: Tree, images: jax.Array) -> jax.Array:
    """D's outputs [..., O] for images [..., H, W, C]."""
    flat = update.discriminator.apply({"params": params}, images.reshape(-1, *images.shape[-3:]))
    outputs: jax.Array = flat.reshape(*images.shape[:-3], -1)  # type: ignore[union-attr]
    return outputs


def score_tuples(update: Update, params: Tree, fakes: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The outputs of generated images [k, b, ...] and real ones [n, ...] from one pass of D: [k, b, O] and [1, n, O]."""
    outputs = score(update, params, jnp.concatenate([fakes.reshape(-1, *real.shape[1:]), real]))
    return outputs[: -len(real)].reshape(*fakes.shape[:2], -1), outputs[None, -len(real) :]


def regularised(
    update: Update, params: Tree, batch: Batch, grads: Tree, now: jax.Array, made: Penalty | None = None
) -> tuple[Tree, objectives.Metrics]:
    """D's gradients with those of the regularisers added, and these' values: this device's parts of their sums.

    `made` are those that the pass of D has made on its way.
    """
    if not update.config.method.regularisers:
        return grads, {}
    done = made[1] if made else {}
    rest = tuple(each for each in update.config.method.regularisers if each[0] not in done)
    method = dataclasses.replace(update.config.method, regularisers=rest)

    def total(params: Tree) -> tuple[jax.Array, objectives.Metrics]:
        def one_score(images: jax.Array) -> jax.Array:
            return objectives.read_scores(method, score(update, params, images))

        return regularisers.penalties(method, update.shards, one_score, batch.real, batch.fakes, batch.key)

    more, values = jax.grad(total, has_aux=True)(params)
    if made:
        more, values = jax.tree.map(jnp.add, more, made[0]), {**values, **done}
    if update.config.optimizer.penalty_end != 1:
        weight = schedules.penalty(update.config, now)
        more, values = jax.tree.map(lambda leaf: weight * leaf, (more, values))
    return jax.tree.map(jnp.add, grads, more), {"regularisers": values}


def update_discriminator(
    update: Update,
    old: Discriminator,
    vectors: spectral.Vectors,
    grads: Tree,
    penalties: objectives.Metrics,
    any_selected: jax.Array,
    now: jax.Array,
) -> tuple[Discriminator, objectives.Metrics]:
    """D after an update, and the penalties; left alone where the gate selected no tuple and there are no penalties."""
    method = update.config.method
    grads, penalties = update.shards.sum((grads, penalties), "generator", "data")
    _, optimizer = optimizers(update.config, now)
    updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
    params = optax.apply_updates(old.params, scheduled(update.config, updates, now))
    new = Discriminator(params, opt_state, vectors)
    always = method.gate == "none" or method.regularisers
    return new if always else _where(any_selected, new, old), penalties


def update_generators(
    update: Update, old: Generators, batch_stats: Tree, grads: Tree, any_selected: jax.Array, now: jax.Array
) -> Generators:
    """The generators after an update; one for which the gate selected no tuple is left alone."""
    config = update.config
    optimizer, _ = optimizers(config, now)

    def one(old: Generators, batch_stats: Tree, grads: Tree, any_selected: jax.Array) -> Generators:
        updates, opt_state = optimizer.update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, scheduled(config, updates, now))
        new = Generators(params, batch_stats, opt_state, averaged(config, old.average, params, now))
        return new if config.method.gate == "none" else _where(any_selected, new, old)

    own_selected = update.shards.part(any_selected, 0, "generator")
    return jax.vmap(one)(old, batch_stats, update.shards.sum(grads, "data"), own_selected)


def _where(keep_new: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(keep_new, a, b), new, old)
