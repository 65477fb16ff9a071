import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from psgjax.evaluation.c2st import accuracy


def draw(generators=2, count=1000, width=8, apart=0.0, seed=0):
    """The first features of the generators are `apart`."""
    features = np.random.default_rng(seed).normal(size=(generators, count, width))
    features[:, :, 0] += apart * np.arange(generators)[:, None]
    return features.astype(np.float32)


@pytest.mark.parametrize("generators", [2, 3])
def test_generators_that_are_the_same_are_named_by_chance(generators):
    found = accuracy(draw(generators))
    assert found == pytest.approx(1 / generators, abs=0.06)
    assert type(found) is float


@pytest.mark.parametrize(("apart", "expected"), [(2.0, 0.841), (4.0, 0.977)])
def test_it_is_the_best_linear_rule_that_tells(apart, expected):
    # Unit Gaussians at a distance: the normal distribution's value at half of it.
    assert accuracy(draw(count=4000, apart=apart)) == pytest.approx(expected, abs=0.012)


def test_it_is_that_of_scikit_learn():
    features = draw(3, 2000, apart=1.0) @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    inputs, labels = features[:, :1000].reshape(-1, 8), np.repeat(np.arange(3), 1000)
    regression = LogisticRegression().fit(inputs, labels)
    expected = regression.score(features[:, 1000:].reshape(-1, 8), labels)
    assert accuracy(features) == pytest.approx(expected, abs=0.03)  # other halves


def test_order_does_not_matter_and_the_seed_repeats():
    features = draw(apart=1.0)
    shuffled = np.stack([np.random.default_rng(i).permutation(rows) for i, rows in enumerate(features)])
    assert accuracy(features) == accuracy(shuffled) == accuracy(features)
    assert len({accuracy(features, seed) for seed in range(4)}) > 1


def test_units_and_offsets_do_not_matter():
    features = draw(apart=1.5)
    assert accuracy(features * 1000 + 5000) == pytest.approx(accuracy(features), abs=0.01)


def test_generators_without_variety():
    constant = np.zeros((2, 10, 3))
    assert accuracy(constant) == 0.5
    assert accuracy(constant + np.arange(2)[:, None, None]) == 1.0
    assert accuracy(constant[:, :2]) == 0.5


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 9, 3)), "K at least 2"),
        (np.zeros((9, 3)), r"\[K, n, F\]"),
        (np.zeros((2, 1, 3)), "generator 0 has 1 row"),
        (np.zeros((2, 0, 3)), "generator 0 has 0 row"),
        (np.stack([np.zeros((4, 3)), np.full((4, 3), np.nan)]), "generator 1 holds NaN"),
    ],
)
def test_what_cannot_be_told_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        accuracy(features)
