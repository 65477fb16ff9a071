"""The command `python -m experiments.mnist` in small: its options, and four IDX files of noise."""

import sources

from experiments import mnist

SMALL = ["--network.width", "2", "--network.latent-size", "3", "--batch-size", "8", "--evaluation-epochs", "0"]
SMALL += ["--network.name", "mlp"]


def write_idx(folder, train=64, test=16, side=28):
    """Four IDX files of noise."""
    return sources.write(folder, sources.contents(side, train, test))


def main(*arguments):
    """The exit status of the command with these arguments."""
    try:
        return mnist.main([str(a) for a in arguments])
    except SystemExit as exit:
        return exit.code
