import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from psgjax.evaluation import modes

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
DEVIATION = 1.0


def draw(count, seed=0, modes=range(4)):
    generator = np.random.default_rng(seed)
    return CENTRES[generator.choice(list(modes), count)] + DEVIATION * generator.normal(size=(count, 2))


def test_counts_by_hand():
    samples = [
        [0.0, 0.0],
        [0.0, 3.0],  # exactly three deviations away: within
        [3.01, 0.0],  # beyond
        [2.5, 2.5],  # 3.54 away, though either coordinate is near
        [10.0, 9.0],
        [5.0, 5.0],  # as far from all
        [1e6, -1e6],
    ]
    counts = modes.mode_counts(samples, CENTRES, DEVIATION)
    assert counts.tolist() == [2, 0, 0, 1]
    assert modes.mixture_modes(counts) == 2
    assert modes.high_quality_share(counts, len(samples)) == 3 / 7
    # q = (2/3, 1/3) against 1/4 each.
    assert modes.reverse_kl(counts) == pytest.approx(2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(4 / 3))


def test_a_sample_within_reach_of_two_modes_counts_once_for_the_nearer():
    assert modes.mode_counts([[0.4, 0.0]], [[0.0, 0.0], [1.0, 0.0]], 1.0).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5, 5], 0.0),
        ([0, 7, 0, 0], math.log(4)),
        ([3, 3, 0, 0], math.log(2)),
        ([1], 0.0),
        ([0, 0], math.inf),
    ],
)
def test_reverse_kl_by_hand(counts, expected):
    assert modes.reverse_kl(counts) == pytest.approx(expected)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30).filter(any))
@settings(deadline=None)
def test_reverse_kl_is_that_of_scipy_and_within_its_range(counts):
    found = modes.reverse_kl(counts)
    assert found == pytest.approx(entropy(counts, np.ones(len(counts))), abs=1e-9)
    assert 0 <= found <= math.log(len(counts)) + 1e-9


def test_real_samples_capture_every_mode():
    counts = modes.mode_counts(draw(20_000), CENTRES, DEVIATION)
    assert modes.mixture_modes(counts) == 4
    # In the plane, 1 - exp(-9 / 2) of a Gaussian is within three deviations.
    assert modes.high_quality_share(counts, 20_000) == pytest.approx(1 - math.exp(-4.5), abs=0.004)
    assert modes.reverse_kl(counts) < 1e-3


def test_a_sampler_of_one_mode_captures_one():
    counts = modes.mode_counts(draw(500, modes=[2]), CENTRES, DEVIATION)
    assert np.flatnonzero(counts).tolist() == [2]
    assert modes.mixture_modes(counts) == 1
    assert modes.reverse_kl(counts) == pytest.approx(math.log(4))


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 99), max_size=5))
@settings(deadline=None, max_examples=20)
def test_counts_do_not_depend_on_order_and_add_up_over_parts(seed, cuts):
    samples = draw(100, seed)
    whole = modes.mode_counts(samples, CENTRES, DEVIATION)
    shuffled = np.random.default_rng(seed).permutation(samples)
    np.testing.assert_array_equal(modes.mode_counts(shuffled, CENTRES, DEVIATION), whole)
    parts = [part for part in np.split(samples, sorted(cuts)) if len(part)]
    np.testing.assert_array_equal(sum(modes.mode_counts(part, CENTRES, DEVIATION) for part in parts), whole)


def test_units_do_not_matter():
    samples = draw(300)
    np.testing.assert_array_equal(
        modes.mode_counts(samples, CENTRES, DEVIATION), modes.mode_counts(8 * samples, 8 * CENTRES, 8 * DEVIATION)
    )


@pytest.mark.parametrize(
    ("samples", "centres", "deviation", "message"),
    [
        (np.zeros((0, 2)), CENTRES, 1.0, "0 samples and 4 modes"),
        (np.zeros((3, 2)), np.zeros((0, 2)), 1.0, "3 samples and 0 modes"),
        ([], CENTRES, 1.0, r"\[n, D\]"),
        (np.zeros((3, 3)), CENTRES, 1.0, "the same D"),
        ([[0.0, np.nan]], CENTRES, 1.0, "NaN"),
        ([[0.0, np.inf]], CENTRES, 1.0, "infinity"),
        (np.zeros((3, 2)), [[np.nan, 0.0]], 1.0, "NaN"),
        (np.zeros((3, 2)), CENTRES, 0.0, "deviation is 0.0"),
        (np.zeros((3, 2)), CENTRES, np.nan, "deviation is nan"),
    ],
)
def test_what_cannot_be_counted_is_refused(samples, centres, deviation, message):
    with pytest.raises(ValueError, match=message):
        modes.mode_counts(samples, centres, deviation)


@pytest.mark.parametrize("counts", [[], [-1, 2], [0.5], [[1]], [np.nan]])
def test_what_are_no_counts_is_refused(counts):
    for function in (modes.mixture_modes, modes.reverse_kl, lambda c: modes.high_quality_share(c, 9)):
        with pytest.raises(ValueError, match="counts"):
            function(counts)


def test_a_share_needs_as_many_samples_as_are_counted():
    assert modes.high_quality_share([0, 0], 5) == 0.0
    for counts, samples in (([0], 0), ([3, 3], 5)):
        with pytest.raises(ValueError, match="samples must be at least 1"):
            modes.high_quality_share(counts, samples)


