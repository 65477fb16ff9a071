"""What a run leaves for people while it trains: metrics.jsonl, sample grids, and its progress on the terminal."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from psgjax.config import ConfigError
from psgjax.shell import one_line, tell

Line = dict[str, Any]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    # Names of files that a text mentions may be no text.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with _naming(path), partial.open("wb", buffering=0) as file:
            _write_all(file, data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have the system's errors say which file they are about: a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _write_all(file: FileIO, data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
    os.fsync(file.fileno())


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


def check_lines(path: Path, step: int, every: int) -> None:
    """Refuse a metrics.jsonl from which lines are missing that the checkpoint of `step` has behind it, one `every` so many steps.

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
        with _naming(self._path):
            _write_all(self._file, (json.dumps(line, allow_nan=False) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8, the inverse of `step.scale`."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def image_grid(pixels: np.ndarray, columns: int = 8) -> np.ndarray:
    """Images uint8 [K, n, H, W, C] as one picture [K * rows * H, columns * W, C]: a block of rows for each generator."""
    generators, count, height, width, colours = pixels.shape
    rows = -(-count // columns)
    cells = np.zeros((generators, rows * columns, height, width, colours), np.uint8)
    cells[:, :count] = pixels
    cells = cells.reshape(generators * rows, columns, height, width, colours)
    return cells.transpose(0, 2, 1, 3, 4).reshape(generators * rows * height, columns * width, colours)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 1 or 3] as a PNG, as a whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, format="PNG")
    write_atomically(path, content.getvalue())


class ProgressDisplay:
    """A bar with epoch, losses, images per second and time left on a terminal; elsewhere a plain line now and then."""

    _PLAIN_SECONDS = 10.0

    def __init__(self, console: Console, name: str, steps: int, done: int, images_per_step: int) -> None:
        """Start the display at `done` of `steps` updates, each of which sees `images_per_step` real images."""
        self._console, self._name, self._steps = console, name, steps
        self._images_per_step = images_per_step
        self._first: tuple[float, int] | None = None  # when the first call, which waits for the compiler, was done
        self._told = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(None),
                TextColumn("{task.fields[text]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(one_line(name), total=steps, completed=done, text="compiling")

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, line: Line | None) -> None:
        """Show that `step` updates are done; `line` is the last line of metrics.jsonl, if there is one yet."""
        if self._first is None:
            self._first = (time.monotonic(), step)
        rate = (step - self._first[1]) / max(time.monotonic() - self._first[0], 1e-9)
        text = f"{rate * self._images_per_step:,.0f} images/s"
        if line:
            generators = " ".join(f"{value:.3f}" for value in line["loss"]["generators"])
            text = f"epoch {line['epoch']:g}  D {line['loss']['discriminator']:.3f}  G {generators}  {text}"
        if self._bar:
            self._bar.update(self._task, completed=step, text=text)
        elif step == self._steps or time.monotonic() - self._told > self._PLAIN_SECONDS:
            self._told = time.monotonic()
            left = f", {duration((self._steps - step) / rate)} left" if rate > 0 and step < self._steps else ""
            tell(self._console)(f"{self._name}: step {step:,} of {self._steps:,}: {text}{left}")


def duration(seconds: float) -> str:
    """A length of time as people say it: 40 s, 6 min, 2.5 h, 3.1 days."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
