"""Whether samples lie where data lie, and whether they cover it: precision, recall, density, coverage of features.

A set's manifold is the union of balls around its points, each with the distance to its point's k-th nearest neighbour for radius.
Balls are closed, as in Kynkäänniemi et al.: a point at exactly the radius is inside, so that a copy always lies in the ball of its
original, even of radius 0 (a point with k copies of itself). Distances are exact (see `exact_sums`), so ties do not depend on
rounding, and nothing on order or chunk.

References:
    Kynkäänniemi et al., Improved Precision and Recall Metric for Assessing Generative Models, 2019, arXiv 1904.06991.
    Naeem et al., Reliable Fidelity and Diversity Metrics for Generative Models, 2020, arXiv 2002.09797.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from psgjax.evaluation import exact_sums
from psgjax.evaluation.exact_sums import Floats


def precision_recall_density_coverage(
    real: ArrayLike, fake: ArrayLike, k: int = 5, chunk: int = exact_sums.CHUNK
) -> dict[str, float]:
    """The four measures.

    Args:
        real: [n, F], n above k.
        fake: [m, F], m above k.
        k: Neighbours, at least 1.
        chunk: Images at a time, for memory (about chunk * max(n, m) * 24 bytes) alone: the result is the same for any.

    Returns:
        `precision`, share of fake points within the real manifold, 0 to 1; `recall`, share of real points within the fake one,
        0 to 1; `density`, real balls that a fake point lies in, on average, divided by k: 0 or more, about 1 for real points;
        `coverage`, share of real balls with a fake point in them, 0 to 1, about 1 - 2^-k for real points.

    Raises:
        ValueError: If shapes do not fit, a side has k images or fewer, a feature is not finite, or k or chunk is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1 neighbour.")
    exact_sums.checked_chunk(chunk)
    (points, samples), _ = exact_sums.whole(exact_sums.checked_pair(real, fake, k + 1))
    recalled = covered = 0
    balls = np.zeros(len(samples), np.int64)  # real ones that each sample lies in
    with exact_sums.exactly():
        radii = _radii(points, k, chunk)
        others, other_radii = jnp.asarray(samples), jnp.asarray(_radii(samples, k, chunk))
        for place, rows in exact_sums.chunks(points, chunk):
            # Rows that fill up a chunk have a ball without points, and are cut off where they are asked for their own place.
            padded = np.concatenate([radii[place], np.full(len(rows) - len(radii[place]), -1.0)])
            inside, near, counts = _overlaps(rows, padded, others, other_radii)
            count = place.stop - place.start
            recalled += int(np.asarray(inside)[:count].sum())
            covered += int(np.asarray(near).sum())
            balls += np.asarray(counts)
    return {
        "precision": int(np.count_nonzero(balls)) / len(samples),
        "recall": recalled / len(points),
        "density": int(balls.sum()) / (k * len(samples)),
        "coverage": covered / len(points),
    }


def _radii(points: Floats, k: int, chunk: int) -> Floats:
    """Squared distance of each point [n, F] to its k-th nearest other: [n]."""
    others = jnp.asarray(points)
    return exact_sums.by_chunks(lambda rows: _kth_smallest(rows, others, k + 1), points, chunk)  # the first is itself


@functools.partial(jax.jit, static_argnames="k")
def _kth_smallest(rows: jax.Array, others: jax.Array, k: int) -> jax.Array:
    """The k-th smallest squared distance of each row [c, F] to the others [n, F], equal ones counted each: [c].

    By k passes for the next larger value: sorting, which is what `top_k` in float64 does, takes longer.
    """
    distances = exact_sums.squared_distances(others, rows)  # [n, c]: reductions over the first axis are the fast ones
    value = jnp.full(len(rows), -1.0)
    for _ in range(k):
        enough = (distances <= value[None]).sum(0) >= k
        above = jnp.where(distances > value[None], distances, jnp.inf).min(0)
        value = jnp.where(enough, value, above)
    return value


@jax.jit
def _overlaps(
    rows: jax.Array, radii: jax.Array, others: jax.Array, other_radii: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Points [c, F] and [n, F], squared radii -> whether each row lies in another's ball, has one in its own; counts [n]."""
    distances = exact_sums.squared_distances(rows, others)
    within = distances <= radii[:, None]
    return (distances <= other_radii[None]).any(1), within.any(1), within.sum(0)
