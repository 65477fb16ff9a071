"""Count the modes of Stacked MNIST that each method finds: three random digits as the channels of an image, 1,000 in all.

    python -m experiments.stacked_mnist                  # a short training: about five minutes on two CPU cores
    python -m experiments.stacked_mnist --preset small   # choice, r3gan, gan-r1r2: 16 minutes on two CPU cores
    python -m experiments.stacked_mnist --preset pacgan  # PacGAN's protocol, ten trials of 100,000 updates: for a GPU
    python -m experiments.stacked_mnist --preset full    # R3GAN's protocol, three trials of 10 M images: for a GPU

The protocol of quick, small and pacgan is that of Lin et al. 2018 (PacGAN) and its code: 128,000 training images (quick: 25,600),
batches of 64, 50 epochs (quick: 5, small: 10), Adam with 0.0002 and 0.5, z of 100; 26,000 samples, each channel given to a digit by
a classifier; the number of modes among them, and the KL divergence of their modes from equally frequent ones. Two things differ.
The networks are psgjax's: theirs have four levels of convolutions, and the size of D dominates the result, so it is shown with
every figure. And only training digits are stacked to train on, where theirs are of the test images, too. With the first seed of
quick, which ends while all methods still find new modes, gan had 765, sngan 756 and psg 352. Five trials of pacgan's 100,000
updates had a KL of 0.04 with gan-r1r2 and 0.12 with choice (docs/recipe.md). small has the networks of quick: 7 minutes of choice,
4 of either of the others on two cores, after which digits can be read; with three seeds 995 to 1000 modes, and a KL of 0.17 to
0.23 that orders none of the three (results/stacked-small.json).

full is Huang et al. 2024 (R3GAN) as far as resnet goes: 19,500 updates of 512 images, z of 64, two blocks at each of three sizes, D
of 20.5 M parameters; Adam with 0 and 0.9 to 0.99, step size 0.0002 to 0.00005, R1 and R2 at 1 to 0.1, all by a cosine over the
first fifth, and an average with a half-life that grows to 500,000 images. Theirs has groups of channels. It has not been run yet.
At width 16 with one block, 8,000 updates of 64 images and a half-life of 25,000, two cores take 17 minutes and do not get there:
choice had 778 modes and a KL of 1.59, no digit could be read, and D told every tuple (results/stacked-resnet-choice.json).

Writes runs/stacked_mnist/: results.json, results.md, and a run for each trial of each method. Run again to resume. On a CPU trials
are trained one after the other, on a GPU all of a method at once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from typing_extensions import Doc

from experiments import command, tables
from experiments.command import check_counts
from experiments.stacked_digits import evaluate, held_out_stacks, measure, predict, stacked
from experiments.stacked_presets import PRESETS, Protocol
from experiments.stacked_results import NOTE, PUBLISHED, sizes, summarise, table
from psgjax import schema, switches
from psgjax.config import (
    Config,
    ConfigError,
    Data,
    DataOverrides,
    MethodOverrides,
    NetworkOverrides,
    OptimizerOverrides,
)
from psgjax.schema import Listed
from psgjax.shell import Stop, one_line, tell, warn

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset
    from psgjax.evaluation.classifier import Classifier


@dataclass(frozen=True)
class Options:
    """Train each method on Stacked MNIST and count its modes. An option shown as None takes the preset's or the method's value."""

    methods: Annotated[tuple[str, ...] | None, Listed("Methods, of {}.", partial(", ".join, switches.METHODS))] = None
    preset: Annotated[
        Literal["quick", "small", "pacgan", "full"],
        Doc(
            "quick: 2,000 updates of small networks; small: 20,000 of them; pacgan: PacGAN's protocol, full: R3GAN's, both for a "
            "GPU."
        ),
    ] = "quick"
    trials: Annotated[int | None, Doc("Runs of each method, with seeds from --seed on.")] = None
    epochs: Annotated[int | None, Doc("Passes over the training images.")] = None
    images: Annotated[int | None, Doc("Training images, each of three random digits.")] = None
    samples: Annotated[int, Doc("Samples that a run is evaluated on.")] = 26_000
    batch_size: Annotated[int | None, Doc("Real images per update, and generated ones per generator.")] = None
    seed: Annotated[int, Doc("The first trial's seed.")] = 0
    data_seed: Annotated[int, Doc("Which digits are stacked follows from it: the same for all methods and trials.")] = 0
    precision: Annotated[
        Literal["float32", "bfloat16", "tf32"],
        Doc("Of the layers' arithmetic; parameters and losses are float32 always."),
    ] = "float32"
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/stacked_mnist")
    data: DataOverrides = field(default_factory=DataOverrides)
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: OptimizerOverrides = field(default_factory=OptimizerOverrides)
    method: MethodOverrides = field(default_factory=MethodOverrides)

    def __post_init__(self) -> None:
        """Refuse counts below one and seeds that are none."""
        check_counts(samples=self.samples)
        last = self.seed + self.protocol.trials - 1
        for name, value in (("seed", self.seed), ("last seed", last), ("data_seed", self.data_seed)):
            schema.check_seed(value, name)

    @property
    def protocol(self) -> Protocol:
        """The preset's, with what the options set."""
        given = {name: getattr(self, name) for name in ("trials", "epochs", "images", "methods", "batch_size")}
        preset = dataclasses.replace(
            PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None}
        )
        return dataclasses.replace(
            preset,
            network=schema.override(preset.network, self.network),
            optimizer=schema.override(preset.optimizer, self.optimizer),
        )


