"""Progress on a terminal and elsewhere."""

import io

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


def test_on_a_terminal_progress_is_a_bar_with_losses_and_time_left():
    out = io.StringIO()
    line = {"epoch": 2, "loss": {"discriminator": 1.5, "generators": [1.0, 0.5]}}
    with progress.ProgressDisplay(Console(file=out, force_terminal=True, width=120), "psg", 10, 0, 4) as display:
        display.update(5, line)
    assert "epoch 2  D 1.500  G 1.000 0.500" in out.getvalue()
    assert "images/s" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "4 s"), (99, "99 s"), (150, "2 min"), (5 * 3600, "5.0 h"), (30 * 3600, "30 h"), (3 * 86400, "3.0 days")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
