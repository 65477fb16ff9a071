"""The shell around every command: one line for what went wrong, an exit status, signals; a terminal that shows names as they are.

| status | when |
| --- | --- |
| 0 | all is done |
| 1 | the work failed (a run diverged), or standard output did: the work goes on without it |
| 2 | what was asked for cannot be done: wrong options, data or files, a full disk, too little memory |
| 128 + N | signal N: 130 for Ctrl-C |

Nothing slow is imported here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from psgjax import own
from psgjax.schema import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

if sys.platform == "win32":
    raise ImportError("psgjax runs on Linux and macOS; on Windows it runs in WSL.")

_INTERRUPTED = "stopped: nothing was written"
_REDUCE = (
    "Ask for less at once: a smaller --batch-size or --network.width, fewer samples or seeds. What was saved stays."
)
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failure(Exception):
    """Work that failed though it was asked for rightly: its one line is shown, and the exit status is 1."""


def run_command(
    work: Callable[[], int | None],
    interrupted: str = _INTERRUPTED,
    reduce: str = _REDUCE,
) -> int:
    """The exit status of a command (see above); whatever ends it says so in one line on standard error.

    A user's own parts (`own.py`) are there before the command line is parsed.

    Args:
        work: Parses the command line and does what it says; returns its status, None for 0.
        interrupted: What to say of the work after Ctrl-C.
        reduce: What to ask for less of where memory does not suffice.
    """
    if _in_main_thread() and signal.getsignal(signal.SIGINT) is _end_import:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _steady("stderr"), _steady("stdout") as output:
        try:
            own.load()
            status = work() or 0
        except BaseException as error:
            known = explain(error, interrupted, reduce)
            if known is None:
                raise
            text, status = known
            print(one_line(text), file=sys.stderr)
        finally:
            if output:
                output.flush()
    return status or int(output is not None and output.failed)


def explain(error: BaseException, interrupted: str = _INTERRUPTED, reduce: str = _REDUCE) -> tuple[str, int] | None:
    """The line and the exit status for what people can do something about; None for what is a fault of this package."""
    if isinstance(error, KeyboardInterrupt):
        return interrupted, 130
    if isinstance(error, Failure):
        return f"error: {error}", 1
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
        cause = (str(error).splitlines() or [""])[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
        return f"error: memory does not suffice{': ' + cause if cause else ''}. {reduce}", 2
    if isinstance(error, ConfigError | OSError):
        return f"error: {error}", 2
    if isinstance(error, ValueError) and _raised_in(error.__traceback__, "jax._src.config"):
        return f"error: a JAX_... variable of the environment has a value that jax does not take: {error}", 2
    return None


def _raised_in(trace: TracebackType | None, module: str) -> bool:
    *_, (frame, _) = traceback.walk_tb(trace)
    return frame.f_globals.get("__name__") == module


def _guard_imports() -> None:
    """Have Ctrl-C, or a variable that jax does not take, be one line while a program of ours is still being imported.

    Does nothing where another program imports this package.
    """
    arguments, program = sys.orig_argv, Path(sys.argv[0]).name if sys.argv else ""
    if program == "-m" and "-m" in arguments[:-1]:  # what it is while `python -m` looks for its module
        program = arguments[arguments.index("-m") + 1].split(".")[0]
    if program not in ("psgjax", "experiments"):
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started it has it ignored
        signal.signal(signal.SIGINT, _end_import)
    sys.excepthook = _excepthook


def _end_import(number: int, frame: FrameType | None) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())
    _end(128 + number)


def _end(status: int) -> NoReturn:
    """End the process at once, the cursor visible again, which a display hides."""
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")
    os._exit(status)


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    known = explain(error)
    if known is None or not isinstance(error, ValueError):
        return sys.__excepthook__(kind, error, trace)
    print(one_line(known[0]), file=sys.stderr, flush=True)
    os._exit(known[1])


class Stop:
    """Whether a signal asked the work to stop, and which."""

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP ask once; a second one ends the process at once.

        One that whoever started the process has ignored (`nohup`) stays so; outside the main thread nothing is changed, as Python
        has it.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.signal:
                _end(128 + number)
            self.signal = number

        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, ask) for number in heard} if _in_main_thread() else {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def terminal() -> Console:
    """A console on standard output that shows text as it is: no markup, no emoji, no colours of its own choosing."""
    from rich.console import Console

    return Console(file=sys.stdout, markup=False, emoji=False, highlight=False)


def tell(console: Console) -> Callable[[str], None]:
    """A function that shows a text as one line that is never wrapped, every character as it is, on any console."""
    return lambda text: console.out(one_line(text), highlight=False)


def warn(console: Console, text: str) -> None:
    """Show a warning, as `tell` does."""
    console.out("warning: ", end="", style="bold yellow")
    tell(console)(text)


def one_line(text: str) -> str:
    """The text with what would move a terminal's cursor written out, such as a newline in the name of a file."""
    return text.translate(_CONTROL)


def check_output(option: str, path: Path | None, suffixes: Sequence[str] = ()) -> None:
    """Refuse, before any work, a file that could not be written at its end. Leaves nothing behind.

    Raises:
        ConfigError: With the option, the path, and what is wrong with it.
    """
    if path is None:
        return
    wrong = None
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"{option} {path} must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        wrong = "is a folder"
    elif not path.parent.is_dir():
        wrong = "lies in a folder that does not exist"
    elif path.exists() and not path.is_file():
        wrong = "is no ordinary file"
    else:
        try:
            with path.with_name(f".{path.name}.partial").open("ab"):  # the name that `write_atomically` takes
                pass
            path.with_name(f".{path.name}.partial").unlink()
        except OSError as error:
            wrong = f"cannot be written ({error.strerror})"
    if wrong:
        raise ConfigError(f"{option} {path} {wrong}; give the name of a file in an existing folder.")


class _Steady:
    """A standard stream that never raises: what its encoding lacks is escaped, and from its first failure on it swallows all."""

    def __init__(self, name: str, stream: Any) -> None:
        self.failed, self._name, self._stream = False, name, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or what can be written of it; the number of characters that were given."""
        self._try(partial(self._write, text))
        return len(text)

    def flush(self) -> None:
        """Hand over what is written."""
        self._try(self._stream.flush)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))

    def _try(self, action: Callable[[], object]) -> None:
        if self.failed:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.failed = True
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())  # what is still buffered goes there when Python ends
            if self._name == "stdout":
                print(f"error: standard output failed ({error}); the work goes on without it", file=sys.stderr)


@contextmanager
def _steady(name: str) -> Iterator[_Steady | None]:
    """Have a standard stream never raise; there may be none."""
    stream = getattr(sys, name)
    if stream is None:
        yield None
        return
    steady = _Steady(name, stream)
    redirect = contextlib.redirect_stdout if name == "stdout" else contextlib.redirect_stderr
    with redirect(steady):
        yield steady


_guard_imports()
