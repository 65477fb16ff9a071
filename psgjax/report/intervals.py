"""Means over seeds and their 95 % intervals: of numbers, curves and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


def half_width(values: NDArray[np.float64]) -> Any:
    """Half the 95 % interval of the mean over seeds, by Student's t: [S, ...] -> [...]. For one seed 0: it has no interval."""
    if len(values) == 1:
        return np.zeros(values.shape[1:])
    from scipy import stats  # half a second, which one seed does without

    return stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)


class Estimate(float):
    """A mean over seeds that knows half the width of its 95 % interval."""

    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate that one value per seed gives."""
        mean = cls(np.mean(values))
        mean.half = float(half_width(np.asarray(values, np.float64)))
        return mean


def combine(trees: Sequence[Any]) -> Any:
    """One tree for all seeds from each one's, such as `convergence.summarise` gives: an `Estimate` for each number that differs.

    Values that are the same for all seeds stay as they are. A mean is over all seeds: if one has no value, it is None.
    """
    first = trees[0]
    if all(tree == first for tree in trees):
        return first
    if all(isinstance(tree, dict) for tree in trees):
        return {key: combine([tree.get(key) for tree in trees]) for key in first}
    if all(isinstance(tree, list) and len(tree) == len(first) for tree in trees):
        return [combine(items) for items in zip(*trees, strict=True)]
    if all(isinstance(tree, int | float) for tree in trees):
        return all(trees) if isinstance(first, bool) else Estimate.of(trees)
    return None


def half_widths(tree: Any) -> Any:
    """A result of `combine` with half its interval in place of each mean and None in place of all else, ready for JSON."""
    if isinstance(tree, dict):
        return {key: half_widths(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return [half_widths(item) for item in tree]
    return tree.half if isinstance(tree, Estimate) else None
