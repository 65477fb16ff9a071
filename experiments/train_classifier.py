"""Train the classifier for MNIST that the metrics look through.

    python -m experiments.train_classifier --data.source idx --data.dir FOLDER    # four minutes on two CPU cores

The weights that psgjax ships were made so, from all of MNIST. Expect 99 % or more of the 10,000 test images named right, and the
same file from the same machine. Other weights make other figures: `psgjax/evaluation/classifier.py` names the SHA-256 of the
file that it ships, and refuses another in its place.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import Doc

from psgjax.commands import line
from psgjax.config import ConfigError, Data
from psgjax.schema import check_seed
from psgjax.shell import check_output, tell, terminal, warn


@dataclass(frozen=True)
class Options:
    """Train a classifier on labelled images and write its weights."""

    epochs: Annotated[int, Doc("Passes over the training images.")] = 20
    seed: Annotated[int, Doc("Every random number follows from it.")] = 0
    out: Annotated[Path, Doc("The file to write.")] = Path("runs/mnist_classifier.safetensors")
    data: Data = field(default_factory=Data)

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        if self.epochs < 1:
            raise ConfigError(f"epochs is {self.epochs}; it must be a whole number of at least 1.")
        check_seed(self.seed)
        if self.out.suffix != ".safetensors":
            raise ConfigError(f"--out {self.out} must be a file whose name ends in .safetensors.")


def public(arguments: list[str]) -> str:
    """The command as it is recorded: the folders of whoever ran it are nobody's business."""
    parts = [part for argument in arguments for part in argument.split("=", 1)]
    kept = []
    for before, part in zip(["", *parts], parts, strict=False):
        if "--out" not in (before, part):
            kept.append("FOLDER" if before == "--data.dir" else part)
    return shlex.join(["python", "-m", "experiments.train_classifier", *kept])


def run(options: Options, command: str, console: Console) -> None:
    """Train, write, and say how good it is.

    Raises:
        ConfigError: Before anything is written, for data that cannot be had.
    """
    from psgjax import environment
    from psgjax.data import dataset as datasets
    from psgjax.evaluation import classifier as classifiers
    from psgjax.evaluation import fitting

    environment.settle()
    environment.use_compilation_cache()
    data = datasets.load(options.data, tell(console))
    tell(console)(f"training on {data.info['description']}")
    if data.info["warning"]:
        warn(console, data.info["warning"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    check_output("--out", options.out)
    columns = TextColumn("{task.description}", markup=False), BarColumn(None), TextColumn("{task.fields[text]}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("classifier", total=options.epochs, text="compiling")
        trained = fitting.fit(
            data.images,
            data.both_labels[0],
            epochs=options.epochs,
            seed=options.seed,
            held_out=(data.held_out_images, data.both_labels[1]),
            progress=lambda epoch, loss: bar.update(task, completed=epoch, text=f"epoch {epoch}  loss {loss:.4f}"),
        )
    versions = environment.provenance()["versions"]
    trained.info.update(command=command, data=data.info["name"], data_sha256=data.info["sha256"], versions=versions)
    sha256 = classifiers.save(trained, options.out)
    say = tell(console)
    say(f"{trained.info['accuracy']:.2%} of {trained.info['held_out_images']:,} held-out images right")
    say(f"{options.out}: {options.out.stat().st_size:,} bytes, SHA-256 {sha256}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    reduce = "Use fewer images with a smaller --data.train-images."

    def work(options: Options) -> None:
        run(options, public(given), terminal())

    return line.command(Options, work, given, "experiments.train_classifier", __doc__, reduce=reduce)


if __name__ == "__main__":
    sys.exit(main())
