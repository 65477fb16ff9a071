"""The layers that networks are made of: Flax modules over this package's products and convolutions.

Every weight that multiplies is called `kernel`, which is what spectral normalisation looks for.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from psgjax.lowering import conv, reductions

NORMAL = nn.initializers.normal(0.02)  # Radford et al. 2016, section 4


class Layer(nn.Module):
    """A module that reads its parameters, where Flax would trace each one's initialisation again at every application."""

    @nn.nowrap
    def param(self, name: str, init_fn: Any, *init_args: Any, **settings: Any) -> Any:
        """The parameter of that name and shape, `init_args[0]`; whatever else there is, or is not yet, is Flax's matter."""
        known = None if self.is_initializing() else self.get_variable("params", name)
        fits = isinstance(known, jax.Array) and known.shape == tuple(init_args[0])
        return known if fits else super().param(name, init_fn, *init_args, **settings)


def _product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    # What is left out, dimensions and precision, is always the same: [n, A] times [A, B], and the precision that the context sets.
    return reductions.product(x, kernel)


class Dense(Layer, nn.Dense):
    """`flax.linen.Dense` with this package's products: [B, A] -> [B, features]."""

    dot_general: Any = _product


class Down(Layer):
    """Strided convolution, padded "SAME": [B, H, W, C] -> [B, H / stride, W / stride, features]."""

    features: int
    size: int = 4
    stride: int = 2
    dtype: Any = None
    kernel_init: Any = NORMAL

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolve and add the bias."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, images.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        return reductions.add_bias(conv.down(images, kernel, stride=self.stride), bias)


class Up(Layer):
    """Transposed convolution, padded "SAME": [B, h, w, D] -> [B, h * stride, w * stride, features]; no bias before a norm."""

    features: int
    size: int = 4
    stride: int = 2
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Convolve, and add the bias if there is one."""
        kernel = self.param("kernel", NORMAL, (self.size, self.size, self.features, features.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(())
        features, kernel, bias = nn.dtypes.promote_dtype(features, kernel, bias, dtype=self.dtype)
        images = conv.up(features, kernel, stride=self.stride)
        return reductions.add_bias(images, bias) if self.use_bias else images


class Pointwise(Layer):
    """Convolution 1x1, a product with each pixel's channels: [B, H, W, C] -> [B, H, W, features]."""

    features: int
    use_bias: bool = True
    dtype: Any = None
    kernel_init: Any = NORMAL

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Multiply, and add the bias if there is one."""
        kernel = self.param("kernel", self.kernel_init, (images.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(())
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        features = reductions.product(images.reshape(-1, images.shape[-1]), kernel)
        features = features.reshape(*images.shape[:-1], self.features)
        return reductions.add_bias(features, bias) if self.use_bias else features


class BatchNorm(Layer):
    """`flax.linen.BatchNorm` with this package's faster sums: the same parameters, statistics and numbers, in float32."""

    momentum: float = 0.9
    axis_name: str | None = None  # the axis of a mesh that the batch is split over

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise x [..., C] by its batch's statistics and update the running ones, or by the running ones."""
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if not train:
            return reductions.normalise_by(x, scale, bias, mean.value, variance.value)
        x, *batch = reductions.normalise(x, scale, bias, self.axis_name)
        if not self.is_initializing():
            for running, new in zip((mean, variance), batch, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return x


@jax.custom_vjp
def upsample(images: jax.Array) -> jax.Array:
    """Bilinear, to twice the size: [B, H, W, C] -> [B, 2H, 2W, C]; beyond the border there is 0."""
    for axis in (1, 2):
        before, after = _neighbours(images, images, axis)
        pixels = jnp.stack([0.75 * images + 0.25 * before, 0.75 * images + 0.25 * after], axis + 1)
        images = pixels.reshape(*images.shape[:axis], -1, *images.shape[axis + 1 :])
    return images


@jax.custom_vjp
def downsample(images: jax.Array) -> jax.Array:
    """Bilinear with antialiasing, to half the size: [B, H, W, C] -> [B, H / 2, W / 2, C].

    The weights of four pixels in a row are 1/8, 3/8, 3/8, 1/8; beyond the border there is 0.
    """
    for axis in (1, 2):
        pairs = images.reshape(*images.shape[:axis], -1, 2, *images.shape[axis + 1 :])
        even, odd = (lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in (0, 1))
        before, after = _neighbours(odd, even, axis)
        images = 0.375 * (even + odd) + 0.125 * (before + after)
    return images


def _neighbours(before: jax.Array, after: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """What stands one place before in the first, and one place after in the second."""

    def shifted(x: jax.Array, start: int) -> jax.Array:
        pads = [(0, 0)] * x.ndim
        pads[axis] = (1 - start, start)
        return jnp.pad(lax.slice_in_dim(x, start, x.shape[axis] - 1 + start, axis=axis), pads)

    return shifted(before, 0), shifted(after, 1)


# Each one's gradient is the other: reverse mode's own would scatter slices into zeros.
upsample.defvjp(lambda images: (upsample(images), None), lambda _, grad: (4 * downsample(grad),))
downsample.defvjp(lambda images: (downsample(images), None), lambda _, grad: (0.25 * upsample(grad),))
