"""Score images, from this package or any other, against real ones.

python -m psgjax.evaluation runs/mnist/psg                        # the last checkpoint of a run, against its held-out images
python -m psgjax.evaluation digits.npz --reference mnist-test     # an array of images, .npz or .npy
python -m psgjax.evaluation folder/ --reference real.npz          # a folder of image files

Arrays are uint8, or float in [-1, 1]: [n, H, W], [n, H, W, C], or [K, n, H, W, C] of K generators. docs/evaluation.md explains
the numbers.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typing_extensions import Doc

from psgjax import data as datasets
from psgjax import environment, sampling
from psgjax.config import ConfigError, Data
from psgjax.data import Dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.score import STAGES, Reference, Scores, reference, reference_of, score
from psgjax.schema import check_seed
from psgjax.shell import check_output, run_command, tell, terminal
from psgjax.tracking import read_picture, to_pixels, write_atomically

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MOST_BYTES = 2**31  # of an array, unpacked: a small .npz can hold a terabyte


@dataclass(frozen=True)
class Options:
    """Score generated images against real ones: one table, and JSON on request."""

    images: Annotated[
        tyro.conf.Positional[Path], Doc("The folder of a run, a .npz or .npy file, or a folder of image files.")
    ]
    reference: Annotated[
        str | None, Doc("mnist-test, or a .npz or .npy file of real images; a run's own held-out images if not given.")
    ] = None
    samples: Annotated[
        int | None,
        Doc("Images to draw from a run, of all generators together; as many as its training did if not given."),
    ] = None
    seed: Annotated[int, Doc("Of the latents that a run's images are drawn from; training used 0.")] = 0
    json: Annotated[Path | None, Doc("File to write the numbers to.")] = None
    data: Data = field(default_factory=Data)


def read_images(path: Path) -> np.ndarray:
    """Images [K, n, H, W, C] uint8 from a .npz or .npy file, or a folder of image files (K = 1).

    Raises:
        ConfigError: If there are none, or they are not what this module's first lines say.
    """
    if path.is_dir():
        array = _read_folder(path)
    elif path.suffix in (".npz", ".npy"):
        array = _read_array(path)
    else:
        raise ConfigError(f"{path} is not a run's folder, a folder of image files, or a .npz or .npy file.")
    if array.ndim not in (3, 4, 5) or not array.size:
        raise ConfigError(
            f"{path} holds an array {list(array.shape)}; it must be [n, H, W], [n, H, W, C] or [K, n, H, W, C]."
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4:
        array = array[None]
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"{path} holds {array.dtype}; images must be uint8, 0 to 255, or float from -1 to 1.")
    if not np.isfinite(array).all():
        raise ConfigError(f"{path} holds NaN or infinity: the generator diverged, or the file is damaged.")
    if array.min() < -1 or array.max() > 1 or array.min() >= 0:
        raise ConfigError(
            f"{path} holds floats from {array.min():.4g} to {array.max():.4g}; they must lie in [-1, 1] (black is -1): "
            "scale them, or save uint8, 0 to 255."
        )
    return to_pixels(array)


def _read_array(path: Path) -> np.ndarray:
    try:
        _check_size(path, path.stat().st_size)
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                sizes = {item.filename.removesuffix(".npy"): item.file_size for item in loaded.zip.infolist()}
                if "images" not in sizes and len(sizes) != 1:
                    raise ConfigError(
                        f"{path} holds the arrays {', '.join(sizes) or 'none'}; it must hold one, or one called images."
                    )
                name = "images" if "images" in sizes else next(iter(sizes))
                _check_size(path, sizes[name])
                loaded = loaded[name]
        if not isinstance(loaded, np.ndarray):
            raise ValueError("it holds something else")
        return loaded
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.") from None
    except ConfigError:
        raise
    except Exception as error:  # a damaged or hostile file makes numpy and zipfile raise one of a dozen types
        raise ConfigError(f"{path} cannot be read as an array of images: {error}") from None


def _check_size(path: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{path} unpacks to {size:,} bytes; at most {_MOST_BYTES:,} are read: give fewer images, or uint8."
        )


def _read_folder(folder: Path) -> np.ndarray:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not paths:
        raise ConfigError(f"{folder} holds no run (no config.json) and no image files ({', '.join(_SUFFIXES)}).")
    images: list[np.ndarray] = []
    for path in paths:
        try:
            images.append(read_picture(path))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if images[-1].shape != images[0].shape:
            raise ConfigError(
                f"{path} is {list(images[-1].shape)} and {paths[0].name} {list(images[0].shape)}; all must have one size and kind."
            )
        _check_size(folder, len(paths) * images[0].nbytes)
    return np.stack(images)


def evaluate(options: Options, console: Console) -> Scores:
    """The scores that the options ask for.

    Raises:
        ConfigError: If images or reference are missing, unreadable, or do not go together.
    """
    line = tell(console)
    trained: Dataset | None = None
    if (options.images / "config.json").is_file():
        config, state, image_shape = sampling.load(options.images)
        samples = config.evaluation_samples if options.samples is None else options.samples
        if samples < config.method.generators:
            raise ConfigError(f"samples is {samples}; it must be at least one a generator.")
        images = sampling.sample(config, state, image_shape, samples // config.method.generators, options.seed)
        if options.reference is None:
            trained = datasets.load(config.data, line)
    else:
        images = read_images(options.images)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reference", total=1 + len(STAGES))
            real = reference_of(trained, line) if trained else _reference(options, line)
            return score(
                images, real, lambda stage: bar.update(task, description=stage, completed=1 + STAGES.index(stage))
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _reference(options: Options, tell: Any) -> Reference:
    if options.reference in (None, "mnist-test"):
        return reference_of(datasets.load(options.data, tell), tell)
    real = read_images(Path(str(options.reference)))
    real = real.reshape(-1, *real.shape[2:])
    shipped = classifiers.shipped()
    if real.shape[1:] == shipped.image_shape:
        tell(f"{options.reference} has no labels: features are those of the classifier for MNIST")
        return reference(real, None, shipped)
    tell(f"{options.reference} has no labels and is not of MNIST's shape: metrics that need a classifier are left out")
    return reference(real, None, None)


def table(scores: Scores, title: str) -> Table:
    """The scores as a table: a column for all images, and one for each generator."""
    generators = scores.get("generators", [])
    result = Table(
        "", "all", *(f"generator {i + 1}" for i in range(len(generators))), title=Text(title), title_justify="left"
    )
    for name, value in scores.items():
        if name != "generators":
            result.add_row(name, _text(value), *(_text(each[name]) if name in each else "" for each in generators))
    return result


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(f"{100 * item:.0f}" for item in value) + " %"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""

    def work() -> None:
        options = tyro.cli(Options, args=arguments, prog="python -m psgjax.evaluation", description=__doc__)
        check_output("--json", options.json)
        check_seed(options.seed)
        environment.settle()
        environment.use_compilation_cache()
        console = terminal()
        scores = evaluate(options, console)
        console.print(table(scores, str(options.images)))
        if options.json:
            content = {**scores, "images": str(options.images), "environment": environment.provenance()}
            write_atomically(options.json, json.dumps(content, indent=2, allow_nan=False) + "\n")

    return run_command(work, reduce="Score fewer images; of a run, with a smaller --samples.")


if __name__ == "__main__":
    sys.exit(main())
