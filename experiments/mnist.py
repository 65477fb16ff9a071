"""Train PSG-GAN and SNGAN on MNIST and draw the paper's three figures.

    python -m experiments.mnist                     # both methods, under ten minutes on two CPU cores
    python -m experiments.mnist --seeds 0 1 2 3     # four runs of each, in one program: figures with intervals
    python -m experiments.mnist --preset paper      # 500 epochs of the whole training set: for a GPU

Writes runs/mnist/: report.html, summary.json, figures/ and a folder for each method, in which each of several seeds has its own.
Expect digits that a person recognises from both methods; the report says which of the paper's claims the runs bear out. Run again
to resume an interrupted run, or to redraw the report of a finished one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from psgjax.commands import train
from psgjax.commands.train import Preset
from psgjax.config import Data, Network

# What a preset sets where the command line does not.
PRESETS = {
    "quick": Preset(epochs=75, network=Network(width=32), data=Data(train_images=5000)),
    "paper": Preset(epochs=500, network=Network(), evaluation=(10, 10_000)),
}


@dataclass(frozen=True)
class Options(train.Options):
    """Train GANs with several generators and write one report. An option shown as None takes the preset's or the method's value."""

    methods: Annotated[tuple[str, ...], train.METHODS] = ("psg", "sngan")
    preset: Annotated[
        Literal["quick", "paper"],
        Doc(
            "quick: 75 epochs of 5,000 images, small networks, for two CPU cores; paper: 500 epochs of all images, for a GPU."
        ),
    ] = "quick"
    out: Annotated[Path, Doc(train.OUT)] = Path("runs/mnist")


def preset_of(options: Options) -> Preset:
    """What the options leave open."""
    return PRESETS[options.preset]


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    return train.command(Options, preset_of, arguments, "experiments.mnist", __doc__)


if __name__ == "__main__":
    sys.exit(main())
