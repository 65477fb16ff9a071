"""All metrics together, on real images and on what is wrong with them."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from rich.console import Console

from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.score import BETWEEN, CLASSIFIED, EMBEDDED, beside_nearest, reference, score
from psgjax.evaluation.table import show


@pytest.fixture(scope="module")
def real(halves):
    (_, held_out, training), _ = halves
    return reference(held_out, training, classifiers.shipped(), "packaged images")


@pytest.fixture(scope="module")
def floor(halves, real):
    return score(halves[0][0].reshape(2, 500, 28, 28, 1), real)


def numbers(tree):
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    return [number for value in tree for number in numbers(value)] if isinstance(tree, list) else [tree]


def test_real_images_have_the_values_of_real_images(floor):
    assert floor["samples"] == floor["reference"] == 1000
    assert abs(floor["kid"]) < 4 * floor["kid_standard_error"]
    assert floor["precision"] > 0.6
    assert floor["recall"] > 0.6
    assert 0.8 < floor["density"] < 1.2
    assert floor["coverage"] > 0.9
    assert floor["classifier_score"] > 9
    assert floor["missing_classes"] == 0
    assert floor["histogram_kl"] < 0.03
    assert floor["memorisation_rate"] < 0.05
    assert floor["histogram_divergence"] < 0.03
    assert 0.35 < floor["c2st"] < 0.65
    assert all(each["fcd"] > floor["fcd"] for each in floor["generators"])  # fewer images, a larger bias
    json.dumps(floor, allow_nan=False)


def test_noise_moves_quality(floor, real):
    noise = np.random.default_rng(1).integers(0, 256, (1, 300, 28, 28, 1), dtype=np.uint8)
    found = score(noise, real)
    assert found["fcd"] > 20 * floor["fcd"]
    assert found["kid"] > 50 * floor["kid_standard_error"]
    assert found["recall"] < 0.05
    assert found["density"] < 0.5 * floor["density"]
    assert found["coverage"] < 0.05  # (precision need not fall: outliers of the real images have large balls)
    assert "generators" not in found


def test_one_digit_again_and_again_moves_coverage(floor, halves, real):
    found = score(np.repeat(halves[0][0][None, :1], 300, axis=1), real)
    assert found["missing_classes"] == 9
    assert found["coverage"] < 0.05
    assert found["recall"] < 0.05
    assert found["classifier_score"] == pytest.approx(1)
    assert found["fcd"] > 10 * floor["fcd"]
    assert None not in numbers(found)


def test_a_missing_class_is_named(floor, packaged, halves, real):
    _, order = halves
    kept = halves[0][0][packaged.labels[order[:1000]] != 7]
    found = score(kept[None], real)
    assert found["histogram_kl"] > 3 * floor["histogram_kl"]
    assert found["histogram"][7] < 0.01
    assert found["fcd"] > 1.2 * floor["fcd"]
    assert found["coverage"] < floor["coverage"]


def test_copies_of_training_images_are_memorised_and_shown(halves, real):
    copies = halves[0][2][None, :50]
    assert score(copies, real)["memorisation_rate"] == 1
    np.testing.assert_array_equal(beside_nearest(copies, real), np.concatenate([copies, copies]))


def test_generators_that_differ_are_named(packaged, real):
    ones, threes = (packaged.images[packaged.labels == digit][:200] for digit in (1, 3))
    found = score(np.stack([ones, threes]), real)
    assert found["c2st"] > 0.97
    assert found["histogram_divergence"] > 0.6  # log 2 = 0.69
    assert [each["missing_classes"] for each in found["generators"]] > [6, 6]


def test_what_is_left_out_is_said_with_the_reason(halves, real, floor, capsys):
    (samples, held_out, training), _ = halves
    found = score(samples[None, :20], reference(held_out, training, None, "real images"))
    assert set(found["left_out"]) == {*EMBEDDED, *CLASSIFIED, *BETWEEN}
    assert found["memorisation_rate"] is not None
    assert floor["left_out"] == {}
    alone = score(samples[None, :20], real)["left_out"]
    assert set(alone) == set(BETWEEN)
    assert "one generator" in alone["c2st"]
    eights = held_out[classifiers.apply(classifiers.shipped(), held_out)[1].argmax(1) == 8]
    found = score(samples[None, :20], reference(eights, None, classifiers.shipped(), "eights"))
    assert found["histogram_kl"] is None
    assert "lacks: 0, 1, 2, 3, 4, 5, 6, 7, 9" in found["left_out"]["histogram_kl"]
    assert set(found["left_out"]) == {"histogram_kl", "memorisation_rate", *BETWEEN}
    show(found, pathlib.Path("a [b]"), Console(width=80))
    out = capsys.readouterr().out
    assert "a [b]: 20 images" in out
    assert f"against eights: {len(eights)} images, SHA-256 {hashlib.sha256(eights.tobytes()).hexdigest()[:12]}" in out
    assert "left out: memorisation_rate: the reference has no training images" in out


@pytest.mark.parametrize("generators", [1, 2, 4, 6])
def test_a_table_fits_80_columns_and_cuts_no_name_and_no_number(generators, floor, capsys):
    each = {**floor["generators"][0], "fcd": -1.234e-5}
    show({**floor, "generators": [each] * generators, "kid": -1.2345e-5}, pathlib.Path("a.npz"), Console(width=60))
    out = capsys.readouterr().out
    words = out.split()
    names = {*floor, "gen.", str(generators), "-1.234e-05"} - {"generators", "left_out", "histogram"}
    elsewhere = {"samples", "reference", "reference_description", "reference_sha256", "features", "features_sha256"}
    assert names - {*words} == elsewhere - {*words}
    assert words.count("fcd") == -(-generators // 3)
    assert "…" not in out
    assert max(map(len, out.splitlines()[5:])) <= 80


def test_a_constant_batch_has_finite_scores(real):
    found = score(np.zeros((2, 20, 28, 28, 1), np.uint8), real)
    assert all(np.isfinite(number) for number in numbers(found) if not isinstance(number, str))