def configure(options: Options) -> dict[str, list[Config]]:
    """The configurations of each method, one a trial.

    Raises:
        ConfigError: For an unknown method, or a setting that cannot be used.
    """
    protocol, configs = options.protocol, {}
    if not protocol.methods:
        raise ConfigError(f"--methods names none; known are {', '.join(switches.METHODS)}.")
    for name in protocol.methods:
        config = Config(
            method_name=name,
            method=schema.override(switches.named_method(name), options.method),
            network=protocol.network,
            optimizer=protocol.optimizer,
            data=schema.override(Data(), options.data),
            batch_size=protocol.batch_size,
            precision=options.precision,
        )
        steps = protocol.epochs * config.steps_per_epoch(protocol.images)
        seeds = range(options.seed, options.seed + protocol.trials)
        configs[name] = [dataclasses.replace(config, steps=steps, seed=seed) for seed in seeds]
    return configs


def trial_folder(out: Path, config: Config) -> Path:
    """Where a trial's run lies."""
    return out / config.method_name / f"seed-{config.seed}"


def calls(out: Path, trials: list[Config]) -> list[tuple[Path, list[Config]]]:
    """Which trials of a method are trained at once, and in which folder: on a CPU one after the other, elsewhere all in one batch.

    One alone leaves most of a GPU idle.
    """
    import jax

    from psgjax.training.loop import IN_TURN

    if jax.default_backend() in IN_TURN or len(trials) == 1:
        return [(trial_folder(out, config), [config]) for config in trials]
    return [(out / trials[0].method_name, trials)]


def check_out(out: Path, configs: dict[str, list[Config]], data: Dataset) -> None:
    """Refuse an output folder that holds other runs, or what they would overwrite. Writes nothing.

    Raises:
        ConfigError: With the settings that differ, or with what is in the way.
    """
    from psgjax.runs.identity import check_folder

    command.check_out(out, any(out.glob("*/seed-*/config.json")), ("results.json", "results.md"))
    for trials in configs.values():
        for folder, together in calls(out, trials):
            check_folder(folder, together[0], data, [config.seed for config in together])


def load(configs: dict[str, list[Config]], out: Path, console: Console) -> Dataset:
    """The digits, from where the configurations say or where runs under `out` found them."""
    from psgjax.data import dataset as datasets
    from psgjax.runs import identity

    asked = next(iter(configs.values()))[0].data
    digits = datasets.load(identity.find_data(asked, sorted(out.glob("*/seed-*"))), progress=tell(console))
    if digits.info["warning"]:
        warn(console, digits.info["warning"])
    return digits


