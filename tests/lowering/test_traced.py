"""`traced.once` saves time and changes no program."""

from importlib.util import module_from_spec, spec_from_file_location

import jax
import jax.numpy as jnp
import pytest

from psgjax.lowering import conv, reductions, traced


def test_a_function_is_traced_once_for_one_shape():
    shapes = []

    @traced.once
    def doubled(x):
        shapes.append(x.shape)
        return 2 * x

    jax.jit(lambda x, y: (doubled(doubled(x)), doubled(y))).lower(jnp.ones((3, 4)), jnp.ones(4))
    assert shapes == [(3, 4), (4,)]


def gradients(lowering, function, *arguments):
    """The text of the program of second derivatives, mapped over two of everything."""

    def squares(*arrays):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(function(lowering)(*arrays)))

    def first(*arrays):
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.grad(squares, range(len(arrays)))(*arrays))

    both = [jnp.stack([argument, 2 * argument]) for argument in arguments]
    return jax.jit(jax.vmap(jax.grad(first, range(len(both))))).lower(*both).as_text()


IMAGES, KERNEL, CHANNELS = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5)), jnp.ones(3)


@pytest.mark.uncovered
@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        (conv, lambda conv: lambda images, kernel: conv.down(images, kernel, stride=2), (IMAGES, KERNEL)),
        (
            conv,
            lambda conv: lambda features, kernel: conv.up(features, kernel, stride=2),
            (jnp.ones((2, 4, 4, 5)), KERNEL),
        ),
        (reductions, lambda reductions: reductions.normalise, (IMAGES, CHANNELS, CHANNELS)),
        (reductions, lambda reductions: reductions.add_bias, (IMAGES, CHANNELS)),
    ],
    ids=["down", "up", "normalise", "add_bias"],
)
def test_the_program_is_that_of_plain_calls(module, function, arguments, monkeypatch):
    once = gradients(module, function, *arguments)
    monkeypatch.setattr(traced, "once", lambda function, **_: function)
    spec = spec_from_file_location(module.__name__, module.__file__)
    plain = module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert gradients(plain, function, *arguments) == once
