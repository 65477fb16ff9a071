"""docs/extend.md does what it says: its code runs as it stands, and its one file trains, stops, goes on, samples and reports."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from small_runs import StopAfter

import psgjax
from experiments import ablation
from psgjax import own, parts, sources
from psgjax.__main__ import main
from psgjax.commands import train
from psgjax.evaluation import fitting
from psgjax.networks import table

pytestmark = pytest.mark.uncovered

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
PYTHON, SHELL = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "sh"))
(FILE,) = (block for block in PYTHON if "register_method" in block)
COMMANDS = [shlex.split(line) for block in SHELL for line in block.splitlines()]


def command(name):
    (found,) = (line[2:] for line in COMMANDS if line[:2] == ["psgjax", name])
    return [name, *found]


@pytest.fixture
def folder(tmp_path, monkeypatch, own_cache):
    """One outside the tree, with the page's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "_MOST_EPOCHS", 10)
    monkeypatch.setenv(own.VARIABLE, "")  # what the option sets is gone afterwards
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path


def test_each_part_is_under_thirty_lines_and_its_code_runs(capsys):
    assert all(sum(map(bool, block.splitlines())) < 30 for block in PYTHON)
    names = {}
    for block in PYTHON:
        if block is not FILE:
            exec(compile(block, "docs/extend.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[-1].startswith("(16, 8, 8, 1) {'flat': ")


@pytest.mark.parametrize("kind", [parts.Loss, parts.Regulariser, table.Architecture, sources.Source])
def test_the_tables_have_every_field(kind):
    (text,) = re.findall(rf"\| `{kind.__name__}` \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n)+)", PAGE)
    given = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert given == [field.name for field in dataclasses.fields(kind) if field.name != "own"]


@pytest.mark.long
@pytest.mark.drawn
def test_the_file_trains_is_stopped_goes_on_to_the_same_bits_and_is_sampled_and_reported(folder, monkeypatch, capsys):
    given = command("train")
    with monkeypatch.context() as patch:
        patch.setattr(train, "Stop", lambda: StopAfter(4))
        assert main(given) == 130
    cut = json.loads((folder / "runs/mine/mine/env.json").read_text())
    assert set(cut["parts"]) == {"mine.py"}
    assert "run the same command again to go on" in capsys.readouterr().out
    assert main(given) == 0
    assert main([*given, "--out", "undisturbed"]) == 0
    capsys.readouterr()
    for run in ("runs/mine/mine", "undisturbed/mine"):
        assert main(["sample", run, "--verify"]) == 0
    one, other = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    assert one == other
    for name in ("sample", "evaluate", "report"):
        assert main(command(name)) == 0
    assert (folder / "mine.png").is_file()
    assert "regularisers" in json.loads((folder / "runs/mine/summary.json").read_text())["methods"]["mine"]
    config = json.loads((folder / "runs/mine/mine/config.json").read_text())
    assert (config["method"]["loss"], config["network"]["name"]) == ("lsgan", "dense")
    assert "mine.py" not in json.dumps(config)


def test_the_ablation_runs_over_the_new_loss(folder, monkeypatch):
    (line,) = (line for line in COMMANDS if "experiments.ablation" in line)
    name, _, file = line[0].partition("=")
    monkeypatch.setenv(name, file)
    small = "--generators 1 --gates none --spectral-norm no --seeds 1 --steps 2 --points 64 --samples 60"
    assert ablation.main([*line[4:], *small.split()]) == 0
    cells = json.loads((folder / "runs/ablation-mine/results.json").read_text())["cells"]
    assert list(cells) == ["k1-plain-cross-entropy-none", "k1-plain-lsgan-none"]
    assert "reverse_kl" in json.dumps(cells["k1-plain-lsgan-none"]["result"])
    assert psgjax.methods()["mine"] == "LSGAN with two generators and R1"
