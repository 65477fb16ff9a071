import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from psgjax.config import Method
from psgjax.method import objectives
from psgjax.report import convergence
from psgjax.switches import METHODS

LOG2, LOG3 = math.log(2), math.log(3)


def line(epoch, discriminator=1.0, generators=(1.0, 2.0), accuracy=0.8, seconds=None, **changes):
    count = len(generators)
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "images": 640 * epoch,
        "seconds": float(epoch) if seconds is None else seconds,
        "loss": {"discriminator": discriminator, "generators": list(generators)},
        "gated_loss": {"discriminator": 0.1, "generators": [0.2] * count},
        "accuracy": accuracy,
        "pairwise_accuracy": 0.9,
        "held_out_accuracy": 0.7,
        "held_out_pairwise_accuracy": 0.85,
        "branches": [0.2 / count] * count + [0.8],
        "updates": {"discriminator": 0.2, "generators": [0.9] * count},
    } | changes


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (METHODS["psg"], (LOG3, LOG3)),
        (METHODS["relativistic"], (LOG2, LOG2)),
        (Method(generators=4), (math.log(5), math.log(5))),
        (Method(generator_loss="minimax"), (LOG3, math.log(2 / 3))),
        (METHODS["sngan"], (2 * LOG2, LOG2)),
        (METHODS["stackelberg"], (2 * LOG2, LOG2)),
        (Method(scores="independent", gate="none", generator_loss="minimax"), (2 * LOG2, -LOG2)),
        (Method(scores="independent", gate="none", loss="hinge"), (2, 0)),
        (Method(scores="independent", gate="none", loss="hinge", generator_loss="minimax"), (2, -1)),
        (METHODS["wgan-gp"], (0, 0)),
        (METHODS["mad-gan"], (LOG3, LOG3)),
        (Method(scores="independent", gate="none", loss="mad-gan", generator_loss="minimax"), (LOG3, math.log(2 / 3))),
        (METHODS["mgan"], (2 * LOG2, LOG2)),
    ],
)
def test_equilibrium_is_what_the_objectives_give_a_guessing_discriminator(method, expected):
    assert convergence.equilibrium(method) == pytest.approx(expected)
    outputs = jnp.zeros((method.generators + 1, 3, objectives.outputs_needed(method)))
    discriminator, generators = objectives.losses(method, outputs)
    np.testing.assert_allclose(discriminator, np.full(3, expected[0]), rtol=1e-6)
    np.testing.assert_allclose(generators, np.full((method.generators, 3), expected[1]), rtol=1e-6)


def test_chance_and_its_correction():
    assert convergence.chance(METHODS["psg"]) == pytest.approx(1 / 3)
    assert convergence.chance(METHODS["sngan"]) == 0.5
    assert convergence.chance_corrected(0.5, 0.5) == 0
    assert convergence.chance_corrected(1.0, 1 / 3) == 1
    assert convergence.chance_corrected(0.75, 0.5) == 0.5


def test_loss_gap_is_zero_at_equilibrium_only_when_normalised():
    balance = convergence.equilibrium(METHODS["sngan"])
    raw, normalised = convergence.loss_gap(np.array([[LOG2, 2.0]]), np.array([2 * LOG2, 0.5]), balance)
    assert raw == pytest.approx([LOG2, 1.5])
    assert normalised == pytest.approx([0, 2 / LOG2 - 0.25 / LOG2])


def test_loss_gap_takes_the_mean_generator_and_has_no_unit_where_equilibrium_is_zero():
    raw, normalised = convergence.loss_gap(np.array([[1.0], [4.0]]), np.array([3.0]), (2.0, 0.0))
    assert raw == pytest.approx([0.5])
    assert normalised is None


