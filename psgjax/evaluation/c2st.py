"""The classifier two-sample test (C2ST): whether generators make the same, by how well their samples' features name them.

References:
    Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, 2017, arXiv 1610.06545.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from psgjax.evaluation import exact_sums

_UPDATES = 300
_MOMENTUM = 0.9


def accuracy(features: ArrayLike, seed: int = 0) -> float:
    """Accuracy of a logistic regression that names a sample's generator, trained on one half of the samples, tested on the other.

    Args:
        features: [K, n, F], K generators, K and n at least 2.
        seed: Of the halves. Neither the order of the samples nor anything else matters.

    Returns:
        0 to 1: about 1 / K where generators make the same (+- sqrt((K - 1) / K^3 / (n / 2)) by chance), 1 where each makes its own.

    Raises:
        ValueError: If the shape is another, or a feature is not finite.
    """
    array = np.asarray(features)
    if array.ndim != 3 or len(array) < 2:
        raise ValueError(
            f"features {array.shape} must be [K, n, F], K at least 2: one generator has none to differ from."
        )
    sets = [exact_sums.checked_features(f"features of generator {i}", rows, 2) for i, rows in enumerate(array)]
    # One order for any order given, before the seed's.
    ordered = np.stack([rows[np.lexsort(rows.T)] for rows in sets]).astype(np.float32)
    order = np.random.default_rng(seed).permutation(ordered.shape[1])
    half = len(order) // 2
    train, test = ordered[:, order[:half]], ordered[:, order[half:]]
    return float(_accuracy(jnp.asarray(train), jnp.asarray(test)))


@jax.jit
def _accuracy(train: jax.Array, test: jax.Array) -> jax.Array:
    """[K, m, F], [K, l, F] -> share of the latter that a regression on the former names rightly."""
    mean, deviation = train.mean((0, 1)), train.std((0, 1))
    factor = jnp.where(deviation > 0, 1 / deviation, 0.0)

    def rows(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = ((samples - mean[None, None]) * factor[None, None]).reshape(-1, samples.shape[-1])
        inputs = jnp.concatenate([inputs, jnp.ones((len(inputs), 1))], 1)
        return inputs, jnp.repeat(jnp.arange(len(samples)), samples.shape[1])

    inputs, labels = rows(train)

    def loss(weights: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(inputs @ weights, labels)
        return losses.mean() + jnp.square(weights).sum() / len(inputs)

    # The inverse of the largest curvature, of the softmax (at most 1/2) and of the penalty.
    curvature = jnp.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1] / 2 + 2 / len(inputs)
    optimiser = optax.sgd(1 / curvature, _MOMENTUM, nesterov=True)

    def update(state: tuple, _: None) -> tuple[tuple, None]:
        weights, optimiser_state = state
        updates, optimiser_state = optimiser.update(jax.grad(loss)(weights), optimiser_state)
        return (optax.apply_updates(weights, updates), optimiser_state), None

    weights = jnp.zeros((inputs.shape[1], len(train)))
    (weights, _), _ = jax.lax.scan(update, (weights, optimiser.init(weights)), None, _UPDATES)
    inputs, labels = rows(test)
    return ((inputs @ weights).argmax(1) == labels).mean()
