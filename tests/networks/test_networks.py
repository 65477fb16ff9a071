"""The contract, held up to every network of the table: shapes, rows, stages, kernels, export; and what is refused."""

import hashlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import like, tiny
from flax import linen as nn
from jax import export

from psgjax import networks, schema
from psgjax.config import Config, ConfigError, Network
from psgjax.method import inference, spectral
from psgjax.method import state as states
from psgjax.method import step as stepping
from psgjax.networks import table

SHAPE = (28, 28, 1)


def made(name, shape=SHAPE, outputs=1, **settings):
    """A small network of that name, latents and images for it."""
    network = Network(name, **{"width": 4, "latent_size": 5, **settings})
    images = networks.pad_to(jax.random.normal(jax.random.key(0), (3, *shape)), network)
    latents = jax.random.normal(jax.random.key(1), (3, network.latent_size))
    return *networks.build(network, shape, outputs), latents, images


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_keeps_the_contract(name):
    generator, discriminator, latents, images = made(name, (8, 8, 3), outputs=2)
    variables = jax.jit(generator.init)(jax.random.key(2), latents)
    assert set(variables) <= {"params", "batch_stats"}
    train = partial(generator.apply, mutable=["batch_stats"])
    generated, updated = jax.eval_shape(train, variables, latents)
    assert (generated.shape, generated.dtype) == (images.shape, jnp.float32)
    assert jax.tree.structure(updated.get("batch_stats", {})) == jax.tree.structure(variables.get("batch_stats", {}))

    (batch,) = export.symbolic_shape("batch")
    symbolic = jax.ShapeDtypeStruct((batch, 5), jnp.float32)
    exported = export.export(jax.jit(lambda z: generator.apply(variables, z, train=False)))(symbolic)
    generated = exported.call(latents)
    assert generated.shape == images.shape
    np.testing.assert_allclose(exported.call(latents[:1]), generated[:1], atol=1e-5)  # an image is its latent's alone

    variables = jax.jit(discriminator.init)(jax.random.key(3), images)
    assert set(variables) == {"params"}
    whole = jax.jit(discriminator.apply)
    outputs = whole(variables, images)
    assert (outputs.shape, outputs.dtype) == ((3, 2), jnp.float32)
    np.testing.assert_allclose(whole(variables, images.at[1:].mul(3))[:1], outputs[:1], atol=1e-5)

    def staged(variables, x):
        for stage in range(discriminator.depth):
            x = discriminator.apply(variables, x, stage)
            assert isinstance(x, jax.Array)
        return x

    np.testing.assert_allclose(jax.jit(staged)(variables, images), outputs, atol=1e-5)
    matrices = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert len(spectral.init(variables["params"], jax.random.key(4))) == len(matrices) > 0


@pytest.mark.uncovered
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_trains_on_28x28(name):
    config = tiny("sngan", network=Network(name, width=4, latent_size=5))
    state = like(config, SHAPE)
    batch = jax.ShapeDtypeStruct((1, 4, *SHAPE), jnp.uint8)
    after, _ = jax.eval_shape(stepping.make_step(config, SHAPE), state, batch)
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    latents = jax.ShapeDtypeStruct((1, 7, 5), jnp.float32)
    assert jax.eval_shape(inference.make_sampler(config, SHAPE), state, latents).shape == (1, 7, *SHAPE)
    judged = jax.eval_shape(inference.make_accuracy(config, SHAPE), state, jax.ShapeDtypeStruct((9, *SHAPE), jnp.uint8))
    assert judged["accuracy"].shape == ()


# What runs of earlier versions hold: the trees' paths and shapes.
TREES = {"dcgan28": "845a923a", "sngan32": "4b62983c", "infogan28": "c5039beb", "mlp": "42a6f25e"}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_earlier_versions_are_read(name):
    generator, discriminator, latents, images = made(name)
    trees = [jax.eval_shape(m.init, jax.random.key(0), x) for m, x in ((generator, latents), (discriminator, images))]
    paths = jax.tree_util.tree_leaves_with_path([dict(tree) for tree in trees])
    text = "\n".join(f"{jax.tree_util.keystr(path)} {leaf.shape}" for path, leaf in paths)
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == TREES[name]


