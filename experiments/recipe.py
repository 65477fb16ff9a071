"""What R1 and R2, the softmax choice, more generators, the gate and packing each do: one table, cell by cell.

    python -m experiments.recipe                                          # ring and grid, ten seeds, every row
    python -m experiments.recipe --steps 30000 --out runs/recipe-long     # as the long run of mixture2d
    python -m experiments.recipe --tasks stacked_mnist mnist --seeds 5 --rows sngan gan gan-r1r2 r3gan psg choice
    python -m experiments.recipe --tasks mnist --data.source idx --data.dir FOLDER    # digits from the four files of MNIST
    python -m experiments.recipe --tuned FILE                             # ring and grid, each row with its own step size
    python -m experiments.recipe --cells grid-choice-k4                   # that one again, and whether it is the same
    python -m experiments.recipe --show                                   # the tables of the cells that are done so far

`choice` is the softmax over K + 1 images without a gate, with R1 and R2 in every update; for K = 1 that is R3GAN's loss. Rows
that end in `-wide` have one generator and networks twice as wide, in `-batch4` one and four times the images in an update: more
generators must beat them, not the plain ones, for the column of operations counts what an update costs. Weights of penalties and
step sizes are the same in all rows unless --tuned gives each its own, which `python -m experiments.tuning` finds.

Writes OUT/cells/TASK-ROW.json as each cell is done (with images TASK-ROW-SEED.json, beside a run that can be resumed), then
results.json, results.md and, of MNIST, accuracy.png. Run again to go on.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from rich.console import Console
from typing_extensions import Doc

from experiments import cells, command, mixtures, tables
from experiments.command import check_counts
from experiments.recipe_rows import ROWS, configuration, read_settings
from experiments.recipe_tasks import Result, Shape, Task, settings, tasks
from experiments.tables import Table
from psgjax import schema
from psgjax.config import Config, ConfigError, DataOverrides
from psgjax.files import write_atomically
from psgjax.shell import Stop, tell

NOTE = (
    "± is half the 95 % interval of the mean over seeds, by Student's t. Operations are XLA's count for one update, of all the "
    "row's networks, in the cell of the last seed. Seconds are of the whole cell on the hardware that its file names, whatever "
    "else ran there: they compare rows roughly."
)


@dataclass(frozen=True)
class Options(mixtures.Protocol):
    """Train every row on every task, and compare what their samples cover."""

    tasks: Annotated[
        tuple[Literal["ring", "grid", "stacked_mnist", "mnist"], ...], Doc("Tasks, one after the other.")
    ] = ("ring", "grid")
    rows: Annotated[tuple[str, ...], Doc("Rows of the table, of " + ", ".join(ROWS) + ".")] = tuple(ROWS)
    steps: Annotated[int, Doc("Generator updates on ring and grid; images have their quick presets'.")] = 4000
    cells: Annotated[
        tuple[str, ...], Doc("Names of cells to do alone; one that is done is done again, from the beginning.")
    ] = ()
    show: Annotated[bool, Doc("Do no cell: write the tables of those that are done.")] = False
    tuned: Annotated[
        Path | None, Doc("What experiments.tuning wrote as tuned.json: each row has its own setting (ring and grid).")
    ] = None
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/recipe")
    data: DataOverrides = field(default_factory=DataOverrides)


def configured(options: Options, task: Task) -> dict[str, Config]:
    """The configuration of every row on a task, of the first seed; a row without a setting in --tuned takes its method's.

    Raises:
        ConfigError: For an unknown row, one without a setting, or a setting that cannot be used.
    """
    if options.tuned is None:
        return {name: configuration(name, task) for name in options.rows}
    if not task.together:
        raise ConfigError("--tuned has settings for ring and grid, not for images; give --tasks ring grid alone.")
    own = read_settings(options.tuned)
    found = {}
    for name in options.rows:
        method = ROWS[schema.known("row", name, tuple(ROWS))].method
        setting = own.get(name) or own[schema.known("tuned row", method, tuple(own))]
        found[name] = configuration(name, task, setting)
    return found


def operations(config: Config, shape: Shape) -> float | None:
    """How many XLA counts for one update."""
    import jax
    import jax.numpy as jnp

    from psgjax.method import state as states
    from psgjax.method.step import make_step

    state = states.abstract(states.make_init(config, shape))
    images = jax.ShapeDtypeStruct((config.method.discriminator_steps, config.batch_size, *shape), jnp.uint8)
    counted = jax.jit(make_step(config, shape)).lower(state, images).cost_analysis() or {}
    flops: float | None = counted.get("flops")
    return flops


def cells_of(options: Options, name: str, task: Task) -> dict[str, list[cells.Cell]]:
    """The cells of a task, by row: one with all seeds, or one for each."""

    def work(config: Config, folder: Path) -> Result | None:
        per_seed = task.work(config, folder)
        return None if per_seed is None else {"operations": operations(config, task.shape), "per_seed": per_seed}

    found: dict[str, list[cells.Cell]] = {}
    for row, first in configured(options, task).items():
        count = 1 if task.together else options.seeds
        for seed in range(options.seed, options.seed + count):
            config = dataclasses.replace(first, seed=seed)
            cell_name = f"{name}-{row}" if task.together else f"{name}-{row}-{seed}"
            cell = cells.Cell(cell_name, settings(task, options, config), partial(work, config))
            found.setdefault(row, []).append(cell)
    return found


def table(name: str, task: Task, of_rows: dict[str, list[cells.Cell]], records: dict[str, Any]) -> Table:
    """A task's table; a row without results has dashes."""
    header = ["row", *(shown for shown, _, _ in task.measures.values()), "seeds", "operations", "seconds"]
    rows = []
    for row, of_row in of_rows.items():
        done = [records[cell.name] for cell in of_row if cell.name in records]
        per_seed = [result for record in done for result in record["result"]["per_seed"]]
        figures = [
            estimate([result.get(key) for result in per_seed], factor, digits)
            for key, (_, factor, digits) in task.measures.items()
        ]
        counted = done[-1]["result"]["operations"] if done else None
        cost = f"{counted:.3g}" if counted else "–"
        seconds = f"{sum(record['seconds'] for record in done):,.0f}" if done else "–"
        rows.append([row, *figures, str(len(per_seed)), cost, seconds])
    return Table(name, header, rows)


