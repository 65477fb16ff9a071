import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from psgjax.evaluation import neighbours


def draw(count, shape=(28, 28, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (110, 110, 3), (1, 1, 1)])
def test_the_nearest_are_those_of_scikit_learn(shape):
    images, training = draw(9, shape), draw(20, shape, seed=1)
    indices, distances = neighbours.nearest(images, training, 4)
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in (images, training)]
    expected, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat[1]).kneighbors(flat[0])
    np.testing.assert_allclose(distances, expected[:, 0], rtol=1e-12, atol=1e-5)
    np.testing.assert_array_equal(distances, np.sqrt(np.square(flat[0] - flat[1][indices]).sum(1)))  # exactly


@pytest.mark.parametrize("shape", [(28, 28, 1), (110, 110, 3)])
def test_the_largest_distance_is_exact(shape):
    white, black = np.full((1, *shape), 255, np.uint8), np.zeros((2, *shape), np.uint8)
    indices, distances = neighbours.nearest(white, black)
    assert (indices.tolist(), distances.tolist()) == ([0], [np.sqrt(255**2 * np.prod(shape))])


def test_copies_are_at_distance_zero_and_the_first_of_equals_is_taken():
    training = draw(30)
    training[20] = training[11]
    indices, distances = neighbours.nearest(training, training, 7)
    assert indices.tolist() == [11 if i == 20 else i for i in range(30)]
    assert not distances.any()


def test_neither_order_nor_chunk_matters():
    images, training = draw(25), draw(40, seed=1)
    order = np.random.default_rng(2)
    indices, distances = neighbours.nearest(images, training)
    for chunk in (1, 7, 25):
        rows, columns = order.permutation(25), order.permutation(40)
        found, far = neighbours.nearest(images[rows], training[columns], chunk)
        np.testing.assert_array_equal(columns[found], indices[rows])
        np.testing.assert_array_equal(far, distances[rows])


def test_memorisation_rate():
    held_out = np.random.default_rng(0).permutation(np.arange(1.0, 1001))
    assert neighbours.memorisation_rate(held_out, held_out) == 0.01
    assert neighbours.memorisation_rate(np.zeros(7), held_out) == 1.0
    assert neighbours.memorisation_rate(held_out + 10, held_out) == 0.0
    assert neighbours.memorisation_rate([10.0, 10.5, 11.0, 900.0], held_out) == 0.25
    assert neighbours.memorisation_rate(held_out, held_out, 0.5) == 0.5


def test_copies_and_noise_move_the_rate():
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (1, 8, 8, 1))

    def real(count):
        return np.clip(base + generator.normal(0, 20, (count, 8, 8, 1)), 0, 255).astype(np.uint8)

    training, held_out = real(500), real(500)
    limit = neighbours.nearest(held_out, training)[1]

    def rate(images):
        return neighbours.memorisation_rate(neighbours.nearest(images, training)[1], limit)

    assert rate(real(2000)) == pytest.approx(0.01, abs=0.012)
    assert rate(training[:50]) == 1.0
    assert rate(np.concatenate([real(300), training[:100]])) == pytest.approx(0.25, abs=0.02)
    assert rate(draw(50, (8, 8, 1))) == 0.0


@pytest.mark.parametrize(
    ("images", "training", "chunk", "message"),
    [
        (draw(0), draw(3), 9, r"images is \(0, 28, 28, 1\)"),
        (draw(3), draw(0), 9, r"training is \(0, 28, 28, 1\)"),
        (draw(3) / 255, draw(3), 9, "float64; it must be a uint8"),
        (draw(3)[..., 0], draw(3), 9, r"\(3, 28, 28\) uint8"),
        ([1], draw(3), 9, "images is list"),
        (draw(3, (8, 8, 1)), draw(3), 9, "same height"),
        (draw(3), draw(3), 0, "chunk is 0"),
    ],
)
def test_what_are_no_images_is_refused(images, training, chunk, message):
    with pytest.raises(ValueError, match=message):
        neighbours.nearest(images, training, chunk)


@pytest.mark.parametrize(
    ("distances", "held_out", "quantile", "message"),
    [
        ([], [1.0], 0.01, r"distances \(0,\)"),
        ([1.0], [], 0.01, "held_out"),
        ([np.nan], [1.0], 0.01, "distances"),
        ([1.0], [-1.0], 0.01, "held_out"),
        ([1.0], [1.0], 0.0, "quantile is 0.0"),
    ],
)
def test_what_are_no_distances_is_refused(distances, held_out, quantile, message):
    with pytest.raises(ValueError, match=message):
        neighbours.memorisation_rate(distances, held_out, quantile)
