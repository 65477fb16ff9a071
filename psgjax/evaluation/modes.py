"""How much of the data samples cover: the modes of a Gaussian mixture, the classes of labelled images.

The mixtures' protocol is that of VEEGAN and PacGAN: draw 2,500 samples, give each to its nearest mode, and call it of high quality
if it lies within three standard deviations of it. `mode_counts` does so; everything else is a function of these counts, which add
up over parts of a sample in any order. So it is for classes, with `class_counts` of a classifier's predictions.

References:
    Salimans et al., Improved Techniques for Training GANs, 2016, arXiv 1606.03498, section 4.
    Srivastava et al., VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning, 2017, arXiv 1705.07761.
    Lin et al., PacGAN: The power of two samples in generative adversarial networks, 2018, arXiv 1712.04086, and its code.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

HIGH_QUALITY_DEVIATIONS = 3.0
STACKED_DIGITS = 3

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


def class_counts(predictions: ArrayLike, classes: int) -> Counts:
    """How many images a classifier gives to each class: predictions [n] whole numbers from 0 to classes - 1 -> [classes].

    Raises:
        ValueError: If there are no predictions, or one is no such number.
    """
    array = _labels(predictions, 1, classes)
    return np.bincount(array, minlength=classes).astype(np.int64)


def class_kl(counts: ArrayLike, data_counts: ArrayLike) -> float:
    """KL(q || p) in nats, q the samples' distribution over the classes, p the data's: 0 or more, 0 where they are the same.

    Both are [classes], from `class_counts` by the same classifier, so that its errors are on both sides. Samples of the data
    themselves are about (classes - 1) / 2n above 0, by chance.

    Raises:
        ValueError: If shapes differ, either has no image, a count is negative, or samples have a class that the data lack, for
            which it would be infinite.
    """
    samples, data = _checked(counts), _checked(data_counts)
    if samples.shape != data.shape or not samples.any() or not data.any():
        raise ValueError(
            f"counts {samples.tolist()} and {data.tolist()} must be of the same classes, of an image or more."
        )
    only = np.flatnonzero((samples > 0) & (data == 0))
    if only.size:
        raise ValueError(f"samples have classes {only.tolist()}, which the data's counts lack: count more of the data.")
    here = samples > 0
    q, p = samples[here] / samples.sum(), data[here] / data.sum()
    return max(0.0, math.fsum(q * np.log(q / p)))


def classes_missing(counts: ArrayLike) -> int:
    """Number of classes without a single image, from 0 to all. `counts` [classes] from `class_counts`.

    Raises:
        ValueError: If there are no classes, or a count is negative.
    """
    return int(np.count_nonzero(_checked(counts) == 0))


def classifier_score(probabilities: ArrayLike) -> float:
    """exp(E KL(p(y|x) || p(y))), the Inception score's formula with any classifier (Salimans et al. 2016).

    From 1 (every image gets the same answer) to the number of classes (every answer certain, every class as frequent). It does
    not look at the data: a memorised image a class gets full marks.

    Args:
        probabilities: [n, classes], the classifier's p(y|x); rows sum to 1.

    Raises:
        ValueError: If there are no images or classes, or a row is not a distribution.
    """
    array = np.asarray(probabilities, np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"probabilities {array.shape} must be [n, classes], at least one of each.")
    wrong = ~((array >= 0).all(1) & (np.abs(array.sum(1) - 1) < 1e-3))
    if wrong.any():
        raise ValueError(f"{int(wrong.sum())} of {len(array)} rows are no probabilities, 0 or more with a sum of 1.")
    array = array / array.sum(1, keepdims=True)
    # `fsum` rounds once, so that the order of the images does not matter.
    marginal = np.array([math.fsum(column) for column in array.T]) / len(array)
    information = float(_entropy(marginal)) - math.fsum(_entropy(array)) / len(array)
    return math.exp(max(0.0, information))


def stacked_modes(predictions: ArrayLike) -> tuple[int, float]:
    """Modes found of Stacked MNIST's 1,000, and KL(q || uniform) in nats, from 0 to log 1000 = 6.91 (PacGAN, section 4.1).

    Args:
        predictions: [n, 3] whole numbers from 0 to 9, a classifier's answer for each channel. PacGAN's protocol has 26,000 images.

    Raises:
        ValueError: If there are no images, or predictions are no such numbers.
    """
    digits = _labels(predictions, 2, 10)
    if digits.shape[1] != STACKED_DIGITS:
        raise ValueError(f"predictions {digits.shape} must be [n, {STACKED_DIGITS}]: one digit a channel.")
    counts = class_counts(digits @ [100, 10, 1], 1000)
    return mixture_modes(counts), reverse_kl(counts)


def class_divergence(counts: ArrayLike) -> float:
    """Jensen-Shannon divergence in nats between generators' class distributions, each generator of the same weight.

    From 0 (the same distribution) to log K (no class in common): how far generators share out the classes.

    Args:
        counts: [K, classes], a row a generator from `class_counts`, K at least 2.

    Raises:
        ValueError: If there are fewer than two generators, a count is negative, or a generator has no image.
    """
    array = np.asarray(counts)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(
            f"counts {array.shape} must be [K, classes], K at least 2: one generator has none to differ from."
        )
    rows = np.stack([_checked(row) for row in array])
    if not rows.any(1).all():
        raise ValueError(f"images a generator: {rows.sum(1).tolist()}; each needs at least one.")
    shares = rows / rows.sum(1, keepdims=True)
    mixture = np.array([math.fsum(column) for column in shares.T]) / len(shares)
    return max(0.0, float(_entropy(mixture)) - math.fsum(_entropy(shares)) / len(shares))


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats, over the last axis, with 0 log 0 = 0."""
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)


def _labels(predictions: ArrayLike, axes: int, classes: int) -> Counts:
    array = np.asarray(predictions)
    if array.ndim != axes or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"predictions {array.shape} {array.dtype} must be whole numbers, {axes} axis/axes, at least one."
        )
    if array.min() < 0 or array.max() >= classes:
        raise ValueError(f"predictions run from {array.min()} to {array.max()}; classes are 0 to {classes - 1}.")
    return array.astype(np.int64)


def _checked(counts: ArrayLike) -> Counts:
    array = np.asarray(counts)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer) or (array < 0).any():
        raise ValueError(f"counts {array.tolist()} must be [M] whole numbers, 0 or more, M at least 1.")
    return array.astype(np.int64)
