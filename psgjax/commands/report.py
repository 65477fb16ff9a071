"""Draw the report of a folder of runs again: report.html, summary.json and figures/.

python -m psgjax report runs/mnist
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from typing_extensions import Doc

from psgjax.report import page
from psgjax.shell import run_command, tell, terminal


@dataclass(frozen=True)
class Options:
    """Draw the report of a folder of runs again, from what they left."""

    folder: Annotated[tyro.conf.Positional[Path], Doc("The folder that training was given as --out.")]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""

    def work() -> None:
        options = tyro.cli(Options, args=arguments, prog="python -m psgjax report", description=__doc__)
        tell(terminal())(f"report: {page.write(options.folder)}")

    return run_command(work)
