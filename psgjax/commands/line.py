"""What every command line has: options from a dataclass, paths on this machine, an exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from psgjax import schema
from psgjax.shell import run_command

Options = TypeVar("Options")


def command(
    kind: type[Options],
    work: Callable[[Options], int | None],
    arguments: Sequence[str] | None,
    program: str,
    description: str | None,
    **said: str,
) -> int:
    """Parse the command line and do what it says; the exit status.

    Args:
        kind: The dataclass of its options, in which every `~` at the beginning of a path becomes the user's home.
        work: Does what they say; returns the status, None for 0.
        arguments: In place of those of the process.
        program: What stands behind `python -m`.
        description: For `--help`.
        said: `interrupted` and `reduce` of `shell.run_command`.
    """

    def parsed() -> int | None:
        options = tyro.cli(kind, args=arguments, prog=f"python -m {program}", description=description)
        return work(schema.local_paths(options))

    return run_command(parsed, **said)
