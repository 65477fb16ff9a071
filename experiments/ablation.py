"""Train every cell of the grid K x spectral normalisation x D's loss x gate, and put them in one table.

    python -m experiments.ablation                          # 36 cells on the ring of 8 Gaussians: 4 minutes on two CPU cores
    python -m experiments.ablation --mixture grid --out runs/ablation-grid                    # the grid of 25: as long
    python -m experiments.ablation --task mnist --out runs/ablation-mnist                     # 36 small runs: 20 minutes
    python -m experiments.ablation --losses cross-entropy mgan --out runs/ablation-mgan       # and which are impossible, and why

On the ring, expect more generators to find more modes, the gate to cost some of them where D is not normalised, and runs with
spectral normalisation and without a gate to fail for some seeds. Three seeds a cell show no more than that.

Writes runs/ablation/: cells/NAME.json as each cell is done, then results.json and results.md. Run again to go on: a cell that is
done is not done again, and one that was done with other settings is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from experiments import mixtures
from psgjax import parts, schema
from psgjax.config import (
    METHODS,
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
from psgjax.shell import Stop, run_command, tell, terminal

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
        Literal["mixture", "mnist"], Doc("A mixture of Gaussians, many seeds at once; or MNIST, one seed a cell.")
    ] = "mixture"
    mixture: Annotated[Literal["ring", "grid"], Doc("The mixture: a ring of 8 or a grid of 25.")] = "ring"
    generators: Annotated[tuple[int, ...], Doc("Numbers of generators K.")] = (1, 2, 3)
    spectral_norm: Annotated[tuple[Literal["no", "yes"], ...], Doc("With or without spectral normalisation of D.")] = (
        "no",
        "yes",
    )
    losses: Annotated[
        tuple[str, ...],
        Doc(
            f"D's losses: softmax is the choice among the tuple, all others ({', '.join(parts.LOSSES)}) judge each image."
        ),
    ] = ("cross-entropy", "softmax", "hinge")
    gates: Annotated[tuple[str, ...], Doc(f"Where Algorithm 1 decides: {parts.described(parts.GATES)}.")] = (
        "none",
        "triplet",
    )
    seeds: Annotated[int, Doc("Seeds of a cell on a mixture, trained at once, from --seed on; MNIST has one.")] = 3
    steps: Annotated[int | None, Doc("Generator updates of each cell.")] = None
    epochs: Annotated[int | None, Doc("Passes over the training images, in place of steps (MNIST only).")] = None
    batch_size: Annotated[int, Doc("Real images in an update, and as many from each generator.")] = 64
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/ablation")
    data: DataOverrides = field(default_factory=DataOverrides)
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: OptimizerOverrides = field(default_factory=OptimizerOverrides)


@dataclass(frozen=True)
class Cell:
    """A point of the grid: its configuration, or why there is none. Its name is that of its file: k2-sn-softmax-triplet."""

    name: str
    config: Config | None
    reason: str | None = None

    @property
    def method_name(self) -> str:
        """The name that this point has among the methods, if it has one."""
        method = self.config.method if self.config else None
        return next((name for name, known in METHODS.items() if known == method), "")


def configure(options: Options) -> list[Cell]:
    """The cells in the order of the axes; on MNIST `steps` is 1 where epochs are asked for, until the images are read.

    Raises:
        ConfigError: For a setting that no cell can be run with.
    """
    task = TASKS[options.task]
    network = schema.override(task["network"], options.network)
    optimizer = schema.override(task["optimizer"], options.optimizer)
    data = schema.override(task["data"], options.data)
    mixtures.check_counts(generators=min(options.generators, default=1))
    if options.task == "mixture":
        mixtures.check_network(network)
        if options.epochs is not None:
            raise ConfigError(
                f"--epochs {options.epochs} with --task mixture: points are drawn, not passed over; use --steps."
            )
    if options.epochs is not None:
        mixtures.check_counts(epochs=options.epochs)
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
    cells = []
    of_losses = losses()
    for name in options.losses:
        schema.known("--losses", name, tuple(of_losses))
    for name in options.gates:
        schema.known("--gates", name, tuple(parts.GATES))
    axes = itertools.product(options.generators, options.spectral_norm, options.losses, options.gates)
    for generators, spectral_norm, loss, gate in dict.fromkeys(axes):
        name = f"k{generators}-{'sn' if spectral_norm == 'yes' else 'plain'}-{loss}-{gate}"
        try:
            method = Method(generators=generators, spectral_norm=spectral_norm == "yes", gate=gate, **of_losses[loss])
        except ConfigError as error:
            cells.append(Cell(name, None, str(error)))
        else:
            cells.append(Cell(name, dataclasses.replace(shared, method_name=name, method=method)))
    return cells


def complete(options: Options, cell: Cell, data: Dataset) -> Cell:
    """The cell on MNIST with its number of steps."""
    if cell.config is None:
        return cell
    epochs = TASKS["mnist"]["epochs"] if options.epochs is None else options.epochs
    per_epoch = cell.config.steps_per_epoch(len(data.images))
    steps = epochs * per_epoch if options.steps is None else options.steps
    return dataclasses.replace(cell, config=dataclasses.replace(cell.config, steps=steps))


def settings(options: Options, config: Config, data: Dataset | None) -> dict[str, Any]:
    """Everything that decides a cell's result, as JSON has it: of the images on MNIST, what they are and not where they lie."""
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


