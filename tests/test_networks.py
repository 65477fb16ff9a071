"""Shapes and parameter counts of every network, as their docstrings state them; images padded and cropped back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from psgjax import inference, networks
from psgjax import state as states
from psgjax import step as stepping
from psgjax.config import ConfigError, Network

SHAPE = (28, 28, 1)


def size(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize("name", ["dcgan28", "infogan28", "sngan32"])
def test_parameter_counts_are_the_documented_ones(name):
    generator, discriminator = networks.build(Network(name), SHAPE, 1)
    side = 32 if name == "sngan32" else 28
    for module, inputs in ((generator, jnp.zeros((1, 100))), (discriminator, jnp.zeros((1, side, side, 1)))):
        entry = re.search(rf"`{name}`(?:(?!`).)*?([\d,]+) parameters", type(module).__doc__, re.DOTALL)
        assert size(module, inputs) == int(entry[1].replace(",", ""))


def test_the_mlp_has_the_documented_parameters():
    generator, discriminator = networks.build(Network("mlp", 128, 2), (1, 1, 2), 1)
    counts = size(generator, jnp.zeros((1, 2))), size(discriminator, jnp.zeros((1, 1, 1, 2)))
    assert [f"{count:,}" in networks.MLP.__doc__ for count in counts] == [True, True]


@pytest.mark.parametrize("name", ["dcgan28", "sngan32", "infogan28", "mlp"])
def test_every_network_trains_on_28x28(name):
    config = tiny("psg-sn", network=Network(name, width=4, latent_size=5))
    state = jax.eval_shape(lambda: states.init(config, SHAPE))
    batch = jax.ShapeDtypeStruct((1, 4, *SHAPE), jnp.uint8)
    after, _ = jax.eval_shape(stepping.make_step(config, SHAPE), state, batch)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    latents = jax.ShapeDtypeStruct((2, 7, 5), jnp.float32)
    assert jax.eval_shape(inference.make_sampler(config, SHAPE), state, latents).shape == (2, 7, *SHAPE)
    judged = jax.eval_shape(inference.make_judge(config, SHAPE), state, jax.ShapeDtypeStruct((9, *SHAPE), jnp.uint8))
    assert judged["accuracy"].shape == ()


def test_padding_is_black_and_cropped_away():
    images = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    padded = networks.pad_to(jnp.asarray(images), Network("sngan32"))
    assert padded.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(padded[:, :2], -1.0)
    np.testing.assert_array_equal(networks.crop_to(padded, SHAPE), images)
    assert networks.pad_to(jnp.asarray(images), Network()) is not None
    np.testing.assert_array_equal(networks.pad_to(jnp.asarray(images), Network()), images)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="multiples of 4, not 30x28"):
        networks.build(Network(), (30, 28, 1), 1)
    with pytest.raises(ConfigError, match="at most 32x32, not 64x64"):
        networks.build(Network("sngan32"), (64, 64, 3), 1)


@pytest.mark.parametrize("name", ["dcgan28", "sngan32", "infogan28", "mlp"])
def test_a_discriminators_stages_make_the_whole(name):
    side = 32 if name == "sngan32" else 28
    _, discriminator = networks.build(Network(name, width=2), (side, side, 1), 1)
    x = images = jax.random.normal(jax.random.key(0), (3, side, side, 1))
    variables = discriminator.init(jax.random.key(1), images)
    for stage in range(discriminator.depth):
        x = discriminator.apply(variables, x, stage)
    np.testing.assert_array_equal(x, discriminator.apply(variables, images))
