"""Features as whole numbers, so that sums of their products are exact: the same in any order, chunk or thread.

A floating-point sum depends on the order of its terms, and |x|^2 + |y|^2 - 2 x.y on luck where x and y are near. So features are
rounded to whole multiples of a power of two, coarse enough that every sum of products stays below 2^53, where float64 holds
whole numbers exactly. With 128 features the step is 2^-22 of the largest: about float32's own. Distances between equal points
are exactly 0, ties are real ties, and no result depends on how the work was cut.

A TPU only imitates float64; there the work goes to its host.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DIGITS = 53  # of float64
# Images at a time. Against 10,000 a block is 20 MB; above 32 MB glibc gives every one back to the system, several times slower.
CHUNK = 250


def checked_features(name: str, features: ArrayLike, at_least: int) -> Floats:
    """Features [n, F] as float64.

    Raises:
        ValueError: If they are not [n, F] with n of `at_least` or more, or hold NaN, infinity or what float32 cannot; the
            message calls them `name`.
    """
    array = np.asarray(features)
    if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise ValueError(f"{name} {array.shape} {array.dtype} must be features [n, F], real numbers, F at least 1.")
    if len(array) < at_least:
        raise ValueError(f"{name} has {len(array)} row(s), one an image: this measure needs at least {at_least}.")
    sound = (np.abs(array) <= np.finfo(np.float32).max).all(1)
    if not sound.all():
        bad = int((~sound).sum())
        raise ValueError(
            f"{name} holds NaN or infinity in {bad} of {len(array)} rows: the images or weights are damaged."
        )
    return array.astype(np.float64)


def checked_pair(real: ArrayLike, fake: ArrayLike, at_least: int) -> tuple[Floats, Floats]:
    """Features of real and of generated images, as `checked_features`, with the same F."""
    one, other = checked_features("real", real, at_least), checked_features("fake", fake, at_least)
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"real {one.shape} and fake {other.shape} must have as many features: of the same classifier.")
    return one, other


def exponent(largest: float) -> int:
    """The least e with |x| < 2^e for every |x| up to `largest`; 0 for 0."""
    return math.frexp(largest)[1]


def whole(arrays: tuple[Floats, ...], least_exponent: int | None = None) -> tuple[tuple[Floats, ...], int]:
    """Round features so that squared distances and inner products between any two rows are exact.

    Args:
        arrays: Each [n, F].
        least_exponent: Take the largest number for 2 to this power at least.

    Returns:
        The arrays as whole numbers, and s, such that array = whole * 2^s, to half a step.
    """
    width = arrays[0].shape[1]
    top = exponent(max(float(np.abs(array).max()) for array in arrays))
    if least_exponent is not None:
        top = max(top, least_exponent)
    # |x - y|^2 is at most F * (2 * 2^bits)^2.
    bits = (DIGITS - 2 - exponent(width - 1)) // 2
    return tuple(np.rint(np.ldexp(array, bits - top)) for array in arrays), top - bits


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """JAX with float64, on a device that has it."""
    device = jax.devices("cpu")[0] if jax.default_backend() == "tpu" else None
    with jax.enable_x64(True), jax.default_device(device):
        yield


def squared_distances(rows: jax.Array, others: jax.Array) -> jax.Array:
    """[m, F] and [n, F], both `whole` -> [m, n], exact; to be traced within `exactly`."""
    lengths = jnp.square(rows).sum(1)[:, None] + jnp.square(others).sum(1)[None]
    return lengths - 2 * inner_products(rows, others)


def inner_products(rows: jax.Array, others: jax.Array) -> jax.Array:
    """[m, F] and [n, F] -> [m, n]."""
    return jnp.dot(rows, others.T, precision=jax.lax.Precision.HIGHEST)


def checked_chunk(chunk: int) -> int:
    """The chunk itself.

    Raises:
        ValueError: If it is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 image.")
    return chunk


def chunks(rows: NDArray, chunk: int) -> Iterator[tuple[slice, NDArray]]:
    """Consecutive parts of rows [n, ...]: where each stands, and its rows [chunk, ...], the last filled up with zeros.

    All have one shape, so that one program serves them.
    """
    chunk = min(checked_chunk(chunk), len(rows))
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        missing = chunk - len(part)
        if missing:
            part = np.concatenate([part, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        yield slice(start, start + chunk - missing), part


def by_chunks(function: Callable[[NDArray], jax.Array], rows: NDArray, chunk: int) -> NDArray:
    """Apply a function of rows [chunk, ...] to rows [n, ...], one chunk at a time: no two are in memory at once."""
    return np.concatenate(
        [np.asarray(function(part))[: place.stop - place.start] for place, part in chunks(rows, chunk)]
    )
