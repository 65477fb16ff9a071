"""What the commands of the experiments share: the command line, counts that are checked, folders in which nothing else is lost."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from psgjax import schema
from psgjax.commands import line
from psgjax.commands.train import GO_ON
from psgjax.config import Config, ConfigError
from psgjax.shell import terminal

Options = TypeVar("Options")


def main(
    name: str,
    kind: type[Options],
    run: Callable[[Options, str, Console], int | None],
    description: str | None,
    arguments: list[str] | None,
    interrupted: str = GO_ON,
) -> int:
    """The command line `python -m experiments.NAME`; the exit status.

    Args:
        name: The module's.
        kind: The dataclass of its options.
        run: Does the work, given the options, the command as it was typed, and a console; returns the status, None for 0.
        description: For `--help`.
        arguments: In place of those of the process.
        interrupted: What to say after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    program = f"experiments.{name}"
    typed = shlex.join(["python", "-m", program, *given])

    def work(options: Options) -> int | None:
        return run(options, typed, terminal())

    return line.command(kind, work, given, program, description, interrupted=interrupted)


def check_counts(**counts: int) -> None:
    """Refuse counts below one.

    Raises:
        ConfigError: With the name of the option.
    """
    for name, value in counts.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be a whole number of at least 1.")


def check_out(out: Path, ours: bool, names: Iterable[str]) -> None:
    """Refuse a folder in which something of another origin would be overwritten. Writes nothing.

    Args:
        out: The folder, which need not exist.
        ours: Whether this command wrote what is in it.
        names: What it writes there.

    Raises:
        ConfigError: With what is in the way.
    """
    from psgjax.runs.identity import check_free

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; it must name a folder.")
    if not ours:
        check_free(out, names)


def settings(config: Config) -> dict[str, Any]:
    """The configuration as JSON has it, without the seed and without where images lie on this machine."""
    values: dict[str, Any] = json.loads(schema.to_json(config))
    return {key: value for key, value in values.items() if key not in ("data", "seed")}
