"""How far apart two sets of features are: Fréchet distance and kernel distance (KID).

Both take features of any network; on those of a classifier other than Inception the first is not an FID. Neither depends on the
order of the images (see `exact_sums`).

References:
    Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017, arXiv 1706.08500, equation 6.
    Bińkowski et al., Demystifying MMD GANs, 2018, arXiv 1801.01401, section 4.
    Gretton et al., A Kernel Two-Sample Test, JMLR 2012, equation 3 (the unbiased estimate).
    Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from psgjax.evaluation import exact_sums
from psgjax.evaluation.exact_sums import Floats


def frechet_distance(real: ArrayLike, fake: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to the features: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The last trace is the sum of the singular values of S1^(1/2) S2^(1/2), which exists for singular covariances, too. The
    estimate is biased upwards, more so for fewer images: only values for the same numbers of images compare.

    Args:
        real: [n, F], n at least 2.
        fake: [m, F], m at least 2.

    Returns:
        0 or more, in squared units of the features. Constant batches have zero covariance: |m1 - m2|^2 is left.

    Raises:
        ValueError: If shapes do not fit, there are fewer than two images a side, or a feature is not finite.
    """
    moments = [_moments(array) for array in exact_sums.checked_pair(real, fake, 2)]
    (mean, covariance), (other_mean, other_covariance) = moments
    singular = np.linalg.svd(_root(covariance) @ _root(other_covariance), compute_uv=False)
    apart = float(np.square(mean - other_mean).sum())
    return max(0.0, apart + float(np.trace(covariance) + np.trace(other_covariance) - 2 * singular.sum()))


def _moments(features: Floats) -> tuple[Floats, Floats]:
    """Mean [F] and unbiased covariance [F, F], the same bits for any order of the rows."""
    count, spare = len(features), exact_sums.DIGITS - exact_sums.exponent(len(features))
    mean = _rounded(features, spare).sum(0) / count
    # Of centred features, or a large mean would use up the digits; a product of two has n * 4^bits for its sum's bound.
    centred = features - mean[None]
    rounded = _rounded(centred, spare // 2)
    left = rounded.sum(0) / count
    return mean + left, (rounded.T @ rounded - count * np.outer(left, left)) / (count - 1)


def _rounded(features: Floats, bits: int) -> Floats:
    """Each feature [n, F] as a multiple of 2^-bits of its own range: sums of these are exact."""
    steps = np.frexp(np.abs(features).max(0))[1] - bits
    return np.ldexp(np.rint(np.ldexp(features, -steps[None])), steps[None])


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[None]) @ vectors.T


def kernel_distance(real: ArrayLike, fake: ArrayLike, chunk: int = exact_sums.CHUNK) -> tuple[float, float]:
    """KID: the squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, without bias, and its standard error.

    All pairs are used, not the random blocks of the paper, whose mean has the same expectation and a larger variance. The
    standard error is the jackknife's to first order, over images of both sides. Where the two distributions are the same, the
    true error is of second order and this one about 1.4 times too large: it errs towards caution.

    Args:
        real: [n, F], n at least 2.
        fake: [m, F], m at least 2.
        chunk: Images at a time, for memory (chunk * max(n, m) * 24 bytes) alone: the result is the same for any.

    Returns:
        The distance, about 0 (and below it as often as above) if both are drawn from one distribution; its standard error.

    Raises:
        ValueError: If shapes do not fit, there are fewer than two images a side, or a feature is not finite.
    """
    exact_sums.checked_chunk(chunk)
    # The kernel's 1 is a number like the features': they are not spread wider than it.
    pair, step = exact_sums.whole(exact_sums.checked_pair(real, fake, 2), least_exponent=1)
    one = pair[0].shape[1] * 2.0 ** (-2 * step)  # F in units of the inner products
    largest = one + max(float(np.square(rows).sum(1).max()) for rows in pair)
    bits = exact_sums.DIGITS - 1 - exact_sums.exponent(max(map(len, pair)))
    scale = math.ldexp(1.0, bits - 3 * exact_sums.exponent(largest))
    unit = 1 / scale / one**3

    with exact_sums.exactly():

        def sums(rows: Floats, others: Floats, own: bool) -> Floats:
            other = jnp.asarray(others)
            return exact_sums.by_chunks(lambda part: _kernel_sums(part, other, one, scale, own), rows, chunk)

        within = [sums(rows, rows, True) * unit / (len(rows) - 1) for rows in pair]
        across = [sums(rows, others, False) * unit / len(others) for rows, others in (pair, pair[::-1])]
    # Means over an image's partners. `fsum` rounds once, so that order does not matter here either.
    value = _mean(within[0]) + _mean(within[1]) - _mean(across[0]) - _mean(across[1])
    return value, math.sqrt(
        sum(4 * _variance(own - other) / len(own) for own, other in zip(within, across, strict=True))
    )


@functools.partial(jax.jit, static_argnames="own")
def _kernel_sums(rows: jax.Array, others: jax.Array, one: float, scale: float, own: bool) -> jax.Array:
    """Sum of the kernel over the others, without an image itself: [c, F], [n, F] -> [c], whole numbers."""

    def kernel(products: jax.Array) -> jax.Array:
        base = products + one
        return jnp.rint(base * base * base * scale)  # no sum after a product: nothing to fuse, the same bits everywhere

    total = kernel(exact_sums.inner_products(rows, others)).sum(1)
    return total - kernel(jnp.square(rows).sum(1)) if own else total


def _mean(values: Floats) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Floats) -> float:
    return math.fsum(np.square(values - _mean(values))) / (len(values) - 1)
