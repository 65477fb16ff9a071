"""Every switch changes the gradients that it says it changes, and no others."""

import dataclasses

import numpy as np
import pytest
from conftest import tiny
from updates import close, first_moments, one_step

from psgjax.config import Method

pytestmark = pytest.mark.uncovered

# Every switch: where it is tried, and whether D's and the generators' gradients of one step change with it.
SWITCHES = [
    ("scores", "independent", "psg", {}, True, True),
    ("loss", "hinge", "gan", {}, True, True),
    ("gate", "majority", "psg", {}, True, True),
    ("gate", "mean", "psg", {}, True, True),
    ("gate", "none", "psg", {}, True, True),
    ("mask_average", "selected", "psg", {}, True, True),
    ("generator_loss", "minimax", "psg", {}, False, True),
    ("average_loss", "both", "psg", {}, True, False),
    ("average_loss", "discriminator", "psg", {}, True, True),
    ("average_loss_weight", 0.5, "psg", {}, False, True),
    ("correct_weight", 0.5, "psg", {}, True, False),
    ("update_order", "alternating", "psg", {}, False, True),
    ("discriminator_steps", 2, "psg", {"update_order": "alternating"}, True, True),
    ("latents", "independent", "psg", {}, True, True),
    ("pack", 2, "psg", {}, True, True),
    ("spectral_norm", True, "psg", {}, True, True),
    ("power_iterations", 3, "sngan", {}, True, True),
    ("warmup_iterations", 5, "sngan", {}, True, True),
    ("regularisers", (("r1", 1.0),), "psg", {}, True, False),
    ("diversity_weight", 0.5, "mgan", {}, True, True),
]


@pytest.mark.parametrize(("switch", "value", "name", "base", "d_changes", "g_changes"), SWITCHES)
def test_every_switch_changes_what_it_says_and_no_more(switch, value, name, base, d_changes, g_changes, images):
    one, other = (tiny(name, batch_size=8, seed=5, **{**base, **more}) for more in ({}, {switch: value}))
    (a, metrics), (b, _) = (one_step(config, images) for config in (one, other))
    if name == "psg" and not base:
        assert np.all(metrics["branches"] > 0), "the test's batch must take every branch"
    changes = [not close(x, y) for x, y in zip(first_moments(a), first_moments(b), strict=True)]
    assert changes == [d_changes, g_changes]


def test_the_table_above_has_every_switch():
    fields = {field.name for field in dataclasses.fields(Method)}
    assert {row[0] for row in SWITCHES} == fields - {"generators"}  # K has a test of its own
