"""Train PSG-GAN and SNGAN on Fashion-MNIST: a new experiment is a preset of `psgjax train`, and nothing else.

    python -m experiments.fashion_mnist                                                   # downloads by TensorFlow Datasets
    python -m experiments.fashion_mnist --data.source idx --data.dir FOLDER               # the four files, from anywhere

Writes runs/fashion_mnist/, as `psgjax train` does: report.html, summary.json, figures/ and a folder for each method.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from psgjax.commands import train
from psgjax.config import Data, Network

PRESET = train.Preset(epochs=50, network=Network(width=32), data=Data(name="fashion_mnist", train_images=5000))


@dataclass(frozen=True)
class Options(train.Options):
    """Train GANs on pictures of clothes and write one report. An option shown as None takes its usual value."""

    methods: Annotated[tuple[str, ...], train.METHODS] = ("psg", "sngan")
    out: Annotated[Path, Doc(train.OUT)] = Path("runs/fashion_mnist")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return train.command(Options, lambda options: PRESET, arguments, "experiments.fashion_mnist", __doc__)


if __name__ == "__main__":
    sys.exit(main())
