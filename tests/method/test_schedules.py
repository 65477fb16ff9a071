"""Schedules: their values at given steps, what each changes of an update and nothing else, and the average by hand."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SCHEDULES, SHAPE, first_state, same, tiny

from psgjax.config import ConfigError, Optimizer
from psgjax.method import epochs, schedules
from psgjax.method import state as states
from psgjax.method import step as stepping

PENALTIES = (("r1", 1.0), ("r2", 1.0))


def run_of(**settings):
    """A run of 10 updates of 4 images."""
    return tiny(steps=10, regularisers=PENALTIES, correct_weight=1.0, optimizer=Optimizer(**settings))


@functools.cache
def compiled(config):
    return jax.jit(stepping.make_step(config, SHAPE))


def step_of(config, state, images):
    return compiled(config)(state, jnp.asarray(images[: config.batch_size])[None])[0]


VALUES = [
    (schedules.step_size, {}, [1, 1, 1, 1]),
    (schedules.step_size, {"schedule": "linear"}, [1, 0.9, 0.5, 0]),
    (schedules.step_size, {"schedule": "linear", "schedule_end": 0.5, "schedule_share": 0.5}, [1, 0.9, 0.5, 0.5]),
    (schedules.step_size, {"schedule": "cosine"}, [1, 0.5 + 0.5 * math.cos(math.pi / 10), 0.5, 0]),
    (schedules.step_size, {"schedule": "cosine", "schedule_end": 0.25, "schedule_share": 0.2}, [1, 0.625, 0.25, 0.25]),
    (schedules.beta2, {"beta2": 0.9}, [0.9] * 4),
    (schedules.beta2, {"beta2": 0.9, "beta2_end": 0.99}, [0.9, 0.945, 0.99, 0.99]),
    (schedules.beta2, {"beta2": 0.9, "beta2_end": 0.99, "early_share": 1.0}, [0.9, None, 0.945, 0.99]),
    (schedules.penalty, {}, [1, 1, 1, 1]),
    (schedules.penalty, {"penalty_end": 0.1}, [1, 0.55, 0.1, 0.1]),
]


@pytest.mark.parametrize(("schedule", "settings", "expected"), VALUES)
def test_values_at_steps_0_1_5_and_10_of_10(schedule, settings, expected):
    for step, value in zip((0, 1, 5, 10), expected, strict=True):
        if value is not None:
            assert float(schedule(run_of(**settings), jnp.int32(step))) == pytest.approx(value, abs=1e-6)


def test_the_linear_step_size_has_the_bits_that_it_always_had():
    config, steps = tiny(steps=77, optimizer=Optimizer(schedule="linear")), jnp.arange(77)
    for now in (steps, steps + 0.2):
        np.testing.assert_array_equal(jax.vmap(lambda n: schedules.step_size(config, n))(now), 1 - now / 77)


# Each switch, what is set without it, and what of an update at step 3 of 10 it changes.
BOTH = {"discriminator", "generators"}
SWITCHES = [
    ({"schedule": "linear"}, {}, {"params": BOTH, "average": {"generators"}}),
    ({"schedule": "cosine"}, {}, {"params": BOTH, "average": {"generators"}}),
    ({"schedule_end": 0.5}, {"schedule": "cosine"}, {"params": BOTH, "average": {"generators"}}),
    ({"schedule_share": 0.5}, {"schedule": "cosine"}, {"params": BOTH, "average": {"generators"}}),
    ({"beta2_end": 0.5}, {}, {"params": BOTH, "nu": BOTH, "average": {"generators"}}),
    (
        {"penalty_end": 0.1},
        {},
        {"params": {"discriminator"}, "mu": {"discriminator"}, "nu": {"discriminator"}},
    ),
    (
        {"early_share": 0.5},
        {"penalty_end": 0.1},
        {"params": {"discriminator"}, "mu": {"discriminator"}, "nu": {"discriminator"}},
    ),
    ({"average_half_life": 2.0, "average_decay": 0.0}, {}, {"average": {"generators"}}),
    ({"average_warmup": 1.0}, {"average_half_life": 9.0, "average_decay": 0.0}, {"average": {"generators"}}),
]


@pytest.mark.uncovered
@pytest.mark.parametrize(("switch", "base", "expected"), SWITCHES)
def test_each_switch_changes_what_it_says_and_no_more(switch, base, expected, images):
    base = {"average_decay": 0.9, **base}
    start = step_of(run_of(average_decay=0.9), first_state(run_of(average_decay=0.9)), images)
    start = dataclasses.replace(start, step=jnp.int32(3))
    one, other = (step_of(run_of(**settings), start, images) for settings in (base, {**base, **switch}))
    changed = {}
    for side in sorted(BOTH):
        a, b = getattr(one, side), getattr(other, side)
        pairs = {
            "params": (a.params, b.params),
            "mu": (a.opt_state[0].mu, b.opt_state[0].mu),
            "nu": (a.opt_state[0].nu, b.opt_state[0].nu),
        }
        if side == "generators":
            pairs["average"] = (a.average, b.average)
        for name, pair in pairs.items():
            if not same(*pair):
                changed.setdefault(name, set()).add(side)
    assert changed == expected


def test_the_table_above_has_every_schedule():
    known = {
        "learning_rate",
        "discriminator_learning_rate",
        "beta1",
        "beta2",
        "average_decay",
        "name",
    }  # these are none
    assert {name for switch, *_ in SWITCHES for name in switch} - known == {
        field.name for field in dataclasses.fields(Optimizer)
    } - known


@pytest.mark.uncovered
@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_the_average_by_half_life_after_n_updates_by_hand(warmup, images):
    config = run_of(average_half_life=16.0, average_warmup=warmup)
    state, expected, weights = first_state(config), None, 0.0
    for n in range(7):
        state = step_of(config, state, images)
        new = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.generators.params)
        grown = (1 - math.cos(math.pi * min(n / 5, 1))) / 2 if warmup else 1.0
        decay = 0.5 ** (4 / (16 * grown)) if grown else 0.0
        weights = decay * weights + 1 - decay  # what all parameters so far weigh together, the initialisation nothing
        share = (1 - decay) / weights
        expected = new if n == 0 else jax.tree.map(lambda a, b, s=share: (1 - s) * a + s * b, expected, new)
        chex.assert_trees_all_close(state.generators.average.ema, expected, rtol=1e-5, atol=1e-7)


def test_beta2_of_an_update_by_hand(images):
    config = run_of(beta2=0.9, beta2_end=0.5)
    before = dataclasses.replace(first_state(config), step=jnp.int32(1))
    after = step_of(config, before, images)
    mu, nu = after.discriminator.opt_state[0].mu, after.discriminator.opt_state[0].nu
    # mu = (1 - beta1) g and nu = (1 - beta2) g^2, where beta2 is half-way.
    chex.assert_trees_all_close(nu, jax.tree.map(lambda m: (1 - 0.7) * (m / 0.5) ** 2, mu), rtol=1e-5, atol=1e-12)


@pytest.mark.uncovered
def test_replicas_and_calls_of_any_length_do_not_change_a_run(images):
    config = dataclasses.replace(run_of(), optimizer=SCHEDULES)
    keys = jax.random.key(0), jax.random.key(1)
    run = epochs.make_run(config, len(images), SHAPE)
    state = states.make_init(config, SHAPE)
    alone = [run(state(key), jnp.asarray(images), jnp.int32(8))[0] for key in keys]
    cut = run(state(keys[0]), jnp.asarray(images), jnp.int32(3))[0]
    cut = run(cut, jnp.asarray(images), jnp.int32(5))[0]
    assert same(cut, alone[0])
    together = jax.jit(jax.vmap(lambda key: states.init(config, SHAPE, key)))(jnp.stack(keys))
    mapped = epochs.make_run(config, len(images), SHAPE, replicas=True)
    together = mapped(together, jnp.asarray(images), jnp.int32(8))[0]
    for i, one in enumerate(alone):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together.generators.average)
        chex.assert_trees_all_close(mine, one.generators.average, rtol=1e-4, atol=1e-6)


REFUSED = [
    ({"average_decay": 0.9, "average_half_life": 5.0}, "two ways to set one average; give one of them"),
    ({"average_warmup": 0.5}, "average_warmup 0.5 without optimizer.average_half_life"),
    ({"schedule_end": 0.5}, "use --optimizer.schedule linear or cosine"),
    ({"beta2_end": 1.0}, "optimizer.beta2_end is 1.0; it must be a number from 0 up to, not including, 1"),
    ({"penalty_end": -1.0}, "optimizer.penalty_end is -1.0; it must be a finite number, 0 or more"),
    (
        {"early_share": 0.5},
        "optimizer.early_share 0.5 is where beta2 .* give optimizer.beta2_end or optimizer.penalty_end",
    ),
    ({"early_share": 0.0}, "optimizer.early_share is 0.0; it must be a share above 0, 1 at most"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Optimizer(**settings)
