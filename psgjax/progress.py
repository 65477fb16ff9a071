"""What is being done, and how far it has come: on a terminal something that moves, elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn, track
from rich.text import Text

from psgjax.shell import one_line, tell
from psgjax.sources import Track

if TYPE_CHECKING:
    from psgjax.runs.metrics import Line

_SPINNER = "line"  # of ASCII alone


def moves(console: Console) -> bool:
    """Whether it can draw over what it has shown."""
    return console.is_interactive and not console.quiet


@contextmanager
def busy(console: Console, what: str, plain: bool = True) -> Iterator[None]:
    """Show what is being done while it lasts; where nothing moves as one line when it begins, if `plain`."""
    if moves(console):
        with console.status(Text(one_line(what)), spinner=_SPINNER):
            yield
        return
    if plain:
        tell(console)(what)
    yield


def tracker(console: Console) -> Track:
    """A function that shows a bar for a loop over items while it lasts."""
    return lambda items, count, what: track(
        items, what, count, console=console, transient=True, disable=not moves(console)
    )


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
        if moves(console):
            columns = (
                SpinnerColumn(_SPINNER),
                TextColumn("{task.description}", markup=False),
                BarColumn(None),
                TextColumn("{task.fields[text]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(one_line(name), start=False, total=steps, completed=done, text="compiling")

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
            self._bar.start_task(self._task)  # until then the bar only pulses
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