def read_cell(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """A cell that was done before with these settings; None where it was not done.

    Raises:
        ConfigError: If the file cannot be read, or the settings were others.
    """
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        different, _ = schema.differences(record["settings"], wanted), record["result"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is damaged; delete it, and the cell will be done again.") from None
    if different:
        raise ConfigError(
            f"{path} was done with other settings: {'; '.join(different)}. Choose another --out, the same settings, "
            "or delete the file to have the cell done again."
        )
    return record


def check_out(out: Path) -> None:
    """Refuse a folder in which something else than a grid would be overwritten. Writes nothing.

    Raises:
        ConfigError: With what is in the way.
    """
    from psgjax.runs.identity import check_free

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must name a folder.")
    if not (out / "cells").is_dir():
        check_free(out, ("results.json", "results.md", "runs"))


Work = Callable[[str, Config], dict[str, Any] | None]


def on_mixture(options: Options, console: Console) -> Work:
    """What does a cell on a mixture: the figures of `mixtures`."""
    import jax

    mixture = mixtures.MIXTURES[options.mixture]
    points = mixtures.draw(mixture, options.points, jax.random.key(options.data_seed))

    def work(name: str, config: Config) -> dict[str, Any]:
        trainer = mixtures.Trainer(config, options.seeds, options.points, options.samples)
        state = trainer.train(points, console, name)
        return mixtures.judge(trainer, state, mixture)[0]

    return work


def on_mnist(options: Options, console: Console, data: Dataset, stop: Stop) -> Work:
    """What does a cell on MNIST: a run in runs/NAME, and what `convergence.summarise` says of it; None if it was stopped."""
    from psgjax.report import convergence
    from psgjax.runs.metrics import read_lines
    from psgjax.training import loop

    def work(name: str, config: Config) -> dict[str, Any] | None:
        folder = options.out / "runs" / name
        try:
            outcome = loop.train(config, data, folder, console=console, stop=stop)
        except loop.Diverged as error:  # one cell's end is not the grid's
            return {"diverged": str(error)}
        return convergence.summarise(config.method, read_lines(folder / "metrics.jsonl")) if outcome.finished else None

    return work


def table(options: Options, cells: list[Cell], results: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows of the one table; a cell without figures has dashes."""
    header = ["cell", "named"]
    measured: Callable[[dict[str, Any]], list[str]]
    if options.task == "mixture":
        total = len(mixtures.MIXTURES[options.mixture].centres)
        measures = [f"modes (of {total})", "high quality, %", "reverse KL"]
        title = f"the grid on the {options.mixture}, {options.seeds} seeds"

        def measured(result: dict[str, Any]) -> list[str]:
            return mixtures.cells(result, options.seeds)

    else:
        measures = [
            "D's loss",
            "G's losses",
            "gap",
            "normalised gap",
            "accuracy",
            "above chance",
            "loss settled in epoch",
        ]
        title = f"the grid on MNIST, seed {options.seed}"

        def measured(result: dict[str, Any]) -> list[str]:
            names = ("loss_gap", "normalised_loss_gap", "accuracy", "chance_corrected_accuracy")
            losses = (result["loss"]["discriminator"], result["loss"]["generators"])
            return [_number(value) for value in (*losses, *map(result.get, names), result["convergence_epoch"]["loss"])]

    rows = []
    for cell in cells:
        result = results.get(cell.name, {}).get("result")
        word = "impossible" if cell.reason else "diverged"
        figures = [word, *["–"] * (len(measures) - 1)] if result is None or "diverged" in result else measured(result)
        rows.append([cell.name, cell.method_name, *figures])
    return title, header + measures, rows


def _number(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_number, value))
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def reasons(cells: list[Cell]) -> list[str]:
    """Why cells are impossible: each reason once, with the cells that it concerns."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell.reason:
            found.setdefault(cell.reason, []).append(cell.name)
    return [f"impossible: {', '.join(names)}: {reason}" for reason, names in found.items()]


def run(options: Options, command: str, console: Console, stop: Stop) -> int:
    """Do every cell that is not done, then show and write the table; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data, the folder or its cells.
    """
    cells = configure(options)
    options = dataclasses.replace(options, out=schema.local_path("--out", options.out))
    check_out(options.out)
    from psgjax import environment
    from psgjax.data import dataset as datasets
    from psgjax.files import write_atomically
    from psgjax.runs import identity

    say = tell(console)
    environment.settle()
    environment.use_compilation_cache()
    data: Dataset | None = None
    if options.task == "mnist":
        asked = next((cell.config.data for cell in cells if cell.config), Data())
        data = datasets.load(identity.find_data(asked, sorted(options.out.glob("runs/*"))), progress=say)
        cells = [complete(options, cell, data) for cell in cells]
        work = on_mnist(options, console, data, stop)
    else:
        work = on_mixture(options, console)
    possible = [(cell.name, cell.config) for cell in cells if cell.config]
    results: dict[str, Any] = {}
    for name, config in possible:
        record = read_cell(options.out / "cells" / f"{name}.json", settings(options, config, data))
        if record is not None:
            results[name] = record
    if results:
        say(f"{len(results)} of {len(possible)} cells are done already")
    (options.out / "cells").mkdir(parents=True, exist_ok=True)
    for number, (name, config) in enumerate(possible, 1):
        if name in results:
            continue
        say(f"cell {number} of {len(possible)}: {name}")
        provenance, started = {**environment.provenance(), "command": command}, time.monotonic()
        result = work(name, config)
        if result is None:
            say(f"stopped in {name}; run the same command again to go on")
            return 128 + stop.signal
        seconds = round(time.monotonic() - started, 1)
        record = {"settings": settings(options, config, data), **provenance, "seconds": seconds, "result": result}
        results[name] = record
        text = mixtures.to_json(record)
        write_atomically(options.out / "cells" / f"{name}.json", text)

    one, notes = table(options, cells, results), reasons(cells)
    mixtures.show_table(console, *one)
    for note in notes:
        say(note)
    ordered = {cell.name: results.get(cell.name, {"impossible": cell.reason}) for cell in cells}
    whole = {**environment.provenance(), "command": command, "cells": ordered}
    text = "\n".join([f"`{command}`\n", mixtures.markdown(*one), *(f"{note}\n" for note in notes)])
    write_atomically(options.out / "results.md", text)
    write_atomically(options.out / "results.json", mixtures.to_json(whole))
    say(f"results: {options.out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments

    def work() -> int:
        options = tyro.cli(Options, args=given, prog="python -m experiments.ablation", description=__doc__)
        return run(options, shlex.join(["python", "-m", "experiments.ablation", *given]), terminal(), Stop())

    return run_command(work, "stopped; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
