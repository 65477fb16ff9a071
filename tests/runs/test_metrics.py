"""Lines continue where a checkpoint stands."""

import pytest

from psgjax.runs import metrics as recorded


def test_lines_after_the_checkpoint_are_dropped_and_a_torn_one_is_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert [line["step"] for line in recorded.read_lines(path)] == [1, 2, 3]
    metrics = recorded.MetricsFile(path, 2)
    metrics.write({"step": 3, "again": True})
    metrics.close()
    assert recorded.read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert recorded.read_lines(tmp_path / "absent") == []


def test_a_line_that_is_no_json_number_is_refused(tmp_path):
    metrics = recorded.MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="JSON"):
        metrics.write({"step": 1, "loss": float("nan")})
    metrics.close()
