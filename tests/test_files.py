"""Files are whole or absent."""

import pytest

from psgjax import files


def test_a_name_that_is_no_text_is_written_with_escapes(tmp_path):
    files.write_atomically(tmp_path / "report.html", "runs/\udcff한")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == r"runs/\udcff" + "한"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
