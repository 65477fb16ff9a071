"""`resnet`: small residual networks without any normalisation, by the rules of R3GAN (Huang et al. 2024, section 3, config D).

Blocks of 1x1, 3x3 and 1x1 convolutions with leaky ReLU between and none on the sum, fix-up initialisation (Zhang et al. 2019): the
last kernel of each block is zero at first, the others are the smaller the more blocks there are. Bilinear resampling, 1x1
convolutions where channels change, dense layers at both ends. Nothing bounds the images: pixels beyond [-1, 1] are cut off
where they become uint8. One group of channels in each convolution, where config E has many.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.networks.dcgan import levels
from psgjax.networks.layers import Dense, Down, Pointwise, downsample, upsample

if TYPE_CHECKING:
    from psgjax.config import Network

Shape = tuple[int, int, int]

_SLOPE = 0.2
_WIDEST = 8  # times the width
_LINEAR = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class Block(nn.Module):
    """x + 1x1(leaky(3x3(leaky(1x1(x))))), as wide all through: [B, H, W, C] -> the same."""

    count: int  # of blocks in the network
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Add the block's residual."""
        features = x.shape[-1]
        # Three layers a block: each of the two that are not zero is scaled by count^(-1/4).
        scale = 2 / (1 + _SLOPE**2) / math.sqrt(self.count)
        init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
        y = nn.leaky_relu(Pointwise(features, dtype=self.dtype, kernel_init=init)(x), _SLOPE)
        y = nn.leaky_relu(Down(features, 3, 1, dtype=self.dtype, kernel_init=init)(y), _SLOPE)
        return x + Pointwise(features, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.zeros)(y)


class ResidualGenerator(nn.Module):
    """A dense layer, then blocks at each size, the size doubled between.

    `resnet`: 100 -> 7x7x256 -> 14x14x128 -> 28x28x64 -> 28x28x1; 2,242,497 parameters. At 32x32x1 from 4x4x512,
    4,822,977; at 64x64x1 from 4x4x512 with a level more, 7,707,585.
    """

    image_shape: Shape
    channels: tuple[int, ...]  # at each size, the smallest first
    blocks: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, latents: jax.Array, train: bool = True) -> jax.Array:
        """Latents [B, latent_size] to images [B, H, W, C], unbounded; the same in training."""
        height, width, colours = self.image_shape
        height, width = (side >> len(self.channels) - 1 for side in (height, width))
        linear = partial(Pointwise, use_bias=False, dtype=self.dtype, kernel_init=_LINEAR)
        dense = Dense(height * width * self.channels[0], use_bias=False, kernel_init=_LINEAR, dtype=self.dtype)
        x = dense(latents).reshape(-1, height, width, self.channels[0])
        for i, features in enumerate(self.channels):
            if i:
                x = upsample(x if features == x.shape[-1] else linear(features)(x))
            for _ in range(self.blocks):
                x = Block(len(self.channels) * self.blocks, self.dtype)(x)
        return linear(colours, use_bias=True)(x).astype(jnp.float32)


class ResidualDiscriminator(nn.Module):
    """Blocks at each size, the size halved between, then a dense layer: the generator's reverse.

    `resnet`: 28x28x1 -> 28x28x64 -> 14x14x128 -> 7x7x256 -> outputs; 1,000,640 parameters. At 32x32x1 to 4x4x512,
    4,011,968; at 64x64x1 to 4x4x512 with a level more, 6,896,576.
    """

    channels: tuple[int, ...]  # at each size, the largest first
    blocks: int = 1
    outputs: int = 1
    dtype: Any = None

    @property
    def depth(self) -> int:
        """How many stages there are: each block, and each layer between."""
        return len(self.channels) * (self.blocks + 1) + 1

    @nn.compact
    def __call__(self, x: jax.Array, stage: int | None = None) -> jax.Array:
        """Images [B, H, W, C] to [B, outputs] in float32; or what enters one stage to what leaves it."""
        for i in range(self.depth) if stage is None else (stage,):
            level, block = divmod(i, self.blocks + 1)
            if level == len(self.channels):
                dense = Dense(self.outputs, use_bias=False, kernel_init=_LINEAR, dtype=self.dtype, name="Dense_0")
                x = dense(x.reshape(len(x), -1)).astype(jnp.float32)
            elif block:
                count = len(self.channels) * self.blocks
                x = Block(count, self.dtype, name=f"Block_{level * self.blocks + block - 1}")(x)
            else:
                features, x = self.channels[level], downsample(x) if level else x
                if features != x.shape[-1] or not level:
                    name = f"Pointwise_{level}"
                    x = Pointwise(features, use_bias=False, dtype=self.dtype, kernel_init=_LINEAR, name=name)(x)
        return x


def resnet(
    network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None
) -> tuple[ResidualGenerator, ResidualDiscriminator]:
    """`resnet`: `network.blocks` at each size; channels double from size to size, up to eight times the width."""
    count = 1 + levels(*image_shape[:2])
    channels = tuple(network.width * min(1 << level, _WIDEST) for level in range(count))
    generator = ResidualGenerator(image_shape, channels[::-1], network.blocks, dtype)
    return generator, ResidualDiscriminator(channels, network.blocks, outputs, dtype)
