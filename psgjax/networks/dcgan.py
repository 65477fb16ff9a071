"""Networks of strided and transposed convolutions, without residual connections: `dcgan`, `infogan28`, `sngan32`.

Parameter counts are for 28x28x1 images (sngan32: 32x32x1) if no size is given, the default width, 100 latents and one output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.lowering import conv
from psgjax.networks.layers import NORMAL, BatchNorm, Dense, Down, Up

if TYPE_CHECKING:
    from psgjax.config import Network

Shape = tuple[int, int, int]


class ConvGenerator(nn.Module):
    """Dense layers, then transposed convolutions 4x4/2, batch norm and ReLU between; tanh at the end.

    `dcgan` (Radford et al. 2016): 100 -> 7x7x128 -> 14x14x64 -> 28x28x1; 759,681 parameters. At 32x32x1, 100 -> 4x4x256, with a
    level more; 1,066,881. At 64x64x1, 100 -> 4x4x512, with two more; 3,574,657. `levels` has the rule.
    `infogan28` (Chen et al. 2016; as in Lucic et al. 2018): the same behind a dense layer of 1,024; 6,659,457 parameters.
    `sngan32` (Miyato et al. 2018, Table 3): 100 -> 4x4x512 -> 8x8x256 -> 16x16x128 -> 32x32x64 -> conv 3x3/1; 3,574,209 parameters.
    """

    image_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    last_conv: bool = False
    dtype: Any = None
    axis_name: str | None = None  # the axis of a mesh that the batch is split over

    @property
    def start(self) -> tuple[int, int]:
        """Height and width behind the dense layers."""
        height, width, _ = self.image_shape
        levels = len(self.channels) - (1 if self.last_conv else 0)
        return height >> levels, width >> levels

    @property
    def normalised(self) -> int:
        """Of how many values of one image the fewest of its batch statistics are taken."""
        return 1 if self.hidden else math.prod(self.start)

    @nn.compact
    def __call__(self, latents: jax.Array, train: bool = True) -> jax.Array:
        """Latents [B, latent_size] to images [B, H, W, C] in [-1, 1]; `train` uses and updates batch statistics."""

        def activate(x: jax.Array) -> jax.Array:
            return nn.relu(BatchNorm(axis_name=self.axis_name)(x, train))

        x = latents
        for features in self.hidden:
            x = activate(Dense(features, use_bias=False, kernel_init=NORMAL, dtype=self.dtype)(x))
        (height, width), colours = self.start, self.image_shape[2]
        x = Dense(height * width * self.channels[0], use_bias=False, kernel_init=NORMAL, dtype=self.dtype)(x)
        x = activate(conv.barrier(x.reshape(-1, height, width, self.channels[0])))
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

    `dcgan` (Radford et al. 2016): 28x28x1 -> 14x14x64 -> 7x7x128 -> outputs; slope 0.2; 138,561 parameters. At 32x32x1, down to
    4x4x256, 660,929; at 64x64x1, down to 4x4x512, 2,762,689.
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
            dense = Dense(features, kernel_init=NORMAL, dtype=self.dtype, name=f"Dense_{i}")
            x = dense(conv.barrier(x).reshape(len(x), -1))
            return nn.leaky_relu(x, self.slope) if i < len(self.hidden) else x.astype(jnp.float32)

        for i in range(self.depth) if stage is None else (stage,):
            x = convolve(x, i) if i < len(self.layers) else connect(x, i - len(self.layers))
        return x


def levels(height: int, width: int) -> int:
    """How often images are halved, or doubled: twice, and on as long as the smallest size has even sides of at least eight.

    So 28 is 7x7 at its smallest, in two levels; 32 is 4x4 in three; 64 is 4x4 in four, as in Radford et al.
    """
    count = 2
    while all(side >> count >= 8 and (side >> count) % 2 == 0 for side in (height, width)):
        count += 1
    return count


def dcgan(
    network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None, hidden: tuple[int, ...] = ()
) -> tuple[ConvGenerator, ConvDiscriminator]:
    """`dcgan`: channels double from level to level."""
    count = 2 if hidden else levels(*image_shape[:2])
    widths = [network.width << level for level in range(count)]
    generator = ConvGenerator(image_shape, (*widths[::-1],), hidden, dtype=dtype, axis_name=axis_name)
    layers = tuple((width, 4, 2) for width in widths)
    return generator, ConvDiscriminator(layers, hidden, outputs=outputs, dtype=dtype)


def infogan28(
    network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None
) -> tuple[ConvGenerator, ConvDiscriminator]:
    """`infogan28`: two levels, and a dense layer of 1,024."""
    return dcgan(network, image_shape, outputs, dtype, axis_name, hidden=(1024,))


def sngan32(
    network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None
) -> tuple[ConvGenerator, ConvDiscriminator]:
    """`sngan32`: three levels from 4x4, and 3x3 convolutions between."""
    base = network.width
    generator = ConvGenerator(image_shape, (8 * base, 4 * base, 2 * base, base), (), True, dtype, axis_name)
    pairs = [(base * n, size, stride) for n in (1, 2, 4) for size, stride in ((3, 1), (4, 2))]
    return generator, ConvDiscriminator((*pairs, (8 * base, 3, 1)), slope=0.1, outputs=outputs, dtype=dtype)
