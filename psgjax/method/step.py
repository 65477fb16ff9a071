"""One update as a pure function, and many updates as one jitted, donated program.

`make_step(config, image_shape)` returns `step(state, images) -> (state, metrics)`; everything that changes lives in
`TrainState`, and all randomness follows from `state.key` and `state.step`. `make_run` loops over the step on the device:
batches are drawn there by a permutation for each epoch, from a data set that stays in uint8 and is an argument of the program.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from psgjax import networks
from psgjax.config import Config
from psgjax.lowering import conv
from psgjax.method import objectives, spectral
from psgjax.method.passes import PullImages, generate_and_pull, score_and_pull
from psgjax.method.sharding import Shards
from psgjax.method.state import (
    Discriminator,
    Generators,
    Stream,
    TrainState,
    averaged,
    build,
    layout,
    optimizers,
    scheduled,
)

Tree = Any

Step = Callable[[TrainState, jax.Array], tuple[TrainState, objectives.Metrics]]


def pass_keys(state: TrainState, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The keys of the latents and of everything else in pass `index` of D in the current step."""
    step_key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.STEPS), state.step)
    latents, other = jax.random.split(jax.random.fold_in(step_key, index))
    return latents, other


def _where(keep_new: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(keep_new, a, b), new, old)


def scale(images: jax.Array) -> jax.Array:
    """Pixels uint8 in [0, 255] to float32 in [-1, 1]; what is float already passes through."""
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


def draw_latents(config: Config, key: jax.Array, count: int) -> jax.Array:
    """Latents z ~ N(0, I), [K, count, latent_size]: the same for every generator, or each its own (`method.latents`)."""
    size = config.network.latent_size
    if config.method.latents == "shared":
        return jnp.broadcast_to(jax.random.normal(key, (count, size)), (config.method.generators, count, size))
    return jax.random.normal(key, (config.method.generators, count, size))


