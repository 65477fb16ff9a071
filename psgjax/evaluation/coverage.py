"""How much of a Gaussian mixture a sampler covers: modes captured, share of high-quality samples, reverse KL divergence.

The protocol is that of VEEGAN and PacGAN: draw 2,500 samples, give each to its nearest mode, and call it of high quality if it
lies within three standard deviations of it. `mode_counts` does so; everything else is a function of these counts, which add
up over parts of a sample in any order.

References:
    Srivastava et al., VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning, 2017, arXiv 1705.07761.
    Lin et al., PacGAN: The power of two samples in generative adversarial networks, 2018, arXiv 1712.04086, and its code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

HIGH_QUALITY_DEVIATIONS = 3.0

Counts = NDArray[np.int64]


def mode_counts(samples: ArrayLike, centres: ArrayLike, deviation: float) -> Counts:
    """How many high-quality samples each mode has.

    Args:
        samples: [n, D] points, n at least 1.
        centres: [M, D], the means of the mixture's components.
        deviation: Their standard deviation along each axis, in the units of the points.

    Returns:
        [M] whole numbers from 0 to n: the samples that are nearest to this mode and within three standard deviations of it.
        They sum to the number of high-quality samples.

    Raises:
        ValueError: If there are no samples or no modes, shapes do not fit, a number is not finite, or the deviation is not above 0.
    """
    points, means = (np.asarray(array, np.float64) for array in (samples, centres))
    if points.ndim != 2 or means.ndim != 2 or points.shape[1:] != means.shape[1:]:
        raise ValueError(f"samples {points.shape} and centres {means.shape} must be [n, D] and [M, D] with the same D.")
    if not len(points) or not len(means):
        raise ValueError(f"{len(points)} samples and {len(means)} modes: coverage needs at least one of each.")
    if not np.isfinite(points).all() or not np.isfinite(means).all():
        raise ValueError("samples or centres hold NaN or infinity: the sampler diverged, or its output is damaged.")
    if not (np.isfinite(deviation) and deviation > 0):
        raise ValueError(f"deviation is {deviation}; it must be a finite number above 0.")
    distances = np.linalg.norm(points[:, None] - means, axis=-1)
    near = distances.min(1) <= HIGH_QUALITY_DEVIATIONS * deviation
    return np.bincount(distances.argmin(1)[near], minlength=len(means))


def mixture_modes(counts: ArrayLike) -> int:
    """Modes captured, from 0 to M: those with at least one high-quality sample. `counts` [M] from `mode_counts`.

    Raises:
        ValueError: If there are no modes, or a count is negative.
    """
    return int(np.count_nonzero(_checked(counts)))


def high_quality_share(counts: ArrayLike, samples: int) -> float:
    """Share of high-quality samples, from 0 to 1, among the `samples` drawn; real samples of the plane have 1 - exp(-9/2) = 0.989.

    Raises:
        ValueError: If there are no modes, a count is negative, or the counts are more than the samples.
    """
    high = int(_checked(counts).sum())
    if not max(high, 1) <= samples:
        raise ValueError(
            f"{high} high-quality samples among {samples}: samples must be at least 1 and at least as many."
        )
    return high / samples


def reverse_kl(counts: ArrayLike) -> float:
    """KL(q || p) in nats, q the high-quality samples' distribution over the modes, p the mixture's uniform one.

    From 0 (every mode equally often) to log M (a single mode). Where no sample is of high quality there is no q: infinity,
    worse than any sampler that finds a mode, and never NaN. Real samples are about (M - 1) / 2n above 0, by chance alone.

    Raises:
        ValueError: If there are no modes, or a count is negative.
    """
    checked = _checked(counts)
    if not checked.any():
        return float("inf")
    q = checked[checked > 0] / checked.sum()
    return max(0.0, float(np.sum(q * np.log(q * len(checked)))))


def _checked(counts: ArrayLike) -> Counts:
    array = np.asarray(counts)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
        raise ValueError(f"counts {array.tolist()} must be [M] whole numbers, 0 or more, M at least 1.")
    return array.astype(np.int64)
