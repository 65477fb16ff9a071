"""One file a command: `python -m experiments.NAME --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from psgjax.config import ConfigError


def status_of(command: Callable[[], int | None], interrupted: str = "stopped: nothing was written") -> int:
    """The exit status of a command: a user's mistake is one line and status 2, Ctrl-C says what became of the work and is 130."""
    try:
        return command() or 0
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
