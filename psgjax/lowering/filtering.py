"""Minimal filtering along rows: a convolution with fewer multiplications, in exact arithmetic the same.

A filter of r taps at m places in a row is a product of polynomials, transposed. Written out it takes m * r multiplications;
as the products of values at points it takes one at each of m + r - 1 (Winograd 1980; the points are those of Toom and Cook). Here
an image's row, all its columns and channels, is one place: for each point, rows of images are mixed to one stride's height,
the taps of a kernel likewise, and what is left to do along the columns is a convolution with these. Its results, mixed back, add
up over the points to the features.

The three maps of `conv.py` need no other matrices: each mixes what it is given by two of the three, and back by the transpose of
the third.

What is mixed grows before it cancels: no intermediate value of a map is more than 20,000 times the sum of the products' absolute
values at the largest inputs. So a result is finite where n * max|a| * max|b| < 1e34 in float32, n the products in a sum; beyond
that the sum written out may be finite while this one is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Besides infinity. More or larger ones lose digits.
_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)


class Mixing(NamedTuple):
    """Matrices [points, rows of a point, rows]. Features are cut into tiles of equal height, images into what these depend on."""

    images: np.ndarray  # [points, tiles * stride, H]
    features: np.ndarray  # [points, tiles, H / stride]
    kernel: np.ndarray  # [points, stride, k]


@cache
def mixing(height: int, stride: int, size: int, dtype: Any) -> Mixing:
    """How to mix rows for features [B, height, w, D] of that type, and a kernel [size, size, C, D]; padding is "SAME".

    Rounding errors are two to five times those of the sum written out. In half precision that is too much, and with one tap, or
    more than there are points for, nothing is gained: then every tap is a point.
    """
    taps = size // stride
    most = len(_POINTS) + 2 - taps  # places that there are points for
    gains = jnp.finfo(dtype).bits >= 32 and taps > 1 and most > 1
    count = -(-height // most) if gains else height
    places = -(-height // count)
    points = places + taps - 1
    if gains:
        of_features, of_kernel = _values(points, places), _values(points, taps)
        of_images = np.linalg.inv(_values(points, points)).T
    else:
        of_features, of_kernel, of_images = np.ones((taps, 1)), np.eye(taps), np.eye(taps)

    images = np.zeros((points, count * stride, height * stride))
    features, kernel = np.zeros((points, count, height)), np.zeros((points, stride, size))
    for row in range(height):
        features[:, row // places, row] = of_features[:, row % places]
    for row in range(size):
        kernel[:, row % stride, row] = of_kernel[:, row // stride]
    for tile, place, phase in np.ndindex(count, points, stride):
        row = (tile * places + place) * stride + phase - (size - stride) // 2
        if 0 <= row < height * stride:
            images[:, tile * stride + phase, row] = of_images[:, place]
    return Mixing(*(np.where(abs(matrices) < 1e-12, 0, matrices) for matrices in (images, features, kernel)))


def _values(points: int, powers: int) -> np.ndarray:
    """The first powers at each point, [points, powers]; the last point is infinity."""
    return np.vstack([np.vander(_POINTS[: points - 1], powers, increasing=True), np.eye(powers)[-1]])


def tiles(matrices: np.ndarray, x: jax.Array, height: int) -> list[jax.Array]:
    """For each point the tiles of x [B, rows, ...], mixed, as a longer batch [B * tiles, height, ...], held in memory."""
    parts = lax.optimization_barrier(at_points(matrices, x, 1))
    return [part.reshape(-1, height, *part.shape[2:]) for part in parts]


def from_tiles(matrices: np.ndarray, parts: Iterable[jax.Array], batch: int) -> jax.Array:
    """The adjoint of `tiles`, added up over the points: [B * tiles, height, ...] each to [B, rows, ...]."""
    held = lax.optimization_barrier([*parts])
    return from_points(matrices, [part.reshape(batch, -1, *part.shape[2:]) for part in held], 1)


def at_points(matrices: np.ndarray, x: jax.Array, axis: int) -> list[jax.Array]:
    """For each point, the rows of x, which lie along the axis, mixed by its matrix."""
    return [from_points(matrix.T[None], [x], axis) for matrix in matrices]


def from_points(matrices: np.ndarray, parts: list[jax.Array], axis: int) -> jax.Array:
    """The adjoint of `at_points`, added up over the points. Sums, because products would transpose their operands first."""

    def add(terms: list[tuple[int, int, float]], count: int) -> jax.Array:
        slices = [(weight, lax.slice_in_dim(parts[p], i, i + count, axis=axis)) for p, i, weight in terms]
        if not slices:
            return jnp.zeros_like(parts[0], shape=(*parts[0].shape[:axis], count, *parts[0].shape[axis + 1 :]))
        return sum(part if weight == 1 else weight * part for weight, part in slices)  # type: ignore[return-value]

    rows = [[(p, i, float(own[p, i])) for p, i in np.argwhere(own).tolist()] for own in matrices.transpose(2, 0, 1)]
    # Rows that are the same sums one row on, as those of one stride are: written once, 0.6 of the sums.
    starts = [row for row in range(len(rows)) if not row or rows[row] != [(p, i + 1, w) for p, i, w in rows[row - 1]]]
    counts = np.diff([*starts, len(rows)]).tolist()
    return jnp.concatenate([add(rows[start], count) for start, count in zip(starts, counts, strict=True)], axis)