def size(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# The image sides for which the docstrings state parameter counts, each "`name` ... N parameters" or "... N" after the side.
SIZES = [
    *(("dcgan", side) for side in (28, 32, 64)),
    ("infogan28", 28),
    ("sngan32", 32),
    *(("resnet", side) for side in (28, 32, 64)),
    ("snresnet32", 32),
]


@pytest.mark.parametrize(("name", "side"), SIZES)
def test_parameter_counts_are_the_documented_ones(name, side):
    shape = (side, side, 1)
    modules, inputs = networks.build(Network(name), shape, 1), (jnp.zeros((1, 100)), jnp.zeros((1, *shape)))
    for module, x in zip(modules, inputs, strict=True):
        (entry,) = re.findall(rf"`{name}`(?:(?!`).)*", type(module).__doc__, re.DOTALL)[:1]
        assert f"{size(module, x):,}" in entry


@pytest.mark.parametrize(("name", "width"), [("mlp", 128), ("maxout", 200)])
def test_networks_for_the_plane_have_the_documented_parameters(name, width):
    modules = networks.build(Network(name, width, 2), (1, 1, 2), 1)
    for module, x in zip(modules, (jnp.zeros((1, 2)), jnp.zeros((1, 1, 1, 2))), strict=True):
        assert f"{size(module, x):,}" in type(module).__doc__


def test_a_maxout_unit_is_the_largest_of_five_sums():
    discriminator = networks.build(Network("maxout", 3, 2), (1, 1, 2), 1)[1]
    points = jax.random.normal(jax.random.key(0), (4, 1, 1, 2))
    variables = jax.jit(discriminator.init)(jax.random.key(1), points)
    dense = variables["params"]["Dense_0"]
    sums = np.asarray(points.reshape(4, 2) @ dense["kernel"]) + np.asarray(dense["bias"])
    largest = np.stack([sums[:, 5 * unit : 5 * unit + 5].max(1) for unit in range(3)], 1)
    np.testing.assert_allclose(discriminator.apply(variables, points, stage=0), largest, rtol=1e-6)


def test_padding_is_black_and_cropped_away():
    images = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    padded = networks.pad_to(jnp.asarray(images), Network("sngan32"))
    assert padded.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(padded[:, :2], -1.0)
    np.testing.assert_array_equal(networks.crop_to(padded, SHAPE), images)
    np.testing.assert_array_equal(networks.pad_to(jnp.asarray(images), Network()), images)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "dcgan",
            (30, 28, 1),
            "takes image sides that are multiples of 4, up to 64, not 30x28; that size is taken by .*sngan32",
        ),
        ("dcgan", (128, 128, 1), "up to 64, not 128x128; that size is taken by infogan28, mlp"),
        ("sngan32", (64, 64, 3), "takes images of at most 32x32, not 64x64; that size is taken by dcgan"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, shape, message):
    with pytest.raises(ConfigError, match=message):
        networks.build(Network(name), shape, 1)


@pytest.mark.parametrize(("side", "smallest"), [(8, 2), (12, 3), (28, 7), (32, 4), (36, 9), (48, 6), (64, 4)])
def test_dcgans_levels_follow_from_the_size(side, smallest):
    generator, discriminator = made("dcgan", (side, side, 3))[:2]
    assert generator.start == (smallest, smallest)
    assert discriminator.depth == 1 + len(generator.channels)


