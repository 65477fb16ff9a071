"""The convolutions of `conv.py` as a CPU's backend runs them fast.

Narrow images: one matrix product (`conv_products.py`). Wide ones: minimal filtering along the rows (`filtering.py`), and for each
of its points a product, or a convolution in the layout of a forward one, which the backend runs near its peak. Each equals the
native form in `conv.py`; programs apply them to the same shapes many times, and `jax.jit` traces each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax import lax

from psgjax.lowering import conv_products, filtering
from psgjax.lowering.conv_products import pads

# With fewer image channels, one product with gathered patches is faster than a convolution: the patches are small then.
NARROW = 16
LAYOUT = ("NHWC", "HWIO", "NHWC")

Map = Callable[[jax.Array, jax.Array], jax.Array]


@partial(jax.jit, static_argnames=("stride", "size"))
def down(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The strided convolution: images [B, H, W, C], kernel [k, k, C, D] -> features [B, H / stride, W / stride, D]."""
    batch, height, _, channels = images.shape
    if channels < NARROW:
        return conv_products.down(images, kernel, stride=stride, size=size)

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(0, 0), pads(stride, size)]
        return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    mixing = filtering.mixing(height // stride, stride, size, images.dtype)
    tiles, kernels = filtering.tiles(mixing.images, images, stride), filtering.at_points(mixing.kernel, kernel, 0)
    return filtering.from_tiles(mixing.features, _sequentially(convolve, tiles, kernels), batch)


@partial(jax.jit, static_argnames=("stride", "size"))
def up(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """Its transpose: features [B, h, w, D], kernel [k, k, C, D] -> images [B, h * stride, w * stride, C]."""
    multiply = partial(conv_products.up, stride=stride, size=size)
    if kernel.shape[2] < NARROW:
        return multiply(features, kernel)
    mixing = filtering.mixing(features.shape[1], stride, size, features.dtype)
    parts = map(multiply, filtering.tiles(mixing.features, features, 1), filtering.at_points(mixing.kernel, kernel, 0))
    return filtering.from_tiles(mixing.images, parts, features.shape[0])


@partial(jax.jit, static_argnames=("stride", "size"))
def correlate(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The gradient with respect to the kernel: images [B, H, W, C], features [B, h, w, D] -> [k, k, C, D]."""
    if images.shape[3] < NARROW:
        return conv_products.correlate(images, features, stride=stride, size=size)

    def convolve(images: jax.Array, features: jax.Array) -> jax.Array:
        # Channels and batch change places: this convolution sums over the batch.
        images, features = images.transpose(3, 1, 2, 0), features.transpose(1, 2, 0, 3)
        padding, gaps = [(0, 0), pads(stride, size)], (stride, stride)
        taps = lax.conv_general_dilated(images, features, (1, 1), padding, rhs_dilation=gaps, dimension_numbers=LAYOUT)
        return taps.transpose(1, 2, 0, 3)

    mixing = filtering.mixing(features.shape[1], stride, size, images.dtype)
    tiles = filtering.tiles(mixing.images, images, stride), filtering.tiles(mixing.features, features, 1)
    return filtering.from_points(mixing.kernel, lax.optimization_barrier(_sequentially(convolve, *tiles)), 0)


def _sequentially(convolve: Map, images: Sequence[jax.Array], kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """The convolution of each point, started only after that of the point before is done.

    Otherwise all would run at once, each with scratch memory that the threads then keep. An order of scheduling does not make one
    wait for another; a data dependence does: each kernel has a zero added that is computed from the result before.
    """
    results: list[jax.Array] = []
    for image, kernel in zip(images, kernels, strict=True):
        after = kernel + 0 * results[-1].ravel()[0] if results else kernel
        results.append(convolve(image, after))
    return results
