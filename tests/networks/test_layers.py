"""Layers: parameters are made once, and resampling is linear both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from jax.test_util import check_grads

from psgjax.networks import layers


@pytest.mark.parametrize("layer", [layers.Down, layers.Dense])
def test_parameters_that_are_there_are_not_initialised_again(layer):
    made = []

    def zeros(key, shape, dtype=jnp.float32):
        made.append(shape)
        return jnp.zeros(shape, dtype)

    images = jnp.ones((1, 4, 4, 2))
    variables = layer(3, kernel_init=zeros).init(jax.random.key(0), images)
    assert len(made) == 1
    layer(3, kernel_init=zeros).apply(variables, images)
    assert len(made) == 1
    with pytest.raises(errors.ScopeParamShapeError):
        layer(1, kernel_init=zeros).apply(variables, images)


@pytest.mark.uncovered
@pytest.mark.parametrize("shape", [(2, 6, 10, 3), (1, 2, 2, 1)], ids=str)
def test_resampling_is_bilinear_and_so_are_its_gradients(shape):
    small, large = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate((shape, (shape[0], 2 * shape[1], 2 * shape[2], shape[3])))
    )
    wide = jnp.pad(small, ((0, 0), (1, 1), (1, 1), (0, 0)))
    doubled = (*wide.shape[:1], 2 * wide.shape[1], 2 * wide.shape[2], wide.shape[3])
    expected = jax.image.resize(wide, doubled, "bilinear")[:, 2:-2, 2:-2]
    up, down = jax.jit(layers.upsample), jax.jit(layers.downsample)
    np.testing.assert_allclose(up(small), expected, atol=1e-6)
    wide = jnp.pad(large, ((0, 0), (2, 2), (2, 2), (0, 0)))
    halved = (*wide.shape[:1], wide.shape[1] // 2, wide.shape[2] // 2, wide.shape[3])
    expected = jax.image.resize(wide, halved, "bilinear", antialias=True)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(down(large), expected, atol=1e-6)
    for function, x in ((up, small), (down, large)):
        check_grads(function, (x,), 2, ["rev"], eps=1.0)  # linear, so any step is exact
