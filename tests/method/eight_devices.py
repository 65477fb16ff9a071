"""The update on meshes of eight simulated devices, against one device.

`test_sharding.py` runs these tests in processes of their own, because a backend with eight devices has other threads, and so other
bits, than the one that every other test has. Smaller meshes are what one replica of these has.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, POINTS, SCHEDULES, SHAPE, first_state, leaves, same, tiny
from small_mnist import SMALL
from updates import stacked

from experiments import mnist, tpu
from psgjax.config import Data, Mesh
from psgjax.method import epochs, sharding
from psgjax.method import state as states
from psgjax.runs.checkpoint import Checkpoints
from psgjax.switches import METHODS

MESHES = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8]
KINDS = {tuple(n > 1 for n in sizes): sizes for sizes in reversed(MESHES)}.values()  # one that splits each set of axes
IMAGES = np.random.default_rng(0).integers(0, 256, (83, *SHAPE), dtype=np.uint8)  # 83: no mesh divides it


def seeds(config, count):
    return [first_state(dataclasses.replace(config, seed=seed)) for seed in range(count)]


@functools.cache
def on_one_device(config):
    return epochs.make_run(config, len(IMAGES), SHAPE)


class OnMesh:
    """Two updates as the program of a mesh, of as many replicas as that axis is long."""

    def __init__(self, config, *sizes):
        replicas = sizes[0] > 1
        self.mesh = sharding.make_mesh(Mesh(*sizes), config, sizes[0])
        self.layout = states.layout(self.mesh, replicas)
        self.images = sharding.place_images(IMAGES, self.mesh)
        members = seeds(config, sizes[0])
        self.first = jax.device_put(stacked(*members) if replicas else members[0], self.layout)
        self.program = epochs.make_run(config, len(IMAGES), SHAPE, replicas, self.mesh)

    @functools.cached_property
    def traced(self):
        return self.program.trace(self.first, self.images, jnp.int32(2))

    @functools.cached_property
    def compiled(self):
        return self.traced.lower().compile()

    def run(self, state):
        return self.compiled(states.copied(state), self.images, jnp.int32(2))


def collectives(program, mesh):
    """The kinds of collectives in a compiled program, with the axes of the mesh that their groups run along."""
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    along = {}
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            positions = [mesh.axis_names.index(axis) for axis in chosen]
            ids = np.moveaxis(np.vectorize(lambda device: device.id)(mesh.devices), positions, range(-count, 0))
            groups = ids.reshape(-1, np.prod([mesh.shape[axis] for axis in chosen]))
            along[frozenset(map(frozenset, groups.tolist()))] = " ".join(chosen)
    found = Counter()
    kinds = r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|ragged-\S+|partition-id-\S+|send|recv"
    for kind, rest in re.findall(rf" ({kinds})(?:-start)?\((.*)", program.as_text()):
        if named := re.search(r"replica_groups=mesh\[.*?\] \{(.*?)\}", rest):  # from jaxlib 0.12 on
            found[kind, " ".join(axis for axis in axes if f"'{axis}'" in named[1])] += 1
            continue
        groups = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest)
        listed = re.findall(r"\{([\d,]+)\}", groups[1]) if groups else []
        found[kind, along.get(frozenset(frozenset(map(int, group.split(","))) for group in listed), rest)] += 1
    return found


def predicted(config, mesh):
    """One exchange of scores for each pass of D, its gradients; along `data` the generators', two norms each way, the images.

    The norms are those of each generator, since on a CPU these take turns.
    """
    simultaneous = config.method.update_order == "simultaneous"
    passes = 1 if simultaneous else 2
    split = " ".join(axis for axis in ("generator", "data") if mesh.shape[axis] > 1)
    expected = Counter()
    if split:
        expected["all-gather", split] += passes
        expected["all-reduce", split] += 1
    if config.method.loss == "wasserstein":
        # The compiler takes the gradient of a critic's last bias, a constant, out of the loop of its own passes.
        expected["all-reduce", split] += 1
    if "data" in split:
        together = simultaneous and split == "data"  # both sides' gradients, along one axis and at one time
        expected["all-reduce", "data"] += 0 if together else 1
        in_turn = config.method.generators // mesh.shape["generator"]
        expected["all-reduce", "data"] += in_turn * (2 * passes + 2) if config.network.name == "dcgan" else 0
        expected["reduce-scatter", "data"] += 1
    return expected


def assert_close(config, got, want):
    """Within 1e-5 after two updates, except one bias: before a softmax it has no gradient, and Adam blows up its rounding."""
    if config.method.scores == "softmax":
        for state in (got[0], want[0]):
            last = max(name for name in state.discriminator.params if name.startswith("Dense"))
            state.discriminator.params[last]["bias"] = state.discriminator.params[last]["bias"] * 0
    for a, b in zip(leaves(got), leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def check(config, *sizes):
    spread = OnMesh(config, *sizes)
    assert collectives(spread.compiled, spread.mesh) == predicted(config, spread.mesh)
    got = jax.device_get(spread.run(spread.first))
    for i, state in enumerate(seeds(config, sizes[0])):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], got) if sizes[0] > 1 else got
        alone = on_one_device(config)(states.copied(state), jnp.asarray(IMAGES), jnp.int32(2))
        assert_close(config, mine, jax.device_get(alone))
    if sizes[0] == 2 and config.network.name == "dcgan":
        for platform in ("tpu", "cuda"):
            assert spread.traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("sizes", KINDS, ids=str)
def test_psg_is_the_same_on_every_kind_of_mesh(sizes):
    # Convolutions take long to trace and compile: on a mesh with and one without replicas.
    network = IMAGE if sizes in [(1, 2, 4), (2, 2, 2)] else POINTS
    check(tiny("psg", network=network, generators=max(2, sizes[1]), batch_size=8), *sizes)


@pytest.mark.parametrize(("sizes", "network"), [((1, 1, 8), IMAGE), ((4, 1, 2), POINTS)], ids=str)
def test_sngan_is_the_same_on_a_mesh(sizes, network):
    check(tiny("sngan", network=network, batch_size=8, data=Data(flip=True)), *sizes)


# Of the named methods that are left, each is one of these with other switches or penalties, which are tried below and above.
OTHERS = ["psg-sn", "mad-gan", "mgan", "wgan-gp"]


def test_every_loss_is_tried_on_a_mesh():
    assert {METHODS[name].loss for name in ("psg", "sngan", *OTHERS)} == {method.loss for method in METHODS.values()}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_loss_is_the_same_on_a_mesh(name):
    generators = METHODS[name].generators
    check(tiny(name, batch_size=8), 2, generators, 4 // generators)


@pytest.mark.parametrize(("order", "sizes"), [("simultaneous", (1, 2, 4)), ("alternating", (2, 2, 2))])
def test_penalties_are_the_same_on_a_mesh(order, sizes):
    switches = {"update_order": order, "regularisers": (("r1", 3.0), ("r2", 0.5), ("gradient-penalty", 1.0))}
    check(tiny("psg", batch_size=8, **switches), *sizes)


def test_packing_and_schedules_are_the_same_on_a_mesh():
    # Independent scores: with a softmax the bias of a unit that is active at every image has no gradient, as the last one has none.
    check(tiny("stackelberg-r1r2", batch_size=16, pack=2, optimizer=SCHEDULES), 2, 2, 2)


def test_a_state_moves_between_meshes_and_through_a_checkpoint(tmp_path):
    config = tiny("sngan", generators=2, batch_size=8)
    one, eight = OnMesh(config, 1, 1, 1), OnMesh(config, 1, 2, 4)
    state, _ = one.run(one.first)
    moved = jax.device_put(state, eight.layout)
    assert same(moved, state)
    assert same(jax.device_put(moved, one.layout), state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    made = jax.jit(lambda: states.init(config, SHAPE), out_shardings=eight.layout)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(made.eval_shape())
    assert same(restored, state)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf.sharding, s) for s in (restored, moved)))
    there, _ = eight.run(restored)
    back, sums = one.run(jax.device_put(there, one.layout))
    stayed = one.run(one.run(state)[0])
    assert_close(config, jax.device_get((back, sums)), jax.device_get(stayed))


def test_a_state_is_made_on_its_mesh():
    config = tiny("psg-sn", batch_size=8, warmup_iterations=2)
    spread = OnMesh(config, 1, 2, 4)
    made = jax.jit(lambda: states.init(config, SHAPE), out_shardings=spread.layout)()
    assert_close(config, jax.device_get((made,)), jax.device_get((spread.first,)))
    kernel = made.generators.params["Dense_0"]["kernel"]
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {1}


def test_what_a_mesh_should_split_and_does_not_is_named():
    config = tiny("psg", batch_size=8)
    mesh = sharding.make_mesh(Mesh(1, 2, 4), config)
    arguments = states.abstract(states.make_init(config, SHAPE)), jax.ShapeDtypeStruct((84, *SHAPE), jnp.uint8)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def compiled(*shardings):
        return (
            jax.jit(lambda state, images: (state.step, images[0]), in_shardings=shardings, keep_unused=True)
            .lower(*arguments)
            .compile()
        )

    good = compiled(states.layout(mesh), split)
    assert tpu.not_split(good, *arguments, mesh) == []
    bad = dataclasses.replace(states.layout(mesh), generators=whole)
    found = tpu.not_split(compiled(bad, whole), *arguments, mesh)
    assert len(found) == 1 + len(jax.tree.leaves(arguments[0].generators))
    assert all(".generators" in name for name in found[:-1])


def test_both_methods_are_trained_and_the_devices_that_idle_are_named(tmp_path, capsys):
    arguments = [*SMALL, "--batch-size", "6", "--steps", "1", "--data.source", "packaged", "--out", str(tmp_path)]
    assert mnist.main(arguments) == 0
    told = capsys.readouterr().out
    for name, sizes in (("psg", (1, 2, 3)), ("sngan", (1, 1, 6))):
        assert f"{name}: 6 of 8 devices are used" in told
        mesh = json.loads((tmp_path / name / "env.json").read_text())["mesh"]
        assert tuple(mesh.values()) == sizes
        assert list(mesh) == ["replica", "generator", "data"]
    assert "{}, {} idle".format(*jax.devices()[6:]) in told
