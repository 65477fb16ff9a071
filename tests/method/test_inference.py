"""inference.py: a state applied, in blocks, equals the state applied to all at once."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, SHAPE, first_state, same, tiny

from psgjax.config import Optimizer
from psgjax.method import inference, objectives, spectral
from psgjax.method import state as states
from psgjax.method import step as stepping
from psgjax.networks import layers


@pytest.mark.uncovered
@pytest.mark.parametrize(("name", "count"), [("psg", 30), ("sngan", 30), ("mad-gan", 7)])
def test_d_judges_the_same_in_blocks_as_at_once(name, count, monkeypatch):
    config, images = tiny(name), np.random.default_rng(1).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    state = first_state(config)
    monkeypatch.setattr(inference, "_BLOCK", 12)  # 30 images in blocks of 10, 7 in one
    judged = inference.make_accuracy(config, SHAPE)(state, images)

    key = jax.random.fold_in(state.key, states.Stream.JUDGE)
    fakes = jax.jit(inference.make_sampler(config, SHAPE))(state, stepping.draw_latents(config, key, count))
    tuples = jnp.concatenate([fakes, stepping.scale(images)[None]])
    _, discriminator = states.build(config, SHAPE)

    @jax.jit
    def judge(d, images):
        params, _ = spectral.normalise(d.params, d.spectral_vectors, 0)
        return discriminator.apply({"params": params}, images.reshape(-1, *SHAPE)).reshape(*images.shape[:2], -1)

    outputs = judge(state.discriminator, tuples)
    expected = objectives.accuracy(objectives.read_scores(config.method, outputs), key)
    assert {name: float(judged[name]) for name in expected} == {name: float(value) for name, value in expected.items()}
    calibrated = {name: judged[name] for name in judged.keys() - expected.keys()}
    chex.assert_trees_all_close(calibrated, objectives.calibrated(config.method, outputs), rtol=1e-3)
    assert 0 <= float(judged["accuracy"]) <= 1


def test_images_drawn_in_blocks_are_those_drawn_at_once(monkeypatch):
    config = tiny("psg")
    state, key = first_state(config), jax.random.key(3)
    (drawn,) = inference.make_batch_sampler(config, SHAPE)(state, key, 70)
    monkeypatch.setattr(inference, "_BLOCK", inference._BATCH)
    (at_once,) = inference.make_batch_sampler(config, SHAPE)(state, key, 70)
    assert drawn.shape == (2, 70, *SHAPE)
    assert drawn.min() < drawn.max()
    np.testing.assert_array_equal(drawn, at_once)


def random_average(config, images):
    """A state whose averages are other parameters than those in training, and whose running statistics are nobody's."""
    state, normal = first_state(config), np.random.default_rng(7).standard_normal
    g = state.generators
    other = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.3 * normal(leaf.shape, np.float32), g.params)
    nobodys = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(5), g.batch_stats)
    generators = dataclasses.replace(g, average=g.average._replace(ema=other), batch_stats=nobodys)
    return dataclasses.replace(state, generators=generators)


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_averages_are_sampled_with_batch_statistics_of_their_own(momentum, images, monkeypatch):
    monkeypatch.setattr(layers.BatchNorm, "momentum", momentum)
    config = tiny("stackelberg", network=IMAGE, optimizer=Optimizer(average_decay=0.9))
    state = random_average(config, images)
    variables = jax.jit(inference.make_variables(config, SHAPE))(state)
    assert same(variables["params"], state.generators.average.ema)
    latents = stepping.draw_latents(config, jax.random.fold_in(state.key, states.Stream.STATISTICS), 512)
    latents = np.asarray(latents, np.float64).reshape(2, 128, 4, -1)
    for i, kernel in enumerate(np.asarray(variables["params"]["Dense_0"]["kernel"], np.float64)):
        entering = (latents[i] @ kernel).reshape(128, -1, 8)  # [batches, 4 images of 2x2, channels]
        found = jax.tree.map(lambda leaf, i=i: leaf[i], variables["batch_stats"]["BatchNorm_0"])
        np.testing.assert_allclose(found["mean"], entering.mean((0, 1)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["var"], entering.var(1).mean(0), rtol=1e-4)


def test_averages_are_sampled_whatever_the_statistics_in_training_and_judged_never(images):
    config = tiny("psg", network=IMAGE, optimizer=Optimizer(average_decay=0.9))
    plain = dataclasses.replace(config, optimizer=Optimizer())
    state, key = random_average(config, images), jax.random.key(3)
    trained = dataclasses.replace(state, generators=first_state(config).generators)
    with_average = dataclasses.replace(
        state, generators=dataclasses.replace(trained.generators, average=state.generators.average)
    )
    draw, judge = inference.make_batch_sampler(config, SHAPE), inference.make_accuracy(config, SHAPE)
    assert same(draw(state, key, 5), draw(with_average, key, 5))
    assert not same(draw(state, key, 5), inference.make_batch_sampler(plain, SHAPE)(state, key, 5))
    assert same(judge(trained, images), inference.make_accuracy(plain, SHAPE)(trained, images))
    assert same(judge(trained, images), judge(with_average, images))
