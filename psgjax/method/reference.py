"""The plain reading: an update of any method on one page, as the paper and JAX have it. `step.py` is the same update, made fast.

Flax's own layers, `vmap` over generators, `value_and_grad`, Optax. A test holds `step.py` to this page for every named method, and
with R1 and R2. Two levels of convolutions, which `dcgan` has below 32x32; the readings of Algorithm 1 are the defaults.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from psgjax import parts
from psgjax.config import Config, Method
from psgjax.method import objectives, schedules, spectral
from psgjax.method.packing import packed
from psgjax.method.state import Discriminator, Generators, TrainState, averaged, optimizers, scheduled
from psgjax.method.step import draw_latents, pass_keys, scale

Tree = Any
BatchNorm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
Up = partial(nn.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), transpose_kernel=True)


class GeneratorNet(nn.Module):
    """Latents [B, latent_size] to images [B, H, W, C] in [-1, 1], normalised by the batch's own statistics."""

    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """As Radford et al. 2016."""
        height, width, channels = self.image_shape
        x = nn.Dense(height * width // 16 * 2 * self.width, use_bias=False)(z)
        x = nn.relu(BatchNorm()(x.reshape(-1, height // 4, width // 4, 2 * self.width)))
        x = nn.relu(BatchNorm()(Up(self.width, use_bias=False, name="Up_0")(x)))
        return jnp.tanh(Up(channels, name="Up_1")(x))


class DiscriminatorNet(nn.Module):
    """Images [B, H, W, C] to outputs [B, O], a score or what the loss needs; each row of one image alone."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """As Radford et al. 2016, without batch normalisation."""
        for i in range(2):
            x = nn.leaky_relu(nn.Conv(self.width << i, (4, 4), (2, 2), name=f"Down_{i}")(x), 0.2)
        return nn.Dense(self.outputs)(x.reshape(len(x), -1))


def algorithm_1(method: Method, outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """D's loss and each generator's, [] and [K], of outputs [K + 1, B, O], the real images' last; and who learns, as bool.

    D calls one item of each triplet real. Whoever made another is updated: the generators that were not chosen, and D unless it
    chose the real image; where it did, all generators share their average loss.
    """
    d_loss, g_loss = objectives.losses(method, outputs)  # [B] and [K, B]
    if classify := parts.loss_of(method).classifier:
        shared = method.diversity_weight * parts.resolved(classify)(outputs)
        d_loss, g_loss = d_loss + shared.mean(0), g_loss + shared
    if method.gate == "none":
        return d_loss.mean(), g_loss.mean(1), jnp.array(True), jnp.full(len(g_loss), True)
    called_real = objectives.read_scores(method, outputs).argmax(0)[None]
    right = called_real == len(g_loss)
    others = (called_real != jnp.arange(len(g_loss))[:, None]) & ~right
    g_loss = jnp.where(right, g_loss.mean(0, keepdims=True), others * g_loss)
    return (~right[0] * d_loss).mean(), g_loss.mean(1), (~right).any(), (others | right).any(1)


@dataclass(frozen=True)
class Plain:
    """The update of a method on images [H, W, C]."""

    config: Config
    image_shape: tuple[int, int, int]

    def generate(self, params: Tree, batch_stats: Tree, z: jax.Array) -> tuple[jax.Array, Tree]:
        """Images of latents [B, latent_size], and the running statistics with this batch in them."""
        generator = GeneratorNet(self.image_shape, self.config.network.width)
        images, new = generator.apply({"params": params, "batch_stats": batch_stats}, z, mutable=["batch_stats"])
        return images, new["batch_stats"]

    def judge(self, params: Tree, images: jax.Array) -> jax.Array:
        """D's outputs for images, [..., H, W, C] to [..., O]."""
        discriminator = DiscriminatorNet(self.config.network.width, objectives.outputs_needed(self.config.method))
        flat: Any = discriminator.apply({"params": params}, images.reshape(-1, *images.shape[-3:]))
        return flat.reshape(*images.shape[:-3], -1)

    def apply(self, side: int, old: Any, grads: Tree, now: jax.Array, **new: Tree) -> Any:
        """One side, the generators' (0) or D's (1), after Adam's update."""
        updates, opt_state = optimizers(self.config, now)[side].update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, scheduled(self.config, updates, now))
        return dataclasses.replace(old, params=params, opt_state=opt_state, **new)

    def update_d(self, d: Discriminator, g: Generators, real: jax.Array, keys: Any, now: jax.Array) -> tuple:
        """D after an update on real images [B, H, W, C] and as many of each generator; and its loss."""
        method = self.config.method
        z = draw_latents(self.config, keys[0], self.config.batch_size)
        fakes = packed(method.pack, jax.vmap(self.generate)(g.params, g.batch_stats, z)[0])

        def objective(params: Tree) -> tuple[jax.Array, tuple]:
            params, vectors = spectral.normalise(params, d.spectral_vectors, method.power_iterations)
            loss, _, learns, _ = algorithm_1(method, self.judge(params, jnp.concatenate([fakes, real[None]])))
            for name, weight in method.regularisers:  # in every update, whatever D chose
                score = lambda images: objectives.read_scores(method, self.judge(params, images))  # noqa: E731
                draw = lambda sampler, *shape: sampler(keys[1], (*fakes.shape[:2], *shape))  # noqa: E731
                value = parts.REGULARISERS[name](score, real, fakes, draw).mean()
                loss = loss + schedules.penalty(self.config, now) * weight * value
                learns = jnp.array(True)
            return loss, (vectors, learns)

        (loss, (vectors, learns)), grads = jax.value_and_grad(objective, has_aux=True)(d.params)
        return _where(learns, self.apply(1, d, grads, now, spectral_vectors=vectors), d), loss

    def update_g(self, g: Generators, d_params: Tree, real: jax.Array, keys: Any, now: jax.Array) -> tuple:
        """The generators after an update against D, and their losses."""
        config = self.config
        z = draw_latents(config, keys[0], config.batch_size)

        def objective(params: Tree) -> tuple[jax.Array, tuple]:
            fakes, batch_stats = jax.vmap(self.generate)(params, g.batch_stats, z)
            outputs = self.judge(d_params, jnp.concatenate([packed(config.method.pack, fakes), real[None]]))

            def own_loss(i: jax.Array) -> jax.Array:  # what D says of others' images is a constant to generator i
                mine = (jnp.arange(len(outputs)) == i)[:, None, None]
                return algorithm_1(config.method, jnp.where(mine, outputs, jax.lax.stop_gradient(outputs)))[1][i]

            losses = jax.vmap(own_loss)(jnp.arange(len(fakes)))
            return losses.sum(), (losses, batch_stats, algorithm_1(config.method, outputs)[3])

        (_, (losses, batch_stats, learn)), grads = jax.value_and_grad(objective, has_aux=True)(g.params)

        def one(g: Generators, batch_stats: Tree, grads: Tree, learns: jax.Array) -> Generators:
            new = self.apply(0, g, grads, now, batch_stats=batch_stats)
            return _where(learns, dataclasses.replace(new, average=averaged(config, g.average, new.params, now)), g)

        return jax.vmap(one)(g, batch_stats, grads, learn), losses

    def step(self, state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        """On images [n, B, H, W, C], n = `method.discriminator_steps`; with the losses that were optimised."""
        g, d, method = state.generators, state.discriminator, self.config.method
        real = packed(method.pack, scale(images))
        if method.update_order == "simultaneous":  # both sides judge the same images by the same D
            keys, iterations = pass_keys(state, 0), method.power_iterations
            d, d_loss = self.update_d(d, g, real[0], keys, state.step)
            judge = spectral.normalise(state.discriminator.params, state.discriminator.spectral_vectors, iterations)[0]
        else:
            for i, batch in enumerate(real):
                d, d_loss = self.update_d(d, g, batch, pass_keys(state, i), state.step + i / len(real))
            keys, judge = pass_keys(state, len(real)), spectral.normalise(d.params, d.spectral_vectors, 0)[0]
        g, g_losses = self.update_g(g, judge, real[-1], keys, state.step)
        losses = {"discriminator": d_loss, "generators": g_losses}
        return dataclasses.replace(state, step=state.step + 1, generators=g, discriminator=d), losses


def _where(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
