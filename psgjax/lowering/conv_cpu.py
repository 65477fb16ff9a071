"""The convolutions of `conv.py` as a CPU's backend runs them fast.

Narrow images: one matrix product with gathered patches, or with all taps. Wide ones: minimal filtering along the rows
(`filtering.py`), and for each of its points a product, or a convolution in the layout of a forward one, which the backend runs
near its peak. Each equals the native form in `conv.py`; programs apply them to the same shapes many times, and `jax.jit` traces
each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from psgjax.lowering import filtering

# With fewer image channels, one product with gathered patches is faster than a convolution: the patches are small then.
NARROW = 16
LAYOUT = ("NHWC", "HWIO", "NHWC")

Map = Callable[[jax.Array, jax.Array], jax.Array]


def pads(stride: int, size: int) -> tuple[int, int]:
    """Padding "SAME", (before, after), where the stride divides the image: size - stride in all."""
    return (size - stride) // 2, size - stride - (size - stride) // 2


@partial(jax.jit, static_argnames=("stride", "size"))
def down(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The strided convolution: images [B, H, W, C], kernel [k, k, C, D] -> features [B, H / stride, W / stride, D]."""
    batch, height, width, channels = images.shape
    if channels < NARROW:
        taps = _blocks(kernel, stride).reshape(-1, kernel.shape[3])
        return (_patches(images, stride, size) @ taps).reshape(batch, height // stride, width // stride, -1)

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        padding = [(0, 0), pads(stride, size)]
        return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    mixing = filtering.mixing(height // stride, stride, size, images.dtype)
    tiles, kernels = filtering.tiles(mixing.images, images, stride), filtering.at_points(mixing.kernel, kernel, 0)
    return filtering.from_tiles(mixing.features, _sequentially(convolve, tiles, kernels), batch)


@partial(jax.jit, static_argnames=("stride", "size"))
def up(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """Its transpose: features [B, h, w, D], kernel [k, k, C, D] -> images [B, h * stride, w * stride, C]."""
    multiply = partial(_up_product, stride=stride)
    if kernel.shape[2] < NARROW:
        return multiply(features, kernel)
    mixing = filtering.mixing(features.shape[1], stride, size, features.dtype)
    parts = map(multiply, filtering.tiles(mixing.features, features, 1), filtering.at_points(mixing.kernel, kernel, 0))
    return filtering.from_tiles(mixing.images, parts, features.shape[0])


@partial(jax.jit, static_argnames=("stride", "size"))
def correlate(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The gradient with respect to the kernel: images [B, H, W, C], features [B, h, w, D] -> [k, k, C, D]."""
    if images.shape[3] < NARROW:
        taps = _patches(images, stride, size).T @ features.reshape(-1, features.shape[3])
        count = size // stride
        blocks = taps.reshape(count, count, stride, stride, images.shape[3], -1)
        return blocks.swapaxes(1, 2).reshape(size, size, images.shape[3], -1)

    def convolve(images: jax.Array, features: jax.Array) -> jax.Array:
        # Channels and batch change places: this convolution sums over the batch.
        images, features = images.transpose(3, 1, 2, 0), features.transpose(1, 2, 0, 3)
        padding, gaps = [(0, 0), pads(stride, size)], (stride, stride)
        taps = lax.conv_general_dilated(images, features, (1, 1), padding, rhs_dilation=gaps, dimension_numbers=LAYOUT)
        return taps.transpose(1, 2, 0, 3)

    mixing = filtering.mixing(features.shape[1], stride, size, images.dtype)
    tiles = filtering.tiles(mixing.images, images, stride), filtering.tiles(mixing.features, features, 1)
    return filtering.from_points(mixing.kernel, lax.optimization_barrier(_sequentially(convolve, *tiles)), 0)


def _up_product(features: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """One product with all taps, and the shifted sum of the products at each pixel; the kernel may have fewer rows than columns."""
    batch, height, width, depth = features.shape
    rows, columns = (n // stride for n in kernel.shape[:2])
    taps = jnp.moveaxis(_blocks(kernel, stride), -1, 0).reshape(depth, -1)  # not the transpose: products would undo it
    products = jnp.split(features @ taps, rows * columns, -1)
    total = sum(
        jnp.pad(products[r * columns + c], ((0, 0), (r, rows - 1 - r), (c, columns - 1 - c), (0, 0)))
        for r in range(rows)
        for c in range(columns)
    )
    rows, columns = height + rows - 1, width + columns - 1
    pixels = total.reshape(batch, rows, columns, stride, stride, -1).swapaxes(2, 3)  # type: ignore[union-attr]
    pixels = pixels.reshape(batch, rows * stride, columns * stride, -1)
    top, left = (pads(stride, n)[0] for n in kernel.shape[:2])
    return pixels[:, top : top + height * stride, left : left + width * stride]


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


def _patches(images: jax.Array, stride: int, size: int) -> jax.Array:
    """The pixels under the kernel at each position: [B * H / stride * W / stride, size * size * C], in the order of `_blocks`."""
    batch, height, width, channels = images.shape
    padding, count = pads(stride, size), size // stride
    rows, columns = height // stride, width // stride
    padded = jnp.pad(images, ((0, 0), padding, padding, (0, 0)))
    blocks = padded.reshape(batch, rows + count - 1, stride, columns + count - 1, stride, channels).swapaxes(2, 3)
    blocks = blocks.reshape(*blocks.shape[:3], -1)
    shifted = [blocks[:, r : r + rows, c : c + columns] for r in range(count) for c in range(count)]
    return jnp.concatenate(shifted, -1).reshape(batch * rows * columns, -1)


def _blocks(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel [k, l, C, D] as [k / stride, l / stride, stride, stride, C, D]: a block's taps fall on one pixel's phases."""
    rows, columns = (n // stride for n in kernel.shape[:2])
    return kernel.reshape(rows, stride, columns, stride, *kernel.shape[2:]).swapaxes(1, 2)
