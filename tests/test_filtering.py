"""Minimal filtering against correlations written out, with the fewest multiplications, and as adjoints."""

import jax.numpy as jnp
import numpy as np
import pytest

from psgjax import filtering

SHAPES = [
    (7, 2, 4),
    (16, 2, 4),
    (9, 2, 4),
    (1, 2, 4),
    (11, 1, 3),
    (4, 1, 3),
    (5, 2, 8),
    (6, 3, 6),
    (4, 2, 2),
    (3, 1, 9),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_products_at_points_are_the_correlation(shape):
    height, stride, size = shape
    generate = np.random.default_rng(0).standard_normal
    image, taps = generate(height * stride), generate(size)
    before = (size - stride) // 2
    want = np.correlate(np.pad(image, (before, size - stride - before)), taps)[::stride]
    mixing = filtering.mixing(height, stride, size, np.dtype("float64"))
    at_points = (mixing.images @ image).reshape(len(mixing.images), -1, stride)
    products = np.einsum("pts,ps->pt", at_points, mixing.kernel @ taps)
    np.testing.assert_allclose(np.einsum("ptr,pt->r", mixing.features, products), want, rtol=1e-11, atol=1e-11)


def test_multiplications_are_the_fewest_where_digits_allow_it():
    def multiplications(height, stride, size, dtype="float32"):
        points, tiles, _ = filtering.mixing(height, stride, size, np.dtype(dtype)).features.shape
        return points * tiles

    assert multiplications(7, 2, 4) == 7 + 2 - 1
    assert multiplications(4, 1, 3) == 4 + 3 - 1
    assert multiplications(16, 2, 4) == 3 * (6 + 2 - 1)
    assert multiplications(7, 2, 4, "float16") == multiplications(7, 2, 4, jnp.bfloat16) == 7 * 2
    assert multiplications(5, 2, 2) == 5


@pytest.mark.parametrize("axis", [0, 1])
def test_mixing_back_is_the_adjoint(axis):
    generate = np.random.default_rng(0).standard_normal
    matrices = generate((3, 2, 5)) * (generate((3, 2, 5)) > 0)
    shape, mixed = ((5, 4, 2), (2, 4, 2)) if axis == 0 else ((4, 5, 2), (4, 2, 2))
    x, parts = np.float32(generate(shape)), [np.float32(generate(mixed)) for _ in matrices]
    forward = sum(
        np.vdot(a, b) for a, b in zip(filtering.at_points(matrices, jnp.asarray(x), axis), parts, strict=True)
    )
    back = np.vdot(x, filtering.from_points(matrices, [jnp.asarray(part) for part in parts], axis))
    np.testing.assert_allclose(forward, back, rtol=1e-5)
