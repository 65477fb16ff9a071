"""The layers that networks are made of: Flax modules over this package's products and convolutions.

Every weight that multiplies is called `kernel`, which is what spectral normalisation looks for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax import channels, conv

NORMAL = nn.initializers.normal(0.02)  # Radford et al. 2016, section 4

# What is left out here, dimensions and precision, is always the same: [n, A] times [A, B], and the precision that the context sets.
Dense = partial(nn.Dense, dot_general=lambda x, kernel, *_, **__: channels.product(x, kernel))


class Down(nn.Module):
    """Strided convolution, padded "SAME": [B, H, W, C] -> [B, H / stride, W / stride, features]."""

    features: int
    size: int = 4
    stride: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolve and add the bias."""
        kernel = self.param("kernel", NORMAL, (self.size, self.size, images.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        return channels.add_bias(conv.down(images, kernel, stride=self.stride), bias)


class Up(nn.Module):
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
        return channels.add_bias(images, bias) if self.use_bias else images


class BatchNorm(nn.Module):
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
            return channels.normalise_by(x, scale, bias, mean.value, variance.value)
        x, *batch = channels.normalise(x, scale, bias, self.axis_name)
        if not self.is_initializing():
            for running, new in zip((mean, variance), batch, strict=True):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        return x
