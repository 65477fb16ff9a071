"""A saved run in, images out.

python -m psgjax sample runs/mnist/psg --count 64 --out digits.png     # a picture: a block of rows for each generator
python -m psgjax sample runs/mnist/psg --count 10000 --out digits.npz  # an array `images`, uint8 [K, count, H, W, C]
python -m psgjax sample runs/mnist/psg --export psg.stablehlo          # the generators, to be sampled by jax alone
python -m psgjax sample runs/mnist/psg --verify                        # SHA-256 of the last state, to compare two runs
python -m psgjax sample runs/mnist/psg --checkpoint best               # the state that scored best, in place of the last

What --export writes holds the parameters and maps latents [K, B, latent_size] to images [K, B, H, W, C] in [-1, 1]; the
README shows how to load it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax import export
from typing_extensions import Doc

from psgjax.commands.line import command
from psgjax.config import Config, ConfigError
from psgjax.data.pictures import image_grid, write_png
from psgjax.environment import settle, use_compilation_cache
from psgjax.files import write_atomically
from psgjax.leaves import digest
from psgjax.method.inference import make_generate, make_variables
from psgjax.method.state import TrainState
from psgjax.runs.saved import load, sample
from psgjax.schema import check_seed
from psgjax.shell import check_output, tell, terminal


@dataclass(frozen=True)
class Options:
    """Draw samples from a checkpoint of a run, separately from each generator."""

    run: Annotated[tyro.conf.Positional[Path], Doc("The folder of one method, such as runs/mnist/psg.")]
    checkpoint: Annotated[str, Doc("last, best (the least FCD while it trained), or the step of one that is kept.")] = (
        "last"
    )
    count: Annotated[int, Doc("Images from each generator.")] = 64
    seed: Annotated[int, Doc("The latents follow from it.")] = 0
    out: Annotated[Path, Doc("Where to write them: .png for a picture, .npz for an array.")] = Path("samples.png")
    export: Annotated[
        Path | None,
        Doc("Write no images but the generators, a .stablehlo file that jax runs without this package, on any device."),
    ] = None
    verify: Annotated[bool, Doc("Write nothing; print the SHA-256 of the state, bit for bit, and its step.")] = False


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
    config, state, image_shape = load(options.run, options.checkpoint)
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

    def work(options: Options) -> None:
        _check(options)
        settle()
        use_compilation_cache()
        tell(terminal())(_write(options))

    return command(
        Options, work, arguments, "psgjax sample", __doc__, reduce="Ask for fewer images with a smaller --count."
    )
