"""Train every cell of the grid K x spectral normalisation x D's loss x gate, and put them in one table.

    python -m experiments.ablation                          # 36 cells on the ring of 8 Gaussians: 4 minutes on two CPU cores
    python -m experiments.ablation --mixture grid --out runs/ablation-grid                    # the grid of 25: as long
    python -m experiments.ablation --task mnist --out runs/ablation-mnist                     # 36 small runs: 20 minutes
    python -m experiments.ablation --losses cross-entropy mgan --out runs/ablation-mgan       # and which are impossible, and why

On the ring, expect more generators to find more modes, the gate to cost some of them where D is not normalised, and runs with
spectral normalisation and without a gate to fail for some seeds. Three seeds per cell show no more than that.

Writes runs/ablation/: cells/NAME.json as each cell is done, then results.json and results.md. Run again to go on: a cell that is
done is not done again, unless --cells names it, and one that was done with other settings is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from experiments import cells, command, grid, mixtures, tables
from experiments.grid import Options, Point
from experiments.tables import Table
from psgjax.config import Config, Data
from psgjax.shell import Stop, tell

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset

Work = Callable[[Config, Path], dict[str, Any] | None]  # given a point's configuration and its cell's folder


def on_mixture(options: Options, console: Console) -> Work:
    """How a cell on a mixture is done: its result has the figures of `mixtures`."""
    import jax

    mixture = mixtures.MIXTURES[options.mixture]
    points = mixtures.draw(mixture, options.points, jax.random.key(options.data_seed))

    def work(config: Config, folder: Path) -> dict[str, Any]:
        trainer = mixtures.Trainer(config, options.seeds, options.points, options.samples)
        state = trainer.train(points, console, config.method_name)
        return mixtures.evaluate(trainer, state, mixture)[0]

    return work


def on_mnist(console: Console, data: Dataset, stop: Stop) -> Work:
    """How a cell on MNIST is done: a run in its folder, summarised by `convergence.summarise`; None if it was stopped."""
    from psgjax.report import convergence
    from psgjax.runs.metrics import read_lines
    from psgjax.training import loop

    def work(config: Config, folder: Path) -> dict[str, Any] | None:
        try:
            outcome = loop.train(config, data, folder, console=console, stop=stop)
        except loop.Diverged as error:  # one cell's end is not the grid's
            return {"diverged": str(error)}
        return convergence.summarise(config.method, read_lines(folder / "metrics.jsonl")) if outcome.finished else None

    return work


def table(options: Options, points: list[Point], records: dict[str, Any]) -> Table:
    """The table of all cells; one without figures has dashes."""
    if options.task == "mixture":
        total = len(mixtures.MIXTURES[options.mixture].centres)
        measures = [f"modes (of {total})", "high quality, %", "reverse KL"]
        title = f"the grid on the {options.mixture}, {options.seeds} seeds"
        figures: Callable[[dict[str, Any]], list[str]] = partial(mixtures.figures, seeds=options.seeds)
    else:
        measures = ["D's loss", "G's losses", "gap", "normalised gap", "accuracy", "above chance"]
        measures.append("loss settled in epoch")
        title = f"the grid on MNIST, seed {options.seed}"
        figures = _figures_on_mnist
    rows = []
    for point in points:
        result = records.get(point.name, {}).get("result")
        without = "impossible" if point.reason else "not done" if result is None else "diverged"
        measured = figures(result) if result and "diverged" not in result else [without] + ["–"] * (len(measures) - 1)
        rows.append([point.name, point.method_name, *measured])
    return Table(title, ["cell", "named", *measures], rows)


def _figures_on_mnist(result: dict[str, Any]) -> list[str]:
    names = ("loss_gap", "normalised_loss_gap", "accuracy", "chance_corrected_accuracy")
    losses = (result["loss"]["discriminator"], result["loss"]["generators"])
    return [_number(value) for value in (*losses, *map(result.get, names), result["convergence_epoch"]["loss"])]


def _number(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_number, value))
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def reasons(points: list[Point]) -> list[str]:
    """Why points are impossible: each reason once, with the points that it concerns."""
    found: dict[str, list[str]] = {}
    for point in points:
        if point.reason:
            found.setdefault(point.reason, []).append(point.name)
    return [f"impossible: {', '.join(names)}: {reason}" for reason, names in found.items()]


def run(options: Options, typed: str, console: Console) -> int:
    """Do every cell that is not done, then show and write the table; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data, the folder or its cells.
    """
    points = grid.configure(options)
    out, say, stop = options.out, tell(console), Stop()
    cells.check_out(out)
    from psgjax import environment
    from psgjax.data import dataset as datasets
    from psgjax.runs import identity

    environment.settle()
    environment.use_compilation_cache()
    data: Dataset | None = None
    if options.task == "mnist":
        asked = next((point.config.data for point in points if point.config), Data())
        data = datasets.load(identity.find_data(asked, sorted(out.glob("runs/*"))), progress=say)
        points = [grid.complete(options, point, data) for point in points]
        work = on_mnist(console, data, stop)
    else:
        work = on_mixture(options, console)
    possible = [
        cells.Cell(point.name, grid.settings(options, point.config, data), partial(work, point.config))
        for point in points
        if point.config
    ]
    records = cells.do(out, possible, typed, say, options.cells)
    if records is None:
        return 128 + stop.signal
    one, notes = table(options, points, records), reasons(points)
    tables.show(console, one)
    for note in notes:
        say(note)
    ordered = {
        point.name: {"impossible": point.reason} if point.reason else records.get(point.name, {}) for point in points
    }
    tables.write(out, {**environment.provenance(), "command": typed, "cells": ordered}, [one, *notes])
    say(f"results: {out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("ablation", Options, run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
