"""Count the modes of two Gaussian mixtures that each method finds, over ten seeds trained at once.

    python -m experiments.mixture2d                                                # under two minutes on two CPU cores
    python -m experiments.mixture2d --steps 30000 --out runs/mixture2d-long        # under ten minutes
    python -m experiments.mixture2d --preset pacgan --methods choice --mixtures grid --out runs/mixture2d-pacgan   # two hours

The mixtures and the measures are those of VEEGAN and PacGAN: a ring of 8 and a grid of 25 Gaussians, 2,500 samples, a sample
of high quality within three standard deviations of its mode, a mode captured by at least one of them. Networks, batches and
the number of updates are far smaller than theirs, to fit the time, and the same for all methods. So is the learning rate,
0.001 falling linearly to 0: of 0.001, 0.002 and 0.003 the one with which gan, sngan and psg together found the most modes.

Expect stackelberg and mgan to find all modes of the ring, mad-gan, psg and gan 6 or 7 on average, and sngan to fail for some seeds.
On the grid, 14 to 21 modes and few samples of high quality: it needs the longer run. results/mixture2d.md has the tables.

--preset pacgan has the published sizes, as in the code of Lin et al. 2018: G four hidden layers of 400 with batch norm and ReLU,
D three of 200 maxout units of five sums, z of 2, batches of 100, Adam with 0.0001 and 0.8. Of their 400,000 updates on 100,000
points it makes 40,000 on 25,000 (--steps, --points): as many as two idle cores make in about two hours for ten seeds of choice on
one mixture (gan: one). results/mixture2d-pacgan has five seeds after 10,000.

Writes runs/mixture2d/: results.json (every figure of every seed), results.md (the tables) and samples.png (those of the first
seed, each generator in its own colour).
"""

from __future__ import annotations

import io
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from typing_extensions import Doc

from experiments import command, tables
from experiments.mixtures import MEASURES, MIXTURES, Protocol, Trainer, check_network, draw, evaluate, figures, measure
from experiments.tables import Table, mean, show_mean
from psgjax import schema, switches
from psgjax.config import (
    Config,
    ConfigError,
    MethodOverrides,
    Network,
    NetworkOverrides,
    Optimizer,
    OptimizerOverrides,
)
from psgjax.evaluation.modes import HIGH_QUALITY_DEVIATIONS
from psgjax.schema import Listed
from psgjax.shell import tell

NOTE = (
    "± is the standard deviation over seeds. Samples come from the mixture of generators, each with probability 1/K. "
    "Published figures (Lin et al. 2018) are ten runs of 400,000 updates with batches of 100, a generator of 400 and a "
    "maxout discriminator of 5 x 200 units a layer: another protocol, for orientation only. Where a mean is of some of the "
    "seeds, the others have no such figure: no sample of high quality (reverse KL), or samples that are not finite."
)


@dataclass(frozen=True)
class Preset:
    """What a preset sets where the command line does not."""

    methods: tuple[str, ...]
    steps: int
    batch_size: int
    network: Network
    optimizer: Optimizer


PRESETS = {
    "quick": Preset(
        methods=("gan", "sngan", "psg", "stackelberg", "mad-gan", "mgan"),
        steps=4000,
        batch_size=64,
        network=Network("mlp", width=64, latent_size=2),
        optimizer=Optimizer(learning_rate=1e-3, schedule="linear"),
    ),
    "pacgan": Preset(
        methods=("choice", "r3gan", "psg", "gan"),
        steps=40_000,
        batch_size=100,
        network=Network("maxout", width=200, latent_size=2),
        optimizer=Optimizer(learning_rate=1e-4, beta1=0.8),
    ),
}


@dataclass(frozen=True)
class Options(Protocol):
    """Train each method on each mixture, many seeds at once. An option shown as None takes the preset's or the method's value."""

    preset: Annotated[
        Literal["quick", "pacgan"],
        Doc("quick: small networks, six methods; pacgan: the networks and batches of Lin et al. 2018, four methods."),
    ] = "quick"
    methods: Annotated[tuple[str, ...] | None, Listed("Methods, of {}.", partial(", ".join, switches.METHODS))] = None
    mixtures: Annotated[tuple[Literal["ring", "grid"], ...], Doc("Mixtures to train on.")] = ("ring", "grid")
    steps: Annotated[int | None, Doc("Generator updates.")] = None
    batch_size: Annotated[int | None, Doc("Real points per update, and generated ones per generator.")] = None
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/mixture2d")
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: OptimizerOverrides = field(default_factory=OptimizerOverrides)
    method: MethodOverrides = field(default_factory=MethodOverrides)


def configure(options: Options) -> dict[str, Config]:
    """The configuration of each method, of the first seed.

    Raises:
        ConfigError: For an unknown method, or a setting that cannot be used.
    """
    preset = PRESETS[options.preset]
    methods = preset.methods if options.methods is None else options.methods
    network = schema.override(preset.network, options.network)
    check_network(network)
    if not methods or not options.mixtures:
        raise ConfigError("--methods and --mixtures must each name at least one.")
    configs = {
        name: Config(
            method_name=name,
            method=schema.override(switches.named_method(name), options.method),
            network=network,
            optimizer=schema.override(preset.optimizer, options.optimizer),
            batch_size=preset.batch_size if options.batch_size is None else options.batch_size,
            steps=preset.steps if options.steps is None else options.steps,
            seed=options.seed,
        )
        for name in methods
    }
    for config in configs.values():
        config.steps_per_epoch(options.points)  # refuses batches larger than the set
    return configs