def estimate(values: list[float | None], factor: float, digits: int) -> str:
    """A mean with half its 95 % interval, and how many seeds have no value."""
    from psgjax.report import intervals

    known = np.array([value for value in values if value is not None], float) * factor
    if not len(known):
        return "–"
    half = f" ± {float(intervals.half_width(known[:, None])[0]):.{digits}f}" if len(known) > 1 else ""
    text = f"{known.mean():.{digits}f}{half}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)} seeds)"


def accuracy_picture(of_rows: dict[str, list[cells.Cell]], records: dict[str, Any]) -> bytes | None:
    """A PNG: D's accuracy on held-out images after each epoch, one line per row, the mean over seeds; None without any."""
    import matplotlib
    from matplotlib.figure import Figure

    from psgjax.report.figures import PALETTE, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for index, (row, of_row) in enumerate(of_rows.items()):
            per_seed = [
                one for cell in of_row if cell.name in records for one in records[cell.name]["result"]["per_seed"]
            ]
            curves = [one["accuracies"] for one in per_seed if "accuracies" in one]
            if curves:
                style: dict[str, Any] = {
                    "color": PALETTE[index % len(PALETTE)],
                    "linestyle": "-" if index < len(PALETTE) else "--",
                }
                axes.plot(range(1, len(curves[0]) + 1), np.mean(curves, axis=0), label=row, **style)
        if not axes.lines:
            return None
        axes.set(xlabel="epoch", ylabel="share of tuples whose real image D chose", ylim=(0, 1))
        axes.set_title("held-out images, mean over seeds; chance: 1 of K + 1", fontsize=10)
        axes.legend(ncols=3)
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def run(options: Options, typed: str, console: Console) -> int:
    """Do every cell that is not done, then show and write the tables; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data, the folder or its cells.
    """
    check_counts(steps=options.steps)
    if not options.tasks or not options.rows:
        raise ConfigError("--tasks and --rows must each name at least one.")
    if options.show and options.cells:
        raise ConfigError(f"--cells {' '.join(options.cells)} with --show would do nothing; leave one of them out.")
    out, say, stop = options.out, tell(console), Stop()
    cells.check_out(out)
    from psgjax import environment

    environment.settle()
    environment.use_compilation_cache()
    known = tasks(options, options.steps, options.data, console, stop)
    ready = {name: known[name]() for name in options.tasks}
    of_tasks = {name: cells_of(options, name, task) for name, task in ready.items()}
    every = [cell for of_rows in of_tasks.values() for of_row in of_rows.values() for cell in of_row]
    records = cells.done(out, every) if options.show else cells.do(out, every, typed, say, options.cells)
    if records is None:
        return 128 + stop.signal
    each = [table(name, task, of_tasks[name], records) for name, task in ready.items()]
    for one in each:
        tables.show(console, one)
    console.print(NOTE, highlight=False)
    tables.write(out, {**environment.provenance(), "command": typed, "cells": records}, [*each, NOTE])
    if picture := accuracy_picture(of_tasks.get("mnist", {}), records):
        write_atomically(out / "accuracy.png", picture)
    say(f"results: {out}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("recipe", Options, run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
