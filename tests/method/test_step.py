"""The update as a pure function, against separate, textbook and stepwise computations, and golden values."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import IMAGE, SHAPE, first_state, same, tiny
from updates import batch_of, first_moments, latents_of, one_step

from psgjax.config import ConfigError, Network, Optimizer
from psgjax.method import objectives, spectral
from psgjax.method import state as states
from psgjax.method import step as stepping
from psgjax.switches import METHODS

pytestmark = pytest.mark.uncovered


def three_updates(config, images):
    """The state and the metrics after each."""
    state = first_state(config)
    for _ in range(3):
        state, metrics = one_step(config, images, state)
        yield state, metrics


@pytest.mark.parametrize("name", list(METHODS))
def test_updates_change_both_sides_and_stay_finite(name, images):
    config = tiny(name, network=IMAGE)
    before = first_state(config)
    for after, metrics in three_updates(config, images):  # all of D's update may be gated away in one
        chex.assert_tree_all_finite((after.generators, after.discriminator, metrics))
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert int(after.step) == 3
    for old, new in ((before.generators, after.generators), (before.discriminator, after.discriminator)):
        for layer in old.params:  # (biases before a softmax or a critic's mean have no gradient)
            assert "BatchNorm" in layer or not np.array_equal(old.params[layer]["kernel"], new.params[layer]["kernel"])
    assert bool(after.discriminator.spectral_vectors) == config.method.spectral_norm


# D's and the first generator's loss, and accuracy, summed over three updates. They may be written anew only where a change of the
# method, its defaults or the random streams was meant, with the reason in the commit; a change of speed or structure keeps them.
GOLDEN = {
    "psg": [3.29552, 3.296022, 2.25],
    "sngan": [4.021145, 2.085013, 2.25],
    "gan": [4.158597, 2.079588, 2.25],
    "relativistic": [2.079156, 2.079728, 2.25],
    "stackelberg": [4.158611, 2.079587, 2.25],
    "psg-sn": [3.139177, 3.396948, 2.25],
    "mad-gan": [3.295845, 3.295679, 1.75],
    "mgan": [4.158671, 2.079577, 2.25],
    "wgan-gp": [-8.877530e-04, -6.941296e-05, 2.55],
    "choice": [3.295474, 3.296045, 2.25],
    "r3gan": [2.079156, 2.079728, 2.25],
    "psg-ungated": [3.295474, 3.296045, 2.25],
    "psg-r1r2": [3.29552, 3.296022, 2.25],
    "gan-r1r2": [4.158597, 2.079588, 2.25],
    "stackelberg-r1r2": [4.158611, 2.079587, 2.25],
    "mgan-r1r2": [4.15867, 2.079577, 2.25],
}


@pytest.mark.parametrize("name", list(METHODS))
def test_golden_metrics(name, images):
    totals = np.zeros(3)
    for _, metrics in three_updates(tiny(name, network=IMAGE), images):
        totals += [metrics["loss"]["discriminator"], metrics["loss"]["generators"][0], metrics["accuracy"]]
    np.testing.assert_allclose(totals, GOLDEN[name], rtol=1e-4)


def test_generators_are_identical_in_build_and_independent_in_value():
    params = first_state(tiny("stackelberg", generators=3, network=IMAGE)).generators.params
    kernels = params["Dense_0"]["kernel"]
    assert kernels.shape[0] == 3
    assert not np.array_equal(kernels[0], kernels[1])


def test_k_vmapped_generators_equal_k_separate_ones(images):
    config = tiny("stackelberg", generators=3, network=IMAGE)
    before = first_state(config)
    after, _ = one_step(config, images)
    generator, discriminator = states.build(config, SHAPE)
    latents = latents_of(config, before)
    optimizer = optax.adam(2e-4, b1=0.5, b2=0.999)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, batch_stats, latents):
        variables = {"params": params, "batch_stats": batch_stats}
        fakes, updated = generator.apply(variables, latents, mutable=["batch_stats"])
        scores = discriminator.apply({"params": before.discriminator.params}, fakes)
        return jnp.mean(jax.nn.softplus(-scores)), updated["batch_stats"]

    @jax.jit
    def updated(params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates)

    for i in range(3):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], before.generators)
        grads, batch_stats = gradient(own.params, own.batch_stats, latents[i])
        new = jax.tree.map(lambda leaf, i=i: leaf[i], after.generators)
        chex.assert_trees_all_close(new.batch_stats, batch_stats, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(new.opt_state[0].mu, jax.tree.map(lambda g: g / 2, grads), rtol=1e-4, atol=1e-7)
        chex.assert_trees_all_close(new.params, updated(own.params, grads), atol=2e-5)


def test_gan_equals_a_textbook_step(images):
    config = tiny("gan", network=IMAGE)
    before = first_state(config)
    after, metrics = one_step(config, images)
    generator, discriminator = states.build(config, SHAPE)
    g_params, stats = jax.tree.map(lambda leaf: leaf[0], (before.generators.params, before.generators.batch_stats))
    real = jnp.asarray(images[:4], jnp.float32) / 127.5 - 1
    latents = latents_of(config, before)[0]

    def fake(params):
        return generator.apply({"params": params, "batch_stats": stats}, latents, mutable=["batch_stats"])[0]

    def score(params, images):
        return discriminator.apply({"params": params}, images)[:, 0]

    def d_loss(params):  # Goodfellow et al. 2014: -log D(x) - log(1 - D(G(z)))
        p_real, p_fake = jax.nn.sigmoid(score(params, real)), jax.nn.sigmoid(score(params, fake(g_params)))
        return -jnp.mean(jnp.log(p_real)) - jnp.mean(jnp.log(1 - p_fake))

    def g_loss(params):  # non-saturating: -log D(G(z))
        return -jnp.mean(jnp.log(jax.nn.sigmoid(score(before.discriminator.params, fake(params)))))

    d_value, d_grads = jax.jit(jax.value_and_grad(d_loss))(before.discriminator.params)
    g_value, g_grads = jax.jit(jax.value_and_grad(g_loss))(g_params)
    np.testing.assert_allclose(metrics["loss"]["discriminator"], d_value, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"]["generators"], [g_value], rtol=1e-5)
    d_moments, g_moments = first_moments(after)
    chex.assert_trees_all_close(d_moments, jax.tree.map(lambda g: g / 2, d_grads), rtol=1e-4, atol=1e-7)
    chex.assert_trees_all_close(
        jax.tree.map(lambda g: g[0], g_moments), jax.tree.map(lambda g: g / 2, g_grads), rtol=1e-4, atol=1e-7
    )


def test_the_discriminators_half_of_an_alternating_step_is_the_simultaneous_one(images):
    simultaneous, _ = one_step(tiny("sngan"), images)
    alternating, _ = one_step(tiny("sngan", update_order="alternating"), images)
    chex.assert_trees_all_close(alternating.discriminator, simultaneous.discriminator, rtol=1e-5, atol=1e-7)


def gated_outputs(winner):
    """A stand-in for D's reading of scores in which `winner` (K for the real images) is chosen in every triplet."""

    def read(method, outputs):
        offset = jnp.where(jnp.arange(len(outputs)) == winner, 100.0, 0.0)
        return outputs[..., 0] + offset[:, None]

    return read