def test_smooth_is_a_centred_median_that_keeps_edges_and_drops_outliers():
    assert convergence.smooth(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [1.5, 2, 4, 5]
    curve = np.array([9.0, 9, 9, 1, 1, 50, 1, 1])
    assert convergence.smooth(curve, 3).tolist() == [9, 9, 9, 1, 1, 1, 1, 1]
    assert convergence.smooth(curve, 1).tolist() == curve.tolist()


@pytest.mark.parametrize(("epochs", "kept"), [(1, 1), (9, 1), (20, 2), (500, 50)])
def test_final_is_the_mean_of_the_last_tenth(epochs, kept):
    curve = np.arange(epochs, dtype=float)
    assert convergence.final(curve) == curve[-kept:].mean()


def settled(curve, scale=1):
    """The convergence epoch of a curve whose epochs are counted from `scale`."""
    return convergence.convergence_epoch((scale * np.arange(1, len(curve) + 1)).tolist(), np.asarray(curve, float))


def times(count):
    return np.arange(1.0, count + 1)


LENGTHS = pytest.mark.parametrize("count", [12, 75, 150, 500])


@LENGTHS
@pytest.mark.parametrize("level", [1.0, -3.0, 0.0])
def test_a_flat_curve_has_settled_from_the_first_epoch(count, level):
    assert settled(np.full(count, level)) == 1


def test_a_step_settles_where_it_happens():
    curve = np.where(times(100) <= 30, 10.0, 1.0)
    assert settled(curve) == settled(-curve) == 31
    assert settled(curve, 0.25) == 7.75


@LENGTHS
@pytest.mark.parametrize("end", [1.0, 1.8, 0.0])
def test_a_straight_drift_never_settles(count, end):
    assert settled(np.linspace(2, end, count)) is None


def test_a_drift_through_noise_never_settles():
    rng = np.random.default_rng(0)
    assert [settled(np.linspace(2, 1, 75) + 0.05 * rng.standard_normal(75)) for _ in range(50)] == [None] * 50


def test_what_falls_exponentially_settles_when_a_twentieth_is_left():
    assert settled(1 + np.exp(-times(75) * np.log(20) / 15)) == pytest.approx(15, abs=1)


@pytest.mark.parametrize("period", [8, 10, 20, 50, 75])
@pytest.mark.parametrize("phase", [0, 1, 2])
def test_an_oscillation_never_settles(period, phase):
    assert settled(1 + 0.2 * np.sin(2 * np.pi * times(75) / period + phase)) is None


CURVES = {
    "falls exponentially": lambda t: 1 + np.exp(-t * np.log(20) / 15),
    "a ramp": lambda t: np.maximum(1, 3 - 2 * t / 15),
    "a step": lambda t: np.where(t < 15, 1.5, 1.0),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_noise_of_five_percent_moves_an_epoch_of_15_by_a_few(curve):
    clean = curve(times(75))
    found = [settled(clean * (1 + 0.05 * np.random.default_rng(seed).standard_normal(75))) for seed in range(200)]
    epochs = [np.inf if epoch is None else epoch for epoch in found]
    low, median, high = np.quantile(epochs, [0.05, 0.5, 0.95], method="nearest")
    assert median == pytest.approx(15, abs=2)
    assert low >= 10
    assert high <= 20


@LENGTHS
def test_noise_about_a_level_has_settled_from_the_first_epoch(count):
    found = [settled(1 + 0.02 * np.random.default_rng(seed).standard_normal(count)) for seed in range(20)]
    assert sorted(found, key=str).count(1) >= 19


def test_noise_that_hides_the_level_says_nothing():
    assert settled(1 + np.exp(-times(75) / 5) + 0.5 * np.random.default_rng(0).standard_normal(75)) is None
    assert settled(np.tile([1.0, -1.0], 10)) is None


def test_a_target_near_zero_is_measured_by_the_change_that_led_there():
    rng = np.random.default_rng(0)
    fall = np.exp(-times(75) * np.log(20) / 15)
    assert settled(fall) == pytest.approx(15, abs=3)
    assert np.median([settled(fall + 0.02 * rng.standard_normal(75)) for _ in range(50)]) == pytest.approx(15, abs=3)


@LENGTHS
def test_a_spike_at_the_end_changes_nothing_and_a_rise_that_stays_does(count):
    curve = np.ones(count)
    curve[-1] = 100
    assert settled(curve) == 1
    curve[-max(3, count // 10) :] = 1.5
    assert settled(curve) is None


def test_what_settles_too_late_has_not_settled():
    assert settled(np.where(times(90) <= 60, 2.0, 1.0)) == 61
    assert settled(np.where(times(90) <= 62, 2.0, 1.0)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_begins_the_curve_anew(value):
    curve = np.ones(30)
    curve[1] = value
    assert settled(curve) == 3
    curve[20] = value
    assert settled(curve) is None
    assert settled(np.append(np.ones(29), value)) is None


def test_fewer_than_ten_epochs_say_nothing():
    assert settled(np.ones(9)) is None
    assert settled([]) is None


def test_summary_of_a_run():
    lines = [
        line(epoch, seconds=100 + [0, 1, 3, 4][(epoch - 1) % 4] + 5 * ((epoch - 1) // 4)) for epoch in range(1, 13)
    ]
    summary = convergence.summarise(METHODS["psg"], lines)
    assert (summary["epochs"], summary["steps"], summary["images"]) == (12, 120, 7680)
    assert summary["training_seconds"] == 114
    assert summary["steps_per_second"] == 10  # the first 100 seconds, which hold compilation, do not count
    assert summary["loss"] == {"discriminator": 1, "generators": [1, 2]}
    assert summary["loss_gap"] == 0.5
    assert summary["normalised_loss_gap"] == pytest.approx(0.5 / LOG3)
    assert summary["accuracy"] == pytest.approx(0.8)
    assert summary["chance_corrected_accuracy"] == pytest.approx(0.7)
    assert summary["held_out_accuracy"] == pytest.approx(0.7)
    assert summary["convergence_epoch"] == {"loss": 1, "accuracy": 1}
    assert summary["branches"] == pytest.approx([0.1, 0.1, 0.8])
    assert summary["updates"] == {"discriminator": 0.2, "generators": [0.9, 0.9]}


def test_calibrated_losses_have_a_gap_of_their_own():
    calibrated = {
        "held_out_calibrated_loss": {"discriminator": 0.5, "generators": [1.0, 3.0]},
        "held_out_temperature": 0.25,
    }
    summary = convergence.summarise(METHODS["psg"], [line(epoch, **calibrated) for epoch in range(1, 13)])
    assert summary["calibrated_loss"] == calibrated["held_out_calibrated_loss"]
    assert summary["held_out_temperature"] == 0.25
    assert summary["calibrated_loss_gap"] == 1.5
    assert summary["normalised_calibrated_loss_gap"] == pytest.approx(1.5 / LOG3)
    assert summary["loss_gap"] == 0.5


@pytest.mark.parametrize("changes", [{}, {"held_out_calibrated_loss": None, "held_out_temperature": None}])
def test_lines_without_calibrated_losses_have_no_such_gap(changes):
    summary = convergence.summarise(METHODS["psg"], [line(epoch, **changes) for epoch in range(1, 13)])
    assert summary["calibrated_loss_gap"] is summary["normalised_calibrated_loss_gap"] is None
    assert summary["calibrated_loss"] == {"discriminator": None, "generators": [None, None]}


@pytest.mark.parametrize(("temperature", "lost"), [(0.001, 0.0036), (0.005691, 0.0), (1000.0, 0.7)])
def test_where_no_temperature_is_best_nothing_is_calibrated(temperature, lost):
    last = {"held_out_calibrated_loss": {"discriminator": lost, "generators": [700.0, 900.0]}}
    summary = convergence.summarise(METHODS["psg"], [line(1, **last, held_out_temperature=temperature)])
    assert summary["calibrated_loss_gap"] is summary["held_out_temperature"] is None


def test_regularisers_are_curves_and_have_final_values():
    lines = [line(epoch, regularisers={"r1": 1 / epoch, "r2": 2.0}) for epoch in range(1, 11)]
    assert convergence.curves(METHODS["psg"], lines)["regularisers.r1"].tolist() == [1 / n for n in range(1, 11)]
    assert convergence.summarise(METHODS["psg"], lines)["regularisers"] == pytest.approx({"r1": 0.1, "r2": 2})
    assert convergence.summarise(METHODS["psg"], [line(1)])["regularisers"] == {}


def test_the_losses_converge_when_both_sides_have():
    early, late = ([10.0] * quiet + [1.0] * (20 - quiet) for quiet in (5, 8))
    lines = [line(n + 1, discriminator=early[n], generators=[late[n]] * 2) for n in range(20)]
    assert convergence.summarise(METHODS["psg"], lines)["convergence_epoch"]["loss"] == 9
    lines = [line(n + 1, discriminator=early[n], generators=[1.5**n] * 2) for n in range(20)]
    assert convergence.summarise(METHODS["psg"], lines)["convergence_epoch"]["loss"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_not_finite_is_none(value):
    lines = [line(epoch, discriminator=value, held_out_accuracy=value) for epoch in range(1, 13)]
    summary = convergence.summarise(METHODS["psg"], lines)
    assert summary["loss"] == {"discriminator": None, "generators": [1, 2]}
    assert summary["loss_gap"] is summary["held_out_accuracy"] is summary["convergence_epoch"]["loss"] is None
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("name", METHODS)
def test_summary_of_one_epoch_and_of_none(name):
    method = METHODS[name]
    one = convergence.summarise(method, [line(1, generators=[1.0] * method.generators)])
    assert one["loss_gap"] == 0
    assert one["steps_per_second"] is one["convergence_epoch"]["accuracy"] is None
    none = convergence.summarise(method, [])
    assert none["loss"] == {"discriminator": None, "generators": [None] * method.generators}
    assert one.keys() == none.keys()
    json.dumps([one, none], allow_nan=False)
