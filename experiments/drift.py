"""Does who draws what drift? Two generators on the grid of 25, with penalties and without, followed over training and seeds.

    python -m experiments.drift
    python -m experiments.drift --steps 10000 --every 500    # as docs/recipe.md has it

The linearisation (docs/recipe.md) pins the generators' mean and leaves how they share the data neutral. Here the step size is
constant, so that a drift does not end with a schedule. At each checkpoint a mode's share is that of the first generator among the
samples nearest to it. Specialisation is the mean over modes of |2 share - 1|: 0 where both draw all alike, 1 where each
mode has one generator. A mode has changed hands where most of its samples come from the other generator than before.

Writes OUT/cells/ROW.json, results.json, results.md and drift.png. Run again to go on.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from typing_extensions import Doc

from experiments import cells, command, mixtures, tables
from experiments.command import check_counts
from experiments.recipe import estimate
from experiments.recipe_rows import ROWS, configuration
from experiments.recipe_tasks import plane, settings
from experiments.tables import Table
from psgjax.config import Config, ConfigError
from psgjax.files import write_atomically
from psgjax.shell import tell

Shares = NDArray[np.float64]  # of the first generator: [seeds, checkpoints, modes]
MEASURES = {
    "specialisation in the end": lambda shares: np.abs(2 * shares[:, -1] - 1).mean(-1),
    "the same, half-way": lambda shares: np.abs(2 * shares[:, shares.shape[1] // 2] - 1).mean(-1),
    "modes that change hands per checkpoint, %": lambda shares: 100 * changed(shares[:, :-1], shares[:, 1:]).mean(-1),
    "in all of the second half, %": lambda shares: 100 * changed(shares[:, shares.shape[1] // 2], shares[:, -1]),
}


@dataclass(frozen=True)
class Options(mixtures.Protocol):
    """Train rows of the recipe with two generators on the grid, and follow which draws each mode."""

    rows: Annotated[tuple[str, ...], Doc("Rows with two generators, of " + ", ".join(ROWS) + ".")] = (
        "choice",
        "psg-ungated",
    )
    steps: Annotated[int, Doc("Generator updates.")] = 20_000
    every: Annotated[int, Doc("Updates from one checkpoint to the next.")] = 1000
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/drift")


def changed(before: Shares, after: Shares) -> Shares:
    """The share of modes that have changed hands: [..., modes] -> [...]."""
    return ((before > 0.5) != (after > 0.5)).mean(-1)


def shares(samples: NDArray[np.float32], centres: NDArray[np.float64]) -> Shares:
    """The first generator's share of the samples nearest to each mode: [seeds, 2, n, 2] -> [seeds, modes]; one half of none."""
    nearest = np.linalg.norm(samples[..., None, :] - centres, axis=-1).argmin(-1)
    counts = np.stack([(nearest == mode).sum(-1) for mode in range(len(centres))], -1)  # [seeds, 2, modes]
    total = counts.sum(1)
    return np.where(total > 0, counts[:, 0] / np.maximum(total, 1), 0.5)


def follow(options: Options, config: Config, console: Console, folder: Path) -> dict[str, Any]:
    """The result of a cell: the updates at which checkpoints were, and each seed's shares there, [checkpoints, modes]."""
    import jax

    mixture = mixtures.MIXTURES["grid"]
    points = mixtures.draw(mixture, options.points, jax.random.key(options.data_seed))
    trainer = mixtures.Trainer(config, options.seeds, options.points, options.samples)
    updates, found = [], []
    for done, state in trainer.checkpoints(points, console, config.method_name, options.every):
        updates.append(done)
        found.append(shares(trainer.sample(state)[0], mixture.centres))
    every_seed = np.stack(found, 1).round(3).tolist()
    per_seed = [{"seed": seed, "shares": own} for seed, own in zip(trainer.seeds, every_seed, strict=True)]
    return {"updates": updates, "per_seed": per_seed}


def picture(results: dict[str, dict[str, Any]]) -> bytes:
    """A PNG: specialisation over training, and how far shares have moved since half-way, one line per row."""
    import matplotlib
    from matplotlib.figure import Figure

    from psgjax.report.figures import PALETTE, STYLE
    from psgjax.report.intervals import half_width

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for (row, result), colour in zip(results.items(), PALETTE, strict=False):
            own, updates = of_seeds(result), np.array(result["updates"])
            half = own.shape[1] // 2
            moved = np.sqrt(((own[:, half:] - own[:, half : half + 1]) ** 2).mean(-1))
            drawn = (left, updates, np.abs(2 * own - 1).mean(-1)), (right, updates[half:] - updates[half], moved)
            for axes, x, values in drawn:
                mean, width = values.mean(0), half_width(values)
                axes.plot(x, mean, color=colour, label=row)
                axes.fill_between(x, mean - width, mean + width, color=colour, alpha=0.2, linewidth=0)
        left.set(xlabel="updates", title="specialisation: mean |2 share - 1|", ylim=(0, 1))
        right.set(xlabel="updates since half-way", title="root mean square change of a mode's share", ylim=(0, None))
        left.legend()
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def of_seeds(result: dict[str, Any]) -> Shares:
    """A cell's shares."""
    return np.array([seed["shares"] for seed in result["per_seed"]])


def run(options: Options, typed: str, console: Console) -> None:
    """Train and follow every row that is not done, then show and write.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the folder or its cells.
    """
    check_counts(steps=options.steps, every=options.every)
    out = options.out
    cells.check_out(out)
    from psgjax import environment

    environment.settle()
    environment.use_compilation_cache()
    task, each = plane("grid", options, options.steps, console), []
    for row in options.rows:
        config = configuration(row, task)
        if config.method.generators != 2:
            raise ConfigError(
                f"--rows {row} has {config.method.generators} generators; who draws what is followed of two."
            )
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, schedule="constant"))
        own = {**settings(task, options, config), "every": options.every}
        each.append(cells.Cell(row, own, partial(follow, options, config, console)))
    records = cells.do(out, each, typed, tell(console))
    assert records is not None, "a mixture is never stopped halfway"
    results = {row: records[row]["result"] for row in options.rows}
    lines = [
        [row, *(estimate(list(measure(of_seeds(result))), 1.0, 2) for measure in MEASURES.values())]
        for row, result in results.items()
    ]
    found = Table(
        f"Who draws what: {options.seeds} seeds, a checkpoint every {options.every:,} updates",
        ["row", *MEASURES],
        lines,
    )
    tables.show(console, found)
    tables.write(out, {**environment.provenance(), "command": typed, "cells": records}, [found])
    write_atomically(out / "drift.png", picture(results))
    tell(console)(f"results: {out}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("drift", Options, run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
