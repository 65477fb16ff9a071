"""A user's own parts for the command line: the file that registers them, named by PSGJAX_PARTS or by --parts."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path

from psgjax.schema import ConfigError, local_path

VARIABLE = "PSGJAX_PARTS"
_loaded: dict[Path, str] = {}  # the files of this process, and the SHA-256 of each


def take_option(arguments: list[str]) -> list[str]:
    """The arguments without `--parts FILE`, which becomes the variable of this process and of those that it starts.

    Raises:
        ConfigError: If no file is named.
    """
    others, files, left = [], [], iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name != "--parts":
            others.append(argument)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("-"):
            raise ConfigError("--parts names no file; give the Python file that registers your parts: --parts mine.py.")
        files.append(str(local_path("--parts", Path(value)).absolute()))
    if files:
        os.environ[VARIABLE] = os.pathsep.join(files)
    return others


def load() -> None:
    """Run the files that the variable names, each once in a process.

    Raises:
        ConfigError: If one is not there or fails; with its line and what it says.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = local_path(VARIABLE, Path(name)).absolute()
        if path not in _loaded:
            _run(path)


def recorded() -> dict[str, str]:
    """The names of the files that were run, each with its SHA-256."""
    return {path.name: digest for path, digest in _loaded.items()}


def _run(path: Path) -> None:
    """Run one file as a module of its own, which finds what lies beside it."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror
        raise ConfigError(f"{path}, named by --parts or {VARIABLE}, cannot be read: {reason}.") from None
    spec = importlib.util.spec_from_file_location(f"psgjax_parts_{len(_loaded)}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}, named by --parts or {VARIABLE}, must be a Python file, whose name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses, such as Flax modules, look for their types
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        lines = [
            frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno or 0)
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        message = error.msg if isinstance(error, SyntaxError) else (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{place}: {kind}{message}") from error
    finally:
        sys.path.remove(str(path.parent))
    _loaded[path] = digest