def test_an_empty_mask_leaves_parameters_moments_and_statistics_alone(images, monkeypatch):
    config = tiny("psg-sn", network=IMAGE, optimizer=Optimizer(average_decay=0.9))

    @jax.jit
    def step(state, winner):
        monkeypatch.setattr(objectives, "read_scores", gated_outputs(winner))
        return stepping.make_step(config, SHAPE)(state, batch_of(config, images))

    state, _ = one_step(config, images)  # moments are not zero any more
    for winner in range(3):
        after, metrics = step(state, winner)
        np.testing.assert_array_equal(metrics["branches"], np.eye(3)[winner])
        for i in range(2):
            old, new = (jax.tree.map(lambda leaf, i=i: leaf[i], s.generators) for s in (state, after))
            assert same(old, new) == (winner == i)
        assert same(state.discriminator, after.discriminator) == (winner == 2)


def test_the_gradient_penalty_by_its_definition(images):
    options = {"update_order": "simultaneous", "discriminator_steps": 1}
    config = tiny("wgan-gp", **options)
    state = first_state(config)
    with_penalty, without = (one_step(c, images)[0] for c in (config, tiny("wgan-gp", regularisers=(), **options)))
    difference = jax.tree.map(lambda a, b: 2 * (a - b), first_moments(with_penalty)[0], first_moments(without)[0])
    generator, discriminator = states.build(config, SHAPE)
    latents_key, other_key = stepping.pass_keys(state, 0)
    variables = {"params": state.generators.params, "batch_stats": state.generators.batch_stats}
    latents = stepping.draw_latents(config, latents_key, 4)[0]
    fakes = generator.apply(jax.tree.map(lambda leaf: leaf[0], variables), latents)
    t = jax.random.uniform(other_key, (1, 4, 1, 1, 1))[0]
    between = t * (jnp.asarray(images[:4], jnp.float32) / 127.5 - 1) + (1 - t) * fakes

    def penalty(params):  # Gulrajani et al. 2017, equation 3, image by image
        norms = [
            jnp.linalg.norm(
                jax.grad(lambda x: discriminator.apply({"params": params}, x[None])[0, 0])(image).reshape(-1)
            )
            for image in between
        ]
        return 10.0 * sum((norm - 1) ** 2 for norm in norms) / 4

    expected = jax.jit(jax.grad(penalty))(state.discriminator.params)
    chex.assert_trees_all_close(difference, expected, rtol=1e-3, atol=1e-5)


