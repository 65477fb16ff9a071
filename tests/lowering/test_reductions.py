"""Sums, biases and batch normalisation against jax.numpy's, autodiff's and Flax's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from psgjax.lowering import reductions
from psgjax.networks.layers import BatchNorm

SHAPES = [(3, 5), (16, 2, 2, 3), (6, 7, 7, 4), (1, 8), (128, 6)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_those_of_numpy(shape):
    with jax.enable_x64(True):
        x, y = normal(*shape), normal(*shape, seed=1)
        got = reductions.sums(lambda x, y: x * y, x, y)
        np.testing.assert_allclose(got, (x * y).sum(tuple(range(len(shape) - 1))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [16, 48, 64])
def test_sums_of_what_is_then_changed_are_of_what_it_was(rows):
    """Sums of blocks of one row are elementwise: jaxlib 0.12 computed them in the memory that it was already overwriting."""

    def centred(x):
        x = jnp.sort(x)
        return x - reductions.sums(lambda x: x, x)[None, None, None]

    x = np.float32(normal(rows // 4, 2, 2, 8))
    np.testing.assert_allclose(jax.jit(centred)(x), np.sort(x) - np.sort(x).sum((0, 1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_biass_gradient_is_autodiffs(shape):
    with jax.enable_x64(True):
        x, bias, cotangents = normal(*shape), normal(shape[-1], seed=1), normal(*shape, seed=2)
        got, vjp = jax.vjp(reductions.add_bias, x, bias)
        want, reference_vjp = jax.vjp(lambda x, bias: x + jnp.broadcast_to(bias, x.shape), x, bias)
        np.testing.assert_array_equal(got, want)
        for mine, theirs in zip(vjp(cotangents), reference_vjp(cotangents), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_products_gradients_are_autodiffs_and_the_kernels_is_not_transposed():
    def to_kernel(multiply, x, kernel, cotangents):
        return jax.vjp(lambda kernel: multiply(x, kernel), kernel)[1](cotangents)[0]

    with jax.enable_x64(True):
        x, kernel, cotangents = normal(5, 3), normal(3, 4, seed=1), normal(5, 4, seed=2)
        (got, vjp), (want, reference_vjp) = (jax.vjp(f, x, kernel) for f in (reductions.product, jnp.matmul))
        for mine, theirs in zip((got, *vjp(cotangents)), (want, *reference_vjp(cotangents)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        last = [
            jax.make_jaxpr(partial(to_kernel, f))(x, kernel, cotangents).eqns[-1].primitive.name
            for f in (reductions.product, jnp.matmul)
        ]
    assert last == ["dot_general", "transpose"]


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_batch_norm_is_flaxs_with_gradients_and_statistics(shape):
    with jax.enable_x64(True):
        x, cotangents = normal(*shape) * 3 + 1, normal(*shape, seed=1)
        ours, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9, dtype=jnp.float64, param_dtype=jnp.float64)
        variables, other = (jax.eval_shape(lambda m=m: m.init(jax.random.key(0), x, True)) for m in (ours, theirs))
        assert jax.tree.structure(variables) == jax.tree.structure(other)
        variables = jax.tree.map(lambda leaf: 1 + abs(normal(*leaf.shape, seed=3)), variables)

        def apply(module, params, x):
            statistics = {"batch_stats": variables["batch_stats"]}
            options = {"train": True} if module is ours else {"use_running_average": False}
            return module.apply({"params": params, **statistics}, x, **options, mutable=["batch_stats"])

        @partial(jax.jit, static_argnums=0)
        def found(module, x, cotangents):
            got, vjp, statistics = jax.vjp(partial(apply, module), variables["params"], x, has_aux=True)
            evaluated = module.apply(
                variables, x, **{"train": False} if module is ours else {"use_running_average": True}
            )
            return got, vjp(jnp.asarray(cotangents, got.dtype)), statistics, evaluated

        results = [found(module, x, cotangents) for module in (ours, theirs)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *results)


def test_vmapped_over_generators_each_has_its_own_statistics():
    x = jnp.asarray(normal(3, 32, 2, 2, 4), jnp.float32)
    scale, bias = jnp.ones((3, 4)), jnp.zeros((3, 4))
    got = jax.jit(jax.vmap(reductions.normalise))(x, scale, bias)
    alone = jax.jit(reductions.normalise)
    for i in range(3):
        want = alone(x[i], scale[i], bias[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), got, want)
