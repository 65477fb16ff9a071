"""Generators and discriminators in Flax (linen), by name; K generators are one stacked tree.

Every generator maps latents [B, latent_size] to images [B, H, W, C] in [-1, 1]; every discriminator maps such images to
[B, outputs] numbers: one score, or as many as the objective needs. Parameter counts below are for 28x28x1 images (sngan32:
32x32x1), the default width, 100 latents and one output. Generators keep batch statistics, each its own; discriminators have no
batch normalisation, so each of their scores depends on one image alone; they can be applied whole or stage by stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax import channels, conv
from psgjax.config import ConfigError, Network

Tree = Any

_NORMAL = nn.initializers.normal(0.02)  # Radford et al. 2016, section 4

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
        kernel = self.param("kernel", _NORMAL, (self.size, self.size, images.shape[-1], self.features))
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
        kernel = self.param("kernel", _NORMAL, (self.size, self.size, self.features, features.shape[-1]))
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


class ConvGenerator(nn.Module):
    """Dense layers, then transposed convolutions 4x4/2, batch norm and ReLU between; tanh at the end.

    `dcgan28` (Radford et al. 2016, two levels): 100 -> 7x7x128 -> 14x14x64 -> 28x28x1; 759,681 parameters.
    `infogan28` (Chen et al. 2016; as in Lucic et al. 2018): the same behind a dense layer of 1,024; 6,659,457 parameters.
    `sngan32` (Miyato et al. 2018, Table 3): 100 -> 4x4x512 -> 8x8x256 -> 16x16x128 -> 32x32x64 -> conv 3x3/1; 3,574,209 parameters.
    """

    image_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    last_conv: bool = False
    dtype: Any = None
    axis_name: str | None = None  # the axis of a mesh that the batch is split over

    @nn.compact
    def __call__(self, latents: jax.Array, train: bool = True) -> jax.Array:
        """Latents [B, latent_size] to images [B, H, W, C] in [-1, 1]; `train` uses and updates batch statistics."""

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(BatchNorm(axis_name=self.axis_name)(x, train))

        x = latents
        for features in self.hidden:
            x = activate(Dense(features, use_bias=False, kernel_init=_NORMAL, dtype=self.dtype)(x))
        height, width, colours = self.image_shape
        levels = len(self.channels) - (1 if self.last_conv else 0)
        height, width = height >> levels, width >> levels
        x = Dense(height * width * self.channels[0], use_bias=False, kernel_init=_NORMAL, dtype=self.dtype)(x)
        x = activate(conv.held(x.reshape(-1, height, width, self.channels[0])))
        for features in self.channels[1:]:
            x = activate(Up(features, dtype=self.dtype)(x))
        last = (
            Down(colours, size=3, stride=1, dtype=self.dtype)
            if self.last_conv
            else Up(colours, use_bias=True, dtype=self.dtype)
        )
        return jnp.tanh(last(x).astype(jnp.float32))


class ConvDiscriminator(nn.Module):
    """Strided convolutions 4x4/2 with leaky ReLU, dense layers behind.

    `dcgan28` (Radford et al. 2016, two levels): 28x28x1 -> 14x14x64 -> 7x7x128 -> outputs; slope 0.2; 138,561 parameters.
    `infogan28` (Chen et al. 2016; as in Lucic et al. 2018): the same with a dense layer of 1,024; slope 0.2; 6,556,865 parameters.
    `sngan32` (Miyato et al. 2018, Table 3): 3x3/1 and 4x4/2 in pairs of 64, 128, 256, then 3x3/1 512; slope 0.1;
    2,934,721 parameters.
    """

    layers: tuple[tuple[int, int, int], ...]  # (features, kernel size, stride)
    hidden: tuple[int, ...] = ()
    slope: float = 0.2
    outputs: int = 1
    dtype: Any = None

    @property
    def depth(self) -> int:
        """How many stages there are."""
        return len(self.layers) + len(self.hidden) + 1

    @nn.compact
    def __call__(self, x: jax.Array, stage: int | None = None) -> jax.Array:
        """Images [B, H, W, C] to [B, outputs] in float32; or what enters one stage (a layer, its activation) to what leaves it."""

        def convolve(x: jax.Array, i: int) -> jax.Array:
            features, size, stride = self.layers[i]
            return nn.leaky_relu(Down(features, size, stride, dtype=self.dtype, name=f"Down_{i}")(x), self.slope)

        def connect(x: jax.Array, i: int) -> jax.Array:
            features = (*self.hidden, self.outputs)[i]
            dense = Dense(features, kernel_init=_NORMAL, dtype=self.dtype, name=f"Dense_{i}")
            x = dense(conv.held(x).reshape(len(x), -1))
            return nn.leaky_relu(x, self.slope) if i < len(self.hidden) else x.astype(jnp.float32)

        for i in range(self.depth) if stage is None else (stage,):
            x = convolve(x, i) if i < len(self.layers) else connect(x, i - len(self.layers))
        return x


class MLP(nn.Module):
    """`mlp`: two hidden layers of `width` with ReLU, as VEEGAN and PacGAN use on Gaussian mixtures; shaped for points in the plane.

    As a generator (2 latents, width 128) 17,154 parameters, as a discriminator 17,025. No batch norm on either side.
    """

    width: int
    shape: tuple[int, ...]
    dtype: Any = None

    depth = 3  # stages: layers with their activations

    @nn.compact
    def __call__(self, x: jax.Array, stage: int | None = None, train: bool = True) -> jax.Array:
        """[B, ...] to [B, *shape], unbounded; or what enters one stage to what leaves it."""
        for i in range(self.depth) if stage is None else (stage,):
            x = x.reshape(x.shape[0], -1)  # (an exported program's batch has no length)
            if i < self.depth - 1:
                x = nn.relu(Dense(self.width, dtype=self.dtype, name=f"Dense_{i}")(x))
            else:
                x = Dense(math.prod(self.shape), dtype=self.dtype, name=f"Dense_{i}")(x)
                x = x.astype(jnp.float32).reshape(-1, *self.shape)
        return x


Generator = ConvGenerator | MLP
Discriminator = ConvDiscriminator | MLP


def build(
    network: Network,
    image_shape: tuple[int, int, int],
    outputs: int,
    dtype: Any = None,
    axis_name: str | None = None,
) -> tuple[Generator, Discriminator]:
    """The generator and the discriminator of that name, for images of `image_shape` [H, W, C].

    With `axis_name`, batch statistics are those of the whole batch that the devices along that axis of a mesh hold.

    Raises:
        ConfigError: If the layers do not fit images of that size.
    """
    height, width, colours = image_shape
    base = network.width
    if network.name == "mlp":
        return MLP(base, image_shape, dtype), MLP(base, (outputs,), dtype)
    if network.name == "sngan32":
        if max(height, width) > 32:
            raise ConfigError(
                f"network.name sngan32 takes images of at most 32x32, not {height}x{width}; use another network."
            )
        generator = ConvGenerator((32, 32, colours), (8 * base, 4 * base, 2 * base, base), (), True, dtype, axis_name)
        pairs = [(base * n, size, stride) for n in (1, 2, 4) for size, stride in ((3, 1), (4, 2))]
        return generator, ConvDiscriminator((*pairs, (8 * base, 3, 1)), slope=0.1, outputs=outputs, dtype=dtype)
    if height % 4 or width % 4:
        raise ConfigError(
            f"network.name {network.name} takes image sides that are multiples of 4, not {height}x{width}."
        )
    hidden = (1024,) if network.name == "infogan28" else ()
    layers = ((base, 4, 2), (2 * base, 4, 2))
    generator = ConvGenerator(image_shape, (2 * base, base), hidden, dtype=dtype, axis_name=axis_name)
    return generator, ConvDiscriminator(layers, hidden, outputs=outputs, dtype=dtype)


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one shape as one with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def pad_to(images: jax.Array, network: Network) -> jax.Array:
    """Images [B, H, W, C] in [-1, 1] with a border of black up to the size that the network works on."""
    size = 32 if network.name == "sngan32" else 0
    pads = [
        (0, 0),
        *(((size - n) // 2, size - n - (size - n) // 2) if n < size else (0, 0) for n in images.shape[1:3]),
        (0, 0),
    ]
    return jnp.pad(images, pads, constant_values=-1.0) if size else images


def crop_to(images: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """What `pad_to` added, taken away: images [..., H', W', C] to [..., H, W, C]."""
    top, left = ((images.shape[axis] - image_shape[axis + 3]) // 2 for axis in (-3, -2))
    return images[..., top : top + image_shape[0], left : left + image_shape[1], :]
