"""Runs of a moment: trained, stopped, and what they left."""

from conftest import like
from rich.console import Console

from psgjax.runs.checkpoint import Checkpoints
from psgjax.runs.metrics import read_lines
from psgjax.training import loop


class StopAfter(loop.Stop):
    """Asks the run to stop, as SIGINT would, when it has been looked at so often."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def signal(self):
        self.looks -= 1
        return 2 if self.looks < 0 else 0


def train(config, data, folder, stop=None, seeds=()):
    """`loop.train` in silence."""
    return loop.train(config, data, folder, seeds=seeds, console=Console(quiet=True), stop=stop or loop.Stop())


def final_state(config, folder):
    """The state of the last checkpoint in a run's folder."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(like(config))[0]


def timeless(folder):
    """The metrics that a run logged, without how long they took."""
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_lines(folder / "metrics.jsonl")
    ]
