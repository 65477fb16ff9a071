"""Train one method, or several to compare, on any images, and write one report.

    python -m psgjax train --data.source folder --data.dir FOLDER    # any images in files, here as a folder of PNGs
    python -m psgjax train --data.source idx --data.dir FOLDER       # the images of four IDX files
    python -m psgjax train --methods psg sngan gan --seeds 0 1 2     # three methods, three runs of each

Writes the folder --out: report.html, summary.json, figures/ and a folder for each method, in which each of several seeds has its
own. Run again to resume an interrupted run, or to redraw the report of a finished one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from rich.console import Console
from typing_extensions import Doc

from psgjax import schema, switches
from psgjax.commands import line, report
from psgjax.config import (
    Config,
    ConfigError,
    Data,
    DataOverrides,
    Mesh,
    MethodOverrides,
    Network,
    NetworkOverrides,
    Optimizer,
    check_penalties,
)
from psgjax.progress import busy, tracker
from psgjax.schema import Listed
from psgjax.shell import Stop, one_line, tell, terminal, warn

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset


@dataclass(frozen=True)
class Preset:
    """What is taken where the command line does not say.

    Attributes:
        epochs: Passes over the training images.
        network: Its name and sizes.
        data: The source.
        batch_size: Real images in an update.
        evaluation: Every how many epochs the quality of samples is measured, and on how many samples.
    """

    epochs: int
    network: Network
    data: Data = field(default_factory=Data)
    batch_size: int = 64
    evaluation: tuple[int, int] = (15, 2000)


METHODS = Listed("Methods to train one after the other: {}.", partial(", ".join, switches.METHODS))
OUT = "Folder for everything that is written."
GO_ON = "stopped; run the same command again to go on"

USUAL = Preset(epochs=75, network=Network(width=32))


@dataclass(frozen=True)
class Options:
    """Train GANs with several generators and write one report. An option shown as None takes its usual value."""

    methods: Annotated[tuple[str, ...], METHODS] = ("choice",)  # the best for some thousand updates (docs/recipe.md)
    epochs: Annotated[int | None, Doc("Passes over the training images.")] = None
    steps: Annotated[int | None, Doc("Generator updates, in place of epochs.")] = None
    batch_size: Annotated[int | None, Doc("Real images in an update, and as many from each generator.")] = None
    seed: Annotated[int | None, Doc("Every random number of the run follows from it; 0 if not given.")] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        Doc("Several seeds, in place of --seed: trained in one program, each method's figures with intervals."),
    ] = None
    precision: Annotated[
        Literal["float32", "bfloat16", "tf32"],
        Doc("Of the layers' arithmetic; parameters and losses are float32 always."),
    ] = "float32"
    evaluation_epochs: Annotated[
        int | None, Doc("Epochs between measurements of the quality of samples, one more at the end; 0 for none.")
    ] = None
    evaluation_samples: Annotated[int | None, Doc("Samples of all generators together to measure it on.")] = None
    features: Annotated[
        Path | None,
        Doc("Measure it by your own features: a .stablehlo file of jax.export, images uint8 [n, H, W, C] to [n, F]."),
    ] = None
    out: Annotated[Path, Doc(OUT)] = Path("runs/images")
    data: DataOverrides = field(default_factory=DataOverrides)
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: Optimizer = field(default_factory=Optimizer)
    method: MethodOverrides = field(default_factory=MethodOverrides)
    mesh: Mesh = field(default_factory=Mesh)
    distributed: Annotated[
        bool, Doc("Train with other processes, one a host, that run the same command (docs/scaling.md).")
    ] = False
    coordinator: Annotated[
        str | None, Doc("HOST:PORT of the first process, where the cluster does not tell (with --distributed).")
    ] = None
    processes: Annotated[int | None, Doc("How many processes there are, where the cluster does not tell.")] = None
    process: Annotated[int | None, Doc("The number of this one, from 0, where the cluster does not tell.")] = None


def configure(options: Options, preset: Preset) -> dict[str, Config]:
    """The configuration of each method, before the data are read: `steps` is 1 where epochs are asked for.

    Raises:
        ConfigError: For an unknown method, or a setting that cannot be used.
    """
    if options.epochs is not None and options.steps is not None:
        raise ConfigError(f"--epochs {options.epochs} and --steps {options.steps} are both given; give one of them.")
    if options.epochs is not None and options.epochs < 1:
        raise ConfigError(f"epochs is {options.epochs}; it must be a whole number of at least 1.")
    if options.seeds is not None:
        given = " ".join(map(str, options.seeds))
        if options.seed is not None:
            raise ConfigError(f"--seed {options.seed} and --seeds {given} are both given; give one of them.")
        if not given or len(set(options.seeds)) < len(options.seeds):
            raise ConfigError(f"--seeds {given or 'names none'}: give one or more, each once.")
    if options.features is not None and options.evaluation_epochs == 0:
        raise ConfigError(
            f"--features {options.features} with --evaluation-epochs 0 would be ignored; leave one of them out."
        )
    if not options.methods:
        raise ConfigError(f"--methods names none; known are {', '.join(switches.METHODS)}.")
    data = schema.override(preset.data, options.data)
    epochs, samples = preset.evaluation
    configs = {}
    for name in options.methods:
        configs[name] = Config(
            method_name=name,
            method=schema.override(switches.named_method(name), options.method),
            network=schema.override(preset.network, options.network),
            optimizer=options.optimizer,
            data=data,
            batch_size=preset.batch_size if options.batch_size is None else options.batch_size,
            steps=1 if options.steps is None else options.steps,
            seed=options.seed or 0,
            precision=options.precision,
            evaluation_epochs=epochs if options.evaluation_epochs is None else options.evaluation_epochs,
            evaluation_samples=samples if options.evaluation_samples is None else options.evaluation_samples,
        )
    check_penalties(configs.values())
    return configs


def complete(options: Options, preset: Preset, config: Config, data: Dataset) -> Config:
    """The configuration with its number of steps, now that the number of images is known."""
    epochs = preset.epochs if options.epochs is None else options.epochs
    per_epoch = config.steps_per_epoch(len(data.images))
    steps = epochs * per_epoch if options.steps is None else options.steps
    return dataclasses.replace(config, steps=steps)


def check_out(out: Path, configs: dict[str, Config], data: Dataset, seeds: Sequence[int] = ()) -> None:
    """Refuse an output folder that holds other runs, or what they would overwrite. Writes nothing.

    Raises:
        ConfigError: With the settings or seeds that differ, or with what is in the way.
    """
    from psgjax.runs.identity import check_folder, check_free, runs_in

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must name a folder.")
    existing = {path.name: list(found.values()) for path in sorted(out.glob("*/")) if (found := runs_in(path))}
    if not existing:
        check_free(out, ("report.html", "summary.json", "figures"))
    for name, config in configs.items():
        for other_name, (other, *_) in existing.items():
            if (
                other_name != name
            ):  # methods in one folder are compared in one report: all but the method must be the same
                check = dataclasses.replace(config, method_name=other.method_name, method=other.method)
                check_folder(out / other_name, check, data, seeds)
        check_folder(out / name, config, data, seeds)


def run(options: Options, preset: Preset, console: Console, stop: Stop) -> int:
    """Train every method and write the report; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data or the folder.
    """
    configs = configure(options, preset)
    if not options.distributed:
        return _train(options, preset, configs, console, stop)
    from psgjax.method import sharding

    with sharding.joined(options.coordinator, options.processes, options.process) as first:
        return _train(options, preset, configs, console if first else Console(quiet=True), stop)


def _train(options: Options, preset: Preset, configs: dict[str, Config], console: Console, stop: Stop) -> int:
    with busy(console, "loading jax"):
        import jax

        from psgjax import environment
        from psgjax.data import dataset as datasets
        from psgjax.evaluation import features
        from psgjax.method import sharding
        from psgjax.method import state as states
        from psgjax.runs import identity
        from psgjax.training import loop

        environment.settle()
    given = None if options.features is None else features.read(options.features)
    asked = next(iter(configs.values())).data
    runs = [run for path in sorted(options.out.glob("*/")) for run in identity.runs_in(path)]
    with busy(console, "reading the images"):
        data = datasets.load(identity.find_data(asked, runs), tell(console), tracker(console))
    if data.info["warning"]:
        warn(console, data.info["warning"])
    configs = {name: complete(options, preset, config, data) for name, config in configs.items()}
    for config in configs.values():
        states.build(config, data.images.shape[1:])  # refuses a network that does not fit the images
    given = features.chosen(given, data.held_out_images)
    seeds = options.seeds or ()
    spread = jax.device_count() > 1 or options.mesh != Mesh()
    meshes = {
        name: sharding.make_mesh(options.mesh, config, len(seeds) or 1, beside=list(configs.values()))
        for name, config in configs.items()
        if spread
    }
    writes = jax.process_index() == 0
    if writes:
        check_out(options.out, configs, data, seeds)
        options.out.mkdir(parents=True, exist_ok=True)
    environment.use_compilation_cache()

    status = 0
    for name, config in configs.items():
        mesh = meshes.get(name)
        if mesh is not None and (idle := sharding.left_over(mesh)):
            tell(console)(f"{name}: {idle}")
        try:
            shared: dict[str, Any] = {"mesh": mesh, "console": console, "stop": stop, "features": given}
            outcome = loop.train(config, data, options.out / name, seeds=seeds, **shared)
        except loop.Diverged as error:  # one method's end is not the others'
            if writes:
                print(f"error: {one_line(str(error))}", file=sys.stderr)
            status = 1
            continue
        if not outcome.finished:
            tell(console)(outcome.stopped(name, config.steps))
            return 128 + sharding.agreed(stop.signal)[0]  # whichever process the signal reached
    if writes:
        report.draw(options.out, console)
    return status


Chosen = TypeVar("Chosen", bound=Options)


def command(
    kind: type[Chosen],
    preset_of: Callable[[Chosen], Preset],
    arguments: list[str] | None,
    program: str,
    description: str | None,
) -> int:
    """A command line that trains: its options, and what they leave open. The exit status."""

    def work(options: Chosen) -> int:
        return run(options, preset_of(options), terminal(), Stop())

    return line.command(kind, work, arguments, program, description, interrupted=GO_ON)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command(Options, lambda options: USUAL, arguments, "psgjax train", __doc__)