def test_a_residual_network_begins_with_its_shortcuts_alone():
    generator, discriminator, latents, images = made("resnet", (8, 8, 1), blocks=2)
    for module, x in ((generator, latents), (discriminator, images)):
        variables = jax.jit(module.init)(jax.random.key(2), x)
        paths = jax.tree_util.tree_leaves_with_path(variables["params"])
        zero = [jax.tree_util.keystr(path) for path, leaf in paths if leaf.ndim > 1 and not leaf.any()]
        assert len(zero) == 6  # two blocks at three sizes
        assert all("Block" in path and "Pointwise_1" in path for path in zero)
        apply = jax.jit(module.apply)
        np.testing.assert_allclose(apply(variables, 3 * x), 3 * apply(variables, x), atol=1e-4)  # linear, so unbounded


def test_blocks_are_those_of_networks_that_have_some():
    with pytest.raises(ConfigError, match="network.blocks 2 with network.name dcgan: it has no blocks.*resnet"):
        Network(blocks=2)


def test_unknown_names_are_refused_with_the_nearest():
    for attempt in (lambda: Network("sngan23"), lambda: schema.from_json(Config, '{"network": {"name": "sngan23"}}')):
        with pytest.raises(ConfigError, match=r"unknown network.name 'sngan23'.*dcgan, .*Did you mean 'sngan32'\?"):
            attempt()


def test_names_of_earlier_versions_are_those_of_this_one():
    assert schema.from_json(Config, '{"network": {"name": "dcgan28"}}') == Config()


class Pixels(nn.Module):
    """A user's generator: one dense layer."""

    shape: tuple = (8, 8, 1)

    @nn.compact
    def __call__(self, latents, train=True):
        return nn.Dense(64)(latents).reshape(-1, *self.shape)


class Judge(nn.Module):
    """A user's discriminator, of one stage and one layer."""

    outputs: int = 1

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.outputs)(images.reshape(len(images), -1))


class Normalised(Judge):
    """One that breaks the contract."""

    @nn.compact
    def __call__(self, images):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(self.outputs)(images.reshape(len(images), -1)))


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr(table, "NETWORKS", known := dict(table.NETWORKS))
    monkeypatch.setattr(networks, "NETWORKS", known)
    return networks.register


def test_a_users_network_is_known_by_its_name(register, images):
    register("mine", (Pixels(), Judge()), "one layer each")
    register("made", lambda network, shape, outputs, dtype, axis_name: (Pixels(shape), Judge(outputs)))
    for name, method in (("mine", "mad-gan"), ("made", "psg-sn")):
        config = schema.from_json(Config, schema.to_json(tiny(method, network=Network(name, latent_size=6))))
        state = states.make_init(config, (8, 8, 1))(jax.random.key(0))
        after, metrics = jax.jit(stepping.make_step(config, (8, 8, 1)))(state, images[None, :4])
        assert np.isfinite(metrics["loss"]["discriminator"])
        assert not np.array_equal(*(jax.tree.leaves(s.discriminator.params)[-1] for s in (state, after)))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            (Pixels((4, 16, 1)), Judge()),
            r"generator makes \[2, 4, 16, 1\] of latents \[2, 5\]; it must make \[2, 8, 8, 1\]",
        ),
        ((Judge(), Judge()), r"generator fails on \[2, 5\]: TypeError: .*train"),
        ((Pixels(), Normalised()), r"discriminator keeps batch_stats; a score may depend on one image alone"),
        ((Pixels(), nn.Sequential([lambda x: x.mean((1, 2))])), r"discriminator has no weight called `kernel`"),
        (
            (Pixels(), nn.Dense(1)),
            r"discriminator makes \[2, 8, 8, 1\] of images \[2, 8, 8, 1\]; it must make \[2, 1\]",
        ),
    ],
    ids=["shape", "train", "batch-norm", "kernel", "outputs"],
)
def test_a_users_network_that_breaks_the_contract_is_refused(register, pair, message):
    register("mine", pair)
    with pytest.raises(ConfigError, match=f"network.name mine: its {message}"):
        networks.build(Network("mine", latent_size=5), (8, 8, 1), 1)


def test_the_packages_own_names_are_not_replaced(register):
    with pytest.raises(ConfigError, match="dcgan28 is one of psgjax's own"):
        register("dcgan28", (Pixels(), Judge()))
