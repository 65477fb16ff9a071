"""Draw the report of a folder of runs again: report.html, summary.json and figures/.

python -m psgjax report runs/mnist
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from psgjax.commands.line import command
from psgjax.progress import busy
from psgjax.shell import tell, terminal


@dataclass(frozen=True)
class Options:
    """Draw the report of a folder of runs again, from what they left."""

    folder: Annotated[tyro.conf.Positional[Path], Doc("The folder that training was given as --out.")]


def draw(folder: Path, console: Console) -> None:
    """Draw the report of that folder, and say where it is."""
    with busy(console, "drawing the report"):
        from psgjax.report import page  # what draws takes seconds to load

        path = page.write(folder)
    tell(console)(f"report: {path}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    return command(Options, lambda options: draw(options.folder, terminal()), arguments, "psgjax report", __doc__)
