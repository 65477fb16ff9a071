"""Progress on a terminal and elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console

from psgjax import progress


def test_without_a_terminal_progress_is_plain_lines():
    out = io.StringIO()
    line = {"epoch": 2, "loss": {"discriminator": 1.5, "generators": [1.0, 0.5]}}
    with progress.ProgressDisplay(Console(file=out), "psg", 10, 0, 4) as display:
        display.update(5, None)
        display.update(10, line)
    text = out.getvalue().splitlines()
    assert len(text) == 1
    assert text[0].startswith("psg: step 10 of 10: epoch 2  D 1.500  G 1.000 0.500")


def screen(**settings):
    """A console like a terminal, and what it shows."""
    out = io.StringIO()
    given = {"force_terminal": True, "force_interactive": True, "width": 120, "_environ": {"TERM": "xterm"}}
    return Console(file=out, **given | settings), out


def test_on_a_terminal_progress_is_a_bar_with_losses_and_time_left_that_moves_between_updates():
    console, out = screen()
    line = {"epoch": 2, "loss": {"discriminator": 1.5, "generators": [1.0, 0.5]}}
    with progress.ProgressDisplay(console, "psg", 10, 0, 4) as display:
        display.update(5, line)
        time.sleep(0.5)
    assert "epoch 2  D 1.500  G 1.000 0.500" in out.getvalue()
    assert "images/s" in out.getvalue()
    frames = [frame for frame in re.split("\x1b\\[[0-9;?]*[A-Za-z]|\r", out.getvalue()) if frame.strip() in {*"-\\|/"}]
    assert len(set(frames)) > 1


def test_what_is_done_moves_on_a_terminal_and_is_gone_afterwards():
    console, out = screen()
    with progress.busy(console, "reading [b]it[/]\n"), progress.busy(console, "within"):
        list(progress.tracker(console)(range(3), 3, "items"))
        time.sleep(0.5)
    assert "reading [b]it[/]\\n" in out.getvalue()
    assert "within" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the last line is cleared


@pytest.mark.parametrize("settings", [{}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}])
def test_where_nothing_moves_what_is_done_is_a_line(settings):
    out = io.StringIO()
    with progress.busy(Console(file=out, **settings), "reading"):
        assert out.getvalue() == "reading\n"
        with progress.busy(Console(file=out, **settings), "within", plain=False):
            list(progress.tracker(Console(file=out, **settings))(range(3), 3, "items"))
    assert out.getvalue() == "reading\n"


def test_a_quiet_console_shows_nothing_and_leaves_the_streams_alone(capsys):
    console, out = screen(quiet=True)
    with progress.busy(console, "reading"), progress.ProgressDisplay(console, "psg", 10, 0, 4) as display:
        display.update(10, None)
        print("seen")
    assert (out.getvalue(), capsys.readouterr().out) == ("", "seen\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "4 s"), (99, "99 s"), (150, "2 min"), (5 * 3600, "5.0 h"), (30 * 3600, "30 h"), (3 * 86400, "3.0 days")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
