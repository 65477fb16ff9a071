"""Hand-computed values for every objective, and every branch of Algorithm 1 by a tuple built to take it."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from psgjax.config import Method
from psgjax.method import losses, objectives
from psgjax.switches import METHODS

KEY = jax.random.key(0)
evaluate = jax.jit(objectives.evaluate, static_argnums=0)
calibrated = jax.jit(objectives.calibrated, static_argnums=0)
losses_of = jax.jit(objectives.losses, static_argnums=0)
gate_of = jax.jit(objectives.gate, static_argnums=0)


def outputs_of(*odds):
    """Outputs [K + 1, B, 1] whose softmax is proportional to each tuple of odds."""
    return jnp.log(jnp.asarray(odds, jnp.float32)).T[..., None]


# Odds of (generators..., x); D's derivative and the generators', times the sum of the odds, by hand: p - onehot(x) where D is
# wrong; p - 1 for those not chosen; and (K p - 1) / K, the derivative of the mean of all K losses, where x is chosen.
BRANCHES = [
    ((3, 1), (3, -3), (0,)),
    ((1, 3), (0, 0), (-3,)),
    ((5, 2, 1), (5, 2, -7), (0, -6)),
    ((2, 5, 1), (2, 5, -7), (-6, 0)),
    ((1, 2, 5), (0, 0, 0), (-3, -2)),
    ((10, 2, 3, 1), (10, 2, 3, -15), (0, -14, -13)),
    ((1, 10, 3, 2), (1, 10, 3, -14), (-15, 0, -13)),
    ((1, 2, 8, 5), (1, 2, 8, -11), (-15, -14, 0)),
    ((1, 2, 3, 10), (0, 0, 0, 0), (-13 / 3, -10 / 3, -7 / 3)),
]


@pytest.mark.parametrize(("odds", "discriminator", "generators"), BRANCHES)
def test_each_branch_of_algorithm_1(odds, discriminator, generators):
    count = len(odds) - 1
    d_cotangents, g_cotangents, d_any, g_any, metrics = evaluate(Method(generators=count), outputs_of(odds), KEY)
    np.testing.assert_allclose(d_cotangents[:, 0, 0] * sum(odds), discriminator, atol=1e-5)
    np.testing.assert_allclose(g_cotangents[:, 0, 0] * sum(odds), generators, atol=1e-5)
    chosen = int(np.argmax(odds))
    right = chosen == count
    assert bool(d_any) is not right
    assert [bool(x) for x in g_any] == [right or i != chosen for i in range(count)]
    if not right:  # the spared generator gets exactly nothing
        assert float(g_cotangents[chosen, 0, 0]) == 0.0
    else:  # and so does a D that was right
        assert not np.any(d_cotangents)
    np.testing.assert_array_equal(metrics["branches"], np.eye(count + 1)[chosen])
    np.testing.assert_array_equal(metrics["updates"]["discriminator"], not right)


def test_a_batch_mixes_the_branches_triplet_by_triplet():
    odds = [(5, 2, 1), (1, 2, 5), (2, 5, 1)]
    d_cotangents, g_cotangents, *_ = evaluate(Method(), outputs_of(*odds), KEY)
    for i, one in enumerate(odds):
        d_alone, g_alone, *_ = evaluate(Method(), outputs_of(one), KEY)
        np.testing.assert_allclose(3 * d_cotangents[:, i], d_alone[:, 0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(3 * g_cotangents[:, i], g_alone[:, 0], rtol=1e-5, atol=1e-7)


def test_metrics_are_ungated_next_to_gated():
    *_, metrics = evaluate(Method(), outputs_of((5, 2, 1), (1, 2, 5)), KEY)
    log = np.log
    np.testing.assert_allclose(metrics["loss"]["discriminator"], (log(8) + log(8 / 5)) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"]["generators"], [(log(8 / 5) + log(8)) / 2, log(4)], rtol=1e-6)
    np.testing.assert_allclose(metrics["gated_loss"]["discriminator"], log(8) / 2, rtol=1e-6)
    mean = (log(8) + log(4)) / 2
    np.testing.assert_allclose(metrics["gated_loss"]["generators"], [mean / 2, (log(4) + mean) / 2], rtol=1e-6)
    assert float(metrics["accuracy"]) == 0.5
    assert float(metrics["pairwise_accuracy"]) == 0.5
    np.testing.assert_array_equal(metrics["updates"]["generators"], [0.5, 1.0])


LOSSES = [  # method, switches, outputs of one tuple [K + 1, O], D's loss, generators' losses: by hand
    ("psg", {}, [[0.0], [0.0], [0.0]], np.log(3), [np.log(3)] * 2),
    ("psg", {"generator_loss": "minimax"}, [[0.0], [0.0], [0.0]], np.log(3), [np.log(2 / 3)] * 2),
    ("gan", {}, [[1.0], [2.0]], 0.126928 + 1.313262, [0.313262]),
    ("gan", {"generator_loss": "minimax"}, [[1.0], [2.0]], 0.126928 + 1.313262, [-1.313262]),
    ("stackelberg", {}, [[1.0], [0.0], [2.0]], 0.126928 + (1.313262 + 0.693147) / 2, [0.313262, 0.693147]),
    ("gan", {"loss": "hinge"}, [[0.5], [0.25]], 0.75 + 1.5, [-0.5]),
    ("gan", {"loss": "hinge"}, [[-2.0], [3.0]], 0.0, [2.0]),
    ("gan", {"loss": "hinge", "generator_loss": "minimax"}, [[0.5], [0.25]], 2.25, [-1.5]),
    ("wgan-gp", {}, [[0.5], [2.0]], -1.5, [-0.5]),
    ("mad-gan", {}, np.zeros((3, 3)), np.log(3), [np.log(3)] * 2),
    ("mad-gan", {"generator_loss": "minimax"}, np.zeros((3, 3)), np.log(3), [np.log(2 / 3)] * 2),
    ("mad-gan", {}, np.log([[4, 1, 3], [1, 6, 1], [1, 1, 6]]), (np.log(2) + 2 * np.log(4 / 3)) / 3, np.log([8 / 3, 8])),
    ("mgan", {}, [[1.0, 9, 0], [0.0, 0, 9], [2.0, 0, 0]], 0.126928 + (1.313262 + 0.693147) / 2, [0.313262, 0.693147]),
]


@pytest.mark.parametrize(("name", "switches", "outputs", "discriminator", "generators"), LOSSES)
def test_losses_by_hand(name, switches, outputs, discriminator, generators):
    method = dataclasses.replace(METHODS[name], **switches)
    d_loss, g_loss = losses_of(method, np.asarray(outputs, np.float32)[:, None])
    np.testing.assert_allclose(d_loss, [discriminator], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(g_loss[:, 0], generators, rtol=1e-5, atol=1e-6)


def test_mgan_adds_its_classifier_to_both_sides():
    method = dataclasses.replace(METHODS["mgan"], diversity_weight=0.5)
    outputs = jnp.asarray(np.log([[[1, 3, 1]], [[1, 1, 1]], [[1, 5, 1]]]), jnp.float32)
    np.testing.assert_allclose(losses.mgan_classifier(outputs)[:, 0], np.log([4 / 3, 2]), rtol=1e-6)
    d_cotangents, g_cotangents, _, _, metrics = evaluate(method, outputs, KEY)
    np.testing.assert_allclose(metrics["classifier_loss"], np.log(8 / 3) / 2, rtol=1e-6)
    np.testing.assert_allclose(
        g_cotangents[0, 0], [-0.5, -0.5 / 4, 0.5 / 4], rtol=1e-5
    )  # sigmoid(0) - 1; softmax - onehot, halved
    np.testing.assert_allclose(
        d_cotangents[0, 0], [0.25, -0.5 / 8, 0.5 / 8], rtol=1e-5
    )  # shared between two generators
    np.testing.assert_allclose(d_cotangents[2, 0], [-0.5, 0, 0], atol=1e-6)  # the real image has no class


def test_one_generator_by_softmax_is_the_relativistic_pairing():
    fake, real = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    d_loss, g_loss = losses_of(METHODS["relativistic"], np.stack([fake, real])[..., None])
    np.testing.assert_allclose(d_loss, np.log1p(np.exp(fake - real)), rtol=1e-5)  # Jolicoeur-Martineau 2019, equation 3
    np.testing.assert_allclose(g_loss[0], np.log1p(np.exp(real - fake)), rtol=1e-5)
    assert METHODS["relativistic"] == dataclasses.replace(METHODS["psg"], generators=1, gate="none")


# Those with R1 and R2 have the objectives of those without.
OBJECTIVES = [name for name, method in METHODS.items() if "r1" not in dict(method.regularisers)]


@pytest.mark.uncovered
@pytest.mark.parametrize("name", OBJECTIVES)
def test_cotangents_are_the_derivatives_of_each_ones_own_objective(name):
    method = METHODS[name]
    shape = (method.generators + 1, 4, objectives.outputs_needed(method))
    with jax.enable_x64(True):
        outputs = jnp.asarray(np.random.default_rng(1).normal(size=shape))
        branch = gate_of(method, objectives.read_scores(method, outputs), KEY)

        def objective(outputs, side):
            d_loss, g_loss = objectives.losses(method, outputs)
            d_loss, g_loss, *_ = objectives.route(method, d_loss, g_loss, branch)
            extra = losses.mgan_classifier(outputs) if method.loss == "mgan" else jnp.zeros_like(g_loss)
            return (d_loss + extra.mean(0)).mean() if side is None else (g_loss + extra)[side].mean()

        d_cotangents, g_cotangents, *_ = evaluate(method, outputs, KEY)
        gradient = jax.jit(jax.grad(objective), static_argnums=1)
        np.testing.assert_allclose(d_cotangents, gradient(outputs, None), atol=1e-12)
        for i in range(method.generators):
            np.testing.assert_allclose(g_cotangents[i], gradient(outputs, i)[i], atol=1e-12)
        check_grads(jax.jit(lambda x: objective(x, None)), (outputs,), order=1, modes=["rev"])


def test_large_scores_stay_finite():
    for switches in ({}, {"generator_loss": "minimax"}):
        outputs = jnp.asarray([[300.0], [-300.0], [100.0]])[:, None]
        for method in (Method(**switches), dataclasses.replace(METHODS["stackelberg"], **switches)):
            cotangents = evaluate(method, outputs, KEY)[:2]
            assert all(np.isfinite(s).all() for s in cotangents)


def test_ties_are_broken_at_random_and_evenly():
    chosen = objectives.choose(jnp.zeros((3, 3000)), KEY)
    np.testing.assert_array_equal(chosen.sum(0), 1)
    np.testing.assert_allclose(chosen.mean(1), [1 / 3] * 3, atol=0.03)
    assert objectives.choose(jnp.asarray([[1.0], [2.0], [2.0]]), KEY)[0, 0] == 0
    assert float(objectives.accuracy(jnp.zeros((3, 10)), KEY)["pairwise_accuracy"]) == 0.5


def test_gates_differ_in_grain():
    outputs = outputs_of(
        (5, 2, 1), (5, 2, 1), (1, 1, 60)
    )  # generator 1 wins two triplets of three; x has the greatest mean
    branches = {
        gate: gate_of(Method(gate=gate), outputs[..., 0], KEY).tolist() for gate in ("triplet", "majority", "mean")
    }
    assert branches["triplet"] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert branches["majority"] == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert branches["mean"] == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_averages_over_the_batch_or_the_selected():
    outputs = outputs_of((5, 2, 1), (1, 2, 5), (1, 2, 5), (1, 2, 5))
    batch = evaluate(Method(), outputs, KEY)[0]
    selected = evaluate(Method(mask_average="selected"), outputs, KEY)[0]
    np.testing.assert_allclose(selected, 4 * batch, rtol=1e-6)


def test_the_average_loss_goes_where_it_is_sent():
    outputs = outputs_of((1, 2, 5))
    d_loss = {to: evaluate(Method(average_loss=to), outputs, KEY) for to in ("generators", "discriminator", "both")}
    assert not np.any(d_loss["generators"][0])
    assert np.any(d_loss["discriminator"][0])
    np.testing.assert_array_equal(d_loss["discriminator"][0], d_loss["both"][0])
    assert not np.any(d_loss["discriminator"][1])
    np.testing.assert_array_equal(d_loss["generators"][1], d_loss["both"][1])
    # Mean of -log p(1) and -log p(2) by the scores: p - 1/2 for the generators' images, p(x) for the real one.
    np.testing.assert_allclose(d_loss["both"][0][:, 0, 0], [1 / 8 - 1 / 2, 2 / 8 - 1 / 2, 5 / 8], rtol=1e-5)
    halved = evaluate(Method(average_loss="both", average_loss_weight=0.5), outputs, KEY)
    np.testing.assert_allclose(halved[0], d_loss["both"][0] / 2, rtol=1e-6)
    np.testing.assert_allclose(halved[1], d_loss["both"][1] / 2, rtol=1e-6)


def test_the_correct_weight_scales_d_where_it_is_right():
    right, wrong = outputs_of((1, 2, 5)), outputs_of((5, 2, 1))
    for weight in (0.0, 0.25, 1.0):
        method = Method(correct_weight=weight)
        np.testing.assert_allclose(
            evaluate(method, right, KEY)[0][:, 0, 0], weight * np.array([1, 2, -3]) / 8, rtol=1e-5, atol=1e-7
        )
        np.testing.assert_array_equal(evaluate(method, wrong, KEY)[0], evaluate(Method(), wrong, KEY)[0])


@functools.cache
def best_temperature(name):
    """Scores of real images that are higher, but not always; the temperature at which D's loss is least, and the losses there."""
    method = METHODS[name]
    shape = (method.generators + 1, 200, objectives.outputs_needed(method))
    real = -1 if name == "mad-gan" else 0  # its output "real"
    outputs = jax.random.normal(KEY, shape).at[-1, :, real].add(1.5)

    @jax.jit
    def at(temperature):
        return [loss.mean(-1) for loss in objectives.losses(method, outputs / temperature)]

    best = scipy.optimize.minimize_scalar(lambda t: float(at(np.exp(t))[0]), bounds=(-5, 5), method="bounded").x
    return outputs, np.exp(best), dict(zip(("discriminator", "generators"), at(np.exp(best)), strict=True))


@pytest.mark.uncovered
@pytest.mark.parametrize("name", ["psg", "gan", "mad-gan", "mgan"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_calibrated_losses_are_those_at_the_best_temperature_whatever_the_scale_of_the_scores(name, scale):
    outputs, best, expected = best_temperature(name)
    found = calibrated(METHODS[name], scale * outputs)
    chex.assert_trees_all_close(found["calibrated_loss"], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["temperature"], scale * best, rtol=2e-3)


def test_wasserstein_scores_have_no_best_temperature():
    assert objectives.calibrated(METHODS["wgan-gp"], jnp.zeros((2, 4, 1))) == {}
