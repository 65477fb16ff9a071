"""psgjax train and the other doors: any of the sources, one folder, one report, from Python as from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import psgjax
from psgjax import __main__ as doors

QUICK = ["--epochs", "1", "--batch-size", "500", "--network.width", "4", "--evaluation-epochs", "0"]


def test_every_door_leads_somewhere(tmp_path, capsys):
    out = tmp_path / "images"
    given = ["--data.source", "packaged", "--methods", "gan", *QUICK, "--out", str(out)]
    assert doors.main(["train", *given]) == 0
    assert json.loads((out / "gan" / "config.json").read_text())["network"]["width"] == 4
    (out / "report.html").unlink()
    assert doors.main(["report", str(out)]) == 0
    assert (out / "report.html").is_file()
    assert doors.main(["sample", str(out / "gan"), "--count", "8", "--out", str(tmp_path / "gan.png")]) == 0
    assert (tmp_path / "gan.png").is_file()
    assert capsys.readouterr().out.count("report: ") == 2


def test_an_unknown_door_is_one_line_and_help_loads_no_jax():
    def run(*arguments):
        command = [sys.executable, "-X", "importtime", "-m", "psgjax", *arguments]
        return subprocess.run(command, cwd=Path(psgjax.__file__).parents[1], capture_output=True, text=True)

    for given in (["--help"], ["--version"], ["trian"]):
        done = run(*given)
        assert not any(line.split("|")[-1].strip() == "jax" for line in done.stderr.splitlines())
        assert done.returncode == (2 if given == ["trian"] else 0)
        assert "Traceback" not in done.stderr
    assert "error: unknown command 'trian'; known are train, sample, evaluate, report, replay." in done.stderr
    assert run("--version").stdout.strip() == psgjax.__version__
