"""Minimal filtering along rows: a convolution with fewer multiplications, equal to it in exact arithmetic.

A filter of r taps at m adjacent positions is the transpose of a product of polynomials. By its definition it takes m * r
multiplications; as products of the polynomials' values at m + r - 1 points it takes one per point (Winograd 1980; the points are
those of Toom and Cook). Here one position is a row of the image with all its columns and channels. For each point, the rows of the
image are combined linearly into as many rows as the stride, and so are the taps of the kernel; a convolution of the two along
the columns remains. Its results, combined by the third matrix and summed over the points, are the features.

The three maps of `conv.py` need no other matrices: each combines its two arguments by two of the three, and its result by the
transpose of the third.

Intermediate values grow before they cancel: none is more than 20,000 times the sum of the products' absolute values at the largest
inputs. So a result is finite if n * max|a| * max|b| < 1e34 in float32, where n is the number of products in a sum; beyond that, the
sum of the definition may be finite while this one is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Infinity is one more. More points, or larger ones, lose digits.
_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)


class Mixing(NamedTuple):
    """Matrices [points, rows of a point, rows]. Features are cut into tiles of equal height, images into the rows below them."""

    images: np.ndarray  # [points, tiles * stride, H]
    features: np.ndarray  # [points, tiles, H / stride]
    kernel: np.ndarray  # [points, stride, k]


@cache
def mixing(height: int, stride: int, size: int, dtype: Any) -> Mixing:
    """The matrices for features [B, height, w, D] of that dtype and a kernel [size, size, C, D]; padding is "SAME".

    Rounding errors are two to five times those of the definition. That is too much in half precision, and nothing is gained with
    one tap or with more taps than there are points for: then every tap is a point.
    """
    taps = size // stride
    most = len(_POINTS) + 2 - taps  # positions for which there are points
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
    """For each point, the tiles of x [B, rows, ...] as a longer batch [B * tiles, height, ...], behind an optimization barrier."""
    parts = lax.optimization_barrier(at_points(matrices, x, 1))
    return [part.reshape(-1, height, *part.shape[2:]) for part in parts]


def from_tiles(matrices: np.ndarray, parts: Iterable[jax.Array], batch: int) -> jax.Array:
    """The adjoint of `tiles`, summed over the points: each [B * tiles, height, ...], the result [B, rows, ...]."""
    parts = lax.optimization_barrier([*parts])
    return from_points(matrices, [part.reshape(batch, -1, *part.shape[2:]) for part in parts], 1)


def at_points(matrices: np.ndarray, x: jax.Array, axis: int) -> list[jax.Array]:
    """For each point, its matrix times x along the axis."""
    return [from_points(matrix.T[None], [x], axis) for matrix in matrices]


def from_points(matrices: np.ndarray, parts: list[jax.Array], axis: int) -> jax.Array:
    """The adjoint of `at_points`, summed over the points. Weighted sums of slices: matrix products would transpose x first."""

    def add(terms: list[tuple[int, int, float]], count: int) -> jax.Array:
        slices = [(weight, lax.slice_in_dim(parts[p], i, i + count, axis=axis)) for p, i, weight in terms]
        if not slices:
            return jnp.zeros_like(parts[0], shape=(*parts[0].shape[:axis], count, *parts[0].shape[axis + 1 :]))
        return sum(part if weight == 1 else weight * part for weight, part in slices)  # type: ignore[return-value]

    rows = [[(p, i, float(own[p, i])) for p, i in np.argwhere(own).tolist()] for own in matrices.transpose(2, 0, 1)]
    # Neighbouring rows with the same weights, shifted by one row, as within a stride, are one sum: 0.6 of the sums are left.
    starts = [row for row in range(len(rows)) if not row or rows[row] != [(p, i + 1, w) for p, i, w in rows[row - 1]]]
    counts = np.diff([*starts, len(rows)]).tolist()
    return jnp.concatenate([add(rows[start], count) for start, count in zip(starts, counts, strict=True)], axis)