def make_step(
    config: Config, image_shape: tuple[int, int, int], shards: Shards | None = None, platform: str | None = None
) -> Step:
    """The update of a method as `step(state, images) -> (state, metrics)`.

    `images` is [n, B, H, W, C], uint8, or float in [-1, 1]; n = `method.discriminator_steps`. Pure: it can be jitted, mapped over
    replicas, scanned and sharded from outside. `metrics` are those of `objectives.evaluate`; in the alternating order what they say
    of D is the mean over its own passes, and the rest of the generators' pass.

    With `shards`, the step of one device of a mesh, inside `jax.shard_map`: `images` are its share [n, b, H, W, C], the generators
    of the state are its own, and everything else is the whole. The platform is what the step is compiled for, the default one where
    none is given.
    """
    method = config.method
    shards = shards or Shards()
    generator, discriminator = build(config, image_shape, "data" if shards.data > 1 else None)
    g_optimizer, d_optimizer = optimizers(config)

    def generate(g: Generators, latents: jax.Array) -> tuple[jax.Array, Tree, PullImages]:
        return generate_and_pull(generator, g.params, g.batch_stats, latents, platform)

    def normalised(params: Tree, vectors: spectral.Vectors, iterations: int) -> tuple[Tree, spectral.Vectors]:
        return spectral.normalise(params, vectors, iterations) if method.spectral_norm else (params, vectors)

    def discriminate(params: Tree, x: jax.Array) -> jax.Array:
        return discriminator.apply({"params": params}, x)  # type: ignore[return-value]

    def score(params: Tree, images: jax.Array) -> jax.Array:
        return discriminate(params, images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], -1)

    def score_tuples(params: Tree, fakes: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The outputs of generated images [k, b, ...] and real ones [n, ...] from one pass of D: [k, b, O] and [1, n, O]."""
        outputs = discriminate(params, jnp.concatenate([fakes.reshape(-1, *real.shape[1:]), real]))
        return outputs[: -len(real)].reshape(*fakes.shape[:2], -1), outputs[None, -len(real) :]

    def penalty(params: Tree, fakes: jax.Array, real: jax.Array, key: jax.Array) -> jax.Array:
        """E (|grad D| - 1)^2 on lines between real and generated images (Gulrajani et al. 2017, equation 3)."""
        shape = (method.generators, len(real) * shards.data, *(1 for _ in fakes.shape[2:]))
        t = shards.own(jax.random.uniform(key, shape))
        between = t * real[None] + (1 - t) * fakes
        slopes = jax.grad(lambda images: score(params, images).sum())(between)
        norms = jnp.sqrt(jnp.sum(slopes**2, axis=tuple(range(2, slopes.ndim))) + 1e-12)
        return method.gradient_penalty * jnp.sum((norms - 1) ** 2) / math.prod(shape)

    def update_discriminator(
        old: Discriminator, vectors: spectral.Vectors, grads: Tree, any_selected: jax.Array, now: jax.Array
    ) -> Discriminator:
        grads = shards.sum(grads, "generator", "data")
        updates, opt_state = d_optimizer.update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, scheduled(config, updates, now))
        new = Discriminator(params, opt_state, vectors)
        return new if method.gate == "none" else _where(any_selected, new, old)

    def update_generators(
        old: Generators, batch_stats: Tree, grads: Tree, any_selected: jax.Array, now: jax.Array
    ) -> Generators:
        def one(old: Generators, batch_stats: Tree, grads: Tree, any_selected: jax.Array) -> Generators:
            updates, opt_state = g_optimizer.update(grads, old.opt_state, old.params)
            params = optax.apply_updates(old.params, scheduled(config, updates, now))
            new = Generators(params, batch_stats, opt_state, averaged(config, old.average, params))
            return new if method.gate == "none" else _where(any_selected, new, old)

        own_selected = shards.part(any_selected, 0, "generator")
        return jax.vmap(one)(old, batch_stats, shards.sum(grads, "data"), own_selected)

    def simultaneous(state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        """Both sides from one forward pass of the generators and one of D, and one pass back through each where that is enough."""
        latents_key, other_key = pass_keys(state, 0)
        g, d = state.generators, state.discriminator
        real = networks.pad_to(scale(images[0]), config.network)
        latents = shards.own(draw_latents(config, latents_key, len(real) * shards.data))
        fakes, batch_stats, pull_generators = generate(g, latents)
        params, pull_norm, vectors = jax.vjp(
            lambda params: normalised(params, d.spectral_vectors, method.power_iterations), d.params, has_aux=True
        )
        real_part = shards.part(real[None], 1, "generator")
        *outputs, pull_scores = score_and_pull(discriminator, params, fakes, real_part, platform)
        d_slopes, g_slopes, d_any, g_any, metrics = objectives.evaluate(method, shards.gather(*outputs), other_key)
        score_grads, image_slopes = pull_scores(*shards.split(d_slopes), shards.own(g_slopes))
        (d_grads,) = pull_norm(score_grads)
        if method.loss == "wasserstein":
            extra = jax.grad(lambda params: penalty(normalised(params, vectors, 0)[0], fakes, real, other_key))(
                d.params
            )
            d_grads = jax.tree.map(jnp.add, d_grads, extra)
        g_grads = pull_generators(image_slopes)
        state = dataclasses.replace(
            state,
            generators=update_generators(g, batch_stats, g_grads, g_any, state.step),
            discriminator=update_discriminator(d, vectors, d_grads, d_any, state.step),
        )
        return state, metrics

    def alternating(state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        """D first, `discriminator_steps` times, each with its own images and latents; then the generators against the new D."""
        g = state.generators

        def train_discriminator(d: Discriminator, inputs: tuple) -> tuple[Discriminator, objectives.Metrics]:
            index, batch = inputs
            real = networks.pad_to(scale(batch), config.network)
            latents_key, other_key = pass_keys(state, index)
            latents = shards.own(draw_latents(config, latents_key, len(real) * shards.data))
            fakes, *_ = generate(g, latents)
            params, pull_norm, vectors = jax.vjp(
                lambda params: normalised(params, d.spectral_vectors, method.power_iterations), d.params, has_aux=True
            )
            real_part = shards.part(real, 0, "generator")
            outputs, pull = jax.vjp(lambda params: score_tuples(params, fakes, real_part), params)
            d_slopes, _, d_any, _, metrics = objectives.evaluate(method, shards.gather(*outputs), other_key)
            (grads,) = pull_norm(*pull(shards.split(d_slopes)))
            if method.loss == "wasserstein":
                extra = jax.grad(lambda params: penalty(normalised(params, vectors, 0)[0], fakes, real, other_key))(
                    d.params
                )
                grads = jax.tree.map(jnp.add, grads, extra)
            now = state.step + index / method.discriminator_steps
            return update_discriminator(d, vectors, grads, d_any, now), metrics

        indices = jnp.arange(method.discriminator_steps)
        d, passes = jax.lax.scan(train_discriminator, state.discriminator, (indices, images))

        real = networks.pad_to(scale(images[-1]), config.network)
        latents_key, other_key = pass_keys(state, method.discriminator_steps)
        latents = shards.own(draw_latents(config, latents_key, len(real) * shards.data))
        fakes, batch_stats, pull_generators = generate(g, latents)
        params, _ = normalised(d.params, d.spectral_vectors, 0)
        fake_outputs, pull_fake = jax.vjp(lambda images: score(params, images), fakes)
        outputs = shards.gather(fake_outputs, score(params, shards.part(real[None], 1, "generator")))
        _, g_slopes, _, g_any, metrics = objectives.evaluate(method, outputs, other_key)
        g_grads = pull_generators(*pull_fake(shards.own(g_slopes)))
        generators = update_generators(g, batch_stats, g_grads, g_any, state.step)
        metrics = objectives.of_each_side(jax.tree.map(lambda each: each.mean(0), passes), metrics)
        return dataclasses.replace(state, generators=generators, discriminator=d), metrics

    update = simultaneous if method.update_order == "simultaneous" else alternating

    def step(state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        with jax.default_matmul_precision("tensorfloat32" if config.precision == "tf32" else "float32"):
            state, metrics = update(state, images)
        return dataclasses.replace(state, step=state.step + 1), metrics

    return step


def epoch_order(key: jax.Array, epoch: jax.Array | int, train_images: int) -> jax.Array:
    """The order in which an epoch visits the training images, int32 [N], from the key of the state."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, Stream.EPOCHS), epoch), train_images)


def make_run(
    config: Config,
    train_images: int,
    image_shape: tuple[int, int, int],
    replicas: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.stages.Wrapped:
    """Many updates as one program: `run(state, images, updates) -> (state, sums)`, jitted; the state given is donated.

    With `replicas`, mapped over a leading axis of states, and of sums.

    It stops after the first update with a metric that is not finite, and makes none from the state that this leaves, whose `step`
    counts that update. Replicas stop each for itself.

    `images` is the whole training set, uint8 [N, H, W, C], an argument that stays on the device. `updates`, int32 [], is how
    many to make: a number at run time, so that nothing is compiled twice; they must not cross the end of an epoch. The order of the
    images in an epoch is a permutation that follows from the seed and the epoch. `sums` holds the metrics added up since the
    epoch's beginning, so that results do not depend on how an epoch is cut into calls.

    With a `mesh` (`sharding.make_mesh`), spread over its devices: the state lies as `layout` says, the images as
    `sharding.place_images` puts them. The results are those of one device, up to the rounding of sums.
    """
    shards = Shards() if mesh is None else Shards(mesh.shape["generator"], mesh.shape["data"])
    platform = None if mesh is None else mesh.devices.flat[0].platform
    step = make_step(config, image_shape, shards, platform)
    per_step = (config.method.discriminator_steps, config.batch_size)
    per_epoch = config.steps_per_epoch(train_images)

    def run(state: TrainState, images: jax.Array, updates: jax.Array) -> tuple[TrainState, Tree]:
        order = epoch_order(state.key, state.step // per_epoch, train_images)
        last = state.step + updates

        def goes_on(state: TrainState) -> jax.Array:
            finite = [jnp.isfinite(total).all() for total in jax.tree.leaves(state.metrics)]
            return (state.step < last) & jnp.stack(finite).all()

        def body(state: TrainState) -> TrainState:
            position = state.step % per_epoch
            chosen = jax.lax.dynamic_slice_in_dim(
                order, position * per_step[0] * per_step[1], per_step[0] * per_step[1]
            )
            batch = shards.pick(images, chosen.reshape(per_step))
            before = jax.tree.map(lambda total: jnp.where(position == 0, 0.0, total), state.metrics)
            state, metrics = step(state, batch)
            return dataclasses.replace(state, metrics=jax.tree.map(jnp.add, before, metrics))

        state = jax.lax.while_loop(goes_on, body, state)
        return state, jax.tree.map(jnp.copy, state.metrics)

    mapped = jax.vmap(run, in_axes=(0, None, None)) if replicas else run
    if mesh is not None:
        # Each device runs its own share as a whole: an axis that convolutions are unrolled over must not be cut under them.
        specs = jax.tree.map(lambda sharding: sharding.spec, layout(mesh, replicas))
        inputs, outputs = (specs, PartitionSpec("data"), PartitionSpec()), (specs, specs.metrics)
        mapped = jax.shard_map(mapped, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(mapped, donate_argnums=0, compiler_options=conv.compiler_options(platform))
