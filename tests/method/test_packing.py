"""Packing: tuples of images of one kind, side by side on channels; wherever D is applied, and nowhere else."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHAPE, first_state, tiny
from updates import one_step

from psgjax.config import ConfigError, Mesh, Network
from psgjax.method import inference, sharding
from psgjax.method import state as states
from psgjax.method.packing import packed, unpacked
from psgjax.runs import divergence

pytestmark = pytest.mark.uncovered


def test_images_in_a_row_stand_side_by_side_and_come_apart_again():
    images = jnp.arange(2 * 6 * 2 * 3 * 2.0).reshape(2, 6, 2, 3, 2)
    three = packed(3, images)
    assert three.shape == (2, 2, 2, 3, 6)
    np.testing.assert_array_equal(three[1, 1], jnp.concatenate([images[1, i] for i in (3, 4, 5)], -1))
    np.testing.assert_array_equal(unpacked(3, three), images)
    assert packed(1, images) is images


@pytest.mark.parametrize("network", [Network("mlp", 8, 6), Network("dcgan", 4, 6)], ids=lambda network: network.name)
def test_d_sees_tuples_and_everything_counts_them(network, images):
    config = tiny("choice", pack=2, network=network)
    state = first_state(config)
    after, metrics = one_step(config, images, state)
    assert float(metrics["accuracy"]) in (0, 0.5, 1)  # of two tuples
    first, inputs = ("Dense_0", 8 * 8 * 2) if network.name == "mlp" else ("Down_0", 2)
    assert state.discriminator.params[first]["kernel"].shape[-2] == inputs
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    single = dataclasses.replace(config, method=dataclasses.replace(config.method, pack=1))
    plain = states.abstract(states.make_init(single, SHAPE))
    assert jax.tree.map(jnp.shape, plain.generators) == jax.tree.map(jnp.shape, state.generators)
    judged = inference.make_accuracy(config, SHAPE)
    assert {name: float(value) for name, value in judged(state, images[:7]).items() if "accuracy" in name} == {
        name: float(value) for name, value in judged(state, images[:6]).items() if "accuracy" in name
    }
    scores = jax.eval_shape(partial(divergence._scores, config), state, jnp.asarray(images[:4])[None])
    assert scores.shape == (3, 2)


def test_a_batch_that_is_no_multiple_is_refused_and_a_mesh_splits_tuples():
    with pytest.raises(ConfigError, match="batch_size 5 with method.pack 2: .*use a --batch-size of 6"):
        tiny(pack=2, batch_size=5)
    with pytest.raises(ConfigError, match="method.pack is 0; it must be a whole number of at least 1"):
        tiny(pack=0)
    assert sharding.mesh_sizes(Mesh(), tiny("gan", pack=2, batch_size=8), 1, 8) == (1, 1, 4)
