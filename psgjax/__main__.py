"""`psgjax COMMAND` and `python -m psgjax COMMAND`: one file a command, in `commands/`."""

from __future__ import annotations

import importlib
import sys

from psgjax import __version__, own
from psgjax.schema import ConfigError
from psgjax.shell import one_line, terminal

COMMANDS = {
    "train": "Train one method, or several to compare, on any images, and write one report.",
    "sample": "Draw images from a saved run, or export its generators.",
    "evaluate": "Score generated images against real ones.",
    "report": "Draw the report of a folder of runs again.",
    "replay": "Make an update that diverged again, and show what it did.",
}


def usage() -> str:
    """What `psgjax --help` prints."""
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    hints = [
        "`psgjax COMMAND --help` explains every option. With --parts FILE, or PSGJAX_PARTS=FILE, every command knows the losses,",
        "regularisers, networks, sources and methods that your Python file registers (docs/extend.md).",
    ]
    return "\n".join(["usage: psgjax COMMAND [OPTIONS]", "", *lines, "", *hints])


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; status 2 for one that there is not."""
    try:
        given = own.take_option(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        return 2
    name, *rest = given or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; known are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    from psgjax.progress import busy  # here: rich is slow to load, too

    with busy(terminal(), f"loading psgjax {name}", plain=False):
        module = importlib.import_module(f"psgjax.commands.{name}")
    status: int = module.main(rest)
    return status


if __name__ == "__main__":
    sys.exit(main())