def probabilities(labels, classes=10, certainty=1.0):
    answers = np.full((len(labels), classes), (1 - certainty) / classes)
    answers[np.arange(len(labels)), labels] += certainty
    return answers


def test_class_counts_and_what_is_made_of_them_by_hand():
    counts = modes.class_counts([0, 2, 2, 3], 5)
    assert counts.tolist() == [1, 0, 2, 1, 0]
    assert modes.classes_missing(counts) == 2
    expected = 1 / 4 * math.log(1 / 4 / 0.1) + 1 / 2 * math.log(1 / 2 / 0.2) + 1 / 4 * math.log(1 / 4 / 0.3)
    assert modes.class_kl(counts, [1, 2, 2, 3, 2]) == pytest.approx(expected)
    assert modes.class_kl(counts, 7 * counts) == 0.0


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_divergences_are_those_of_scipy(seed):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 5, (2, 10)) + np.eye(2, 10, dtype=int)
    assert modes.class_kl(counts[0], counts[1] + 1) == pytest.approx(entropy(counts[0], counts[1] + 1), abs=1e-9)
    expected = jensenshannon(counts[0], counts[1]) ** 2
    assert modes.class_divergence(counts) == pytest.approx(expected, abs=1e-9)
    answers = generator.dirichlet(np.ones(10), 30)
    score = math.exp(entropy(answers, answers.mean(0, keepdims=True), axis=1).mean())
    assert modes.classifier_score(answers) == pytest.approx(score)
    assert modes.classifier_score(generator.permutation(answers)) == modes.classifier_score(answers)


def test_classifier_score_by_hand():
    everything = np.arange(1000) % 10
    assert modes.classifier_score(probabilities(everything)) == pytest.approx(10)
    assert modes.classifier_score(probabilities(everything[:1])) == 1.0
    assert modes.classifier_score(probabilities(0 * everything, certainty=0.7)) == 1.0
    missing = everything[everything != 4]
    assert modes.classifier_score(probabilities(missing)) == pytest.approx(9)
    unsure = [modes.classifier_score(probabilities(everything, certainty=c)) for c in (1, 0.9, 0.5, 0)]
    assert unsure == sorted(unsure, reverse=True)
    assert unsure[-1] == 1.0


def test_a_missing_class_moves_the_histogram():
    generator = np.random.default_rng(0)
    data, same = (modes.class_counts(generator.integers(0, 10, 5000), 10) for _ in range(2))
    missing = same * (np.arange(10) != 4)
    assert modes.class_kl(same, data) < 0.01
    assert modes.class_kl(missing, data) == pytest.approx(math.log(10 / 9), abs=0.02)
    assert (modes.classes_missing(same), modes.classes_missing(missing)) == (0, 1)


def test_stacked_modes():
    every = np.stack(np.unravel_index(np.arange(1000), (10, 10, 10)), 1)
    assert modes.stacked_modes(every) == (1000, 0.0)
    assert modes.stacked_modes(every[[123] * 9]) == (1, pytest.approx(math.log(1000)))
    assert modes.stacked_modes(every[:10]) == (10, pytest.approx(math.log(100)))
    # Real images have about M / 2n: PacGAN's 26,000 have 0.02.
    real = np.random.default_rng(0).integers(0, 10, (26_000, 3))
    found, divergence = modes.stacked_modes(real)
    assert found == 1000
    assert divergence == pytest.approx(999 / 52_000, rel=0.15)


def test_generators_that_share_out_the_classes_differ_most():
    assert modes.class_divergence([[3, 3, 0, 0], [0, 0, 9, 9]]) == pytest.approx(math.log(2))
    assert modes.class_divergence([[3, 3, 0], [9, 9, 0], [1, 1, 0]]) == 0.0
    assert modes.class_divergence(np.eye(3, dtype=int)) == pytest.approx(math.log(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modes.class_counts([], 10), "at least one"),
        (lambda: modes.class_counts([0.5], 10), "whole numbers"),
        (lambda: modes.class_counts([0, 10], 10), "from 0 to 10; classes are 0 to 9"),
        (lambda: modes.class_kl([1, 2], [1, 2, 3]), "same classes"),
        (lambda: modes.class_kl([0, 0], [1, 2]), "same classes"),
        (lambda: modes.class_kl([1, 1, 1], [1, 0, 2]), r"classes \[1\], which"),
        (lambda: modes.classifier_score(np.zeros((0, 10))), r"\[n, classes\]"),
        (lambda: modes.classifier_score(np.ones((3, 10))), "3 of 3 rows"),
        (lambda: modes.classifier_score([[0.5, 0.5], [np.nan, 1]]), "1 of 2 rows"),
        (lambda: modes.classifier_score([[1.5, -0.5]]), "1 of 1 rows"),
        (lambda: modes.stacked_modes(np.zeros((5, 2), int)), r"\[n, 3\]"),
        (lambda: modes.stacked_modes(np.zeros((0, 3), int)), "at least one"),
        (lambda: modes.stacked_modes(np.full((5, 3), 10)), "classes are 0 to 9"),
        (lambda: modes.class_divergence([[1, 2]]), "K at least 2"),
        (lambda: modes.class_divergence([[1, 2], [0, 0]]), r"images a generator: \[3, 0\]"),
    ],
)
def test_what_is_no_class_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
