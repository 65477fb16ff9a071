"""Many updates in one program: the same bits however a run is cut, statistics by epoch."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, SHAPE, first_state, same, tiny
from updates import batch_of, close, first_moments, member, one_step, stacked

from psgjax.config import Network
from psgjax.method import epochs
from psgjax.method import state as states
from psgjax.method import step as stepping

pytestmark = pytest.mark.uncovered


@functools.cache
def compiled(config, count):
    return epochs.make_run(config, count, SHAPE)


def run_of(config, images):
    program = compiled(config, len(images))
    return program, lambda state, count: program(jax.tree.map(jnp.copy, state), jnp.asarray(images), jnp.int32(count))


def test_a_run_equals_the_loop_of_steps_and_epochs_visit_every_image_once(images):
    config = tiny(network=IMAGE)
    _, run = run_of(config, images)
    state = first_state(config)
    order_key = jax.random.fold_in(jax.random.fold_in(state.key, states.Stream.EPOCHS), 0)
    order = np.asarray(jax.random.permutation(order_key, len(images)))
    assert sorted(order) == list(range(32))
    totals = None
    for i in range(3):
        state, metrics = one_step(config, images[order[4 * i : 4 * i + 4]], state)
        totals = metrics if totals is None else jax.tree.map(jnp.add, totals, metrics)
    got, sums = run(first_state(config), 3)
    chex.assert_trees_all_close(got.generators, state.generators, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(got.discriminator, state.discriminator, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(sums, totals, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["psg", "sngan", "wgan-gp"])
def test_however_a_run_is_cut_its_bits_are_the_same_and_nothing_is_compiled_twice(name, images):
    config = tiny(name)
    program, run = run_of(config, images)
    per_epoch = config.steps_per_epoch(32)
    ends = []
    for cuts in ([per_epoch, 1], [1] * (per_epoch + 1)):
        state = first_state(config)
        for count in cuts:
            state, sums = run(state, count)
        ends.append((state, sums))
    assert same(*ends)
    assert program._cache_size() == 1


def test_metrics_start_anew_with_every_epoch(images):
    config = tiny("gan")
    _, run = run_of(config, images)
    state, sums = run(first_state(config), 8)
    assert 7.99 < float(sums["branches"].sum()) < 8.01
    state, sums = run(state, 1)
    assert 0.99 < float(sums["branches"].sum()) < 1.01


def test_replicas_by_vmap_equal_single_runs(images):
    config = tiny("psg-sn", network=IMAGE)
    states = [first_state(dataclasses.replace(config, seed=seed)) for seed in range(2)]
    step = stepping.make_step(config, SHAPE)
    batch = batch_of(config, images)
    together, _ = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked(*states), batch)
    for i, state in enumerate(states):
        alone, _ = one_step(config, images, state)
        mine = member(together, i)
        assert all(close(a, b) for a, b in zip(first_moments(mine), first_moments(alone), strict=True))
        chex.assert_trees_all_close(mine.generators.batch_stats, alone.generators.batch_stats, rtol=1e-5, atol=1e-6)


def test_the_dataset_is_an_argument_and_the_state_is_donated(images):
    config = tiny("gan")
    program, _ = run_of(config, images)
    state = first_state(config)
    text = program.lower(state, jnp.asarray(images), jnp.int32(1)).as_text()
    assert "tf.aliasing_output" in text
    assert len(text) < 400_000
    assert "tensor<32x8x8x1xui8>" in text.split("{", 2)[1] or "tensor<32x8x8x1xui8>" in text.split("->", 1)[0]


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_training_statistics_agree_in_every_precision(precision, images):
    sums = {}
    for name in ("float32", precision):
        config = tiny("psg-sn", batch_size=16, precision=name, network=Network(width=16, latent_size=8))
        program, run = run_of(config, images)
        state = first_state(config)
        totals = np.zeros(3)
        for _ in range(8):
            state, metrics = run(state, 2)
            totals += [metrics["loss"]["discriminator"], *metrics["loss"]["generators"]]
        params = jax.tree.leaves((state.generators.params, state.discriminator.params))
        assert all(leaf.dtype == jnp.float32 for leaf in params)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metrics))
        sums[name] = totals
    np.testing.assert_allclose(sums[precision], sums["float32"], rtol=0.03)
    text = program.lower(first_state(config), jnp.asarray(images), jnp.int32(1)).as_text()
    assert ("bf16" in text) == (precision == "bfloat16")
