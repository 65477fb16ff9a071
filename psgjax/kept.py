"""Arrays that took a while to make, kept on the disk until they are asked for again."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np


def cache_folder() -> Path:
    """Where the user keeps what can be made again: psgjax/ under $XDG_CACHE_HOME, or else under ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psgjax"
    except RuntimeError:  # nobody's home: a folder that cannot be made
        return Path(os.devnull) / "psgjax"


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays by name; None where there is no such file, or it is damaged."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, AttributeError):
        return None


def write(path: Path, **arrays: np.ndarray) -> str | None:
    """Write the arrays, complete or not at all; None, or why they could not be written: then they are made again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            complete = Path(scratch) / path.name
            np.savez(complete, **arrays)  # type: ignore[arg-type]
            complete.replace(path)
    except OSError as error:
        return str(error)
    return None
