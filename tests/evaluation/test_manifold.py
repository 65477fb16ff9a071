import json

import numpy as np
import prdc
import pytest

from psgjax.evaluation.manifold import precision_recall_density_coverage as measure


def draw(count, width=8, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    "fake",
    [
        draw(150, seed=1),
        draw(300, seed=1, scale=0.5),
        draw(200, seed=1, scale=2),
        draw(200, seed=1) + 1,
        draw(200, seed=1) * 1e-4,
        np.concatenate([draw(100, seed=1), draw(20, seed=2) + 1e4]),
    ],
)
def test_all_four_are_those_of_their_authors(fake, k):
    found = measure(draw(200), fake, k)
    assert found == pytest.approx(prdc.compute_prdc(draw(200), fake, k), abs=1e-3)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_two_sets_of_one_gaussian():
    found = measure(draw(1500, 32), draw(1500, 32, seed=1))
    expected = prdc.compute_prdc(draw(1500, 32), draw(1500, 32, seed=1), 5)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found["density"] == pytest.approx(1, abs=0.15)
    assert found["coverage"] == pytest.approx(1 - 2**-5, abs=0.02)


def test_by_hand():
    # On a line, k = 1: real balls [-1, 1], [0, 2], [1, 7]; fake ones [1, 5], [-1, 3], [3, 12.5]. Two samples lie on a border.
    real, fake = np.array([[0.0], [1.0], [4.0]]), np.array([[3.0], [1.0], [7.75]])
    assert measure(real, fake, 1) == {"precision": 2 / 3, "recall": 1.0, "density": 4 / 3, "coverage": 1.0}


def test_copies_are_at_distance_zero_far_from_the_origin():
    # |x|^2 + |y|^2 - 2 x.y in float32, or of unrounded float64, would not be zero here.
    real = draw(50) + 4096
    assert measure(real, real[::-1]) == {
        "precision": 1.0,
        "recall": 1.0,
        "density": pytest.approx(1.2),
        "coverage": 1.0,
    }


def test_constant_batches():
    one, other = np.zeros((10, 3)), np.ones((12, 3))
    assert measure(one, other) == dict.fromkeys(["precision", "recall", "density", "coverage"], 0.0)
    # Every sample lies in all ten balls, of radius 0; k is 5.
    assert measure(one, np.zeros((12, 3))) == {"precision": 1.0, "recall": 1.0, "density": 2.0, "coverage": 1.0}
    assert measure(draw(10, 3), one)["recall"] == 0.0


def test_nothing_depends_on_order_or_chunk():
    # Whole numbers, so that many distances are equal.
    real, fake = np.round(draw(205, 3)), np.round(draw(160, 3, seed=1))
    order = np.random.default_rng(2)
    found = [measure(order.permutation(real), order.permutation(fake), 5, chunk) for chunk in (250, 205, 64, 7)]
    assert all(result == found[0] for result in found)


def test_each_moves_the_way_it_should():
    corners = 20 * np.eye(4, 8)
    modes = [draw(60, seed=seed) + corners[seed % 4] for seed in range(8)]
    real, good = np.concatenate(modes[:4]), np.concatenate(modes[4:])
    base, missing = measure(real, good), measure(real, np.concatenate(modes[5:]))
    noise, one = measure(real, good + 10 * draw(240, seed=9)), measure(real, np.repeat(good[:1], 240, 0))
    # A class that is missing costs recall and coverage, not precision.
    assert missing["precision"] == pytest.approx(base["precision"], abs=0.05)
    assert missing["recall"] < base["recall"] - 0.15
    assert missing["coverage"] < base["coverage"] - 0.2
    # Noise costs all but recall: its balls are large.
    for name in ("precision", "density", "coverage"):
        assert noise[name] < base[name] / 2
    assert one["recall"] == 0.0
    assert one["coverage"] < 0.1


@pytest.mark.parametrize(
    ("real", "fake", "options", "message"),
    [
        (np.zeros((0, 3)), np.zeros((9, 3)), {}, "real has 0 row"),
        (np.zeros((9, 3)), np.zeros((5, 3)), {}, "fake has 5 row.*at least 6"),
        (np.zeros((9, 3)), np.zeros((9, 4)), {}, "as many features"),
        (np.zeros((9, 3)), np.full((9, 3), np.inf), {}, "fake holds NaN or infinity in 9 of 9"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"k": 0}, "k is 0"),
        (np.zeros((9, 3)), np.zeros((9, 3)), {"chunk": 0}, "chunk is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(real, fake, options, message):
    with pytest.raises(ValueError, match=message):
        measure(real, fake, **options)
