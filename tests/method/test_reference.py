"""The plain reading and the fast step are the same update, for every named method, and with R1 and R2."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import IMAGE, SCHEDULES, SHAPE, first_state, tiny
from updates import compiled_step

from psgjax.config import Optimizer
from psgjax.method import reference
from psgjax.switches import METHODS

pytestmark = pytest.mark.uncovered

PENALTIES = (("r1", 1.0), ("r2", 0.5))
CASES = {
    **{name: {} for name in METHODS},
    "sngan with R1 and R2, alternating": {"regularisers": PENALTIES, "update_order": "alternating"},
    "choice, packed, on schedules": {"pack": 2, "optimizer": SCHEDULES},
    "wgan-gp, packed": {"pack": 2},
    "psg-r1r2 on schedules, alternating": {
        "optimizer": SCHEDULES,
        "update_order": "alternating",
        "discriminator_steps": 2,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_three_updates_are_those_of_the_plain_reading(name, images):
    optimizer = Optimizer(average_decay=0.9, schedule="linear") if name == "stackelberg" else Optimizer()
    changes = {"optimizer": optimizer, "network": IMAGE, **CASES[name]}
    config = tiny(name.split()[0].strip(","), **changes)
    count = config.method.discriminator_steps
    batch = jnp.asarray(images[: 4 * count]).reshape(count, 4, *SHAPE)
    plain, fast = jax.jit(reference.Plain(config, SHAPE).step), compiled_step(config)
    one = other = first_state(config)
    for _ in range(3):
        (one, losses), (other, metrics) = plain(one, batch), fast(other, batch)
        if not config.method.regularisers and name != "mgan":  # there, more than what is gated is optimised
            chex.assert_trees_all_close(losses, metrics["gated_loss"], rtol=1e-4, atol=1e-6)
    if config.method.scores == "softmax" or config.method.loss == "wasserstein":
        # The last bias has no gradient, and Adam blows up its rounding.
        for state in (one, other):
            state.discriminator.params["Dense_0"]["bias"] = jnp.zeros(1)
    for side in ("generators", "discriminator"):
        mine, theirs = (dataclasses.replace(getattr(state, side), opt_state=()) for state in (one, other))
        chex.assert_trees_all_close(mine, theirs, rtol=1e-5, atol=1e-5)
