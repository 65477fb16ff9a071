"""The convolutions of `conv.py` as one matrix product each: with gathered patches, or with all taps.

On a CPU for narrow images, on NVIDIA's GPUs for all: a product with a kernel for each generator is a batch of products, where the
native form is a grouped convolution. On an H100 an update of `psg` takes 1.4 ms so and 4.1 ms natively. Each equals the native
form in `conv.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pads(stride: int, size: int) -> tuple[int, int]:
    """Padding "SAME", (before, after), where the stride divides the image: size - stride in all."""
    return (size - stride) // 2, size - stride - (size - stride) // 2


def down(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The strided convolution: images [B, H, W, C], kernel [k, k, C, D] -> features [B, H / stride, W / stride, D]."""
    batch, height, width, _ = images.shape
    taps = _blocks(kernel, stride).reshape(-1, kernel.shape[3])
    return (_patches(images, stride, size) @ taps).reshape(batch, height // stride, width // stride, -1)


def up(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    """Its transpose: features [B, h, w, D], kernel [k, k, C, D] -> images [B, h * stride, w * stride, C].

    One product with all taps, and the shifted sum of the products at each pixel; the kernel may have fewer rows than columns.
    """
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


def correlate(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    """The gradient with respect to the kernel: images [B, H, W, C], features [B, h, w, D] -> [k, k, C, D]."""
    taps = _patches(images, stride, size).T @ features.reshape(-1, features.shape[3])
    count = size // stride
    blocks = taps.reshape(count, count, stride, stride, images.shape[3], -1)
    return blocks.swapaxes(1, 2).reshape(size, size, images.shape[3], -1)


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
