"""Parts that `psgjax.train` is given as functions and modules: trained with, recorded by name, and gone afterwards."""

import json
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import same
from flax import linen as nn

import psgjax
from psgjax import parts
from psgjax.config import ConfigError
from psgjax.networks.table import NETWORKS
from psgjax.runs import divergence

OPEN = psgjax.Method(generators=1, scores="independent", gate="none")
SMALLEST = psgjax.Network("mlp", width=2, latent_size=4)
SMALL = {"batch_size": 4, "steps": 2}


def least_squares(outputs):
    fake, real = outputs[:-1, :, 0], outputs[-1, :, 0]
    return (real - 1) ** 2 + (fake**2).mean(0), (fake - 1) ** 2


def first(scores, key):
    return jnp.zeros_like(scores).at[0].set(1.0)


def small_scores(score, real, fake, draw):
    return score(real) ** 2


class Pixels(nn.Module):
    @nn.compact
    def __call__(self, latents, train=True):
        return nn.tanh(nn.Dense(64)(latents)).reshape(-1, 8, 8, 1)


class Critic(nn.Module):
    outputs: int = 1

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.outputs)(images.reshape(len(images), -1))


def dense(network, image_shape, outputs, dtype, axis_name, wide=False):
    return Pixels(), Critic(outputs)


def test_functions_and_modules_are_parts_of_one_call(images, tmp_path):
    given = {
        "loss": least_squares,
        "regularisers": {small_scores: 0.5, "r1": 1},
        "network": (Pixels(), Critic()),
        **SMALL,
    }
    run = psgjax.train(OPEN, images, out=tmp_path / "own", **given)
    again = psgjax.train(OPEN, images, **given)
    assert same(run.state, again.state)
    assert set(run.metrics[-1]["regularisers"]) == {"small_scores", "r1"}
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert (config["method"]["loss"], config["network"]["name"]) == ("least_squares", "Pixels")
    assert config["method"]["regularisers"] == [["small_scores", 0.5], ["r1", 1.0]]
    assert "least_squares" not in parts.LOSSES
    assert "Pixels" not in NETWORKS
    assert run.sample(3).shape == (3, 8, 8, 1)  # all the same
    with pytest.raises(ConfigError, match="made with method.loss 'least_squares', which is not there"):
        psgjax.load(tmp_path / "own")
    for register, part in ((psgjax.register_loss, least_squares), (psgjax.register_regulariser, small_scores)):
        register(part.__name__, part)
    psgjax.register_network("Pixels", (Pixels(), Critic()))
    loaded = psgjax.load(tmp_path / "own")
    np.testing.assert_array_equal(loaded.sample(3), run.sample(3))


def test_a_gate_and_what_is_registered_keep_their_names(images):
    psgjax.register_gate("mine", first)
    run = psgjax.train("psg", images, gate=first, network=dense, **SMALL)
    assert run.config.network.name == "dense"
    assert run.config.method.gate == "mine"
    assert run.metrics[-1]["branches"] == [1, 0, 0]


def test_any_optax_transformation_trains_either_side(images):
    still = (optax.sgd(0.0), optax.sgd(0.1, momentum=0.5))
    begun, run = (psgjax.train("gan", images, network=SMALLEST, optimizer=still, batch_size=4, steps=n) for n in (1, 3))
    assert same(begun.state.generators.params, run.state.generators.params)
    assert not same(begun.state.discriminator.params, run.state.discriminator.params)
    assert run.config.optimizer.name == "own"
    psgjax.register_optimizer("still", still)
    named = psgjax.train("gan", images, network=SMALLEST, optimizer="still", batch_size=4, steps=3)
    assert same(named.state, run.state)
    for setting in ("beta1", "beta2_end"):
        with pytest.raises(ConfigError, match=f"optimizer.{setting} 0.9 with optimizer.name still would be ignored"):
            psgjax.Optimizer("still", **{setting: 0.9})
    batch = divergence.next_batch(named.config, named.state, images)
    assert np.isnan(divergence.examine(named.config, named.state, batch)["gradient_norm"]["discriminator"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"loss": lambda outputs: outputs},
            '<lambda> has no name .* psgjax.register_loss."mine", ...., and give "mine"',
        ),
        ({"gate": lambda scores, key: scores}, "gate <lambda> has no name that can be recorded"),
        ({"regularisers": [partial(small_scores, draw=None)]}, "regulariser partial has no name that can be recorded"),
        (
            {"network": partial(dense, wide=True)},
            "network is of type partial; it must be a psgjax.Network, a name, ",
        ),
        (
            {"network": Pixels()},
            "network is of type Pixels; it must be .* a generator and a discriminator, or a function",
        ),
        (
            {"optimizer": optax.sgd(0.1), "out": "kept"},
            'psgjax.register_optimizer."mine", ...., and give optimizer="mi',
        ),
        ({"loss": "lsgan"}, "unknown method.loss 'lsgan'"),
        ({"regularisers": ["r1", "r3"]}, "unknown method.regularisers 'r3'"),
        ({"optimizer": (1, 2, 3)}, "optimiser own is .*optax transformation"),
        ({"optimizer": "adm"}, "unknown optimizer.name 'adm'.* 'adam'"),
        ({"network": "dcgn"}, "unknown network.name 'dcgn'.* 'dcgan'"),
    ],
)
def test_mistakes_are_a_sentence(images, given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        psgjax.train(OPEN, images, **SMALL, **given)
    assert "<lambda>" not in parts.LOSSES
    assert "own" not in parts.OPTIMISERS
    assert not list(tmp_path.iterdir())
