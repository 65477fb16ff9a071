"""Count the modes of Stacked MNIST that each method finds: three random digits as the channels of an image, 1,000 in all.

    python -m experiments.stacked_mnist                  # a short training: about five minutes on two CPU cores
    python -m experiments.stacked_mnist --preset full    # PacGAN's protocol, ten trials of 100,000 updates: for a GPU

The protocol is that of Lin et al. 2018 (PacGAN) and its code: 128,000 training images, batches of 64, 50 epochs, Adam with 0.0002
and 0.5, z of 100; 26,000 samples, each channel given to a digit by a classifier; the number of modes among them, and the KL
divergence of their modes from equally frequent ones. Two things differ. The networks are psgjax's: theirs have four levels of
convolutions, and the size of D dominates the result, so it is shown with every figure. And only training digits are stacked to
train on, where theirs are of the test images, too.

The short training ends while all methods still find new modes: with the first seed gan had 765, sngan 756 and psg 352.

Writes runs/stacked_mnist/: results.json, results.md, and a run for each trial of each method. Run again to resume.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from typing_extensions import Doc

from experiments.mixtures import check_counts, markdown, mean, show, show_table, to_json
from psgjax import config as configuration
from psgjax import schema
from psgjax.config import (
    Config,
    ConfigError,
    Data,
    DataOverrides,
    MethodOverrides,
    Network,
    NetworkOverrides,
    Optimizer,
)
from psgjax.evaluation.modes import stacked_modes
from psgjax.shell import Stop, one_line, run_command, tell, terminal, warn

if TYPE_CHECKING:
    from psgjax.data.dataset import Dataset
    from psgjax.evaluation.classifier import Classifier

CHANNELS, CLASSES = 3, 10
MODES = CLASSES**CHANNELS


@dataclass(frozen=True)
class Protocol:
    """What a preset sets where the command line does not."""

    trials: int
    epochs: int
    images: int
    network: Network

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        check_counts(trials=self.trials, epochs=self.epochs, images=self.images)


PRESETS = {
    "quick": Protocol(trials=1, epochs=5, images=25_600, network=Network(width=32)),
    "full": Protocol(trials=10, epochs=50, images=128_000, network=Network()),
}
# Lin et al. 2018, Stacked MNIST: modes and KL.
PUBLISHED = {"DCGAN": ("78.9 ± 6.5", "4.50 ± 0.13"), "PacDCGAN2": ("1000.0", "0.06")}
NOTE = (
    "± is the standard deviation over trials. Samples come from the mixture of generators, each with probability 1/K; a generator "
    "alone has as many samples. Published figures (Lin et al. 2018) are of another discriminator, whose size dominates the "
    "result, and of ten trials of 50 epochs of 128,000 images: for orientation only. Real images are test digits, stacked alike: "
    "their KL is what so many samples have by chance, and because digits are not equally frequent."
)
_HELD_OUT = 2000  # stacked test digits that D is judged by while it trains
_STACKS, _SAMPLES, _CHOICE = range(3)  # streams of random numbers


@dataclass(frozen=True)
class Options:
    """Train each method on Stacked MNIST and count its modes. An option shown as None takes the preset's or the method's value."""

    methods: Annotated[tuple[str, ...], Doc("Methods, of " + ", ".join(configuration.METHODS) + ".")] = (
        "gan",
        "sngan",
        "psg",
    )
    preset: Annotated[
        Literal["quick", "full"],
        Doc(
            "quick: one trial of 5 epochs of 25,600 images, small networks, for two CPU cores; full: PacGAN's protocol, for a GPU."
        ),
    ] = "quick"
    trials: Annotated[int | None, Doc("Runs of each method, with seeds from --seed on.")] = None
    epochs: Annotated[int | None, Doc("Passes over the training images.")] = None
    images: Annotated[int | None, Doc("Training images, each of three random digits.")] = None
    samples: Annotated[int, Doc("Samples that a run is judged by.")] = 26_000
    batch_size: Annotated[int, Doc("Real images in an update, and as many from each generator.")] = 64
    seed: Annotated[int, Doc("The first trial's seed.")] = 0
    data_seed: Annotated[int, Doc("Which digits are stacked follows from it: the same for all methods and trials.")] = 0
    precision: Annotated[
        Literal["float32", "bfloat16", "tf32"],
        Doc("Of the layers' arithmetic; parameters and losses are float32 always."),
    ] = "float32"
    out: Annotated[Path, Doc("Folder for everything that is written.")] = Path("runs/stacked_mnist")
    data: DataOverrides = field(default_factory=DataOverrides)
    network: NetworkOverrides = field(default_factory=NetworkOverrides)
    optimizer: Optimizer = field(default_factory=Optimizer)
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
        given = {name: getattr(self, name) for name in ("trials", "epochs", "images")}
        preset = dataclasses.replace(
            PRESETS[self.preset], **{name: value for name, value in given.items() if value is not None}
        )
        return dataclasses.replace(preset, network=schema.override(preset.network, self.network))


def configure(options: Options) -> dict[str, list[Config]]:
    """The configurations of each method, one a trial.

    Raises:
        ConfigError: For an unknown method, or a setting that cannot be used.
    """
    if not options.methods:
        raise ConfigError(f"--methods names none; known are {', '.join(configuration.METHODS)}.")
    protocol, configs = options.protocol, {}
    for name in options.methods:
        config = Config(
            method_name=name,
            method=schema.override(configuration.named_method(name), options.method),
            network=protocol.network,
            optimizer=options.optimizer,
            data=schema.override(Data(), options.data),
            batch_size=options.batch_size,
            precision=options.precision,
        )
        steps = protocol.epochs * config.steps_per_epoch(protocol.images)
        seeds = range(options.seed, options.seed + protocol.trials)
        configs[name] = [dataclasses.replace(config, steps=steps, seed=seed) for seed in seeds]
    return configs


def stack(digits: np.ndarray, labels: np.ndarray, count: int, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """So many images of three digits drawn at random, with replacement, as channels.

    Args:
        digits: [N, H, W, 1] uint8.
        labels: [N], 0 to 9.
        count: How many to make.
        seed: They follow from it.

    Returns:
        Images [count, H, W, 3] uint8, and modes [count] int32, 0 to 999: the digits read as one number.
    """
    chosen = np.random.default_rng(seed).integers(len(digits), size=(count, CHANNELS))
    images = np.stack([digits[chosen[:, channel], ..., 0] for channel in range(CHANNELS)], axis=-1)
    return images, (labels[chosen] @ CLASSES ** np.arange(CHANNELS)[::-1]).astype(np.int32)


def stacked(digits: Dataset, count: int, seed: int) -> Dataset:
    """Stacked images of a data set's digits: of the training ones to train on, of the held-out ones to hold out."""
    from psgjax.data.dataset import fingerprints

    images, modes = stack(digits.images, digits.both_labels[0], count, (seed, _STACKS, 0))
    held_out, held_out_modes = stack(digits.held_out_images, digits.both_labels[1], _HELD_OUT, (seed, _STACKS, 1))
    info = {
        **digits.info,
        "description": f"{count:,} images of three random digits each; digits: {digits.info['description']}",
        "train_images": count,
        "held_out_images": _HELD_OUT,
        "canonical": False,
        **fingerprints(images, modes, held_out, held_out_modes),
    }
    return dataclasses.replace(
        digits, images=images, labels=modes, held_out_images=held_out, held_out_labels=held_out_modes, info=info
    )


