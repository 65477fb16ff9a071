"""metrics.jsonl: one line per epoch, continued exactly where a checkpoint stands."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from psgjax.config import ConfigError
from psgjax.files import naming, write_all, write_atomically

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """The lines of a metrics.jsonl; empty where there is none. A last line cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            break
    return lines


def distance_name(scores: dict[str, Any]) -> str | None:
    """What the Fréchet distance among an evaluation's scores is called: fcd, or fd_ and the name of its features; None if none."""
    return next((name for name in scores if name == "fcd" or name.startswith("fd_")), None)


def distance_of(scores: dict[str, Any]) -> Any:
    """The Fréchet distance among an evaluation's scores, on whatever features; infinite if there is none."""
    name = distance_name(scores)
    return math.inf if name is None else scores[name]


def check_lines(path: Path, step: int, every: int) -> None:
    """Refuse a metrics.jsonl from which lines are missing that the checkpoint of `step` has behind it, `every` steps apart.

    Raises:
        ConfigError: With the first step that is missing.
    """
    try:
        missing = sorted({*range(every, step + 1, every)} - {line["step"] for line in read_lines(path)})
    except (LookupError, TypeError):  # JSON, but not of a line
        missing = [step]
    if missing:
        raise ConfigError(
            f"{path} is cut short or damaged: the line of step {missing[0]} is missing, and the checkpoint is of step {step}. "
            f"Restore the file, or delete {path.parent / 'checkpoints'} to begin the run again."
        )


class MetricsFile:
    """metrics.jsonl, continued exactly where a checkpoint stands."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the lines up to `step`; those of updates that were lost with the process will be written again."""
        kept = [line for line in read_lines(path) if line["step"] <= step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, line: Line) -> None:
        """Append one line and hand it to the operating system."""
        with naming(self._path):
            write_all(self._file, (json.dumps(line, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
