"""Draw the report of a folder of runs again: report.html, summary.json and figures/.

python -m psgjax report runs/mnist
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from typing_extensions import Doc

from psgjax.commands.line import command
from psgjax.report import page
from psgjax.shell import tell, terminal


@dataclass(frozen=True)
class Options:
    """Draw the report of a folder of runs again, from what they left."""

    folder: Annotated[tyro.conf.Positional[Path], Doc("The folder that training was given as --out.")]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""

    def work(options: Options) -> None:
        tell(terminal())(f"report: {page.write(options.folder)}")

    return command(Options, work, arguments, "psgjax report", __doc__)
