"""`snresnet32`: the residual networks of SNGAN for 32x32 (Miyato et al. 2018, Table 4), as its authors' code has them.

Blocks of two 3x3 convolutions after ReLU, with batch norm before it in the generator alone. Sizes double by repetition and halve by
means of 2x2 pixels; a 1x1 convolution stands in the shortcut wherever size or channels change, on its small side. Glorot's
uniform initialisation, with gain 2 in the residuals.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.networks.layers import BatchNorm, Dense, Down, Pointwise

if TYPE_CHECKING:
    from psgjax.config import Network

Shape = tuple[int, int, int]

_GLOROT = nn.initializers.glorot_uniform()
_RESIDUAL = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


def repeated(x: jax.Array) -> jax.Array:
    """Each pixel as 2x2 of them: [B, H, W, C] -> [B, 2H, 2W, C]."""
    batch, height, width, features = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, features))
    return x.reshape(batch, 2 * height, 2 * width, features)


def pooled(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
    batch, height, width, features = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, features).mean((2, 4))


class UpBlock(nn.Module):
    """A generator's block: [B, H, W, C] -> [B, 2H, 2W, features]."""

    features: int
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """The residual's sum with its shortcut."""
        convolve = partial(Down, self.features, 3, 1, dtype=self.dtype, kernel_init=_RESIDUAL)
        y = repeated(nn.relu(BatchNorm(axis_name=self.axis_name)(x, train)))
        y = convolve()(nn.relu(BatchNorm(axis_name=self.axis_name)(convolve()(y), train)))
        return y + repeated(Pointwise(self.features, dtype=self.dtype, kernel_init=_GLOROT)(x))


class DownBlock(nn.Module):
    """A discriminator's block: [B, H, W, C] -> [B, H / 2, W / 2, features], or H and W; the first has no ReLU before."""

    features: int
    halve: bool
    first: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The residual's sum with its shortcut."""
        convolve = partial(Down, self.features, 3, 1, dtype=self.dtype, kernel_init=_RESIDUAL)
        y = convolve()(nn.relu(convolve()(x if self.first else nn.relu(x))))
        if not self.halve:
            return y + x
        return pooled(y) + Pointwise(self.features, dtype=self.dtype, kernel_init=_GLOROT)(pooled(x))


class SNResNetGenerator(nn.Module):
    """`snresnet32`: 100 -> 4x4x256 -> 8x8x256 -> 16x16x256 -> 32x32x256 -> conv 3x3; 4,157,441 parameters."""

    image_shape: Shape
    features: int
    dtype: Any = None
    axis_name: str | None = None  # the axis of a mesh that the batch is split over

    @nn.compact
    def __call__(self, latents: jax.Array, train: bool = True) -> jax.Array:
        """Latents [B, latent_size] to images [B, H, W, C] in [-1, 1]; `train` uses and updates batch statistics."""
        height, width, colours = self.image_shape
        x = Dense(height // 8 * (width // 8) * self.features, kernel_init=_GLOROT, dtype=self.dtype)(latents)
        x = x.reshape(-1, height // 8, width // 8, self.features)
        for _ in range(3):
            x = UpBlock(self.features, self.dtype, self.axis_name)(x, train)
        x = nn.relu(BatchNorm(axis_name=self.axis_name)(x, train))
        return jnp.tanh(Down(colours, 3, 1, dtype=self.dtype, kernel_init=_GLOROT)(x).astype(jnp.float32))


class SNResNetDiscriminator(nn.Module):
    """`snresnet32`: 32x32x1 -> 16x16x128 -> 8x8x128, two blocks more, ReLU, sum of the pixels -> outputs; 1,051,265 parameters."""

    features: int
    outputs: int = 1
    dtype: Any = None

    depth = 5  # stages: four blocks, and what follows them

    @nn.compact
    def __call__(self, x: jax.Array, stage: int | None = None) -> jax.Array:
        """Images [B, H, W, C] to [B, outputs] in float32; or what enters one stage to what leaves it."""
        for i in range(self.depth) if stage is None else (stage,):
            if i < self.depth - 1:
                x = DownBlock(self.features, i < 2, i == 0, self.dtype, name=f"DownBlock_{i}")(x)
            else:
                x = nn.relu(x.astype(jnp.float32)).sum((1, 2))
                dense = Dense(self.outputs, kernel_init=_GLOROT, dtype=self.dtype, name="Dense_0")
                x = dense(x).astype(jnp.float32)
        return x


def snresnet32(
    network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None
) -> tuple[SNResNetGenerator, SNResNetDiscriminator]:
    """`snresnet32`: the generator's channels are four times the width, the discriminator's twice."""
    generator = SNResNetGenerator(image_shape, 4 * network.width, dtype, axis_name)
    return generator, SNResNetDiscriminator(2 * network.width, outputs, dtype)
