"""Power iteration against numpy's singular values, PyTorch's step by step, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from psgjax.method import spectral


def tree(dtype=jnp.float32):
    generate = np.random.default_rng(0).standard_normal
    return {
        "Down_0": {"kernel": jnp.asarray(generate((4, 4, 3, 8)), dtype), "bias": jnp.ones(8, dtype)},
        "Dense_0": {"kernel": jnp.asarray(generate((12, 5)), dtype), "bias": jnp.ones(5, dtype)},
    }


def norm(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), compute_uv=False)[0]


def test_converges_to_the_largest_singular_value():
    params = tree()
    vectors = spectral.init(params, jax.random.key(0))
    assert {path: u.shape for path, u in vectors.items()} == {
        "['Dense_0']['kernel']": (5,),
        "['Down_0']['kernel']": (8,),
    }
    normalised, _ = spectral.normalise(params, vectors, 200)
    for layer in params:
        np.testing.assert_allclose(norm(normalised[layer]["kernel"]), 1.0, rtol=1e-5)
        np.testing.assert_allclose(
            normalised[layer]["kernel"] * norm(params[layer]["kernel"]), params[layer]["kernel"], rtol=1e-4
        )
        assert normalised[layer]["bias"] is params[layer]["bias"]


def test_many_steps_of_one_iteration_equal_one_step_of_many():
    params = tree()
    vectors = spectral.init(params, jax.random.key(0))
    _, many = spectral.normalise(params, vectors, 5)
    for _ in range(5):
        _, vectors = spectral.normalise(params, vectors)
    for path in vectors:
        np.testing.assert_allclose(vectors[path], many[path], rtol=1e-5)


def test_zero_iterations_keep_the_vectors_and_repeat_sigma():
    params = tree()
    first, vectors = spectral.normalise(params, spectral.init(params, jax.random.key(0)), 300)
    again, kept = spectral.normalise(params, vectors, 0)
    assert all(kept[path] is vectors[path] for path in vectors)
    np.testing.assert_allclose(again["Down_0"]["kernel"], first["Down_0"]["kernel"], rtol=1e-5)


def test_agrees_with_pytorch_step_by_step():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `bench`)")
    kernel = np.array(tree()["Dense_0"]["kernel"])
    # PyTorch starts from the vector on the input side and updates the other first; on the transposed layer that is our order.
    layer = torch.nn.Linear(5, 12, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(kernel))
    torch.nn.utils.parametrizations.spectral_norm(layer)
    vectors = spectral.init({"Dense_0": {"kernel": jnp.asarray(kernel)}}, jax.random.key(3))
    path = "['Dense_0']['kernel']"
    with torch.no_grad():
        layer.parametrizations.weight[0]._v.copy_(torch.from_numpy(np.array(vectors[path])))
    for _ in range(6):
        theirs = layer.weight.detach().numpy()  # each access in training mode is one iteration
        ours, vectors = spectral.normalise({"Dense_0": {"kernel": jnp.asarray(kernel)}}, vectors)
        np.testing.assert_allclose(ours["Dense_0"]["kernel"], theirs, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(vectors[path], layer.parametrizations.weight[0]._v.numpy(), rtol=2e-5, atol=1e-6)


def test_gradient_flows_through_sigma_with_constant_vectors():
    with jax.enable_x64(True):
        params = {"Dense_0": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)))}}
        vectors = {k: u.astype(jnp.float64) for k, u in spectral.init(params, jax.random.key(0)).items()}
        target = jnp.asarray(np.random.default_rng(1).standard_normal((6, 4)))
        path = "['Dense_0']['kernel']"
        u = spectral.normalise(params, vectors, 1)[1][path]
        w = np.asarray(params["Dense_0"]["kernel"])
        v = w @ vectors[path]
        v = v / np.linalg.norm(v)

        def constant(kernel):
            return jnp.sum(target * kernel / (v @ (kernel @ u)))

        def ours(kernel):
            return jnp.sum(
                target * spectral.normalise({"Dense_0": {"kernel": kernel}}, vectors, 1)[0]["Dense_0"]["kernel"]
            )

        check_grads(constant, (w,), order=1, modes=["rev"])  # by finite differences
        np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(w)), jax.grad(constant)(jnp.asarray(w)), rtol=1e-6)
        # Converged, u and v are the singular vectors: there even a finite difference that moves them agrees (sigma is stationary).
        _, vectors = spectral.normalise(params, vectors, 2000)
        check_grads(ours, (params["Dense_0"]["kernel"],), order=1, modes=["rev"], atol=1e-4, rtol=1e-4)


def test_bfloat16_parameters_iterate_in_float32():
    params = tree(jnp.bfloat16)
    normalised, vectors = spectral.normalise(params, spectral.init(params, jax.random.key(0)), 100)
    assert normalised["Down_0"]["kernel"].dtype == jnp.bfloat16
    assert all(u.dtype == jnp.float32 for u in vectors.values())
    np.testing.assert_allclose(norm(normalised["Down_0"]["kernel"].astype(jnp.float32)), 1.0, rtol=1e-2)


def test_under_jit_and_vmap_each_replica_is_its_own():
    stacked = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), tree())
    vectors = jax.vmap(spectral.init)(stacked, jax.random.split(jax.random.key(0), 2))
    normalised, updated = jax.jit(jax.vmap(spectral.normalise))(stacked, vectors)
    for i in range(2):
        replica = jax.tree.map(lambda x, i=i: x[i], (stacked, vectors))
        one, u = spectral.normalise(*replica)
        np.testing.assert_allclose(normalised["Dense_0"]["kernel"][i], one["Dense_0"]["kernel"], rtol=1e-5)
        np.testing.assert_allclose(updated["['Dense_0']['kernel']"][i], u["['Dense_0']['kernel']"], rtol=1e-5)
    assert not spectral.init({"bias": jnp.ones(3)}, jax.random.key(0))


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_a_kernel_of_zeros_stays_one_and_is_normalised_when_it_is_none_any_more(iterations):
    zeros = {"Dense_0": {"kernel": jnp.zeros((12, 5))}}
    vectors = spectral.init(zeros, jax.random.key(0))

    def total(params):
        return spectral.normalise(params, vectors, iterations)[0]["Dense_0"]["kernel"].sum()

    value, grads = jax.value_and_grad(total)(zeros)
    assert value == 0
    assert np.isfinite(grads["Dense_0"]["kernel"]).all()
    _, after = spectral.normalise(zeros, vectors, iterations)
    normalised, _ = spectral.normalise({"Dense_0": tree()["Dense_0"]}, after, 200)
    np.testing.assert_allclose(norm(normalised["Dense_0"]["kernel"]), 1.0, rtol=1e-5)