def train(
    configs: dict[str, list[Config]],
    data: Dataset,
    out: Path,
    evaluate: Callable[[Path], Any],
    console: Console,
    stop: Stop,
) -> dict[str, Any] | None:
    """Train every trial of every method and evaluate its run; a method ends where it diverges. None if a trial was stopped."""
    from psgjax.training import loop

    say = tell(console)
    results: dict[str, Any] = {"methods": {}, "diverged": {}}
    for name, trials in configs.items():
        per_trial = []
        for folder, together in calls(out, trials):
            seeds = [config.seed for config in together]
            which = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
            try:
                outcome = loop.train(together[0], data, folder, seeds=seeds, console=console, stop=stop)
            except loop.Diverged as error:  # one method's end is not the others'
                print(f"error: {one_line(str(error))}", file=sys.stderr)
                results["diverged"][name] = f"{which}: {error}"
                break
            if not outcome.finished:
                say(outcome.stopped(f"{name}, {which},", together[0].steps))
                return None
            for config in together:
                per_trial.append(evaluate(trial_folder(out, config)))
                say(f"{name}, seed {config.seed}: {per_trial[-1]['modes']} modes, KL {per_trial[-1]['kl']:.2f}")
        else:
            sizes_of_networks = sizes(trials[0], data.images.shape[1:])
            results["methods"][name] = {**summarise(per_trial), "parameters": sizes_of_networks}
    return results


def protocol_of(
    options: Options, configs: dict[str, list[Config]], data: Dataset, classifier: Classifier
) -> dict[str, Any]:
    """How the figures were made, and every configuration, for results.json."""
    protocol = options.protocol
    return {
        "protocol": {
            "seeds": [options.seed, options.seed + protocol.trials - 1],
            "data_seed": options.data_seed,
            "images": protocol.images,
            "epochs": protocol.epochs,
            "samples": options.samples,
            "data_sha256": data.info["sha256"],
            "classifier": {key: classifier.info.get(key) for key in ("sha256", "accuracy", "held_out_images")},
        },
        "settings": {name: command.settings(trials[0]) for name, trials in configs.items()},
    }


def summary(options: Options, config: Config, accuracy: float) -> str:
    """The same in a sentence."""
    protocol = options.protocol
    return (
        f"{protocol.trials} trial(s), {protocol.epochs} epochs of {protocol.images:,} images ({config.steps:,} updates of "
        f"{config.batch_size}), {config.network.name} of width {config.network.width}; {options.samples:,} samples. "
        f"The classifier names {accuracy:.2%} of test digits right."
    )


def run(options: Options, typed: str, console: Console) -> int:
    """Train, evaluate, show and write everything; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data or the folder.
    """
    configs = configure(options)
    from psgjax import environment
    from psgjax.evaluation.fitting import for_data

    say, stop = tell(console), Stop()
    environment.settle()
    out = options.out
    digits = load(configs, out, console)
    data = stacked(digits, options.protocol.images, options.data_seed)
    check_out(out, configs, data)
    environment.use_compilation_cache()
    provenance = environment.provenance()
    classifier = for_data(digits, say)
    assert classifier is not None, "MNIST and Fashion-MNIST have labels"
    real = measure(predict(classifier, held_out_stacks(digits, options.samples, options.data_seed)))
    found = train(configs, data, out, partial(evaluate, classifier=classifier, samples=options.samples), console, stop)
    if found is None:
        return 128 + stop.signal
    results = {"real": real, **found}
    one = table(results, options.protocol.trials)
    tables.show(console, one)
    console.print(NOTE, highlight=False)
    record = {
        **provenance,
        "command": typed,
        **protocol_of(options, configs, data, classifier),
        "results": results,
        "published": PUBLISHED,
        "note": NOTE,
    }
    some = next(iter(configs.values()))[0]
    tables.write(out, record, [summary(options, some, classifier.info["accuracy"]), one, NOTE])
    say(f"results: {out}")
    return 1 if results["diverged"] else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return command.main("stacked_mnist", Options, run, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
