"""A saved run in, images out.

python -m psgjax.sampling runs/mnist/psg --count 64 --out digits.png     # a picture: a block of rows for each generator
python -m psgjax.sampling runs/mnist/psg --count 10000 --out digits.npz  # an array `images`, uint8 [K, count, H, W, C]
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from typing_extensions import Doc

from psgjax.checkpoint import Checkpoints
from psgjax.config import Config, ConfigError
from psgjax.environment import use_compilation_cache
from psgjax.inference import make_artist
from psgjax.step import TrainState, init
from psgjax.tracking import image_grid, write_atomically, write_png
from psgjax.training import read_config


@dataclass(frozen=True)
class Options:
    """Draw samples from the last checkpoint of a run, each generator's for itself."""

    run: Annotated[tyro.conf.Positional[Path], Doc("The folder of one method, such as runs/mnist/psg.")]
    count: Annotated[int, Doc("Images from each generator.")] = 64
    seed: Annotated[int, Doc("The latents follow from it.")] = 0
    out: Annotated[Path, Doc("Where to write them: .png for a picture, .npz for an array.")] = Path("samples.png")


def load(run: Path) -> tuple[Config, TrainState, tuple[int, int, int]]:
    """The configuration, last state and image shape [H, W, C] of the run in that folder.

    Raises:
        ConfigError: If there is no run in that folder, or no checkpoint of it.
    """
    config = read_config(run)
    if config is None:
        raise ConfigError(
            f"{run} holds no run (no config.json); give the folder of one method, such as runs/mnist/psg."
        )
    height, width, channels = json.loads((run / "env.json").read_text())["image_shape"]
    image_shape = (height, width, channels)
    with Checkpoints(run / "checkpoints") as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: init(config, image_shape)))
    if found is None:
        raise ConfigError(f"{run} has no checkpoint yet; train it further with the command in its env.json.")
    return config, found[0], image_shape


def sample(config: Config, state: TrainState, image_shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """`count` images of each generator, uint8 [K, count, H, W, C]; the same for the same seed, whatever the count."""
    return np.concatenate(make_artist(config, image_shape)(state, jax.random.key(seed), count), axis=1)


def main(arguments: list[str] | None = None) -> int:
    """The command line: sample, write, and say in one line what went wrong."""
    try:
        options = tyro.cli(Options, args=arguments, prog="python -m psgjax.sampling", description=__doc__)
        if options.count < 1:
            raise ConfigError(f"count is {options.count}; it must be a whole number of at least 1.")
        if options.out.suffix not in (".png", ".npz"):
            raise ConfigError(f"--out {options.out} must end in .png (a picture) or .npz (an array).")
        use_compilation_cache()
        config, state, image_shape = load(options.run)
        images = sample(config, state, image_shape, options.count, options.seed)
        if options.out.suffix == ".png":
            write_png(options.out, image_grid(images))
        else:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, images=images)
            write_atomically(options.out, buffer.getvalue())
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{images.shape[0]} x {images.shape[1]:,} images of step {int(state.step):,}: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
