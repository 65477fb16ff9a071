"""`traced.once` saves time and changes no program."""

import re
from functools import partial
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


def gradients(lowering, function, order, *arguments):
    """The text of the program of derivatives, mapped over two of everything; without the numbers of inner functions."""

    def squares(function):
        return lambda *arrays: sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(function(*arrays)))

    derivative = function(lowering)
    for _ in range(order):
        derivative = jax.grad(squares(derivative), range(len(arguments)))
    both = [jnp.stack([argument, 2 * argument]) for argument in arguments]
    return re.sub(r"(@\w+?)_\d+", r"\1", jax.jit(jax.vmap(derivative)).lower(*both).as_text())


IMAGES, KERNEL, CHANNELS = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5)), jnp.ones(3)


@pytest.mark.uncovered
@pytest.mark.parametrize(
    ("module", "function", "order", "arguments"),
    [
        (conv, lambda conv: partial(conv.down, stride=2), 2, (IMAGES, KERNEL)),
        (conv, lambda conv: partial(conv.up, stride=2), 2, (jnp.ones((2, 4, 4, 5)), KERNEL)),
        (reductions, lambda reductions: reductions.normalise, 1, (IMAGES, CHANNELS, CHANNELS)),
        (reductions, lambda reductions: reductions.add_bias, 1, (IMAGES, CHANNELS)),
    ],
    ids=["down", "up", "normalise", "add_bias"],
)
def test_the_program_is_that_of_plain_calls(module, function, order, arguments, monkeypatch):
    once = gradients(module, function, order, *arguments)
    monkeypatch.setattr(traced, "once", lambda function, **_: function)
    spec = spec_from_file_location(module.__name__, module.__file__)
    plain = module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert gradients(plain, function, order, *arguments) == once
