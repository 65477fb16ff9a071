"""The plain reading: an update of any method on one page, as the paper and JAX have it. `step.py` is the same update, made fast.

Flax's own layers, `vmap` over generators, `value_and_grad`, Optax. A test holds `step.py` to this page for every named method, and
with R1 and R2. Two levels of convolutions, which `dcgan` has below 32x32; the readings of Algorithm 1 are the defaults.
"""

from __future__ import annotations

import dataclasses
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


class Layers(nn.Sequential):
    """One layer after the other, each under the name that it is given."""

    layers: Any
    preserve_adopted_names = True


def networks(image_shape: tuple[int, int, int], width: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Latents [B, latent_size] to images [B, H, W, C] in [-1, 1], and such images to D's outputs [B, O] (Radford et al. 2016)."""
    h, w, channels = image_shape[0] // 4, image_shape[1] // 4, image_shape[2]
    norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9)
    up = partial(nn.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), transpose_kernel=True)
    down = partial(nn.Conv, kernel_size=(4, 4), strides=(2, 2))
    leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
    g = [nn.Dense(h * w * 2 * width, use_bias=False, name="Dense_0"), lambda x: x.reshape(-1, h, w, 2 * width)]
    g += [norm(name="BatchNorm_0"), nn.relu, up(width, use_bias=False, name="Up_0")]
    g += [norm(name="BatchNorm_1"), nn.relu, up(channels, name="Up_1"), jnp.tanh]
    d = [down(width, name="Down_0"), leaky_relu, down(2 * width, name="Down_1"), leaky_relu]
    d += [lambda x: x.reshape(len(x), -1), nn.Dense(outputs, name="Dense_0")]
    return Layers(g), Layers(d)


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


class Plain:
    """The update of a method on images [H, W, C]."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        self.config = config
        outputs = objectives.outputs_needed(config.method)
        self.generator, self.discriminator = networks(image_shape, config.network.width, outputs)

    def fakes(self, g: Generators, key: jax.Array) -> tuple[jax.Array, Tree]:
        """Images of every generator as D sees them, [K, B, H, W, C], and the running statistics with this batch in them."""
        z = draw_latents(self.config, key, self.config.batch_size)
        apply = jax.vmap(partial(self.generator.apply, mutable=["batch_stats"]))
        images, new = apply({"params": g.params, "batch_stats": g.batch_stats}, z)
        return packed(self.config.method.pack, images), new["batch_stats"]

    def judge(self, params: Tree, images: jax.Array) -> jax.Array:
        """D's outputs for images, [..., H, W, C] to [..., O]."""
        flat: Any = self.discriminator.apply({"params": params}, images.reshape(-1, *images.shape[-3:]))
        return flat.reshape(*images.shape[:-3], -1)

    def updated(self, side: int, now: jax.Array, old: Any, grads: Tree, learns: jax.Array, others: dict) -> Any:
        """One generator (side 0) or D (1) after its optimiser's update, with its other fields; as it was unless it learns."""
        updates, opt_state = optimizers(self.config, now)[side].update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, scheduled(self.config, updates, now))
        if isinstance(old, Generators):
            others = {**others, "average": averaged(self.config, old.average, params, now)}
        new = dataclasses.replace(old, params=params, opt_state=opt_state, **others)
        return jax.tree.map(partial(jnp.where, learns), new, old)

    def update_d(self, d: Discriminator, g: Generators, real: jax.Array, keys: Any, now: jax.Array) -> tuple:
        """D after an update on real images [B, H, W, C] and as many of each generator; and its loss."""
        method = self.config.method
        fakes, _ = self.fakes(g, keys[0])

        def objective(params: Tree) -> tuple[jax.Array, tuple]:
            params, vectors = spectral.normalise(params, d.spectral_vectors, method.power_iterations)
            loss, _, learns, _ = algorithm_1(method, self.judge(params, jnp.concatenate([fakes, real[None]])))
            for name, weight in method.regularisers:  # in every update, whatever D chose
                score = lambda images: objectives.read_scores(method, self.judge(params, images))  # noqa: E731
                draw = lambda sampler, *shape: sampler(keys[1], (*fakes.shape[:2], *shape))  # noqa: E731
                value = parts.REGULARISERS[name](score, real, fakes, draw).mean()
                loss = loss + schedules.penalty(self.config, now) * weight * value
            return loss, (learns | bool(method.regularisers), {"spectral_vectors": vectors})

        (loss, aux), grads = jax.value_and_grad(objective, has_aux=True)(d.params)
        return self.updated(1, now, d, grads, *aux), loss

    def update_g(self, g: Generators, d_params: Tree, real: jax.Array, keys: Any, now: jax.Array) -> tuple:
        """The generators after an update against D, and their losses, [K]."""

        def objective(params: Tree) -> tuple[jax.Array, tuple]:
            fakes, batch_stats = self.fakes(dataclasses.replace(g, params=params), keys[0])
            outputs = self.judge(d_params, jnp.concatenate([fakes, real[None]]))
            own = jnp.eye(len(fakes), len(outputs), dtype=bool)[..., None, None]
            seen = jnp.where(own, outputs, jax.lax.stop_gradient(outputs))  # to each, others' images are constants
            _, losses, _, learn = jax.vmap(partial(algorithm_1, self.config.method))(seen)  # [K, K]
            return losses.trace(), (losses.diagonal(), learn[0], {"batch_stats": batch_stats})

        (_, (losses, *aux)), grads = jax.value_and_grad(objective, has_aux=True)(g.params)
        return jax.vmap(partial(self.updated, 0, now))(g, grads, *aux), losses

    def step(self, state: TrainState, images: jax.Array) -> tuple[TrainState, objectives.Metrics]:
        """On images [n, B, H, W, C], n = `method.discriminator_steps`; with the losses that were optimised."""
        d, method = state.discriminator, self.config.method
        real = packed(method.pack, scale(images))
        for i, batch in enumerate(real):
            now = state.step + i / len(real)
            d, d_loss = self.update_d(d, state.generators, batch, pass_keys(state, i), now)
        # Then the generators: against the new D, with latents of their own, or both sides at once.
        judge, iterations, i = d, 0, len(real)
        if method.update_order == "simultaneous":
            judge, iterations, i = state.discriminator, method.power_iterations, 0
        params, _ = spectral.normalise(judge.params, judge.spectral_vectors, iterations)
        g, g_losses = self.update_g(state.generators, params, real[-1], pass_keys(state, i), state.step)
        losses = {"discriminator": d_loss, "generators": g_losses}
        return dataclasses.replace(state, step=state.step + 1, generators=g, discriminator=d), losses