def predict(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """The most probable digit in each channel: images [n, H, W, 3] uint8 -> [n, 3]."""
    from psgjax.evaluation.classifier import apply

    channels = np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3], 1)
    return apply(classifier, channels)[1].argmax(1).reshape(-1, CHANNELS)


def measure(predictions: np.ndarray) -> dict[str, Any]:
    """Modes and KL of predictions [n, 3], ready for JSON."""
    modes, divergence = stacked_modes(predictions)
    return {"modes": modes, "kl": round(divergence, 6)}


def judge(folder: Path, classifier: Classifier, samples: int) -> dict[str, Any]:
    """What the finished run in that folder covers: its mixture of generators, and each generator alone."""
    from psgjax.commands import sample

    config, state, image_shape = sample.load(folder)
    images = sample.sample(config, state, image_shape, samples, config.seed)
    predictions = np.stack([predict(classifier, own) for own in images])
    which = np.random.default_rng((config.seed, _CHOICE)).integers(len(images), size=samples)
    mixed = predictions[which, np.arange(samples)]
    return {"seed": config.seed, **measure(mixed), "generators": [measure(own) for own in predictions]}


def sizes(config: Config, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters of D, and of each generator."""
    import jax

    from psgjax.method import state as states

    state = jax.eval_shape(lambda: states.init(config, image_shape))
    each = {"discriminator": state.discriminator.params, "generator": state.generators.params}
    counts = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for name, tree in each.items()}
    return {**counts, "generator": counts["generator"] // config.method.generators}


def table(results: dict[str, Any], trials: int) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows: the methods, then real images and the published figures."""
    header = ["method", f"modes (of {MODES:,})", "KL", "modes of each generator", "parameters of D"]
    rows = [
        [
            method,
            show(result["modes"], trials),
            show(result["kl"], trials, digits=2),
            "; ".join(show(own["modes"], trials) for own in result["generators"]),
            f"{result['parameters']['discriminator']:,}",
        ]
        for method, result in results["methods"].items()
    ]
    rows += [[method, "diverged", *["–"] * 3] for method in results["diverged"]]
    rows.append(["real images", f"{results['real']['modes']}", f"{results['real']['kl']:.2f}", "–", "–"])
    rows += [
        [f"{method} (published)", modes, divergence, "–", "–"] for method, (modes, divergence) in PUBLISHED.items()
    ]
    return "Stacked MNIST", header, rows


def summarise(per_trial: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over trials, of the mixture and of each generator alone."""
    names = ("modes", "kl")
    alone = [
        {name: mean([trial["generators"][k][name] for trial in per_trial]) for name in names}
        for k in range(len(per_trial[0]["generators"]))
    ]
    means = {name: mean([trial[name] for trial in per_trial]) for name in names}
    return {**means, "generators": alone, "per_trial": per_trial}


def trial_folder(out: Path, config: Config) -> Path:
    """Where a trial's run lies."""
    return out / config.method_name / f"seed-{config.seed}"


def check_out(out: Path, configs: dict[str, list[Config]], data: Dataset) -> None:
    """Refuse an output folder that holds other runs, or what they would overwrite. Writes nothing.

    Raises:
        ConfigError: With the settings that differ, or with what is in the way.
    """
    from psgjax.runs.identity import check_folder, check_free

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must name a folder.")
    if not any(out.glob("*/seed-*/config.json")):
        check_free(out, ("results.json", "results.md"))
    for trials in configs.values():
        for config in trials:
            check_folder(trial_folder(out, config), config, data)


def settings(config: Config) -> dict[str, Any]:
    """The configuration as JSON has it, without what differs between trials and what belongs to a machine."""
    values: dict[str, Any] = json.loads(schema.to_json(config))
    return {key: value for key, value in values.items() if key not in ("data", "seed")}


def run(options: Options, command: str, console: Console, stop: Stop) -> int:
    """Train, judge, show and write everything; the exit status.

    Raises:
        ConfigError: Before anything is written, for all that is wrong with the options, the data or the folder.
    """
    protocol, configs = options.protocol, configure(options)
    from psgjax import environment
    from psgjax.data import dataset as datasets
    from psgjax.evaluation.fitting import for_data
    from psgjax.files import write_atomically
    from psgjax.runs import identity
    from psgjax.training import loop

    say = tell(console)
    environment.settle()
    out = schema.local_path("--out", options.out)
    asked = next(iter(configs.values()))[0].data
    digits = datasets.load(identity.find_data(asked, sorted(out.glob("*/seed-*"))), progress=say)
    if digits.info["warning"]:
        warn(console, digits.info["warning"])
    data = stacked(digits, protocol.images, options.data_seed)
    check_out(out, configs, data)
    environment.use_compilation_cache()
    provenance = environment.provenance()
    classifier = for_data(digits, say)
    assert classifier is not None, "MNIST and Fashion-MNIST have labels"
    image_shape = data.images.shape[1:]
    real, _ = stack(digits.held_out_images, digits.both_labels[1], options.samples, (options.data_seed, _SAMPLES))
    results: dict[str, Any] = {"real": measure(predict(classifier, real)), "methods": {}, "diverged": {}}
    for name, trials in configs.items():
        per_trial = []
        for config in trials:
            folder = trial_folder(out, config)
            try:
                outcome = loop.train(config, data, folder, console=console, stop=stop)
            except loop.Diverged as error:  # one method's end is not the others'
                print(f"error: {one_line(str(error))}", file=sys.stderr)
                results["diverged"][name] = f"seed {config.seed}: {error}"
                break
            if not outcome.finished:
                say(outcome.stopped(f"{name}, seed {config.seed},", config.steps))
                return 128 + stop.signal
            per_trial.append(judge(folder, classifier, options.samples))
            say(f"{name}, seed {config.seed}: {per_trial[-1]['modes']} modes, KL {per_trial[-1]['kl']:.2f}")
        else:
            results["methods"][name] = {**summarise(per_trial), "parameters": sizes(trials[0], image_shape)}

    shown = table(results, protocol.trials)
    show_table(console, *shown)
    console.print(NOTE, highlight=False)
    record = {
        **provenance,
        "command": command,
        "protocol": {
            "seeds": [options.seed, options.seed + protocol.trials - 1],
            "data_seed": options.data_seed,
            "images": protocol.images,
            "epochs": protocol.epochs,
            "samples": options.samples,
            "data_sha256": data.info["sha256"],
            "classifier": {key: classifier.info.get(key) for key in ("sha256", "accuracy", "held_out_images")},
        },
        "settings": {name: settings(trials[0]) for name, trials in configs.items()},
        "results": results,
        "published": PUBLISHED,
        "note": NOTE,
    }
    some = next(iter(configs.values()))[0]
    told = (
        f"{protocol.trials} trial(s), {protocol.epochs} epochs of {protocol.images:,} images ({some.steps:,} updates of "
        f"{some.batch_size}), {some.network.name} of width {some.network.width}; {options.samples:,} samples. "
        f"The classifier names {classifier.info['accuracy']:.2%} of test digits right."
    )
    write_atomically(out / "results.md", f"`{command}`\n\n{told}\n\n{markdown(*shown)}\n{NOTE}\n")
    write_atomically(out / "results.json", to_json(record))
    say(f"results: {out}")
    return 1 if results["diverged"] else 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments

    def work() -> int:
        options = tyro.cli(Options, args=given, prog="python -m experiments.stacked_mnist", description=__doc__)
        return run(options, shlex.join(["python", "-m", "experiments.stacked_mnist", *given]), terminal(), Stop())

    return run_command(work, "stopped; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
