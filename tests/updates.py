"""One update of a tiny configuration, compiled once, and what tests compare of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import SHAPE, first_state

from psgjax.method import step as stepping


def batch_of(config, images):
    count = config.method.discriminator_steps * config.batch_size
    return jnp.asarray(images[:count]).reshape(config.method.discriminator_steps, config.batch_size, *SHAPE)


@functools.cache
def compiled_step(config):
    return jax.jit(stepping.make_step(config, SHAPE))


def one_step(config, images, state=None):
    return compiled_step(config)(first_state(config) if state is None else state, batch_of(config, images))


@jax.jit
def stacked(*members):
    """Trees of the same structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


@functools.partial(jax.jit, static_argnums=1)
def member(tree, index):
    """The reverse of `stacked`."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def first_moments(state):
    """Adam's first moments: after one step, (1 - beta1) times the gradients."""
    return [opt_state[0].mu for opt_state in (state.discriminator.opt_state, state.generators.opt_state)]


def latents_of(config, state):
    return stepping.draw_latents(config, stepping.pass_keys(state, 0)[0], config.batch_size)


def close(one, other):
    """Whether gradients agree up to rounding, on the scale of the largest (some are zero but for rounding)."""
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.shape == b.shape and np.abs(a - b).max() <= 1e-5 * scale for a, b in pairs)
