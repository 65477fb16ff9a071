"""Whether samples are copies of training images: each one's nearest training image, and how often it is suspiciously near.

Distances are Euclidean between pixels, exact: pixels are whole numbers, and every sum of them here is below what its type holds.
They find copies, not shifted or recoloured ones.

References:
    Meehan et al., A Non-Parametric Test to Detect Data-Copying in Generative Models, 2020, arXiv 2004.05675 (held-out distances).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from psgjax.evaluation import exact_sums

_CENTRE = 128
_BLOCK = 1024  # products of centred pixels are at most 2^14, and float32 holds whole numbers to 2^24


def nearest(
    images: NDArray[np.uint8], training: NDArray[np.uint8], chunk: int = exact_sums.CHUNK
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The nearest training image of each image.

    Args:
        images: uint8 [n, H, W, C].
        training: uint8 [N, H, W, C].
        chunk: Images at a time, for memory (about chunk * N * 12 bytes) alone: the result is the same for any.

    Returns:
        [n] indices into `training`, the lowest where several are as near; [n] distances, in steps of a pixel's 0 to 255.

    Raises:
        ValueError: If images are not uint8 [n, H, W, C], there are none, their shapes differ, or chunk is below 1.
    """
    for name, array in (("images", images), ("training", training)):
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 4 or not array.size:
            given = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{name} is {given}; it must be a uint8 array [n, H, W, C] of at least one image.")
    if images.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"images {images.shape} and training {training.shape} must be of the same height, width, channels."
        )
    exact_sums.checked_chunk(chunk)
    rows = images.reshape(len(images), -1)
    wide = 255**2 * rows.shape[1] >= 2**31
    with exact_sums.exactly():
        others = _centred(jnp.asarray(training.reshape(len(training), -1)))
        lengths = _lengths(others, jnp.int64 if wide else jnp.int32)
        found = exact_sums.by_chunks(lambda part: _nearest(part, others, lengths), rows, chunk)
    return found[:, 0], np.sqrt(found[:, 1].astype(np.float64))


@jax.jit
def _nearest(rows: jax.Array, others: jax.Array, lengths: jax.Array) -> jax.Array:
    """uint8 [c, P], centred [N, P] and their squared lengths [N] -> int64 [c, 2]: index and squared distance."""
    centred = _centred(rows)
    products = _summed(
        lambda block: exact_sums.inner_products(centred[:, block], others[:, block]), others, lengths.dtype
    )
    distances = _lengths(centred, lengths.dtype)[:, None] + lengths[None] - 2 * products
    return jnp.stack([distances.argmin(1).astype(jnp.int64), distances.min(1).astype(jnp.int64)], 1)


@jax.jit
def _centred(pixels: jax.Array) -> jax.Array:
    return pixels.astype(jnp.float32) - jnp.float32(_CENTRE)


@functools.partial(jax.jit, static_argnames="kind")
def _lengths(pixels: jax.Array, kind: Any) -> jax.Array:
    """Centred float32 [n, P] -> squared lengths [n], exact."""
    return _summed(lambda block: jnp.square(pixels[:, block]).sum(1), pixels, kind)


def _summed(part: Callable[[slice], jax.Array], pixels: jax.Array, kind: Any) -> jax.Array:
    """Sum of float32 parts, each of a block of the pixels [n, P], in a type of whole numbers that holds it."""
    starts = range(0, pixels.shape[1], _BLOCK)
    return functools.reduce(jnp.add, (part(slice(start, start + _BLOCK)).astype(kind) for start in starts))


def memorisation_rate(distances: ArrayLike, held_out: ArrayLike, quantile: float = 0.01) -> float:
    """Share of samples that are as near to their nearest training image as only the nearest few of held-out real images are.

    The limit is the `quantile` of the held-out images' distances, the least that as large a share of them does not exceed. So new
    real images have a rate of `quantile` (by chance, +- sqrt(quantile / n)), a sampler that copies 1, one whose samples are far
    from all data 0. With fewer than 1 / quantile held-out images the limit is the nearest one's, and the rate of real ones larger.

    Args:
        distances: [n] of samples, from `nearest`.
        held_out: [m] of real images outside the training set, to the same training images.
        quantile: From 0 to 1, both excluded.

    Returns:
        0 to 1.

    Raises:
        ValueError: If either is empty, not [n], negative or not finite, or the quantile is out of its range.
    """
    sides = [np.asarray(side, np.float64) for side in (distances, held_out)]
    for name, side in zip(("distances", "held_out"), sides, strict=True):
        if side.ndim != 1 or not side.size or not np.isfinite(side).all() or (side < 0).any():
            raise ValueError(f"{name} {side.shape} must be [n] finite numbers, 0 or more, at least one.")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile}; it must be between 0 and 1.")
    limit = np.quantile(sides[1], quantile, method="inverted_cdf")
    return int(np.count_nonzero(sides[0] <= limit)) / len(sides[0])
