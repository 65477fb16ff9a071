"""Make an update that failed again, from its file alone, and show what it did.

python -m psgjax replay runs/mnist/psg/diverged.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from typing_extensions import Doc

from psgjax.commands.line import command
from psgjax.environment import settle, use_compilation_cache
from psgjax.runs import divergence
from psgjax.shell import terminal


@dataclass(frozen=True)
class Options:
    """Make an update that failed again, from its file alone."""

    file: Annotated[tyro.conf.Positional[Path], Doc("The diverged.safetensors of a run.")]


def main(arguments: list[str] | None = None) -> int:
    """The command line: status 0 if the same failure appears with the same numbers, 1 if not."""

    def work(options: Options) -> int:
        settle()
        use_compilation_cache()
        return 0 if divergence.replay(options.file, terminal()) else 1

    reduce = "The update needs as much as it did where it failed: use a machine with more memory."
    return command(Options, work, arguments, "psgjax replay", __doc__, reduce=reduce)
