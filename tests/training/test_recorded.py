"""Files that are whole or absent, lines that continue where a checkpoint stands, grids, and plain progress."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from psgjax import tracking


def test_lines_after_the_checkpoint_are_dropped_and_a_torn_one_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in tracking.read_lines(path)] == [1, 2, 3]
    metrics = tracking.MetricsFile(path, 2)
    metrics.write({"step": 3, "again": True})
    metrics.close()
    assert tracking.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert tracking.read_lines(tmp_path / "absent") == []


def test_a_line_that_is_no_json_number_is_refused(tmp_path):
    metrics = tracking.MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="JSON"):
        metrics.write({"step": 1, "loss": float("nan")})
    metrics.close()


def test_a_grid_puts_each_generator_in_rows_of_its_own(tmp_path):
    images = np.zeros((2, 3, 4, 5, 1)) - 1
    images[1, 2] = 1.0
    picture = tracking.image_grid(tracking.to_pixels(images), columns=2)
    assert picture.shape == (2 * 2 * 4, 2 * 5, 1)
    white = np.argwhere(picture[..., 0] == 255)
    assert white.min(0).tolist() == [12, 0]  # generator 2: rows 8 to 15, its third image below the first
    assert white.max(0).tolist() == [15, 4]
    tracking.write_png(tmp_path / "grid.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture[..., 0])
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_name_that_is_no_text_is_written_with_escapes(tmp_path):
    tracking.write_atomically(tmp_path / "report.html", "runs/\udcff한")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == r"runs/\udcff" + "한"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    tracking.write_atomically(path, "old")
    monkeypatch.setattr(tracking.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tracking.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_without_a_terminal_progress_is_plain_lines():
    out = io.StringIO()
    line = {"epoch": 2, "loss": {"discriminator": 1.5, "generators": [1.0, 0.5]}}
    with tracking.ProgressDisplay(Console(file=out), "psg", 10, 0, 4) as display:
        display.update(5, None)
        display.update(10, line)
    text = out.getvalue().splitlines()
    assert len(text) == 1
    assert text[0].startswith("psg: step 10 of 10: epoch 2  D 1.500  G 1.000 0.500")


def test_on_a_terminal_progress_is_a_bar_with_losses_and_time_left():
    out = io.StringIO()
    line = {"epoch": 2, "loss": {"discriminator": 1.5, "generators": [1.0, 0.5]}}
    with tracking.ProgressDisplay(Console(file=out, force_terminal=True, width=120), "psg", 10, 0, 4) as display:
        display.update(5, line)
    assert "epoch 2  D 1.500  G 1.000 0.500" in out.getvalue()
    assert "images/s" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4, "4 s"), (99, "99 s"), (150, "2 min"), (5 * 3600, "5.0 h"), (30 * 3600, "30 h"), (3 * 86400, "3.0 days")],
)
def test_durations(seconds, text):
    assert tracking.duration(seconds) == text
