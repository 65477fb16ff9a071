"""psgjax train and the other doors: any of the sources, one folder, one report, from Python as from the command line."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sources
from PIL import Image

import psgjax
from experiments import fashion_mnist
from psgjax import __main__ as doors
from psgjax.commands import report, train
from psgjax.data import idx
from psgjax.evaluation import fitting
from psgjax.report import page
from psgjax.training import observer

QUICK = ["--epochs", "1", "--batch-size", "500", "--evaluation-epochs", "0"]
QUICK += ["--network.name", "mlp", "--network.width", "4"]
SMALL = ["--steps", "2", "--batch-size", "8", "--evaluation-epochs", "0", "--methods", "gan"]
SMALL += ["--network.name", "mlp", "--network.width", "2"]


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


def before_jax(tmp_path, command, **streams):
    """Start a command in which loading jax takes half a second and ends it."""
    ending = "import os, time\ntime.sleep(0.5)\nprint('jax', flush=True)\nos._exit(3)"
    (tmp_path / "jax.py").write_text(ending, encoding="utf-8")
    root = Path(psgjax.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}", "TERM": "xterm"}
    return subprocess.Popen([sys.executable, "-m", "psgjax", command], env=environment, **streams)


def test_a_line_is_there_before_jax_is_loaded(tmp_path):
    with before_jax(tmp_path, "train", stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read() == "loading jax\njax\n"


def test_something_moves_on_a_terminal_while_jax_is_loaded(tmp_path):
    for command, said in (("train", b"loading jax"), ("evaluate", b"loading psgjax evaluate")):
        terminal, its_other_end = os.openpty()
        with before_jax(tmp_path, command, stdin=subprocess.DEVNULL, stdout=its_other_end, stderr=its_other_end):
            os.close(its_other_end)
            shown = b""
            while b"jax\r\n" not in shown:
                shown += (more := os.read(terminal, 4096))
                assert more
        os.close(terminal)
        assert shown.count(said) > 1


def test_whatever_takes_its_time_is_shown_from_the_command_to_the_report(tmp_path, monkeypatch, own_cache):
    shown = []

    @contextmanager
    def busy(console, what, plain=True):
        shown.append(what)
        yield

    for module in (train, observer, report):
        monkeypatch.setattr(module, "busy", busy)
    for module in (train, observer):
        monkeypatch.setattr(module, "tracker", lambda console: lambda items, count, what: shown.append(what) or items)
    monkeypatch.setattr(fitting, "_PIXELS", 0)
    monkeypatch.setattr(page, "write", lambda folder: folder / "report.html")
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).uniform(-1, 1, (60, 10, 10)))
    given = ["--data.dir", str(tmp_path / "mine.npy"), "--data.size", "8", "--evaluation-samples", "20"]
    given += ["--steps", "1", "--batch-size", "8", "--network.name", "mlp", "--network.width", "2", "--methods", "gan"]
    assert doors.main(["train", *given, "--out", str(tmp_path / "out")]) == 0
    assert list(dict.fromkeys(shown)) == [
        "loading jax",
        "reading the images",
        "scaling values",
        "ordering images",
        "resizing images",
        "training what images are measured by",
        "measuring held-out images",
        "measuring samples",
        "drawing the report",
    ]


@pytest.mark.drawn
def test_own_images_train_from_a_folder_and_go_on_where_it_has_moved(tmp_path, capsys):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "mine" / name / f"{i}.png")
    given = [
        *SMALL,
        *["--data.source", "folder", "--data.size", "8", "--data.flip", "True", "--out"],
        str(tmp_path / "out"),
    ]
    assert doors.main(["train", *given, "--data.dir", str(tmp_path / "mine")]) == 0
    assert "on mine, 22 training and 2 held-out images" in capsys.readouterr().out
    (tmp_path / "mine").rename(tmp_path / "moved")
    assert doors.main(["train", *given, "--data.dir", str(tmp_path / "moved")]) == 0
    assert "finished already" in capsys.readouterr().out
    assert doors.main(["train", *given, "--data.dir", str(tmp_path / "moved"), "--data.colour", "grey"]) == 2
    assert "training images are not those" in capsys.readouterr().err


def test_features_of_a_file_measure_what_is_trained(tmp_path, capsys):
    def brightness(images):
        return images.astype(jnp.float32).mean((1, 2))

    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.save(tmp_path / "mine.npy", images)
    shape = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8)
    (tmp_path / "own.stablehlo").write_bytes(jax.export.export(jax.jit(brightness))(shape).serialize())
    given = ["train", "--data.dir", str(tmp_path / "mine.npy"), "--steps", "1", "--batch-size", "8", "--methods", "gan"]
    given += ["--network.name", "mlp", "--network.width", "2", "--evaluation-samples", "20"]
    given += ["--out", str(tmp_path / "out"), "--features"]
    assert doors.main([*given, str(tmp_path / "other.stablehlo")]) == 2
    assert doors.main([*given, str(tmp_path / "own.stablehlo"), "--evaluation-epochs", "0"]) == 2
    refusals = capsys.readouterr().err.splitlines()
    assert "other.stablehlo cannot be read" in refusals[0]
    assert "with --evaluation-epochs 0 would be ignored" in refusals[1]
    assert not (tmp_path / "out").exists()
    assert doors.main([*given, str(tmp_path / "own.stablehlo")]) == 0
    (line,) = psgjax.load(tmp_path / "out" / "gan").metrics
    assert np.isfinite(line["evaluation"]["fd_own"])
    assert "Fréchet distance on the features own" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.uncovered
def test_an_experiment_of_ones_own_is_a_preset(tmp_path, monkeypatch, capsys):
    folder = sources.write(tmp_path / "idx", sources.contents())
    monkeypatch.setattr(idx, "published_name", lambda *_: "fashion_mnist")
    given = [*SMALL, "--out", str(tmp_path / "out")]
    assert fashion_mnist.main([*given, "--data.source", "idx", "--data.dir", str(folder)]) == 0
    assert "on Fashion-MNIST, 40 training and 20 held-out images" in capsys.readouterr().out
    assert len(Path(fashion_mnist.__file__).read_text().splitlines()) < 40
