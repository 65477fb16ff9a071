"""`mlp`: dense layers alone, for points in the plane."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.networks.layers import Dense

if TYPE_CHECKING:
    from psgjax.config import Network


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


def mlp(
    network: Network, image_shape: tuple[int, int, int], outputs: int, dtype: Any, axis_name: str | None
) -> tuple[MLP, MLP]:
    """`mlp`, on both sides."""
    return MLP(network.width, image_shape, dtype), MLP(network.width, (outputs,), dtype)
