"""Sums over all pixels of each channel, and what needs them: biases, batch normalisation, products, with their gradients.

Arrays are [..., C]. A CPU backend's own sum over all axes but the last is slow: one thread, bound by memory. `sums` first adds
sixteen blocks elementwise, which is some ten times faster and, as a shallow tree, more exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from psgjax.lowering import traced

_BLOCKS = 16
_EPSILON = 1e-5


def sums(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Sum of `function(*arrays)`, an elementwise one, over all axes but the last: arrays [..., C] -> [C]."""
    rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
    # No blocks of one row: without a reduction jaxlib 0.12 may add them up in the memory where `x - sums(x)` is being written.
    count = len(rows[0]) // (math.gcd(_BLOCKS, len(rows[0])) if len(rows[0]) > _BLOCKS else 1)
    total = function(*(array[:count] for array in rows))
    for start in range(count, len(rows[0]), count):
        total = total + function(*(array[start : start + count] for array in rows))
    return total.sum(0)


def _beside(vector: jax.Array, x: jax.Array) -> jax.Array:
    """[C] shaped to go with x [..., C]."""
    return vector.reshape(*(1 for _ in x.shape[1:]), -1)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add bias [C] to x [..., C]."""
    return x + _beside(bias, x)


def _add_bias_forward(x: jax.Array, bias: jax.Array) -> tuple[jax.Array, None]:
    return add_bias(x, bias), None


@traced.once
def _add_bias_backward(_: None, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    return cotangent, sums(lambda g: g, cotangent)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply x [n, A] by a kernel [A, B]; the gradient with respect to the kernel is [A, B] in memory, too.

    Reverse mode's own is the transpose of [B, A], which all three of Adam's updates would read across its rows.
    """
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return product(x, kernel), (x, kernel)


def _product_backward(saved: tuple, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return cotangent @ kernel.T, x.T @ cotangent


product.defvjp(_product_forward, _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation in training (Ioffe and Szegedy 2015, algorithm 1), computed in float32 or better.

    Args:
        x: [..., C], any float type.
        scale: [C].
        bias: [C].
        axis_name: The axis of a mesh along which the batch is sharded equally. The gradients of scale and bias are this device's
            terms of their sum over the axis.

    Returns:
        The normalised x, in its type; the batch's mean and (biased) variance [C], through which no gradient flows.
    """
    return _normalise_forward(x, scale, bias, axis_name)[0]


def _over_devices(axis_name: str | None, x: jax.Array, *sums: jax.Array) -> tuple:
    """The number of pixels of x and sums over them, all-reduced over the devices along the axis."""
    count = x.size // x.shape[-1]
    return (count * jax.lax.axis_size(axis_name), *jax.lax.psum(sums, axis_name)) if axis_name else (count, *sums)


@partial(traced.once, static_argnums=3)
def _normalise_forward(x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None) -> tuple[tuple, tuple]:
    wide = _widened(x)
    count, total, squares = _over_devices(axis_name, x, sums(lambda x: x, wide), sums(lambda x: x * x, wide))
    mean = total / count
    variance = jnp.maximum(0.0, squares / count - mean * mean)
    normalised = normalise_by(x, scale, bias, mean, variance)
    return (normalised, mean, variance), (x, mean, jnp.sqrt(variance + _EPSILON), scale)


@partial(traced.once, static_argnums=0)
def _normalise_backward(
    axis_name: str | None, saved: tuple, cotangents: tuple
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, deviation, scale = saved
    wide, cotangent = _widened(x), _widened(cotangents[0])
    to_bias = sums(lambda g: g, cotangent)
    to_scale = sums(lambda g, x: g * (x - mean[None]), cotangent, wide) / deviation
    count, all_to_scale, all_to_bias = _over_devices(axis_name, x, to_scale, to_bias)
    coefficient = _beside(all_to_scale / deviation / count, x)
    centred = cotangent - _beside(all_to_bias / count, x) - (wide - _beside(mean, x)) * coefficient
    return (centred * _beside(scale / deviation, x)).astype(x.dtype), to_scale, to_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


def normalise_by(x: jax.Array, scale: jax.Array, bias: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
    """Batch normalisation in evaluation: by the running mean and variance [C]; x [..., C] keeps its type."""
    factor = _beside(scale / jnp.sqrt(variance + _EPSILON), x)
    return ((_widened(x) - _beside(mean, x)) * factor + _beside(bias, x)).astype(x.dtype)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
