"""Score images, from this package or any other, against real ones.

python -m psgjax evaluate runs/mnist/psg                        # the last checkpoint of a run, against its held-out images
python -m psgjax evaluate runs/mnist/psg --checkpoint best      # the one that scored best while it trained
python -m psgjax evaluate digits.npz --reference mnist-test     # an array of images, .npz or .npy
python -m psgjax evaluate folder/ --reference real.npz --classifier mnist    # a folder of image files

Arrays are [n, H, W], [n, H, W, C], [n, C, H, W], or the latter two after a K of generators, and what is black and white in them
is certain or given with --range. docs/evaluation.md states what is certain, and explains the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import Doc

from psgjax import environment
from psgjax.commands import sample
from psgjax.commands.line import command
from psgjax.config import Config, ConfigError, Data, RangeName
from psgjax.data import dataset as datasets
from psgjax.data import layout, pictures
from psgjax.data.dataset import DataError, Dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation import features
from psgjax.evaluation.features import Features
from psgjax.evaluation.score import NEIGHBOURS, STAGES, Reference, Scores, reference, reference_of, score
from psgjax.evaluation.table import show
from psgjax.files import write_atomically
from psgjax.progress import tracker
from psgjax.runs.folder import data_of
from psgjax.schema import check_seed, local_path, override
from psgjax.shell import check_output, tell, terminal
from psgjax.sources import Track

_TEST_SETS: dict[str, Literal["mnist", "fashion_mnist"]] = {
    "mnist-test": "mnist",
    "fashion-mnist-test": "fashion_mnist",
}
_BY_NAME = (*_TEST_SETS, "packaged")


@dataclass(frozen=True)
class Place:
    """Where the images of a published data set, or of a run's own, lie now."""

    source: Annotated[Literal["idx", "tfds"] | None, Doc("As in training; what is found if not given.")] = None
    dir: Annotated[Path | None, Doc("Folder of the four IDX files; with tfds: files already downloaded.")] = None


@dataclass(frozen=True)
class Options:
    """Score generated images against real ones: one table, and JSON on request."""

    images: Annotated[
        tyro.conf.Positional[Path],
        Doc("The folder of a run, or best/ in it; a .npz or .npy file; or a folder of image files."),
    ]
    reference: Annotated[
        str | None,
        Doc(
            "What they are compared with: mnist-test or fashion-mnist-test, the published test images; packaged, the 500 "
            "held-out images of the packaged MNIST; or a .npz or .npy file, or a folder, of real images. Of a run its own "
            "held-out images if not given."
        ),
    ] = None
    classifier: Annotated[
        Literal["mnist"] | None,
        Doc(
            "Compare with a file or folder by the features of the classifier of MNIST's digits: these are digits, too."
        ),
    ] = None
    range: Annotated[RangeName | None, Doc("Black and white in the array of images, where that is not certain.")] = None
    reference_range: Annotated[RangeName | None, Doc("The same of the array that --reference names.")] = None
    checkpoint: Annotated[
        str | None,
        Doc(
            "Of a run: last, best (the least FCD while it trained), or the step of one that is kept; last if not given."
        ),
    ] = None
    samples: Annotated[
        int | None,
        Doc("Images to draw from a run, of all generators together; as many as its training did if not given."),
    ] = None
    features: Annotated[
        Path | None,
        Doc(
            "Compare by your own features: a .stablehlo file of jax.export, a function of images uint8 [n, H, W, C] to [n, F]."
        ),
    ] = None
    seed: Annotated[int | None, Doc("Of the latents that a run's images are drawn from; 0 if not given.")] = None
    json: Annotated[Path | None, Doc("File to write the numbers to.")] = None
    data: Place = field(default_factory=Place)


def read_images(
    path: Path, given: RangeName | None, option: str, note: Callable[[str], None] = lambda text: None
) -> np.ndarray:
    """Images [K, n, H, W, C] uint8 from a .npz or .npy file, or a folder of image files (K = 1).

    Raises:
        ConfigError: If there are none, they cannot be read for certain (`pictures`), or a range is given to files that have one.
    """
    if path.is_dir():
        if given:
            raise ConfigError(
                f"{option} {given}: {path} is a folder of image files, which say themselves what is white."
            )
        return layout.grey(pictures.read_folder(path, note))[None]
    if path.suffix not in (".npz", ".npy"):
        raise ConfigError(f"{path} is not a run's folder, a folder of image files, or a .npz or .npy file.")
    return layout.to_images(layout.read_array(path), str(path), given, option)


def evaluate(options: Options, console: Console) -> Scores:
    """The scores that the options ask for, with `notes`: what was said of the images read.

    Raises:
        ConfigError: If images or reference are missing, unreadable, or do not go together, or an option does not apply to them.
    """
    notes: list[str] = []

    line, track = tell(console), tracker(console)

    def note(text: str) -> None:
        notes.append(text)
        line(text)

    is_run = _is_run(options.images)
    _check(options, is_run)
    if is_run:
        config, images = _sampled(options)
    else:
        images = read_images(options.images, options.range, "--range", note)
    own = None if options.features is None else features.read(options.features)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("reference", total=1 + len(STAGES))
            if options.reference is None:
                run = options.images if (options.images / "config.json").is_file() else options.images.parent
                data = data_of(run, config, line, override(Data(), options.data))
                real = reference_of(data, line, own, track)
            else:
                real = _reference(options, own, line, note, track)
            if real.embedding is not None and real.embedding.note:
                note(real.embedding.note)
            scores = score(
                _with_channels_of(real, images, options),
                real,
                lambda stage: bar.update(task, description=stage, completed=1 + STAGES.index(stage)),
            )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return {**scores, "notes": notes}


