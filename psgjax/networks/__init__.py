"""Generators and discriminators in Flax (linen), by name; K generators are one stacked tree.

The contract, which `tests/networks/` checks for every network of the table (`table.py`):

* A generator maps latents [B, latent_size] to images [B, H, W, C], of which [-1, 1] is the range of pixels; it takes `train`,
  and keeps statistics in the collection `batch_stats` or none.
* A discriminator maps images [B, H, W, C] to [B, outputs], float32: one score, or as many as the loss needs. A row depends on
  one image alone, so nothing is normalised over the batch. It is a list of stages with one tensor between: `depth` of them, each
  applied by `stage=`, all one after the other without it. A module that has no `depth` is taken as one stage.
* A weight that spectral normalisation is to reach is called `kernel`.

Nothing here imports jax before a network is built: `config.py` and the command line's help read the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from psgjax.networks.table import NETWORKS as NETWORKS
from psgjax.networks.table import register as register
from psgjax.networks.table import registered
from psgjax.schema import ConfigError

if TYPE_CHECKING:
    import jax

    from psgjax.config import Network

Tree = Any


class Module(Protocol):
    """What is used of a Flax module: variables out of keys and an input; an output, and with `mutable` what it updated."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """The variables, as {collection: tree}."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any | tuple[Any, Any]:
        """The output, or (output, updated variables)."""


class Generator(Module, Protocol):
    """`apply(variables, latents, train=True)`: latents [B, latent_size] to images [B, H, W, C]."""


class Discriminator(Module, Protocol):
    """`apply(variables, images, stage=None)`: images [B, H, W, C] to [B, outputs], or what enters one stage to what leaves it."""

    @property
    def depth(self) -> int:
        """How many stages there are."""


def build(
    network: Network,
    image_shape: tuple[int, int, int],
    outputs: int,
    dtype: Any = None,
    axis_name: str | None = None,
) -> tuple[Generator, Discriminator]:
    """The generator and the discriminator of that name, for images of `image_shape` [H, W, C] (`pad_to` makes them fit).

    With `axis_name`, batch statistics are those of the whole batch that the devices along that axis of a mesh hold.

    Raises:
        ConfigError: If the layers do not fit images of that size, or a user's network does not keep the contract.
    """
    architecture, (height, width, colours) = NETWORKS[network.name], image_shape
    if takes := architecture.fits(height, width):
        others = [name for name, other in NETWORKS.items() if not other.fits(height, width)]
        raise ConfigError(
            f"network.name {network.name} takes {takes}, not {height}x{width}; that size is taken by {', '.join(others)}."
        )
    shape = max(height, architecture.side), max(width, architecture.side), colours
    pair = architecture.build(network, shape, outputs, dtype, axis_name)
    if registered(network.name):
        from psgjax.networks import contract

        return contract.checked(network, pair, shape, outputs)
    return pair


def stack(trees: Sequence[Tree]) -> Tree:
    """Trees of one shape as one with a leading axis."""
    import jax

    return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *trees)


def pad_to(images: jax.Array, network: Network) -> jax.Array:
    """Images [B, H, W, C] in [-1, 1] with a border of black up to the size that the network works on."""
    side = NETWORKS[network.name].side
    missing = [max(side - n, 0) for n in images.shape[1:3]]
    if not any(missing):
        return images
    import jax

    pads = [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)]
    return jax.numpy.pad(images, pads, constant_values=-1.0)


def crop_to(images: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """What `pad_to` added, taken away: images [..., H', W', C] to [..., H, W, C]."""
    top, left = ((images.shape[axis] - image_shape[axis + 3]) // 2 for axis in (-3, -2))
    return images[..., top : top + image_shape[0], left : left + image_shape[1], :]
