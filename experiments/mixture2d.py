"""Count the modes of two Gaussian mixtures that each method finds, over ten seeds trained at once.

    python -m experiments.mixture2d                                                # under two minutes on two CPU cores
    python -m experiments.mixture2d --steps 30000 --out runs/mixture2d-long        # under ten minutes

The mixtures and the measures are those of VEEGAN and PacGAN: a ring of 8 and a grid of 25 Gaussians, 2,500 samples, a sample
of high quality within three standard deviations of its mode, a mode captured by at least one of them. Networks, batches and
the number of updates are far smaller than theirs, to fit the time, and the same for all methods. So is the learning rate,
0.001 falling linearly to 0: of 0.001, 0.002 and 0.003 the one with which gan, sngan and psg together found the most modes.

Expect stackelberg, mad-gan and mgan to find all modes of the ring, gan most, psg about 6.4, and sngan to fail for some seeds.
On the grid, 16 to 21 modes and few samples of high quality: it needs the longer run. results/mixture2d.md has the tables.

Writes runs/mixture2d/: results.json (every figure of every seed), results.md (the tables) and samples.png (those of the first
seed, each generator in its own colour).
"""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from typing_extensions import Doc

from experiments.mixtures import (
    MEASURES,
    MIXTURES,
    Protocol,
    Trainer,
    cells,
    check_network,
    draw,
    judge,
    markdown,
    mean,
    measure,
    show,
    show_table,
    to_json,
)
from psgjax import config as configuration
from psgjax import schema
from psgjax.config import Config, ConfigError, MethodOverrides, Network, Optimizer
from psgjax.evaluation.modes import HIGH_QUALITY_DEVIATIONS
from psgjax.shell import run_command, tell, terminal

NOTE = (
    "± is the standard deviation over seeds. Samples come from the mixture of generators, each with probability 1/K. "
    "Published figures (Lin et al. 2018) are ten runs of 400,000 updates with batches of 100, a generator of 400 and a "
    "maxout discriminator of 5 x 200 units a layer: another protocol, for orientation only. Where a mean is of some of the "
    "seeds, the others have no such figure: no sample of high quality (reverse KL), or samples that are not finite."
)


@dataclass(frozen=True)
class Options(Protocol):
    """Train each method on each mixture, for many seeds at once, and compare what they cover."""

    methods: Annotated[tuple[str, ...], Doc("Methods, of " + ", ".join(configuration.METHODS) + ".")] = (
        "gan",
        "sngan",
        "psg",
        "stackelberg",
        "mad-gan",
        "mgan",
    )
    mixtures: Annotated[tuple[Literal["ring", "grid"], ...], Doc("Mixtures to train on.")] = ("ring", "grid")
    steps: Annotated[int, Doc("Generator updates.")] = 4000
    batch_size: Annotated[int, Doc("Real points in an update, and as many from each generator.")] = 64
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/mixture2d")
    network: Network = field(default_factory=lambda: Network("mlp", width=64, latent_size=2))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-3, schedule="linear"))
    method: MethodOverrides = field(default_factory=MethodOverrides)


def configure(options: Options) -> dict[str, Config]:
    """The configuration of each method, of the first seed.

    Raises:
        ConfigError: For an unknown method, or a setting that cannot be used.
    """
    check_network(options.network)
    if not options.methods or not options.mixtures:
        raise ConfigError("--methods and --mixtures must each name at least one.")
    configs = {
        name: Config(
            method_name=name,
            method=schema.override(configuration.named_method(name), options.method),
            network=options.network,
            optimizer=options.optimizer,
            batch_size=options.batch_size,
            steps=options.steps,
            seed=options.seed,
        )
        for name in options.methods
    }
    for config in configs.values():
        config.steps_per_epoch(options.points)  # refuses batches larger than the set
    return configs


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than the results of this command, which are replaced. Writes nothing.

    Raises:
        ConfigError: With what is in the way.
    """
    from psgjax.runs.identity import check_free

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must name a folder.")
    if not (out / "results.json").is_file():
        check_free(out, ("results.md", "samples.png"))


def table(name: str, results: dict[str, Any], seeds: int) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows of a mixture's table: the methods, then real points and the published figures."""
    total = len(MIXTURES[name].centres)
    header = ["method", f"modes (of {total})", "high quality, %", "reverse KL", "modes of each generator"]
    rows = [
        [
            method,
            *cells(result, seeds),
            "; ".join(show(own["modes"], seeds) for own in result["generators"]),
        ]
        for method, result in results["methods"].items()
    ]
    real = {key: mean([results["real"][key]]) for key in MEASURES}
    rows.append(["real points", *cells(real, 1), "–"])
    rows += [[f"{method} (published)", modes, "–", "–", "–"] for method, modes in MIXTURES[name].published.items()]
    return f"{name}: {total} Gaussians", header, rows


