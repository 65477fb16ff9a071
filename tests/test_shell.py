"""The shell of the commands: one line whatever ends them, a terminal that shows names as they are, streams that fail, signals."""

import ast
import errno
import importlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import pytest
from rich.console import Console

import psgjax
from psgjax import shell
from psgjax.config import ConfigError
from psgjax.progress import ProgressDisplay
from psgjax.shell import Failure, Stop, check_output, run_command, tell, terminal, warn

ROOT = Path(psgjax.__file__).parents[1]
NAMES = ["[bold]x[/]", "[/]", ":smile: [red", "a{b}%s", "한글 é", "tab\tbell\x07 line\nreturn\r.", "x" * 300]


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ConfigError("seed is -1."), "error: seed is -1.", 2),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "error: [Errno 28] No space left on device: 'a'", 2),
        (Failure("it diverged"), "error: it diverged", 1),
        (KeyboardInterrupt(), "stopped: nothing was written", 130),
        (MemoryError(), "error: memory does not suffice. Ask for fewer.", 2),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"),
            "error: memory does not suffice: Out of memory allocating 8 bytes. Ask for fewer.",
            2,
        ),
        (ConfigError("there is no file a\nb\x07."), r"error: there is no file a\nb\x07.", 2),
    ],
)
def test_whatever_people_can_mend_is_one_line(error, line, status, capsys):
    assert run_command(raising(error), reduce="Ask for fewer.") == status
    assert capsys.readouterr() == ("", line + "\n")


def test_a_fault_of_ours_keeps_its_traceback(capsys):
    with pytest.raises(RuntimeError, match="a bug"):
        run_command(raising(RuntimeError("a bug")))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name, capsys):
    expected = name.replace("\t", r"\t").replace("\x07", r"\x07").replace("\n", r"\n").replace("\r", r"\r")
    for make in (terminal, Console):  # a caller's own console has markup and emoji
        tell(make())(f"report: {name}")
        warn(make(), name)
        assert capsys.readouterr().out == f"report: {expected}\nwarning: {expected}\n"
    for terminal_like in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal_like, width=1000, color_system=None)
        with ProgressDisplay(console, name, 1, 0, 1) as display:
            display.update(1, None)
        assert expected in file.getvalue()


class Failing(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_standard_output_that_fails_ends_nothing_and_is_said_once(monkeypatch, capsys):
    done = []

    def work():
        for i in range(3):
            tell(terminal())(str(i))
            print(i)
            done.append(i)

    monkeypatch.setattr(sys, "stdout", Failing())
    assert run_command(work) == 1
    assert done == [0, 1, 2]
    expected = "error: standard output failed ([Errno 32] Broken pipe); the work goes on without it\n"
    assert capsys.readouterr().err == expected


@pytest.mark.uncovered
def test_a_process_whose_standard_output_is_full_ends_with_one_line_and_status_1():
    work = "import sys; from psgjax.shell import run_command; sys.exit(run_command(lambda: print('x')))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (
        done.stderr
        == "error: standard output failed ([Errno 28] No space left on device); the work goes on without it\n"
    )
    assert done.returncode == 1


def test_too_large_an_array_of_jax_is_one_line(capsys):
    assert run_command(lambda: print(jnp.zeros(1 << 44).sum())) == 2
    assert capsys.readouterr().err.startswith("error: memory does not suffice: Out of memory allocating ")


def test_without_standard_streams_work_is_done(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(lambda: tell(terminal())("x")) == 0
    assert run_command(raising(ConfigError("x"))) == 2


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert run_command(lambda: tell(terminal())("한 é \udcff")) == 0
    assert raw.getvalue() == rb"\ud55c \xe9 \udcff" + b"\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_ask_to_stop(number):
    stop, before = Stop(), signal.getsignal(number)
    with stop.listening():
        signal.raise_signal(number)
    assert stop.signal == number
    assert signal.getsignal(number) is before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with (stop := Stop()).listening():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop.signal == 0


def test_an_end_at_once_leaves_the_cursor_visible():
    terminal_, its_other_end = os.openpty()
    work = "from psgjax import shell; shell._end(3)"
    assert subprocess.run([sys.executable, "-c", work], cwd=ROOT, stdout=its_other_end).returncode == 3
    assert os.read(terminal_, 100) == b"\x1b[?25h"
    os.close(terminal_)
    os.close(its_other_end)


def test_commands_run_in_a_thread():
    statuses = []

    def work():
        with Stop().listening():
            return 0

    thread = threading.Thread(target=lambda: statuses.append(run_command(work)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path, disk):
    (tmp_path / "file").touch()
    cases = {
        tmp_path: "is a folder",
        tmp_path / "none/x.json": "lies in a folder that does not exist",
        tmp_path / "file/x.json": "lies in a folder that does not exist",
        Path("/dev/null"): "is no ordinary file",
        tmp_path / ("x" * 252): "cannot be written (File name too long)",
    }
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    cases[disk / "x.json"] = "cannot be written (Read-only file system)"
    for path, wrong in cases.items():
        with pytest.raises(ConfigError) as refused:
            check_output("--json", path)
        assert str(refused.value).startswith(f"--json {path} {wrong}; give ")
    with pytest.raises(ConfigError, match=r"--out .*x\.txt must end in \.png or \.npz"):
        check_output("--out", tmp_path / "x.txt", (".png", ".npz"))
    check_output("--json", tmp_path / "x.json")
    check_output("--json", tmp_path / "file")
    check_output("--json", None)
    assert [path.name for path in tmp_path.iterdir() if path != disk] == ["file"]


def program(*arguments, **environment):
    """A command of ours from another folder: status, output and error."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.uncovered
def test_ctrl_c_while_importing_is_one_line(tmp_path):
    (tmp_path / "tyro.py").write_text("import time; print('importing', flush=True); time.sleep(60)", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for words in (["experiments.mnist"], ["psgjax", "evaluate"]):
        command = [sys.executable, "-m", *words]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[1] == "stopped: nothing was written\n"
            assert process.returncode == 130


def test_a_program_that_imports_psgjax_keeps_its_signals_and_tracebacks(monkeypatch):
    hooks = signal.getsignal(signal.SIGINT), sys.excepthook
    for argv, given in ((["-m"], ["python", "-m", "mine"]), (["x.py"], ["python", "x.py"]), (["-m"], ["python", "-m"])):
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "orig_argv", given)
        shell._guard_imports()
        assert (signal.getsignal(signal.SIGINT), sys.excepthook) == hooks


def test_elsewhere_than_on_linux_and_macos_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match=r"^psgjax runs on Linux and macOS; on Windows"):
        importlib.reload(shell)


def test_every_text_file_is_opened_as_utf8():
    for path in [*ROOT.glob("psgjax/**/*.py"), *ROOT.glob("experiments/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            mode = next((a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "r")
            text = name in ("read_text", "write_text") or (
                name == "open" and "b" not in mode and set(mode) <= set("rwax+")
            )
            if text and getattr(getattr(node.func, "value", None), "id", "") not in ("Image", "os", "archive"):
                assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
