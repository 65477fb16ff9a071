"""The tasks of the recipe: for a row's method, the configurations that it is trained in, and how each becomes figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments import command, mixtures, mnist, stacked_digits, stacked_mnist
from psgjax import schema
from psgjax.config import Config, Data, Method, Network, Optimizer
from psgjax.shell import Stop, tell

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset

Result = dict[str, Any]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """One column group of the table.

    Attributes:
        shape: Of an image.
        measures: Of a seed's result, by name: the column's header, the factor, and the digits that are shown.
        configure: A method, its name and the factor on the networks' width, to the configuration of the first seed.
        work: A configuration and the cell's folder, to one result per seed; None if it was stopped.
        together: Whether a cell has all seeds; else it has one.
        images: The data set's name, counts and SHA-256; none of points.
    """

    shape: Shape
    measures: dict[str, tuple[str, float, int]]
    configure: Callable[[str, Method, int], Config]
    work: Callable[[Config, Path], list[Result] | None]
    together: bool
    images: dict[str, Any] = field(default_factory=dict)


def plane(name: str, protocol: mixtures.Protocol, steps: int, console: Console) -> Task:
    """A mixture of Gaussians with `mixture2d`'s networks and optimiser, all seeds trained at once."""
    mixture = mixtures.MIXTURES[name]

    def configure(row: str, method: Method, wider: int) -> Config:
        return Config(
            method_name=row,
            method=method,
            network=Network("mlp", width=64 * wider, latent_size=2),
            optimizer=Optimizer(learning_rate=1e-3, schedule="linear"),
            batch_size=64,
            steps=steps,
            seed=protocol.seed,
        )

    def work(config: Config, folder: Path) -> list[Result]:
        import jax

        points = mixtures.draw(mixture, protocol.points, jax.random.key(protocol.data_seed))
        trainer = mixtures.Trainer(config, protocol.seeds, protocol.points, protocol.samples)
        state = trainer.train(points, console, f"{config.method_name} on the {name}")
        per_seed: list[Result] = mixtures.evaluate(trainer, state, mixture)[0]["per_seed"]
        return per_seed

    measures = {
        "modes": (f"modes (of {len(mixture.centres)})", 1.0, 1),
        "high_quality": ("high quality, %", 100.0, 1),
        "reverse_kl": ("reverse KL", 1.0, 3),
    }
    return Task(mixtures.SHAPE, measures, configure, work, together=True)


def stacked(given: Any, data_seed: int, console: Console, stop: Stop) -> Task:
    """Stacked MNIST at its quick preset."""
    from psgjax.evaluation.fitting import for_data

    preset, samples = stacked_mnist.PRESETS["quick"], 26_000
    digits = _dataset(schema.override(Data(), given), console)
    data = stacked_digits.stacked(digits, preset.images, data_seed)
    classifier = for_data(digits, tell(console))
    assert classifier is not None, "MNIST has labels"

    def configure(row: str, method: Method, wider: int) -> Config:
        network = dataclasses.replace(preset.network, width=preset.network.width * wider)
        config = Config(method_name=row, method=method, network=network)
        return dataclasses.replace(config, steps=preset.epochs * config.steps_per_epoch(preset.images))

    def work(config: Config, folder: Path) -> list[Result] | None:
        evaluate = partial(stacked_digits.evaluate, folder, classifier, samples)
        return _of_one_seed(config, data, folder, console, stop, evaluate)

    measures = {"modes": (f"modes (of {stacked_digits.MODES:,})", 1.0, 0), "kl": ("KL", 1.0, 2)}
    return Task(_shape(data), measures, configure, work, together=False, images=_facts(data))


def digits(given: Any, console: Console, stop: Stop) -> Task:
    """MNIST at its quick preset, scored at the end."""
    from psgjax.runs.metrics import read_lines

    preset = mnist.PRESETS["quick"]
    data = _dataset(schema.override(preset.data, given), console)

    def configure(row: str, method: Method, wider: int) -> Config:
        network = dataclasses.replace(preset.network, width=preset.network.width * wider)
        config = Config(
            method_name=row, method=method, network=network, data=preset.data, evaluation_epochs=preset.epochs
        )
        return dataclasses.replace(config, steps=preset.epochs * config.steps_per_epoch(len(data.images)))

    def work(config: Config, folder: Path) -> list[Result] | None:
        def evaluate() -> Result:
            lines = read_lines(folder / "metrics.jsonl")
            accuracies = [line["held_out_accuracy"] for line in lines]  # after each epoch
            return {
                "seed": config.seed,
                **lines[-1]["evaluation"],
                "accuracy": accuracies[-1],
                "accuracies": accuracies,
            }

        return _of_one_seed(config, data, folder, console, stop, evaluate)

    measures = {
        "fcd": ("FCD", 1.0, 2),
        "coverage": ("coverage", 1.0, 3),
        "histogram_kl": ("class KL", 1.0, 3),
        "accuracy": ("accuracy", 1.0, 2),
    }
    return Task(_shape(data), measures, configure, work, together=False, images=_facts(data))


def _dataset(settings: Data, console: Console) -> Dataset:
    from psgjax.data import dataset as datasets

    return datasets.load(settings, progress=tell(console))


def _shape(data: Dataset) -> Shape:
    height, width, channels = data.images.shape[1:]
    return height, width, channels


def _facts(data: Dataset) -> dict[str, Any]:
    """What the images are, wherever they lie."""
    return {key: data.info[key] for key in ("name", "train_images", "held_out_images", "sha256")}


def _of_one_seed(
    config: Config, data: Dataset, folder: Path, console: Console, stop: Stop, evaluate: Callable[[], Result]
) -> list[Result] | None:
    """The result of a run that is finished, or what is said of one that diverged, which is a result, too; None if stopped."""
    from psgjax.training import loop

    try:
        finished = loop.train(config, data, folder, console=console, stop=stop).finished
    except loop.Diverged as error:
        return [{"seed": config.seed, "diverged": str(error)}]
    return [evaluate()] if finished else None


def tasks(
    protocol: mixtures.Protocol, steps: int, given: Any, console: Console, stop: Stop
) -> dict[str, Callable[[], Task]]:
    """By name, how each task is made ready: the data of those that are not asked for are not read.

    `given` is where digits come from, as the command line has it.
    """
    return {
        "ring": partial(plane, "ring", protocol, steps, console),
        "grid": partial(plane, "grid", protocol, steps, console),
        "stacked_mnist": partial(stacked, given, protocol.data_seed, console, stop),
        "mnist": partial(digits, given, console, stop),
    }


def settings(task: Task, protocol: mixtures.Protocol, config: Config) -> dict[str, Any]:
    """Everything that decides the result of a cell, as JSON has it."""
    seeds = [config.seed + i for i in range(protocol.seeds)] if task.together else [config.seed]
    drawn = {"points": protocol.points, "samples": protocol.samples} if task.together else {}
    images = {"images": task.images} if task.images else {}
    return {**command.settings(config), "seeds": seeds, "data_seed": protocol.data_seed, **drawn, **images}
