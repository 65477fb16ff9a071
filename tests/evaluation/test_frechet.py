import math

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from psgjax.evaluation import frechet

BOTH = pytest.mark.parametrize("measure", [frechet.frechet_distance, frechet.kernel_distance])


def draw(count=400, width=12, seed=0, mean=0.0, deviation=1.0):
    """Features as a classifier's are: correlated, rectified, float32."""
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width))
    return np.maximum(0, generator.normal(mean, deviation, (count, width)) @ mixing).astype(np.float32)


def frechet_by_scipy(real, fake):
    covariances = [np.cov(side, rowvar=False) for side in (real, fake)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    return np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)


def kernel_by_sklearn(real, fake):
    def off_diagonal(side):
        kernel = polynomial_kernel(side, degree=3, coef0=1)
        return (kernel.sum() - np.trace(kernel)) / len(side) / (len(side) - 1)

    real, fake = real.astype(np.float64), fake.astype(np.float64)
    return off_diagonal(real) + off_diagonal(fake) - 2 * polynomial_kernel(real, fake, degree=3, coef0=1).mean()


@pytest.mark.parametrize(
    "fake",
    [
        draw(300, seed=1),
        draw(400, seed=1, mean=0.5),
        draw(500, seed=1, deviation=3),
        draw(seed=1) + np.float32(1000),
        draw(seed=1) * np.float32(1e-3),
    ],
)
def test_both_are_those_of_published_packages(fake):
    real = draw()
    assert frechet.frechet_distance(real, fake) == pytest.approx(frechet_by_scipy(real, fake), rel=1e-4)
    assert frechet.kernel_distance(real, fake)[0] == pytest.approx(kernel_by_sklearn(real, fake), rel=1e-6, abs=1e-9)


def test_frechet_distance_of_gaussians_by_hand():
    # Two points a side: variance 2 a^2 for points at -a and a.
    real, fake = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 3.0], [6.0, 3.0]])
    assert frechet.frechet_distance(real, fake) == pytest.approx(9 + 9 + (2**0.5 - 18**0.5) ** 2)
    # Orthogonal singular covariances have nothing in common.
    fake = np.array([[0.0, -3.0], [0.0, 3.0]])
    assert frechet.frechet_distance(real, fake) == pytest.approx(2 + 18)


def test_kernel_distance_by_hand():
    # One feature; kernels of 0 with anything are 1, of 1 with 1 are 8.
    value, error = frechet.kernel_distance(np.zeros((3, 1)), np.ones((2, 1)))
    assert (value, error) == (1 + 8 - 2, 0.0)


@pytest.mark.parametrize(("rows", "width"), [(5, 64), (2, 1), (300, 12)])
def test_same_images_are_at_distance_zero_even_with_singular_covariances(rows, width):
    features = draw(rows, width)
    assert frechet.frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_constant_batches_have_the_means_left():
    assert frechet.frechet_distance(np.zeros((4, 3)), np.full((7, 3), 2.0)) == 12.0
    assert frechet.frechet_distance(draw(50), np.zeros((50, 12))) > 0
    assert frechet.kernel_distance(np.zeros((4, 3)), np.zeros((7, 3))) == (0.0, 0.0)


def test_neither_depends_on_order_or_chunk():
    real, fake = draw(205), draw(160, seed=1, mean=0.1)
    wide = 10.0 ** np.linspace(-6, 6, 12)[None].astype(np.float32)  # sums of these do round
    for one, other in ((real, fake), (real * wide, fake * wide)):
        values = {
            (frechet.frechet_distance(a, b), *frechet.kernel_distance(a, b, chunk))
            for seed, chunk in enumerate([250, 64, 7, 205])
            for order in [np.random.default_rng(seed)]
            for a, b in [(order.permutation(one), order.permutation(other))]
        }
        assert len(values) == 1


def test_both_grow_with_noise():
    real, other = draw(), draw(seed=1)
    noise = np.random.default_rng(2).normal(size=other.shape)
    for measure in (frechet.frechet_distance, lambda *sides: frechet.kernel_distance(*sides)[0]):
        values = [measure(real, other + amount * noise) for amount in (0, 4, 8, 16)]
        assert values == sorted(values)
        assert values[-1] > 10 * abs(values[0])


def test_standard_error_is_the_spread_over_draws():
    def spread_and_error(mean):
        pairs = [(draw(60, 4, 2 * seed), draw(80, 4, 2 * seed + 1, mean)) for seed in range(150)]
        values, errors = np.array([frechet.kernel_distance(*pair) for pair in pairs]).T
        assert (
            abs(values.mean() - frechet.kernel_distance(draw(3000, 4), draw(3000, 4, 1, mean))[0]) < 3 * errors.mean()
        )
        return values.std() / np.sqrt(np.mean(errors**2))

    assert spread_and_error(0.7) == pytest.approx(1, abs=0.2)
    assert spread_and_error(0.0) == pytest.approx(1 / math.sqrt(2), abs=0.25)  # cautious where nothing differs


@BOTH
@pytest.mark.parametrize(
    ("real", "fake", "message"),
    [
        (np.zeros((0, 3)), np.zeros((5, 3)), "real has 0 row"),
        (np.zeros((5, 3)), np.zeros((1, 3)), "fake has 1 row.*at least 2"),
        (np.zeros((5, 3)), np.zeros((5, 4)), r"\(5, 3\) and fake \(5, 4\)"),
        (np.zeros(5), np.zeros((5, 1)), r"real \(5,\)"),
        (np.zeros((5, 0)), np.zeros((5, 0)), r"\[n, F\]"),
        (np.zeros((5, 2)), np.full((5, 2), np.nan), "fake holds NaN or infinity in 5 of 5"),
        (np.full((5, 2), 1e300), np.zeros((5, 2)), "real holds"),
        (np.array([["a"]]), np.zeros((5, 2)), "real numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, real, fake, message):
    with pytest.raises(ValueError, match=message):
        measure(real, fake)


def test_a_chunk_has_an_image():
    with pytest.raises(ValueError, match="chunk is 0"):
        frechet.kernel_distance(draw(), draw(), 0)


def test_results_are_plain_numbers():
    assert type(frechet.frechet_distance(draw(), draw())) is float
    assert [type(x) for x in frechet.kernel_distance(draw(), draw())] == [float, float]
