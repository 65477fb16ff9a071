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

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import Doc

from experiments import status_of
from psgjax.config import ConfigError, Data


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
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; it must be a whole number from 0 to {2**32 - 1}.")
        if self.out.suffix != ".safetensors" or self.out.is_dir():
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
    from psgjax import data as datasets
    from psgjax import environment
    from psgjax.evaluation import classifier as classifiers
    from psgjax.evaluation import fitting

    environment.use_compilation_cache()
    data = datasets.load(options.data, progress=lambda text: console.print(text, highlight=False, soft_wrap=True))
    console.print(f"training on {data.info['description']}", highlight=False, soft_wrap=True)
    if data.info["warning"]:
        console.print(f"[bold yellow]warning:[/] {data.info['warning']}", highlight=False, soft_wrap=True)
    columns = TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[text]}")
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("classifier", total=options.epochs, text="compiling")
        trained = fitting.fit(
            data.images,
            data.labels,
            epochs=options.epochs,
            seed=options.seed,
            held_out=(data.held_out_images, data.held_out_labels),
            progress=lambda epoch, loss: bar.update(task, completed=epoch, text=f"epoch {epoch}  loss {loss:.4f}"),
        )
    versions = environment.provenance()["versions"]
    trained.info.update(command=command, data=data.info["name"], data_sha256=data.info["sha256"], versions=versions)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sha256 = classifiers.save(trained, options.out)
    shown = [
        f"{trained.info['accuracy']:.2%} of {trained.info['held_out_images']:,} held-out images right",
        f"{options.out}: {options.out.stat().st_size:,} bytes, SHA-256 {sha256}",
    ]
    console.print("\n".join(shown), highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line: parse, run, and say in one line what went wrong."""
    given = sys.argv[1:] if arguments is None else arguments

    def command() -> None:
        options = tyro.cli(Options, args=given, prog="python -m experiments.train_classifier", description=__doc__)
        run(options, public(given), Console())

    return status_of(command)


if __name__ == "__main__":
    sys.exit(main())
