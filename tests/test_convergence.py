import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from psgjax import convergence, objectives
from psgjax.config import METHODS, Method

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


def test_smooth_is_a_trailing_mean():
    curve = np.array([1.0, 2.0, 3.0, 4.0])
    assert convergence.smooth(curve, 2).tolist() == [1, 1.5, 2.5, 3.5]
    assert convergence.smooth(curve, 1).tolist() == curve.tolist()


@pytest.mark.parametrize(("epochs", "kept"), [(1, 1), (9, 1), (20, 2), (500, 50)])
def test_final_is_the_mean_of_the_last_tenth(epochs, kept):
    curve = np.arange(epochs, dtype=float)
    assert convergence.final(curve) == curve[-kept:].mean()


def test_a_falling_step_converges_when_the_trailing_mean_has_left_it_behind():
    # 100 epochs are smoothed over 4: means of 7.75, 5.5, 3.25 at epochs 31 to 33, and 1 from epoch 34.
    curve = np.where(np.arange(1, 101) <= 30, 10.0, 1.0)
    assert convergence.convergence_epoch(range(1, 101), curve) == 34
    assert convergence.convergence_epoch(range(1, 101), -curve) == 34
    assert convergence.convergence_epoch(np.arange(1, 101) / 4, curve) == 8.5


def test_the_band_is_five_percent_of_the_final_value():
    inside, outside = np.full(20, 2.0), np.full(20, 2.0)
    inside[9], outside[9] = 2.099, 2.101
    assert convergence.convergence_epoch(range(1, 21), inside) == 1
    assert convergence.convergence_epoch(range(1, 21), outside) == 11


@pytest.mark.parametrize(
    "curve",
    [
        np.ones(9),
        np.append(np.ones(19), 100.0),
        np.append(np.ones(19), np.nan),
        np.tile([1.0, -1.0], 10),
    ],
    ids=["too short", "leaves the band at the end", "not finite", "around zero"],
)
def test_what_never_settles_has_no_convergence_epoch(curve):
    assert convergence.convergence_epoch(range(1, len(curve) + 1), curve) is None


def test_a_value_that_is_not_finite_early_on_delays_convergence():
    curve = np.append([1.0, np.nan], np.ones(18))
    assert convergence.convergence_epoch(range(1, 21), curve) == 3


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


def compare(psg, sngan):
    return convergence.compare([psg], [sngan])


def summaries(gaps=(0.1, 0.2), normalised=(0.1, 0.2), accuracies=(0.35, 0.52), epochs=(75, 125), trained=500):
    return [
        {
            "finished": True,
            "epochs": trained,
            "loss_gap": gaps[side],
            "normalised_loss_gap": normalised[side],
            "accuracy": accuracies[side],
            "chance": (1 / 3, 1 / 2)[side],
            "convergence_epoch": {"loss": epochs[side], "accuracy": None},
        }
        for side in (0, 1)
    ]


@pytest.mark.parametrize(
    ("claim", "changes", "verdict"),
    [
        ("loss_gap", {}, "reproduced"),
        ("loss_gap", {"gaps": (0.15, 0.2), "normalised": (0.3, 0.2)}, "not reproduced"),
        ("loss_gap", {"normalised": (0.19, 0.2)}, "cannot be said"),
        ("loss_gap", {"normalised": (None, 0.2)}, "cannot be said"),
        ("loss_gap", {"gaps": (0.1, 0.0), "normalised": (0.1, 0.0)}, "cannot be said"),
        ("loss_gap", {"trained": 9}, "cannot be said"),
        ("accuracy", {}, "reproduced"),
        ("accuracy", {"accuracies": (0.79, 0.52)}, "not reproduced"),
        ("accuracy", {"accuracies": (0.35, 0.7)}, "not reproduced"),
        ("accuracy", {"accuracies": (None, 0.5)}, "cannot be said"),
        ("convergence_epoch", {}, "reproduced"),
        ("convergence_epoch", {"epochs": (110, 125)}, "not reproduced"),
        ("convergence_epoch", {"epochs": (None, 125)}, "not reproduced"),
        ("convergence_epoch", {"epochs": (75, None)}, "cannot be said"),
        ("convergence_epoch", {"epochs": (10, 30), "trained": 50}, "cannot be said"),
    ],
)
def test_verdicts_on_the_papers_claims(claim, changes, verdict):
    assert compare(*summaries(**changes))[claim]["verdict"] == verdict