def _is_run(path: Path) -> bool:
    """Whether it is the folder of a run, is in one, or holds some (`sample.load` says then which)."""
    places = (path, path.parent) if path.name in ("best", "checkpoints") else (path,)
    held = [found for depth in ("*", "*/*") for found in path.glob(f"{depth}/config.json")]
    return any((place / "config.json").is_file() for place in places) or bool(held)


def _check(options: Options, is_run: bool) -> None:
    """Refuse options that would be ignored, and images that nothing is said of.

    Raises:
        ConfigError: With the option, and what it applies to.
    """
    by_name = options.reference in _BY_NAME
    applies = {
        "a run": (is_run, [name for name in ("checkpoint", "samples", "seed") if getattr(options, name) is not None]),
        "images that are no run": (not is_run, ["range"] if options.range else []),
        "a --reference that is a file or a folder": (
            options.reference is not None and not by_name,
            [name for name in ("classifier", "reference_range") if getattr(options, name)],
        ),
        f"a data set ({', '.join(_TEST_SETS)}, or a run's own)": (
            options.reference is None or options.reference in _TEST_SETS,
            [f"data.{name}" for name in ("source", "dir") if getattr(options.data, name) is not None],
        ),
    }
    for what, (holds, given) in applies.items():
        if given and not holds:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{names} would be ignored: it applies to {what} alone; leave it out.")
    if options.reference is None and not is_run:
        raise ConfigError(
            f"nothing says what {options.images} is to be compared with; give --reference {', '.join(_BY_NAME)}, or real images."
        )


def _sampled(options: Options) -> tuple[Config, np.ndarray]:
    """The configuration of a run, and images [K, n, H, W, C] uint8 of its generators."""
    config, state, image_shape = sample.load(options.images, options.checkpoint or "last")
    generators = config.method.generators
    samples = config.evaluation_samples if options.samples is None else options.samples
    if samples // generators <= NEIGHBOURS:
        raise ConfigError(
            f"samples is {samples}; it must be at least {(NEIGHBOURS + 1) * generators}, of {generators} generators."
        )
    return config, sample.sample(config, state, image_shape, samples // generators, options.seed or 0)


def _reference(
    options: Options, own: Features | None, line: Callable[[str], None], note: Callable[[str], None], track: Track
) -> Reference:
    """The real images that --reference names.

    Raises:
        ConfigError: If they are not there, or nothing can be measured by them.
    """
    name = str(options.reference)
    if name == "packaged":
        return reference_of(datasets.load(Data(source="packaged"), line), line, own, track)
    if name in _TEST_SETS:
        return reference_of(_test_set(name, options.data, line), line, own, track)
    real = read_images(local_path("--reference", Path(name)), options.reference_range, "--reference-range", note)
    real = real.reshape(-1, *real.shape[2:])
    shipped = classifiers.shipped()
    fits = real.shape[1:] == shipped.image_shape
    if options.classifier is not None:
        if not fits:
            sizes = ["x".join(map(str, shape)) for shape in (shipped.image_shape, real.shape[1:])]
            raise ConfigError(
                f"--classifier mnist takes images of {sizes[0]}, and those of {name} are {sizes[1]}; leave it out."
            )
        return reference(real, None, shipped, name, own)
    if own is None:
        data = Dataset.from_arrays(real, name=name, range="0..255")
        _, own, why = features.of_data(data, line, track=track)
        if own is None:
            digits = "; digits as MNIST has them are compared with --classifier mnist" if fits else ""
            raise ConfigError(
                f"nothing can be measured: of the images of {name} {why}; give --features FILE.stablehlo{digits}."
            )
        if fits:
            note("these are compared as any images are; digits as MNIST has them are compared with --classifier mnist")
    return reference(real, None, None, name, own, "there are no labels")


def _test_set(reference: str, place: Place, line: Callable[[str], None]) -> Dataset:
    """The published data set, and no other.

    Raises:
        DataError: If it is not there.
    """
    source = place.source or ("idx" if place.dir else "tfds")  # auto would fall back on the packaged images
    instead = "" if reference != "mnist-test" else " Or compare with 500 packaged images: --reference packaged."
    try:
        data = datasets.load(Data(source=source, dir=place.dir, name=_TEST_SETS[reference]), line)
    except DataError as error:
        raise DataError(f"--reference {reference}: {error}{instead}") from None
    if not data.info["canonical"]:
        raise DataError(f"--reference {reference}: {data.info['warning']}{instead}")
    return data


def _with_channels_of(real: Reference, images: np.ndarray, options: Options) -> np.ndarray:
    """Images [K, n, H, W, C] with as many channels as the reference: those that are equal are one, and one is as good as three.

    Raises:
        ConfigError: If they are in colour and the reference is not, or of another size.
    """
    images = layout.grey(images)
    shapes = ["x".join(map(str, array.shape[-3:])) for array in (images, real.images)]
    if images.shape[-3:-1] != real.images.shape[1:3] or images.shape[-1] > real.images.shape[-1]:
        raise ConfigError(
            f"{options.images} holds images of {shapes[0]} and the reference of {shapes[1]}; they must be alike."
        )
    return np.broadcast_to(images, (*images.shape[:-1], real.images.shape[-1]))


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""

    def work(options: Options) -> None:
        check_output("--json", options.json)
        check_seed(options.seed or 0)
        environment.settle()
        environment.use_compilation_cache()
        console = terminal()
        scores = evaluate(options, console)
        show(scores, options.images, console)
        if options.json:
            content = {**scores, "images": str(options.images), "environment": environment.provenance()}
            write_atomically(options.json, json.dumps(content, indent=2, allow_nan=False) + "\n")

    reduce = "Score fewer images; of a run, with a smaller --samples."
    return command(Options, work, arguments, "psgjax evaluate", __doc__, reduce=reduce)
