"""Files that are replaced as a whole, and errors that name them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    # Names of files that a text mentions may be no text.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with naming(path), partial.open("wb", buffering=0) as file:
            write_all(file, data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have the system's errors say which file they are about: a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def write_all(file: FileIO, data: bytes) -> None:
    """Hand all of it to the operating system, and have it on the disk."""
    while data:
        data = data[file.write(data) :]
    os.fsync(file.fileno())
