"""Minimal filtering against correlations written out, with the fewest multiplications, and as adjoints."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psgjax.lowering import conv, filtering

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


def test_what_is_mixed_grows_no_more_than_is_said():
    """Each map mixes by two of the three matrices and back by the third's transpose, in any order."""
    for stride, size in {shape[1:] for shape in SHAPES}:
        for height in range(1, 33):
            matrices = filtering.mixing(height, stride, size, np.dtype("float32"))
            mixed = [abs(own).sum(2).max() for own in matrices]  # times the largest value of a row
            back = [abs(own).sum((0, 1)).max() for own in matrices]
            assert max(back[i] * mixed[i - 1] * mixed[i - 2] for i in range(3)) <= 20_000


def test_large_values_within_the_bound_stay_finite():
    images, kernel = np.zeros((1, 14, 14, 64), np.float32), np.full((4, 4, 64, 8), 0.5, np.float32)
    images[0, 5, 5, 3] = 1e34 / (4 * 4 * 64 * 0.5)
    assert np.isfinite(conv.down(images, kernel, stride=2)).all()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("which", [None, *filtering.Mixing._fields])
def test_rows_are_mixed_by_the_matrices_and_back_by_their_transposes(which, axis):
    generate = np.random.default_rng(0).standard_normal
    shifted = np.zeros((2, 3, 7))  # rows that are sums one row on, rows that are none, in the middle and at the end
    shifted[0, [0, 1, 2], [1, 2, 3]], shifted[1, [0, 1], [1, 2]] = 3.0, 1.0
    for height in (7, 9, 1):
        matrices = getattr(filtering.mixing(height, 2, 4, np.dtype("float32")), which) if which else shifted
        x = np.float32(generate((matrices.shape[2], 4, 2)))
        parts = np.float32(generate((*matrices.shape[:2], 4, 2)))
        mixed = np.einsum("pir,r...->pi...", matrices, x)
        back = np.einsum("pir,pi...->r...", matrices, parts)
        got = jax.jit(partial(filtering.at_points, matrices, axis=axis))(x.swapaxes(0, axis))
        np.testing.assert_allclose(np.swapaxes(got, 1, 1 + axis), mixed, rtol=1e-5, atol=1e-5)
        unmixed = jax.jit(partial(filtering.from_points, matrices, axis=axis))
        got = unmixed([part.swapaxes(0, axis) for part in parts])
        np.testing.assert_allclose(np.swapaxes(got, 0, axis), back, rtol=1e-5, atol=1e-4)
