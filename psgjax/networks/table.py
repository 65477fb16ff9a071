"""Which networks there are, by name: the package's own and those that a user registers. Nothing here imports jax.

An entry names the function that builds its modules; its file is imported when a network of that name is first built. To add one
to the package, write its modules in a file of their own, and its entry here: the command line, its help, the checks and the test
of the contract read this table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psgjax import parts, schema

if TYPE_CHECKING:
    from psgjax.config import Network
    from psgjax.networks import Discriminator, Generator

Shape = tuple[int, int, int]
Pair = tuple["Generator", "Discriminator"]
Builder = Callable[["Network", Shape, int, Any, str | None], Pair]


@dataclass(frozen=True)
class Architecture:
    """What is known of a network."""

    doc: str  # a few words, for --help
    builder: Builder | str  # the function, or "room.file:function"; its arguments are those of `networks.build`
    paper: str = ""
    fits: Callable[[int, int], str | None] = lambda height, width: None  # None, or the sizes that it takes
    side: int = 0  # images smaller than this get a black border, and the network works on that size
    blocks: bool = False  # whether it reads `network.blocks`

    def build(self, network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None) -> Pair:
        """The modules, by the function that the entry names."""
        return parts.resolved(self.builder)(network, image_shape, outputs, dtype, axis_name)


def _fours(most: int = 0) -> Callable[[int, int], str | None]:
    """Sides that can be halved twice."""

    def fits(*sides: int) -> str | None:
        takes = all(side % 4 == 0 and (side <= most or not most) for side in sides)
        return None if takes else "image sides that are multiples of 4" + (f", up to {most}" if most else "")

    return fits


def _at_most(most: int) -> Callable[[int, int], str | None]:
    return lambda *sides: None if max(sides) <= most else f"images of at most {most}x{most}"


NETWORKS: dict[str, Architecture] = {
    "dcgan": Architecture(
        "the reference: sides that are multiples of 4 up to 64, with more levels for 32 and 64 than for 28",
        "networks.dcgan:dcgan",
        "Radford et al. 2016",
        _fours(64),
    ),
    "sngan32": Architecture(
        "images padded to 32x32", "networks.dcgan:sngan32", "Miyato et al. 2018, Table 3", _at_most(32), side=32
    ),
    "infogan28": Architecture(
        "dcgan's two levels with a dense layer of 1,024", "networks.dcgan:infogan28", "Chen et al. 2016", _fours()
    ),
    "resnet": Architecture(
        "residual blocks without any normalisation, for the sizes of dcgan",
        "networks.resnet:resnet",
        "Huang et al. 2024",
        _fours(64),
        blocks=True,
    ),
    "snresnet32": Architecture(
        "SNGAN's residual blocks, images padded to 32x32",
        "networks.snresnet:snresnet32",
        "Miyato et al. 2018, Table 4",
        _at_most(32),
        side=32,
    ),
    "mlp": Architecture("points in the plane", "networks.mlp:mlp", "Srivastava et al. 2017"),
    "maxout": Architecture("PacGAN's for the plane: D has maxout units", "networks.maxout:maxout", "Lin et al. 2018"),
}
ALIASES = {"dcgan28": "dcgan"}  # names of earlier versions, which their runs hold
_OWN = frozenset(NETWORKS) | frozenset(ALIASES)


def find(name: str) -> str:
    """The name in the table that `name` stands for.

    Raises:
        ConfigError: If there is none; the message has the nearest.
    """
    return ALIASES.get(name) or schema.known_part("network.name", name, NETWORKS)


def registered(name: str) -> bool:
    """Whether a user registered the network of that name."""
    return name not in _OWN


def register(name: str, network: Builder | tuple[Any, Any], doc: str = "registered by you", **known: Any) -> None:
    """Let `Network(name)`, the command line and saved runs know a network of your own.

    >>> from flax import linen as nn
    >>> import psgjax
    >>> class G(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, latents, train=True):
    ...         return nn.tanh(nn.Dense(64)(latents)).reshape(-1, 8, 8, 1)
    >>> class D(nn.Module):
    ...     outputs: int = 1
    ...     @nn.compact
    ...     def __call__(self, images):
    ...         return nn.Dense(self.outputs)(images.reshape(len(images), -1))
    >>> psgjax.register_network("linear", (G(), D()))
    >>> psgjax.Network("linear", latent_size=4).name
    'linear'

    Args:
        name: Any that is not one of the package's; your own is replaced.
        network: A generator and a discriminator, Flax modules that keep the contract of `psgjax.networks`; or a function that
            makes them of `(network, image_shape, outputs, dtype, axis_name)`, where `network` has the settings. Modules with a
            field called `outputs`, `dtype` or `axis_name` are told these; one that is normalised over batches should have the last.
        doc: A few words for people.
        known: `paper`, `fits`, `side` and `blocks` of an `Architecture`.

    Raises:
        ConfigError: If the name is one of the package's.
    """
    schema.check_new("network", name, _OWN)
    NETWORKS[name] = Architecture(doc, network if callable(network) else _of_pair(*network), **known)


def _of_pair(*modules: Any) -> Builder:
    """A builder that tells the given modules what they have fields for."""

    def build(network: Network, image_shape: Shape, outputs: int, dtype: Any, axis_name: str | None) -> Pair:
        told = {"outputs": outputs, "dtype": dtype, "axis_name": axis_name}
        told = {name: value for name, value in told.items() if value is not None}
        generator, discriminator = (
            module.clone(**{f.name: told[f.name] for f in dataclasses.fields(module) if f.name in told})
            for module in modules
        )
        return generator, discriminator

    return build