def test_nothing_is_said_of_an_unfinished_run():
    psg, sngan = summaries()
    sngan["finished"] = False
    assert {claim["verdict"] for claim in compare(psg, sngan).values()} == {"cannot be said"}


def test_the_reduction_of_the_gap_is_given_as_a_share():
    reductions = compare(*summaries(gaps=(0.6, 1.0), normalised=(3.0, 2.0)))["loss_gap"]["reductions"]
    assert reductions == pytest.approx({"loss_gap": 0.4, "normalised_loss_gap": -0.5})


@pytest.mark.parametrize("freedom", [1, 2, 3, 9, 29])
def test_students_bound_is_scipys(freedom):
    assert convergence.student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-7)


def test_an_estimate_is_a_mean_with_its_interval():
    estimate = convergence.Estimate.of([1.0, 2.0, 6.0])
    low, high = scipy.stats.t.interval(0.95, 2, loc=3, scale=scipy.stats.sem([1.0, 2.0, 6.0]))
    assert (estimate - estimate.half, estimate + estimate.half) == pytest.approx((low, high))
    assert json.dumps(estimate) == "3.0"


def test_summaries_of_seeds_are_combined_leaf_by_leaf():
    trees = [
        {"steps": 10, "gap": 1.0, "losses": [1.0, 2.0], "settled": 4, "finished": True, "of": {"name": "mnist"}},
        {"steps": 10, "gap": 2.0, "losses": [1.0, 4.0], "settled": None, "finished": False, "of": {"name": "mnist"}},
    ]
    together = convergence.combine(trees)
    assert together == {
        "steps": 10,
        "gap": 1.5,
        "losses": [1.0, 3.0],
        "settled": None,
        "finished": False,
        "of": {"name": "mnist"},
    }
    half = convergence.student(1) / 2
    assert convergence.half_widths(together)["losses"] == [None, pytest.approx(2 * half)]
    assert convergence.half_widths(together)["gap"] == pytest.approx(half)


# Values of four seeds around those of `summaries`: half the interval of the mean is 1.84 times the spread.
@pytest.mark.parametrize(
    ("claim", "changes", "spread", "verdict"),
    [
        ("loss_gap", {}, 0.01, "reproduced"),
        ("loss_gap", {}, 0.03, "cannot be said"),
        ("loss_gap", {"gaps": (0.2, 0.2), "normalised": (0.2, 0.2)}, 0.01, "not reproduced"),
        ("accuracy", {}, 0.01, "reproduced"),
        ("accuracy", {}, 0.03, "cannot be said"),
        ("accuracy", {"accuracies": (0.79, 0.52)}, 0.03, "not reproduced"),
        ("convergence_epoch", {}, 5, "reproduced"),
        ("convergence_epoch", {}, 30, "cannot be said"),
        ("convergence_epoch", {"epochs": (140, 125)}, 5, "not reproduced"),
    ],
)
def test_several_seeds_are_judged_by_the_interval_of_their_mean(claim, changes, spread, verdict):
    seeds = []
    for offset in (-spread, -spread, spread, spread):
        psg, sngan = summaries(**changes)
        psg["loss_gap"] += offset
        psg["normalised_loss_gap"] += offset
        psg["accuracy"] += offset
        psg["convergence_epoch"] = {"loss": psg["convergence_epoch"]["loss"] + offset}
        seeds.append((psg, sngan))
    assert convergence.compare(*zip(*seeds, strict=True))[claim]["verdict"] == verdict
    seeds[2][0]["convergence_epoch"]["loss"] = None
    found = convergence.compare(*zip(*seeds, strict=True))["convergence_epoch"]
    assert (found["verdict"], found["psg"]) == ("not reproduced", None)
