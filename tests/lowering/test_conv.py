"""The three maps against lax, as adjoints, under every transformation, and nothing slow left in the program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from psgjax.lowering import conv, conv_cpu, conv_products, filtering

SHAPES = [
    (4, 2, 3, 5),
    (4, 2, 16, 20),
    (4, 2, 1, 8),
    (3, 1, 2, 4),
    (3, 1, 16, 17),
    (2, 2, 4, 4),
    (4, 2, 65, 2),
    (6, 3, 16, 2),
    (4, 2, 16, 4, 7),
    (3, 1, 16, 4, 11),
    (9, 1, 16, 2, 3),
]  # k, stride, C, D, rows of features if not two


def arrays(size, stride, channels, depth, height=2, dtype=np.float64, lead=()):
    generate = np.random.default_rng(0).standard_normal
    images = generate((*lead, 2, height * stride, 3 * stride, channels)).astype(dtype)
    features = generate((*lead, 2, height, 3, depth)).astype(dtype)
    kernel = generate((*lead, size, size, channels, depth)).astype(dtype)
    return images, features, kernel


@pytest.fixture(params=[np.float32, np.float64])
def dtype(request):
    with jax.enable_x64(request.param == np.float64):
        yield request.param


@pytest.mark.uncovered
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_lax_with_its_gradients(shape, dtype):
    stride = shape[1]
    images, features, kernel = arrays(*shape, dtype=dtype)
    layout = ("NHWC", "HWIO", "NHWC")

    def reference_down(images, kernel):
        return lax.conv_general_dilated(images, kernel, (stride, stride), "SAME", dimension_numbers=layout)

    def reference_up(features, kernel):
        return lax.conv_transpose(
            features, kernel, (stride, stride), "SAME", dimension_numbers=layout, transpose_kernel=True
        )

    # Of the largest value: what minimal filtering adds to rounding does not depend on the value that it falls on.
    tolerance = 4e-6 if dtype == np.float32 else 1e-14

    def assert_close(got, want):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * abs(want).max())

    @partial(jax.jit, static_argnums=0)
    def with_gradients(function, first, kernel, cotangents):
        result, vjp = jax.vjp(function, first, kernel)
        return result, *vjp(cotangents)

    for ours, reference, first, second in (
        (conv.down, reference_down, images, features),
        (conv.up, reference_up, features, images),
    ):
        found = with_gradients(partial(ours, stride=stride), first, kernel, second)
        for mine, theirs in zip(found, with_gradients(reference, first, kernel, second), strict=True):
            assert_close(mine, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_platforms_forms_are_equal(shape):
    size, stride, *_ = shape
    with jax.enable_x64(True):
        images, features, kernel = arrays(*shape)

        @jax.jit
        def of_every_platform(images, features, kernel):
            inputs = {"down": (images, kernel), "up": (features, kernel), "correlate": (images, features)}
            return [
                [
                    form(*pair, stride=stride, size=size)
                    for form in (
                        getattr(conv, f"_{name}_native"),
                        getattr(conv_cpu, name),
                        getattr(conv_products, name),
                    )
                ]
                for name, pair in inputs.items()
            ]

        for native, *others in of_every_platform(images, features, kernel):
            for other in others:
                np.testing.assert_allclose(other, native, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_up_and_correlate_are_adjoints_of_down(shape):
    size, stride, *_ = shape
    with jax.enable_x64(True):
        images, features, kernel = arrays(*shape)

        @jax.jit
        def maps(images, features, kernel):
            down, up = conv.down(images, kernel, stride=stride), conv.up(features, kernel, stride=stride)
            return down, up, conv._correlate(images, features, stride, size)

        down, up, correlated = maps(images, features, kernel)
        inner = np.vdot(down, features)
        np.testing.assert_allclose(np.vdot(images, up), inner, rtol=1e-12)
        np.testing.assert_allclose(np.vdot(kernel, correlated), inner, rtol=1e-12)


@pytest.mark.uncovered
def test_second_derivatives_equal_finite_differences():
    with jax.enable_x64(True):
        images, features, kernel = arrays(4, 2, 2, 3)
        for first, function in ((images, conv.down), (features, conv.up)):

            def smooth(a, b, function=function):
                return jnp.sum(jnp.tanh(function(a, b, stride=2)))

            check_grads(jax.jit(smooth), (first, kernel), order=2, modes=["rev"])


@pytest.mark.uncovered
@pytest.mark.parametrize("mapped", [(0, 0), (0, None), (None, 0)])
def test_vmap_of_gradients_equals_a_loop(mapped):
    with jax.enable_x64(True):
        images, features, kernel = arrays(4, 2, 16, 3, lead=(3,))
        for first, function in ((images, conv.down), (features, conv.up)):

            def loss(a, b, function=function):
                return jnp.sum(jnp.tanh(function(a, b, stride=2)))

            args = [a if axis == 0 else a[0] for a, axis in zip((first, kernel), mapped, strict=True)]
            got = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), mapped))(*args)
            alone = jax.jit(jax.grad(loss, (0, 1)))
            for i in range(3):
                want = alone(*(a[i] if axis == 0 else a for a, axis in zip(args, mapped, strict=True)))
                for mine, theirs in zip(got, want, strict=True):
                    np.testing.assert_allclose(mine[i], theirs, rtol=1e-12, atol=1e-12)
            nested = jax.jit(jax.vmap(jax.vmap(loss)))(*(np.stack([a, a + 1]) for a in (first, kernel)))
            np.testing.assert_allclose(nested[0], jax.jit(jax.vmap(loss))(first, kernel), rtol=1e-12)


def test_no_slow_convolution_in_the_compiled_gradient():
    """Only what looks like a forward convolution may reach the CPU backend: no images with gaps, no groups, no other layout."""
    images, _, kernel = arrays(4, 2, 16, 20, dtype=np.float32, lead=(2,))

    def loss(images, kernel):
        return jnp.sum(jnp.tanh(conv.down(images, kernel, stride=2)))

    text = jax.jit(jax.vmap(jax.grad(loss, (0, 1)))).lower(images, kernel).compile().as_text()
    convolutions = [line for line in text.splitlines() if " convolution(" in line]
    assert convolutions
    for line in convolutions:
        assert "lhs_dilate=" not in line
        assert "group" not in line
        assert "b01f_01io->b01f" in line
    assert "conditional(" not in text  # the platform was decided before compiling


def test_what_several_convolutions_read_is_computed_once():
    images, _, kernel = arrays(4, 2, 16, 20, dtype=np.float32)

    def gradient(images, kernel):
        return jax.value_and_grad(lambda a, b: jnp.sum(conv.down(jnp.maximum(a, 0), b, stride=2) ** 2), 1)(
            images, kernel
        )

    compiled = jax.jit(gradient, compiler_options=conv.compiler_options()).lower(images, kernel).compile()
    assert compiled.as_text().count(" maximum(") == 1


@pytest.mark.uncovered
@pytest.mark.parametrize("function", [conv.down, conv.up])
def test_a_gradient_mixes_rows_once_for_both_maps_that_read_them(function):
    """What the forward pass mixed is not mixed anew for the weight gradient, nor the gradient for each of its two maps."""
    images, features, kernel = (
        np.zeros(shape, np.float32) for shape in ((2, 14, 14, 16), (2, 7, 7, 24), (4, 4, 16, 24))
    )
    mixing = filtering.mixing(7, 2, 4, np.dtype("float32"))

    def operations(run, *arrays):
        compiled = jax.jit(run, compiler_options=conv.compiler_options()).lower(*arrays).compile()
        return compiled.cost_analysis()["flops"]

    def with_gradients(first, kernel, grad):
        result, vjp = jax.vjp(partial(function, stride=2), first, kernel)
        return result, vjp(grad)

    maps = [
        operations(partial(conv.down, stride=2), images, kernel),
        operations(partial(conv.up, stride=2), features, kernel),
        operations(lambda images, features: conv._correlate(images, features, 2, 4), images, features),
    ]
    once = operations(lambda x: filtering.tiles(mixing.images, x, 2), images)
    once += operations(lambda x: filtering.tiles(mixing.features, x, 1), features)
    first, grad = (images, features) if function is conv.down else (features, images)
    assert operations(with_gradients, first, kernel, grad) <= sum(maps) - once


def test_convolutions_of_one_map_run_one_after_the_other():
    def of_one(form, *shapes):
        jaxpr = jax.make_jaxpr(form)(*map(jnp.zeros, shapes)).jaxpr.eqns[0].params["jaxpr"]
        before = {}  # by variable: on how many convolutions it depends
        for eqn in jaxpr.eqns:
            own = max((before.get(v, 0) for v in eqn.invars if not hasattr(v, "val")), default=0)
            own += eqn.primitive is lax.conv_general_dilated_p
            before.update(dict.fromkeys(eqn.outvars, own))
        return sum(eqn.primitive is lax.conv_general_dilated_p for eqn in jaxpr.eqns), max(before.values())

    images, features, kernel = (4, 14, 14, 16), (4, 7, 7, 24), (4, 4, 16, 24)
    forms = partial(conv_cpu.down, stride=2, size=4), partial(conv_cpu.correlate, stride=2, size=4)
    assert of_one(forms[0], images, kernel) == (8, 8)
    assert of_one(forms[1], images, features) == (8, 8)


@pytest.mark.parametrize(
    ("platform", "operation"), [("cuda", "stablehlo.dot_general"), ("tpu", "stablehlo.convolution")]
)
@pytest.mark.parametrize("generators", [None, 3])
def test_lowers_to_products_on_gpus_and_to_convolutions_on_tpus(platform, operation, generators):
    images, _, kernel = arrays(4, 2, 16, 20, dtype=np.float32, lead=(generators,) if generators else ())
    gradient = jax.grad(lambda a, b: jnp.sum(jnp.tanh(conv.down(a, b, stride=2))), (0, 1))
    program = jax.jit(jax.vmap(gradient) if generators else gradient)
    text = program.trace(images, kernel).lower(lowering_platforms=(platform,)).as_text()
    kinds = ("stablehlo.dot_general", "stablehlo.convolution")
    assert [text.count(kind) for kind in kinds] == [3 * (kind == operation) for kind in kinds]


def test_what_xla_flags_say_of_optimisation_holds(monkeypatch):
    for flags, expected in (("", 1), ("--xla_backend_optimization_level=0", None)):
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert conv.compiler_options("cpu", seldom=True).get("xla_backend_optimization_level") == expected


def test_refuses_what_it_cannot_compute():
    with pytest.raises(ValueError, match="multiples of the stride 2"):
        conv.down(jnp.zeros((1, 7, 8, 1)), jnp.zeros((4, 4, 1, 1)), stride=2)
    with pytest.raises(ValueError, match="multiples of the stride 2"):
        conv.up(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), stride=2)
    with pytest.raises(ValueError, match="takes 2 channels, not 3"):
        conv.down(jnp.zeros((1, 8, 8, 3)), jnp.zeros((4, 4, 2, 1)), stride=2)
