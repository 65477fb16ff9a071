"""What a soak compares: it finds nothing between equal runs, and every line and number that differs. (Kills: test_mnist.py.)"""

import json
import shutil

import pytest

from experiments import mnist, soak
from psgjax.files import write_atomically
from psgjax.runs.metrics import read_lines

WRONG = ("lines_lost", "lines_doubled", "lines_differing", "numbers_differing")


def test_it_sees_what_is_lost_doubled_or_different(tmp_path):
    settings = (
        "--methods",
        "gan",
        "--epochs",
        "5",
        *soak._SETTINGS,
        "--network.name",
        "mlp",
        "--data.train-images",
        "64",
        "--evaluation-epochs",
        "0",
    )
    for seed in ("0", "1"):
        assert mnist.main([*settings, "--seed", seed, "--out", str(tmp_path / seed)]) == 0
    whole, cut = tmp_path / "0/gan", tmp_path / "cut"
    shutil.copytree(whole, cut)
    found = soak.compare(cut, whole)
    assert [found[name] for name in WRONG] == [0, 0, 0, 0]
    assert found["lines"] == 5
    assert found["numbers"] > 1000
    lines = read_lines(cut / "metrics.jsonl")
    changed = [lines[0], lines[0], {**lines[2], "epoch": -1}, lines[4]]  # one doubled, two lost, one different
    write_atomically(cut / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in changed))
    assert [soak.compare(cut, whole)[name] for name in WRONG] == [2, 1, 1, 0]
    assert soak.compare(tmp_path / "1/gan", whole)["numbers_differing"] > 1000


@pytest.mark.parametrize("arguments", [["--kills", "0"], ["--out", "."]])
def test_what_it_refuses(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.tex").touch()
    assert soak.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
