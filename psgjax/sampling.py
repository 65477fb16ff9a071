"""A saved run in, images out.

python -m psgjax.sampling runs/mnist/psg --count 64 --out digits.png     # a picture: a block of rows for each generator
python -m psgjax.sampling runs/mnist/psg --count 10000 --out digits.npz  # an array `images`, uint8 [K, count, H, W, C]
python -m psgjax.sampling runs/mnist/psg --export psg.stablehlo          # the generators, to be sampled by jax alone
python -m psgjax.sampling runs/mnist/psg --verify                        # SHA-256 of the last state, to compare two runs

What --export writes holds the parameters and maps latents [K, B, latent_size] to images [K, B, H, W, C] in [-1, 1]; the
README shows how to load it.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import export
from typing_extensions import Doc

from psgjax.checkpoint import Checkpoints, digest
from psgjax.config import Config, ConfigError
from psgjax.environment import settle, use_compilation_cache
from psgjax.inference import make_artist, make_generate, make_variables
from psgjax.runfolder import read_config
from psgjax.schema import check_seed
from psgjax.shell import check_output, run_command, tell, terminal
from psgjax.state import TrainState, init
from psgjax.tracking import image_grid, write_atomically, write_png


@dataclass(frozen=True)
class Options:
    """Draw samples from the last checkpoint of a run, each generator's for itself."""

    run: Annotated[tyro.conf.Positional[Path], Doc("The folder of one method, such as runs/mnist/psg.")]
    count: Annotated[int, Doc("Images from each generator.")] = 64
    seed: Annotated[int, Doc("The latents follow from it.")] = 0
    out: Annotated[Path, Doc("Where to write them: .png for a picture, .npz for an array.")] = Path("samples.png")
    export: Annotated[
        Path | None,
        Doc("Write no images but the generators, a .stablehlo file that jax runs without this package, on any device."),
    ] = None
    verify: Annotated[bool, Doc("Write nothing; print the SHA-256 of the last state, bit for bit, and its step.")] = (
        False
    )


def _check(options: Options) -> None:
    """Refuse, before anything is loaded, what cannot be written or does not go together."""
    given = [f"--{name}" for name in ("count", "seed", "out") if getattr(options, name) != getattr(Options, name)]
    alone = [f"--{name}" for name in ("export", "verify") if getattr(options, name)]
    if alone and len(alone + given) > 1:
        raise ConfigError(f"{' with '.join(alone + given)}: {alone[0]} draws no images and goes with no other option.")
    if options.count < 1:
        raise ConfigError(f"count is {options.count}; it must be a whole number of at least 1.")
    check_seed(options.seed)
    if not alone:
        check_output("--out", options.out, (".png", ".npz"))
    check_output("--export", options.export, (".stablehlo",))


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
    image_shape = _image_shape(run / "env.json")
    with Checkpoints(run / "checkpoints") as checkpoints:
        found = checkpoints.restore(jax.eval_shape(lambda: init(config, image_shape)))
    if found is None:
        raise ConfigError(f"{run} has no checkpoint yet; train it further with the command in its env.json.")
    return config, found[0], image_shape


def _image_shape(path: Path) -> tuple[int, int, int]:
    try:
        shape = tuple(json.loads(path.read_text(encoding="utf-8"))["image_shape"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        shape = ()
    if len(shape) != 3 or not all(type(size) is int and 0 < size <= 4096 for size in shape):
        raise ConfigError(
            f"{path} is missing, or its image_shape is not three whole numbers [H, W, C] from 1 to 4096; restore that file."
        )
    height, width, channels = shape
    return height, width, channels


def sample(config: Config, state: TrainState, image_shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """`count` images of each generator, uint8 [K, count, H, W, C]; the same for the same seed, whatever the count."""
    check_seed(seed)
    return np.concatenate(make_artist(config, image_shape)(state, jax.random.key(seed), count), axis=1)


def to_stablehlo(config: Config, state: TrainState, image_shape: tuple[int, int, int]) -> bytes:
    """`make_sampler` with the state's weights inside, as `jax.export` serialises it.

    One program for CPU, CUDA and TPU, of any batch size: it maps latents, float32 [K, B, latent_size], to images, float32
    [K, B, H, W, C] in [-1, 1].
    """
    (batch,) = export.symbolic_shape("batch")
    latents = jax.ShapeDtypeStruct((config.method.generators, batch, config.network.latent_size), jnp.float32)
    weights = jax.jit(make_variables(config, image_shape))(state)
    generate = make_generate(config, image_shape)
    setting = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, setting)
    jax.config.update(setting, 0)  # else the file names the folders of this machine's source code
    try:
        platforms = ("cpu", "cuda", "tpu")
        return bytes(export.export(jax.jit(lambda z: generate(weights, z)), platforms=platforms)(latents).serialize())
    finally:
        jax.config.update(setting, before)


def _write(options: Options) -> str:
    """Do what is asked for, and say it in a line."""
    config, state, image_shape = load(options.run)
    of = f"step {int(state.step):,}"
    if options.verify:
        return f"{digest(state)}  {of} of {options.run}"
    if options.export:
        write_atomically(options.export, to_stablehlo(config, state, image_shape))
        return f"{config.method.generators} generator(s) of {of}: {options.export}"
    images = sample(config, state, image_shape, options.count, options.seed)
    if options.out.suffix == ".png":
        write_png(options.out, image_grid(images))
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images)
        write_atomically(options.out, buffer.getvalue())
    return f"{images.shape[0]} x {images.shape[1]:,} images of {of}: {options.out}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""

    def work() -> None:
        options = tyro.cli(Options, args=arguments, prog="python -m psgjax.sampling", description=__doc__)
        _check(options)
        settle()
        use_compilation_cache()
        tell(terminal())(_write(options))

    return run_command(work, reduce="Ask for fewer images with a smaller --count.")


if __name__ == "__main__":
    sys.exit(main())
