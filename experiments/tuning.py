r"""Each row's own step size, beta1 and weight of penalties: the best of one declared grid, on seeds that no table reports.

    python -m experiments.tuning                                          # 48 points of eight rows
    python -m experiments.recipe --tuned runs/tuning/tuned.json           # ring and grid, each row with its own setting
    python -m experiments.tuning --rows choice --learning-rates 1e-3 --beta1s 0.5 --penalties 0.01 0.1 1 10 100 \
        --seed 0 --seeds 10 --out runs/gamma                              # what the weight of the penalties does

A row's setting is the point with the least mean reverse KL over the seeds, of those whose share of high-quality samples is at least
half of the row's best: without that a generator that scatters its samples would win, whose few good ones are spread evenly. A point
at which a seed has no figure (no sample of high quality, or samples that are not finite) loses to one at which more have.

Writes OUT/cells/MIXTURE-ROW-POINT.json as each point is done, then results.json, results.md, tuned.json for the recipe, and with
several weights of penalties penalties.png, what they do at each row's own step size and beta1. Run again to go on.
"""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from typing_extensions import Doc

from experiments import cells, command, mixtures, tables
from experiments.command import check_counts
from experiments.recipe import estimate
from experiments.recipe_rows import ROWS, Setting, configuration
from experiments.recipe_tasks import Result, Task, plane, settings
from experiments.tables import Table
from psgjax.config import Config, ConfigError
from psgjax.files import write_atomically
from psgjax.shell import tell

Points = dict[Setting, list[Result]]  # of each, one result per seed

RULE = (
    "A row's setting: of its points whose mean share of high-quality samples is at least half of the row's best, those at which "
    "the fewest seeds lack a reverse KL, and of these the one with the least mean. Penalties are "
    "factors on the weights of a row's penalties. ± is half the 95 % interval of the mean over seeds."
)


@dataclass(frozen=True)
class Options(mixtures.Protocol):
    """Train every row at every point of one grid of settings, and say which is each row's best."""

    rows: Annotated[tuple[str, ...], Doc("Rows of the recipe, of " + ", ".join(ROWS) + ".")] = (
        "gan",
        "sngan",
        "psg",
        "psg-ungated",
        "gan-r1r2",
        "r3gan",
        "choice",
        "stackelberg-r1r2",
    )
    mixture: Annotated[Literal["ring", "grid"], Doc("The mixture to train on.")] = "grid"
    learning_rates: Annotated[tuple[float, ...], Doc("Adam's step sizes, each falling linearly to 0.")] = (1e-3, 3e-3)
    beta1s: Annotated[tuple[float, ...], Doc("Adam's decays of the first moment.")] = (0.0, 0.5)
    penalties: Annotated[
        tuple[float, ...], Doc("Factors on the weights of a row's penalties, which are 1 for R1 and R2.")
    ] = (0.1, 1.0)
    seed: Annotated[int, Doc("The first seed: none that a table reports.")] = 1000
    seeds: Annotated[int, Doc("Seeds of each point, trained at once, from --seed on.")] = 3
    steps: Annotated[int, Doc("Generator updates.")] = 4000
    cells: Annotated[
        tuple[str, ...], Doc("Names of points to do alone; one that is done is done again, from the beginning.")
    ] = ()
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/tuning")


def grid(options: Options, task: Task) -> dict[str, dict[Setting, Config]]:
    """By row, the configuration at each of its points; a row without penalties has no weight to choose.

    Raises:
        ConfigError: For an unknown row, or a setting that cannot be used.
    """
    for name in ("rows", "learning_rates", "beta1s", "penalties"):
        if not getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')} names none; give at least one.")
    found = {}
    for row in options.rows:
        factors = options.penalties if configuration(row, task).method.regularisers else (None,)
        axes = itertools.product(options.learning_rates, options.beta1s, factors)
        found[row] = {point: configuration(row, task, point) for point in (Setting(*values) for values in axes)}
    return found


def cell_of(options: Options, task: Task, row: str, point: Setting, config: Config) -> cells.Cell:
    """The cell of a point, such as grid-choice-0.001-0.5-1."""

    def work(folder: Path) -> Result:
        return {"per_seed": task.work(config, folder)}

    name = "-".join([options.mixture, row, *(f"{value:g}" for value in point if value is not None)])
    return cells.Cell(name, settings(task, options, config), work)


