"""A user's modules held to the contract of `psgjax.networks`, as far as shapes tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from psgjax.networks import Discriminator, Generator
from psgjax.schema import ConfigError

if TYPE_CHECKING:
    from psgjax.config import Network


class OneStage(nn.Module):
    """A discriminator that knows no stages, as a list of one."""

    whole: Any

    depth = 1

    @nn.compact
    def __call__(self, images: jax.Array, stage: int | None = None) -> jax.Array:
        """Images [B, H, W, C] to [B, outputs] in float32."""
        return jnp.asarray(self.whole(images)).astype(jnp.float32)


def checked(
    network: Network, pair: tuple[Any, Any], image_shape: tuple[int, int, int], outputs: int
) -> tuple[Generator, Discriminator]:
    """The generator and discriminator, if they keep the contract; a discriminator without `depth` becomes one stage.

    Raises:
        ConfigError: If they do not, with the shapes that were given and are due.
    """
    generator, discriminator = pair
    discriminator = discriminator if hasattr(discriminator, "depth") else OneStage(discriminator)
    latents, images = (
        jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in ((network.latent_size,), image_shape)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))

    def run(of: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return jax.eval_shape(function, *arguments)
        except Exception as error:  # whatever a user's code raises
            shape = list(arguments[-1].shape)
            reason = str(error).strip().split("\n")[0][:300]
            raise ConfigError(
                f"network.name {network.name}: its {of} fails on {shape}: {type(error).__name__}: {reason}"
            ) from error

    def demand(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"network.name {network.name}: its {message}")

    variables = run("generator", generator.init, key, latents)
    unknown = sorted(set(variables) - {"params", "batch_stats"})
    demand(not unknown, f"generator keeps {', '.join(unknown)}; it may keep params and batch_stats alone.")
    for train in (False, True):

        def generate(variables: Any, latents: jax.Array, train: bool = train) -> Any:
            return generator.apply(variables, latents, train=train, mutable=["batch_stats"])[0]

        made = run("generator", generate, variables, latents).shape
        due = list(latents.shape), [2, *image_shape], list(made)
        demand(made == (2, *image_shape), "generator makes {2} of latents {0}; it must make {1}.".format(*due))
    variables = run("discriminator", discriminator.init, key, images)
    kept = sorted(set(variables) - {"params"})
    demand(not kept, f"discriminator keeps {', '.join(kept)}; a score may depend on one image alone: params only.")
    paths = jax.tree_util.tree_leaves_with_path(variables.get("params", {}))
    kernels = [leaf for path, leaf in paths if getattr(path[-1], "key", None) == "kernel" and leaf.ndim > 1]
    demand(bool(kernels), "discriminator has no weight called `kernel`, which spectral normalisation looks for.")
    judged = images
    for stage in range(discriminator.depth):
        judged = run(
            "discriminator", lambda v, x, stage=stage: discriminator.apply(v, x, stage=stage), variables, judged
        )
    due = [2, *image_shape], [2, outputs], list(judged.shape)
    demand(judged.shape == (2, outputs), "discriminator makes {2} of images {0}; it must make {1}.".format(*due))
    return generator, discriminator
