"""What the end of an epoch logs is what the command finds; the best state is kept; nothing of it changes the run."""

import json

import pytest

from experiments import mnist
from psgjax.commands import evaluate as command
from psgjax.runs.metrics import read_lines
from psgjax.training import observer


def test_grids_are_kept_at_1_2_5_10_and_so_on():
    assert [epoch for epoch in range(0, 600) if observer._shown(epoch)] == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert not observer._shown(2.5)


def without(line, *keys):
    return {key: value for key, value in line.items() if key not in keys}


@pytest.mark.uncovered
@pytest.mark.drawn
def test_training_logs_what_the_command_finds_and_keeps_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--network.name", "mlp", "--network.width", "8", "--batch-size", "32", "--data.train-images", "64"]
    evaluation = ["--evaluation-epochs", "2", "--evaluation-samples", "60"]
    arguments = ["--methods", "psg", "--epochs", "5", "--data.source", "packaged", *small, *evaluation]
    assert mnist.main(arguments) == 0
    lines = read_lines(tmp_path / "runs/mnist/psg/metrics.jsonl")
    assert [line["epoch"] for line in lines if "evaluation" in line] == [2, 4, 5]
    assert command.main(["runs/mnist/psg", "--json", "out.json"]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert {key: found[key] for key in lines[-1]["evaluation"]} == lines[-1]["evaluation"]
    capsys.readouterr()
    assert command.main(["runs/mnist/psg", "--samples", "1"]) == 2
    assert "samples is 1; it must be at least 12, of 2 generators" in capsys.readouterr().err
    best = min((line for line in lines if "evaluation" in line), key=lambda line: line["evaluation"]["fcd"])
    for chosen in (["runs/mnist/psg/best"], ["runs/mnist/psg", "--checkpoint", "best"]):
        assert command.main([*chosen, "--json", "best.json"]) == 0
        found = json.loads((tmp_path / "best.json").read_text())
        assert {key: found[key] for key in best["evaluation"]} == best["evaluation"]
    capsys.readouterr()
    assert command.main(["runs/mnist"]) == 2
    assert "runs/mnist/psg" in capsys.readouterr().err
    assert (tmp_path / "runs/mnist/figures/quality.png").is_file()
    assert "Quality of the samples" in (tmp_path / "runs/mnist/report.html").read_text()
    assert mnist.main([*arguments[:-4], "--evaluation-epochs", "0", "--out", "plain"]) == 0
    plain = read_lines(tmp_path / "plain/psg/metrics.jsonl")
    assert [without(line, "seconds", "evaluation") for line in lines] == [without(line, "seconds") for line in plain]
