import json

import numpy as np
import pytest
import scipy.stats

from psgjax.report import intervals


def test_half_an_interval_is_that_of_students_t_and_one_seed_has_none():
    values = np.random.default_rng(0).normal(size=(5, 3))
    low, high = scipy.stats.t.interval(0.95, 4, loc=values.mean(axis=0), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(intervals.half_width(values), (high - low) / 2)
    assert intervals.half_width(values[:1]).tolist() == [0, 0, 0]


def test_an_estimate_is_a_mean_with_its_interval():
    estimate = intervals.Estimate.of([1.0, 2.0, 6.0])
    low, high = scipy.stats.t.interval(0.95, 2, loc=3, scale=scipy.stats.sem([1.0, 2.0, 6.0]))
    assert (estimate - estimate.half, estimate + estimate.half) == pytest.approx((low, high))
    assert json.dumps(estimate) == "3.0"


def test_summaries_of_seeds_are_combined_leaf_by_leaf():
    trees = [
        {"steps": 10, "gap": 1.0, "losses": [1.0, 2.0], "settled": 4, "finished": True, "of": {"name": "mnist"}},
        {"steps": 10, "gap": 2.0, "losses": [1.0, 4.0], "settled": None, "finished": False, "of": {"name": "mnist"}},
    ]
    together = intervals.combine(trees)
    assert together == {
        "steps": 10,
        "gap": 1.5,
        "losses": [1.0, 3.0],
        "settled": None,
        "finished": False,
        "of": {"name": "mnist"},
    }
    half = scipy.stats.t.ppf(0.975, 1) / 2
    assert intervals.half_widths(together)["losses"] == [None, pytest.approx(2 * half)]
    assert intervals.half_widths(together)["gap"] == pytest.approx(half)