def table(name: str, results: dict[str, Any], seeds: int) -> Table:
    """A mixture's table: one row per method, then real points and the published figures."""
    total = len(MIXTURES[name].centres)
    header = ["method", f"modes (of {total})", "high quality, %", "reverse KL", "modes of each generator"]
    rows = [
        [
            method,
            *figures(result, seeds),
            "; ".join(show_mean(own["modes"], seeds) for own in result["generators"]),
        ]
        for method, result in results["methods"].items()
    ]
    real = {key: mean([results["real"][key]]) for key in MEASURES}
    rows.append(["real points", *figures(real, 1), "–"])
    rows += [[f"{method} (published)", modes, "–", "–", "–"] for method, modes in MIXTURES[name].published.items()]
    return Table(f"{name}: {total} Gaussians", header, rows)


def picture(samples: dict[str, dict[str, NDArray[np.float32]]], results: dict[str, Any]) -> bytes:
    """A PNG: one row per mixture, one column per method, one colour per generator; the true modes as light rings."""
    import matplotlib
    from matplotlib.figure import Figure

    from psgjax.report.figures import PALETTE, STYLE

    columns = max(len(methods) for methods in samples.values())
    with matplotlib.rc_context(STYLE):
        width = max(2.4 * columns, 4.8)  # the caption's
        figure = Figure(figsize=(width, 2.7 * len(samples)), layout="constrained")
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


def train(
    options: Options, configs: dict[str, Config], console: Console
) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[np.float32]]]]:
    """Train every method on every mixture: the figures, by mixture; and the first seed's samples, by mixture and method."""
    import jax

    key = jax.random.key(options.data_seed)
    data = {name: draw(MIXTURES[name], options.points, key) for name in options.mixtures}
    results: dict[str, Any] = {}
    for name, points in data.items():
        real = np.asarray(points[: options.samples].reshape(-1, 2))
        results[name] = {"real": measure(real, MIXTURES[name]), "methods": {}}
    samples: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in data}
    for method, config in configs.items():
        trainer = Trainer(config, options.seeds, options.points, options.samples)
        for name, points in data.items():
            began = time.monotonic()
            state = trainer.train(points, console, f"{method} on the {name}")
            result, samples[name][method] = evaluate(trainer, state, MIXTURES[name])
            results[name]["methods"][method] = {"seconds": round(time.monotonic() - began, 1), **result}
    return results, samples


def protocol_of(options: Options) -> dict[str, Any]:
    """How the figures were made, for results.json."""
    mixtures = {name: MIXTURES[name] for name in options.mixtures}
    return {
        "seeds": [options.seed, options.seed + options.seeds - 1],
        "data_seed": options.data_seed,
        "points": options.points,
        "samples": options.samples,
        "high_quality_deviations": HIGH_QUALITY_DEVIATIONS,
        "mixtures": {
            name: {"centres": (mixture.centres.round(6) + 0.0).tolist(), "deviation": mixture.deviation}
            for name, mixture in mixtures.items()
        },
    }


def summary(options: Options, config: Config) -> str:
    """The same in a sentence."""
    return (
        f"{options.seeds} seeds, {config.steps:,} updates of {config.batch_size} points ({options.points:,} in all), "
        f"{config.network.name} with hidden layers of {config.network.width}, Adam {config.optimizer.learning_rate:g} "
        f"({config.optimizer.schedule}); {options.samples:,} samples."
    )


def run(options: Options, typed: str, console: Console) -> None:
    """Train, evaluate, show and write everything.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options or the folder.
    """
    configs = configure(options)
    out = options.out
    command.check_out(out, (out / "results.json").is_file(), ("results.md", "samples.png"))

    from psgjax import environment
    from psgjax.files import write_atomically

    environment.settle()
    environment.use_compilation_cache()
    provenance, started = environment.provenance(), time.monotonic()
    results, samples = train(options, configs, console)
    each = [table(name, results[name], options.seeds) for name in results]
    for one in each:
        tables.show(console, one)
    console.print(NOTE, highlight=False)
    record = {
        **provenance,
        "command": typed,
        "seconds": round(time.monotonic() - started, 1),
        "protocol": protocol_of(options),
        "settings": {method: command.settings(config) for method, config in configs.items()},
        "results": results,
        "published_modes": {name: MIXTURES[name].published for name in results},
        "note": NOTE,
    }
    tables.write(out, record, [summary(options, next(iter(configs.values()))), *each, NOTE])
    write_atomically(out / "samples.png", picture(samples, results))
    tell(console)(f"results: {out}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("mixture2d", Options, run, __doc__, arguments, "stopped: nothing was written")


if __name__ == "__main__":
    sys.exit(main())