def figures(results: list[Result], measure: str) -> NDArray[np.float64]:
    """That measure of the seeds that have it."""
    return np.array([result[measure] for result in results if result[measure] is not None], float)


def best(points: Points) -> Setting:
    """The setting that the rule chooses."""
    quality = {point: sum(figures(results, "high_quality")) / len(results) for point, results in points.items()}

    def order(point: Setting) -> tuple[int, float]:
        known = figures(points[point], "reverse_kl")
        return -len(known), float(known.mean()) if len(known) else np.inf

    return min((point for point in points if quality[point] >= max(quality.values()) / 2), key=order)


def table(title: str, task: Task, rows: dict[str, Points]) -> Table:
    """One row per point."""
    header = ["row", "step size", "beta1", "penalties", *(shown for shown, _, _ in task.measures.values()), "seeds"]
    lines = [
        [
            row,
            *("–" if value is None else f"{value:g}" for value in point),
            *(
                estimate([one[key] for one in results], factor, digits)
                for key, (_, factor, digits) in task.measures.items()
            ),
            str(len(results)),
        ]
        for row, points in rows.items()
        for point, results in points.items()
    ]
    return Table(title, header, lines)


def picture(options: Options, task: Task, rows: dict[str, Points], chosen: dict[str, Setting]) -> bytes:
    """A PNG: each measure over the factor on the penalties, one line per row, with the intervals of the means."""
    import matplotlib
    from matplotlib.figure import Figure

    from psgjax.report.figures import PALETTE, STYLE
    from psgjax.report.intervals import half_width

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        panels = figure.subplots(1, len(task.measures))
        for axes, (key, (shown, factor, _)) in zip(panels, task.measures.items(), strict=True):
            for index, (row, own) in enumerate(chosen.items()):
                line = {
                    point.penalty: factor * figures(results, key)
                    for point, results in sorted(rows[row].items())
                    if point[:2] == own[:2] and len(figures(results, key))
                }
                means, halves = [v.mean() for v in line.values()], [float(half_width(v)) for v in line.values()]
                style = {"marker": "o", "markersize": 4, "capsize": 3, "color": PALETTE[index % len(PALETTE)]}
                axes.errorbar(list(line), means, halves, label=row, **style)
            axes.set(xscale="log", xlabel="factor on the penalties", title=shown)
            axes.set_xticks(options.penalties, [f"{value:g}" for value in options.penalties])
            axes.minorticks_off()
        panels[0].legend(fontsize=8)
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def write(options: Options, task: Task, rows: dict[str, Points], record: dict[str, Any], console: Console) -> None:
    """Show and write the tables, the choice, and the picture of the penalties where there is more than one weight."""
    chosen = {row: best(points) for row, points in rows.items()}
    of_rows = table(
        f"{options.mixture}: each row's own", task, {row: {own: rows[row][own]} for row, own in chosen.items()}
    )
    tables.show(console, of_rows)
    console.print(RULE, highlight=False)
    tables.write(options.out, record, [of_rows, RULE, table("Every point", task, rows)])
    choice = {
        **{key: value for key, value in record.items() if key != "cells"},
        "rule": RULE,
        "rows": {row: own._asdict() for row, own in chosen.items()},
    }
    write_atomically(options.out / "tuned.json", tables.to_json(choice))
    penalised = {row: own for row, own in chosen.items() if own.penalty is not None}
    if len(options.penalties) > 1 and penalised:
        write_atomically(options.out / "penalties.png", picture(options, task, rows, penalised))


def run(options: Options, typed: str, console: Console) -> None:
    """Do every point that is not done, then choose, show and write.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the folder or its cells.
    """
    check_counts(steps=options.steps)
    cells.check_out(options.out)
    from psgjax import environment

    environment.settle()
    environment.use_compilation_cache()
    task = plane(options.mixture, options, options.steps, console)
    work = {
        (row, point): cell_of(options, task, row, point, config)
        for row, points in grid(options, task).items()
        for point, config in points.items()
    }
    records = cells.do(options.out, list(work.values()), typed, tell(console), options.cells)
    assert records is not None, "a mixture is never stopped halfway"
    rows: dict[str, Points] = {}
    for (row, point), cell in work.items():
        if cell.name in records:
            rows.setdefault(row, {})[point] = records[cell.name]["result"]["per_seed"]
    write(options, task, rows, {**environment.provenance(), "command": typed, "cells": records}, console)
    tell(console)(f"results: {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("tuning", Options, run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
