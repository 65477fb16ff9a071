"""Losses: functions of what D returned for tuples of K generated images and one real image, and of nothing else.

`outputs` is [K + 1, B, O], generators first, the real image last. A loss gives D's in each tuple, [B], and each generator's,
[K, B], before any gate; its name, paper, equilibrium and all else that is known of it stand in the table of `parts.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_softmax, logsumexp, relu, softplus

Losses = tuple[jax.Array, jax.Array]


def softmax(outputs: jax.Array) -> Losses:
    """D minimises -log p(x), generator i minimises -log p(i), p the softmax over the tuple's K + 1 scores."""
    log_p = log_softmax(outputs[..., 0], axis=0)
    return -log_p[-1], -log_p[:-1]


def softmax_minimax(outputs: jax.Array) -> jax.Array:
    """log(1 - p(i)) of each generator, [K, B]: the others against all, without cancellation near p = 1."""
    scores = outputs[..., 0]
    itself = jnp.eye(len(scores), dtype=bool)[:-1, :, None]
    return logsumexp(jnp.where(itself, -jnp.inf, scores[None]), axis=1) - logsumexp(scores, axis=0, keepdims=True)


def cross_entropy(outputs: jax.Array) -> Losses:
    """D's binary cross-entropy, real plus mean over generators; generators minimise -log of being called real."""
    fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    return softplus(-real) + softplus(fake).mean(0), softplus(-fake)


def cross_entropy_minimax(outputs: jax.Array) -> jax.Array:
    """Log of being called fake, [K, B]."""
    return -softplus(outputs[:-1, :, 0])


def hinge(outputs: jax.Array) -> Losses:
    """D's scores beyond a margin of one cost nothing; generators raise theirs."""
    fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    return relu(1 - real) + relu(1 + fake).mean(0), -fake


def hinge_minimax(outputs: jax.Array) -> jax.Array:
    """What D loses by the generated images, with the other sign, [K, B]."""
    return -relu(1 + outputs[:-1, :, 0])


def wasserstein(outputs: jax.Array) -> Losses:
    """The critic's mean score of generated images minus that of real ones."""
    fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    return fake.mean(0) - real, -fake


def mad_gan(outputs: jax.Array) -> Losses:
    """D's cross-entropy over K + 1 classes, averaged over the tuple; generators raise the log-odds of the class "real"."""
    own_class = jnp.moveaxis(jnp.diagonal(log_softmax(outputs), axis1=0, axis2=2), -1, 0)
    return -own_class.mean(0), softplus(-mad_gan_scores(outputs)[:-1])


def mad_gan_minimax(outputs: jax.Array) -> jax.Array:
    """Log of not being called real, [K, B]."""
    return -softplus(mad_gan_scores(outputs)[:-1])


def mad_gan_scores(outputs: jax.Array) -> jax.Array:
    """The log-odds of the class "real", [...] of [..., K + 1]."""
    return outputs[..., -1] - logsumexp(outputs[..., :-1], axis=-1)


def mgan_classifier(outputs: jax.Array) -> jax.Array:
    """MGAN's cross-entropy of naming the generator of each image, [K, B]; shared by classifier and generators."""
    return -jnp.moveaxis(jnp.diagonal(log_softmax(outputs[:-1, :, 1:]), axis1=0, axis2=2), -1, 0)
