"""Packing: D sees several images at once, real ones together or one generator's together (Lin et al. 2018, section 3).

A generator without variety is then found out by any one tuple: all its images are alike, and real ones are not.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def packed(pack: int, images: jax.Array) -> jax.Array:
    """Each `pack` images in a row as one, channels side by side: [..., B, H, W, C] -> [..., B / pack, H, W, pack * C]."""
    if pack == 1:
        return images
    *_, height, width, channels = images.shape
    apart = images.reshape(*images.shape[:-4], -1, pack, height, width, channels)
    return jnp.moveaxis(apart, -4, -2).reshape(*apart.shape[:-4], height, width, pack * channels)


def unpacked(pack: int, images: jax.Array) -> jax.Array:
    """The reverse of `packed`."""
    if pack == 1:
        return images
    *_, height, width, channels = images.shape
    apart = jnp.moveaxis(images.reshape(*images.shape[:-1], pack, channels // pack), -2, -4)
    return apart.reshape(*images.shape[:-4], -1, height, width, channels // pack)
