"""The grid K x spectral normalisation x D's loss x gate: its options, and the configuration of each point, or why there is none."""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typing_extensions import Doc

from experiments import mixtures
from experiments.command import check_counts
from psgjax import parts, schema
from psgjax.config import (
    Config,
    ConfigError,
    Data,
    DataOverrides,
    Method,
    Network,
    NetworkOverrides,
    Optimizer,
    OptimizerOverrides,
)
from psgjax.schema import Listed
from psgjax.switches import METHODS

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset

# What a task sets where the command line does not.
TASKS: dict[str, dict[str, Any]] = {
    "mixture": {
        "steps": 3000,
        "network": Network("mlp", width=64, latent_size=2),
        "optimizer": Optimizer(learning_rate=1e-3, schedule="linear"),
        "data": Data(),
    },
    "mnist": {
        "epochs": 10,
        "network": Network(width=16),
        "optimizer": Optimizer(),
        "data": Data(train_images=5000),
    },
}


def losses() -> dict[str, dict[str, Any]]:
    """D's losses by one name each: how its scores are read, the loss itself, and the penalties that its paper adds."""
    independent = {
        name: {"scores": "independent", "loss": name, "regularisers": loss.penalties}
        for name, loss in parts.LOSSES.items()
    }
    return {"softmax": {"scores": "softmax"}, **independent}


@dataclass(frozen=True)
class Options(mixtures.Protocol):
    """Train a grid of methods. An option shown as None takes the task's value."""

    task: Annotated[
        Literal["mixture", "mnist"], Doc("A mixture of Gaussians, many seeds at once; or MNIST, one seed per cell.")
    ] = "mixture"
    mixture: Annotated[Literal["ring", "grid"], Doc("The mixture: a ring of 8 or a grid of 25.")] = "ring"
    generators: Annotated[tuple[int, ...], Doc("Numbers of generators K.")] = (1, 2, 3)
    spectral_norm: Annotated[tuple[Literal["no", "yes"], ...], Doc("With or without spectral normalisation of D.")] = (
        "no",
        "yes",
    )
    losses: Annotated[
        tuple[str, ...],
        Listed(
            "D's losses: softmax is the choice among the tuple, all others ({}) score each image alone.",
            partial(", ".join, parts.LOSSES),
        ),
    ] = ("cross-entropy", "softmax", "hinge")
    gates: Annotated[
        tuple[str, ...], Listed("Where Algorithm 1 decides: {}.", partial(parts.described, parts.GATES))
    ] = (
        "none",
        "triplet",
    )
    seeds: Annotated[
        int, Doc("Seeds per cell on a mixture, trained at once, from --seed on; on MNIST there is one.")
    ] = 3
    steps: Annotated[int | None, Doc("Generator updates of each cell.")] = None
    epochs: Annotated[int | None, Doc("Passes over the training images, in place of steps (MNIST only).")] = None
    batch_size: Annotated[int, Doc("Real images per update, and generated ones per generator.")] = 64
    cells: Annotated[
        tuple[str, ...], Doc("Names of cells to do alone; one that is done is done again, from the beginning.")
    ] = ()
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/ablation")
    data: DataOverrides = field(default_factory=DataOverrides)
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: OptimizerOverrides = field(default_factory=OptimizerOverrides)


@dataclass(frozen=True)
class Point:
    """A point of the grid: its configuration, or why there is none. Its name is that of its file: k2-sn-softmax-triplet."""

    name: str
    config: Config | None
    reason: str | None = None

    @property
    def method_name(self) -> str:
        """The name that this point has among the methods, if it has one."""
        method = self.config.method if self.config else None
        return next((name for name, known in METHODS.items() if known == method), "")


def configure(options: Options) -> list[Point]:
    """The points in the order of the axes; on MNIST `steps` is 1 where epochs are asked for, until the images are read.

    Raises:
        ConfigError: For a setting that no cell can be run with.
    """
    task = TASKS[options.task]
    network = schema.override(task["network"], options.network)
    optimizer = schema.override(task["optimizer"], options.optimizer)
    data = schema.override(task["data"], options.data)
    check_counts(generators=min(options.generators, default=1))
    if options.task == "mixture":
        mixtures.check_network(network)
        if options.epochs is not None:
            raise ConfigError(
                f"--epochs {options.epochs} with --task mixture: points are drawn, not passed over; use --steps."
            )
    if options.epochs is not None:
        check_counts(epochs=options.epochs)
        if options.steps is not None:
            raise ConfigError(
                f"--epochs {options.epochs} and --steps {options.steps} are both given; give one of them."
            )
    for name in ("generators", "spectral_norm", "losses", "gates"):
        if not getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} names none; give at least one.")
    steps = task.get("steps", 1) if options.steps is None else options.steps
    shared = Config(
        network=network, optimizer=optimizer, data=data, batch_size=options.batch_size, steps=steps, seed=options.seed
    )
    if options.task == "mixture":
        shared.steps_per_epoch(options.points)  # refuses batches larger than the set
    points = []
    of_losses = losses()
    for name in options.losses:
        schema.known_part("--losses", name, of_losses)
    for name in options.gates:
        schema.known_part("--gates", name, parts.GATES)
    axes = itertools.product(options.generators, options.spectral_norm, options.losses, options.gates)
    for generators, spectral_norm, loss, gate in dict.fromkeys(axes):
        name = f"k{generators}-{'sn' if spectral_norm == 'yes' else 'plain'}-{loss}-{gate}"
        try:
            method = Method(generators=generators, spectral_norm=spectral_norm == "yes", gate=gate, **of_losses[loss])
        except ConfigError as error:
            points.append(Point(name, None, str(error)))
        else:
            points.append(Point(name, dataclasses.replace(shared, method_name=name, method=method)))
    return points


def complete(options: Options, point: Point, data: Dataset) -> Point:
    """The point on MNIST with its number of steps."""
    if point.config is None:
        return point
    epochs = TASKS["mnist"]["epochs"] if options.epochs is None else options.epochs
    per_epoch = point.config.steps_per_epoch(len(data.images))
    steps = epochs * per_epoch if options.steps is None else options.steps
    return dataclasses.replace(point, config=dataclasses.replace(point.config, steps=steps))


def settings(options: Options, config: Config, data: Dataset | None) -> dict[str, Any]:
    """Everything that decides a cell's result, ready for JSON; of images, their SHA-256 and not their place on this machine."""
    values: dict[str, Any] = json.loads(schema.to_json(config))
    del values["data"]
    if data is not None:
        return {
            "task": "mnist",
            **values,
            "data": {name: data.info.get(name) for name in ("sha256", "held_out_sha256")},
        }
    names = ("task", "mixture", *(item.name for item in dataclasses.fields(mixtures.Protocol)))
    return {name: getattr(options, name) for name in names} | values
