"""inference.py: a state applied, in blocks, equals the state applied to all at once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHAPE, first_state, tiny

from psgjax import inference, objectives, spectral
from psgjax import state as states
from psgjax import step as stepping


@pytest.mark.parametrize(("name", "count"), [("psg", 30), ("sngan", 30), ("mad-gan", 7)])
def test_d_judges_the_same_in_blocks_as_at_once(name, count, monkeypatch):
    config, images = tiny(name), np.random.default_rng(1).integers(0, 256, (count, *SHAPE), dtype=np.uint8)
    state = first_state(config)
    monkeypatch.setattr(inference, "_BLOCK", 12)  # 30 images in blocks of 10, 7 in one
    judged = inference.make_judge(config, SHAPE)(state, images)

    key = jax.random.fold_in(state.key, states.Stream.JUDGE)
    fakes = jax.jit(inference.make_sampler(config, SHAPE))(state, stepping.draw_latents(config, key, count))
    tuples = jnp.concatenate([fakes, stepping.scale(images)[None]])
    _, discriminator = states.build(config, SHAPE)
    params, _ = spectral.normalise(state.discriminator.params, state.discriminator.spectral_vectors, 0)
    outputs = discriminator.apply({"params": params}, tuples.reshape(-1, *SHAPE)).reshape(*tuples.shape[:2], -1)
    expected = objectives.accuracy(objectives.read_scores(config.method, outputs), key)
    assert {name: float(judged[name]) for name in expected} == {name: float(value) for name, value in expected.items()}
    calibrated = {name: judged[name] for name in judged.keys() - expected.keys()}
    chex.assert_trees_all_close(calibrated, objectives.calibrated(config.method, outputs), rtol=1e-3)
    assert 0 <= float(judged["accuracy"]) <= 1


def test_images_drawn_in_blocks_are_those_drawn_at_once(monkeypatch):
    config = tiny("psg")
    state, key = first_state(config), jax.random.key(3)
    (drawn,) = inference.make_artist(config, SHAPE)(state, key, 70)
    monkeypatch.setattr(inference, "_BLOCK", inference._BATCH)
    (at_once,) = inference.make_artist(config, SHAPE)(state, key, 70)
    assert drawn.shape == (2, 70, *SHAPE)
    assert drawn.min() < drawn.max()
    np.testing.assert_array_equal(drawn, at_once)
