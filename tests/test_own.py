"""A user's own file of parts: found, run once, named with its line where it fails, and missed by name."""

import os

import pytest

from psgjax import own
from psgjax.__main__ import main
from psgjax.config import ConfigError, Method
from psgjax.environment import other_bits, provenance
from psgjax.runs.identity import read_config
from psgjax.schema import to_json
from psgjax.shell import run_command
from psgjax.switches import named_method

MINE = """
import psgjax
from beside import twice

def mine(outputs):
    return twice(outputs[-1, :, 0]), -outputs[:-1, :, 0]

psgjax.register_loss("mine", mine, "a loss of mine")
psgjax.register_method("my-method", psgjax.Method(loss="mine", scores="independent", gate="none"), "a method of mine")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.delenv(own.VARIABLE, raising=False)
    monkeypatch.setenv(own.VARIABLE, "")  # what the option sets is gone afterwards
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("place", ["before", "after", "equals"])
def test_the_option_stands_anywhere_and_help_knows_the_parts(mine, place, capsys):
    given = ["--parts", str(mine)] if place != "equals" else [f"--parts={mine}"]
    command = ["train", "--help"]
    with pytest.raises(SystemExit):
        main([*given, *command] if place == "before" else [*command, *given])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "mine, a loss of mine" in words
    assert "my-method" in words
    assert os.environ[own.VARIABLE] == str(mine)


def test_a_home_is_found(mine, monkeypatch):
    monkeypatch.setenv("HOME", str(mine.parent))
    with pytest.raises(SystemExit):
        main(["--parts=~/mine.py", "train", "--help"])
    assert os.environ[own.VARIABLE] == str(mine)
    assert named_method("my-method").loss == "mine"


def test_a_file_runs_once_and_is_recorded_by_name_and_sha256(mine, monkeypatch):
    monkeypatch.setenv(own.VARIABLE, os.pathsep.join([str(mine), str(mine)]))
    assert run_command(lambda: 0) == run_command(lambda: 0) == 0
    assert named_method("my-method").loss == "mine"
    (digest,) = provenance()["parts"].values()
    assert len(digest) == 64
    now = {"device": "cpu", "parts": {"mine.py": digest}}
    assert other_bits(now, now) is None
    assert other_bits({**now, "parts": {"mine.py": "0" * 64}}, now).startswith("mine.py has changed since")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import psgjax\n\n1 / 0\n", "mine.py, line 3: ZeroDivisionError: division by zero"),
        ("x = (\n", "mine.py, line 1: SyntaxError: '(' was never closed"),
        ("import psgjax\npsgjax.register_loss('hinge', len)\n", "mine.py, line 2: loss hinge is one of psgjax's own"),
        ("import sys\nsys.exit(3)\n", "mine.py, line 2: SystemExit: 3"),
        ("import none_such\n", "mine.py, line 1: ModuleNotFoundError: No module named 'none_such'"),
        (None, "mine.py, named by --parts or PSGJAX_PARTS, cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_line(mine, text, message, capsys):
    if text is None:
        mine.unlink()
    else:
        mine.write_text(text)
    assert main(["report", "none", "--parts", str(mine)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_option_without_a_file_is_refused(mine, capsys):
    for given in (["train", "--parts"], ["--parts", "--help"], ["--parts="]):
        assert main(given) == 2
        assert "error: --parts names no file" in capsys.readouterr().err


def test_a_run_whose_part_is_missing_is_refused_with_its_name(tmp_path, tiny_run):
    (tmp_path / "config.json").write_text(to_json(tiny_run).replace('"cross-entropy"', '"lsgan"'))
    with pytest.raises(ConfigError, match=r"made with method.loss 'lsgan', which is not there. .*--parts FILE"):
        read_config(tmp_path)
    for wrong in ({"loss": "lsgan"}, {"gate": "mine"}, {"regularisers": (("mine", 1.0),)}):
        with pytest.raises(ConfigError, match=r"Did you mean .*PSGJAX_PARTS=FILE"):
            Method(**wrong)


@pytest.fixture
def tiny_run():
    from conftest import tiny

    return tiny("gan")