def picture(samples: dict[str, dict[str, NDArray[np.float32]]], results: dict[str, Any]) -> bytes:
    """A PNG: a row a mixture, a column a method, a colour a generator; the true modes as light rings."""
    import matplotlib
    from matplotlib.figure import Figure

    from psgjax.report.figures import PALETTE, STYLE

    columns = max(len(methods) for methods in samples.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns, 2.7 * len(samples)), layout="constrained")
        panels = figure.subplots(len(samples), columns, squeeze=False)
        for row, (name, methods) in zip(panels, samples.items(), strict=True):
            mixture = MIXTURES[name]
            reach = 1.35 * float(np.abs(mixture.centres).max())
            for axes, (method, generators) in zip(row, methods.items(), strict=True):
                axes.scatter(*mixture.centres.T, s=90, facecolors="none", edgecolors="#BBBBBB", linewidths=0.8)
                for index, points in enumerate(generators):
                    colour = PALETTE[index % len(PALETTE)]
                    axes.scatter(*points.T, s=1.5, color=colour, alpha=0.35, linewidths=0)
                found = results[name]["methods"][method]["per_seed"][0]["modes"]
                axes.set_title(f"{method}: {'diverged' if found is None else f'{found} of {len(mixture.centres)}'}")
                axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
                axes.grid(False)
        figure.supxlabel("first seed; title: modes captured; colour: generator; light rings: true modes", fontsize=9)
        image = io.BytesIO()
        figure.savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


def settings(config: Config) -> dict[str, Any]:
    """The configuration as JSON has it, without what belongs to images on disk."""
    values: dict[str, Any] = json.loads(schema.to_json(config))
    return {key: value for key, value in values.items() if key not in ("data", "seed")}


def run(options: Options, command: str, console: Console) -> None:
    """Train, judge, show and write everything.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options or the folder.
    """
    configs = configure(options)
    options = dataclasses.replace(options, out=schema.local_path("--out", options.out))
    check_out(options.out)
    import jax

    from psgjax import environment
    from psgjax.files import write_atomically

    environment.settle()
    environment.use_compilation_cache()
    provenance, started = environment.provenance(), time.monotonic()
    key = jax.random.key(options.data_seed)
    data = {name: draw(MIXTURES[name], options.points, key) for name in options.mixtures}
    real = {name: data[name][: options.samples].reshape(-1, 2) for name in data}
    results: dict[str, Any] = {
        name: {"real": measure(np.asarray(real[name]), MIXTURES[name]), "methods": {}} for name in data
    }
    samples: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in data}
    for method, config in configs.items():
        trainer = Trainer(config, options.seeds, options.points, options.samples)
        for name, points in data.items():
            began = time.monotonic()
            state = trainer.train(points, console, f"{method} on the {name}")
            result, samples[name][method] = judge(trainer, state, MIXTURES[name])
            results[name]["methods"][method] = {"seconds": round(time.monotonic() - began, 1), **result}

    tables = [table(name, results[name], options.seeds) for name in data]
    for one in tables:
        show_table(console, *one)
    console.print(NOTE, highlight=False)
    record = {
        **provenance,
        "command": command,
        "seconds": round(time.monotonic() - started, 1),
        "protocol": {
            "seeds": [options.seed, options.seed + options.seeds - 1],
            "data_seed": options.data_seed,
            "points": options.points,
            "samples": options.samples,
            "high_quality_deviations": HIGH_QUALITY_DEVIATIONS,
            "mixtures": {
                name: {
                    "centres": (MIXTURES[name].centres.round(6) + 0.0).tolist(),
                    "deviation": MIXTURES[name].deviation,
                }
                for name in data
            },
        },
        "settings": {method: settings(config) for method, config in configs.items()},
        "results": results,
        "published_modes": {name: MIXTURES[name].published for name in data},
        "note": NOTE,
    }
    some = next(iter(configs.values()))
    told = (
        f"{options.seeds} seeds, {options.steps:,} updates of {options.batch_size} points ({options.points:,} in all), networks of "
        f"two hidden layers of {some.network.width}, Adam {some.optimizer.learning_rate:g} ({some.optimizer.schedule}); "
        f"{options.samples:,} samples."
    )
    text = "\n".join([f"`{command}`\n\n{told}\n", *(markdown(*one) for one in tables), f"{NOTE}\n"])
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "results.md", text)
    write_atomically(options.out / "samples.png", picture(samples, results))
    write_atomically(options.out / "results.json", to_json(record))
    tell(console)(f"results: {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments

    def work() -> None:
        options = tyro.cli(Options, args=given, prog="python -m experiments.mixture2d", description=__doc__)
        run(options, shlex.join(["python", "-m", "experiments.mixture2d", *given]), terminal())

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
