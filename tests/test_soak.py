"""A short soak: killed at random and resumed, a run ends as if it had been left alone; and a difference would be found."""

import json

import pytest

from experiments import soak
from psgjax.tracking import read_lines, write_atomically


def test_a_kill_leaves_no_trace_and_a_difference_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "_LONGEST", 1.0)
    out = tmp_path / "soak"
    assert soak.main(["--kills", "1", "--epochs", "40", "--out", str(out), "--seed", "1"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["resumes"] == 1
    assert results["lines"] == 40
    assert results["numbers"] > 1000
    assert [results[name] for name in ("lines_lost", "lines_doubled", "lines_differing", "numbers_differing")] == [0, 0, 0, 0]
    path = out / "cut/psg/metrics.jsonl"
    lines = read_lines(path)
    changed = [lines[0], lines[0], {**lines[2], "epoch": -1}, *lines[4:]]  # one doubled, two lost, one different
    write_atomically(path, "".join(json.dumps(line) + "\n" for line in changed))
    found = soak.compare(out / "cut/psg", out / "whole/psg")
    assert [found[name] for name in ("lines_lost", "lines_doubled", "lines_differing")] == [2, 1, 1]


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--out", "."]])
def test_what_it_refuses(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.tex").touch()
    assert soak.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
