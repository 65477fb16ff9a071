"""`maxout`: the networks of PacGAN's experiments on Gaussian mixtures (Lin et al. 2018, as in the authors' code)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.networks.layers import NORMAL, BatchNorm, Dense

if TYPE_CHECKING:
    from psgjax.config import Network

_HIDDEN_OF_G, _HIDDEN_OF_D, _PIECES = 4, 3, 5


class MaxoutGenerator(nn.Module):
    """`maxout`, G: four hidden layers with batch norm and ReLU, unbounded. 2 latents, 400 units: 484,802 parameters."""

    width: int
    shape: tuple[int, ...]
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, latents: jax.Array, train: bool = True) -> jax.Array:
        """Latents [B, latent_size] to images [B, *shape]."""
        dense, x = partial(Dense, dtype=self.dtype, kernel_init=NORMAL), latents
        for _ in range(_HIDDEN_OF_G):
            x = nn.relu(BatchNorm(axis_name=self.axis_name)(dense(self.width, use_bias=False)(x), train))
        return dense(math.prod(self.shape))(x).astype(jnp.float32).reshape(-1, *self.shape)


class MaxoutDiscriminator(nn.Module):
    """`maxout`, D: three hidden layers, a unit the largest of five sums. A point of the plane, 200 units: 405,201 parameters."""

    width: int
    outputs: int = 1
    dtype: Any = None

    depth = _HIDDEN_OF_D + 1  # stages: layers with their maximum

    @nn.compact
    def __call__(self, x: jax.Array, stage: int | None = None) -> jax.Array:
        """Images [B, ...] to [B, outputs] in float32; or what enters one stage to what leaves it."""
        dense = partial(Dense, dtype=self.dtype, kernel_init=NORMAL)
        for i in range(self.depth) if stage is None else (stage,):
            x = x.reshape(x.shape[0], -1)
            if i < self.depth - 1:
                sums = dense(_PIECES * self.width, name=f"Dense_{i}")(x)
                x = sums.reshape(x.shape[0], self.width, _PIECES).max(-1)
            else:
                x = dense(self.outputs, name=f"Dense_{i}")(x).astype(jnp.float32)
        return x


def maxout(
    network: Network, image_shape: tuple[int, int, int], outputs: int, dtype: Any, axis_name: str | None
) -> tuple[MaxoutGenerator, MaxoutDiscriminator]:
    """`maxout`: D's hidden layers are as wide as `network.width`, the generator's twice as wide."""
    generator = MaxoutGenerator(2 * network.width, image_shape, dtype, axis_name)
    return generator, MaxoutDiscriminator(network.width, outputs, dtype)
