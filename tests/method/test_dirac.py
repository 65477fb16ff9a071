"""The Dirac GAN (Mescheder et al. 2018, section 2) with K generators, linearised at its equilibrium by the package's own losses.

Real points lie at 0, generator i makes the point theta_i, D is psi x. One pair of eigenvalues turns: it has no real part without
penalties, and a negative one with them. The other K - 1 are zero either way: only the generators' mean is pinned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psgjax.method import objectives, regularisers
from psgjax.method.sharding import Shards
from psgjax.switches import METHODS

pytestmark = pytest.mark.uncovered


def eigenvalues(method):
    """Of the gradient flow of both sides at psi = theta = 0, [K + 1]."""

    def flow(state):
        psi, theta = state[0], state[1:]
        points = jnp.append(theta, 0.0)

        def penalty(psi):
            score, images = lambda images: psi * images.sum((-3, -2, -1)), points.reshape(-1, 1, 1, 1, 1)
            return regularisers.penalties(method, Shards(), score, images[-1], images[:-1], jax.random.key(0))[0]

        outputs = psi * points.reshape(-1, 1, 1)
        d_cotangents, g_cotangents, *_ = objectives.evaluate(method, outputs, jax.random.key(0))
        by_psi = d_cotangents[:, 0, 0] @ points + (jax.grad(penalty)(psi) if method.regularisers else 0.0)
        return -jnp.append(by_psi, g_cotangents[:, 0, 0] * psi)

    return np.linalg.eigvals(np.asarray(jax.jit(jax.jacfwd(flow))(jnp.zeros(method.generators + 1))))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
@pytest.mark.parametrize(("name", "count"), [("choice", 1), ("choice", 2), ("choice", 4), ("stackelberg-r1r2", 3)])
def test_penalties_damp_the_one_pair_that_turns_and_leave_k_minus_1_zeros(name, count, gamma):
    weights = (("r1", gamma), ("r2", gamma)) if gamma else ()
    method = dataclasses.replace(METHODS[name], generators=count, regularisers=weights)
    with jax.enable_x64(True):
        found = eigenvalues(method)
    turning = count / (count + 1) if name == "choice" else 0.5
    pair = -gamma + np.array([1, -1]) * np.sqrt(complex(gamma**2 - turning**2))
    expected = np.array([*pair, *np.zeros(count - 1)])
    apart = np.abs(found[:, None] - expected)
    assert np.maximum(apart.min(0), apart.min(1)).max() < 1e-7
    assert (np.abs(found) < 1e-7).sum() == count - 1