def test_spectral_vectors_move_once_an_update_and_raw_weights_are_kept(images):
    config = tiny("sngan", network=IMAGE)
    before = first_state(config)
    after, _ = one_step(config, images)
    _, expected = spectral.normalise(before.discriminator.params, before.discriminator.spectral_vectors)
    for path, u in after.discriminator.spectral_vectors.items():
        np.testing.assert_allclose(u, expected[path], rtol=1e-5, atol=1e-6)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), before.discriminator.params, after.discriminator.params
    )
    assert (
        max(jax.tree.leaves(moved)) <= 2e-4 * 1.01
    )  # Adam's step on the raw weights; a division by sigma would be far more


def test_the_average_weighs_every_update_and_not_the_initialisation(images):
    decay, seen = 0.75, []
    config = dataclasses.replace(tiny("gan"), optimizer=Optimizer(average_decay=decay))
    state = first_state(config)
    assert same(state.generators.average.ema, state.generators.params)
    for n in range(1, 4):
        state, _ = one_step(config, images, state)
        seen.append(state.generators.params)
        weights = [(1 - decay) * decay ** (n - i) / (1 - decay**n) for i in range(1, n + 1)]
        assert sum(weights) == pytest.approx(1)
        expected = jax.tree.map(lambda *leaves, w=weights: sum(map(np.multiply, w, leaves)), *seen)
        chex.assert_trees_all_close(state.generators.average.ema, expected, rtol=1e-5, atol=1e-7)
    assert state.generators.average.count.tolist() == [3]


@pytest.mark.parametrize("order", ["simultaneous", "alternating"])
def test_the_linear_schedule_follows_the_run_and_not_the_updates_that_a_gate_lets_through(order, images):
    switches = {"correct_weight": 1.0, "update_order": order}
    config = tiny("psg", steps=4, optimizer=Optimizer(schedule="linear"), **switches)
    plain = dataclasses.replace(config, optimizer=Optimizer())
    for step in (0, 3, 4):  # Adam's own count stands at 0, as if a gate had held up every update so far
        before = dataclasses.replace(first_state(config), step=jnp.int32(step))
        after, full = (one_step(c, images, before)[0] for c in (config, plain))
        for side in ("discriminator", "generators"):
            old, new, whole = (getattr(state, side).params for state in (before, after, full))
            if side == "discriminator" or order == "simultaneous" or step == 0:  # else another D has judged them
                expected = jax.tree.map(lambda a, b, left=1 - step / 4: a + left * (b - a), old, whole)
                chex.assert_trees_all_close(new, expected, atol=1e-7)
            assert same(old, new) == (step == 4)


def test_in_the_alternating_order_what_is_logged_of_d_is_of_its_own_passes(images):
    _, both = one_step(tiny("psg-sn"), images)
    _, metrics = one_step(tiny("psg-sn", update_order="alternating"), images)
    own = [metrics[name]["discriminator"] for name in ("loss", "gated_loss", "updates")]
    expected = [both[name]["discriminator"] for name in ("loss", "gated_loss", "updates")]
    np.testing.assert_allclose(own, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], both["accuracy"])
    assert not np.allclose(metrics["loss"]["generators"], both["loss"]["generators"], rtol=1e-4)
    _, two = one_step(tiny("psg-sn", update_order="alternating", discriminator_steps=2), images)
    assert float(two["updates"]["discriminator"]) in np.arange(9) / 8  # the mean over eight triplets in two passes


def test_batch_statistics_of_single_values_are_refused(images):
    for name, size in (("infogan28", 8), ("dcgan", 4)):
        config = tiny("gan", batch_size=1, network=Network(name, width=4, latent_size=6))
        with pytest.raises(
            ConfigError, match=f"batch_size 1 with network.name {name} on images of {size}x{size}.*at least 2"
        ):
            states.build(config, (size, size, 1))
    states.build(tiny("gan", batch_size=1, network=IMAGE), SHAPE)  # 2x2 values
    states.build(tiny("gan", batch_size=1), SHAPE)
