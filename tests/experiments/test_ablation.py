import json
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation, grid
from psgjax.data.dataset import Dataset
from psgjax.training import loop

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

# The program of psg is that of test_mixture2d.py, compiled once for both.
TINY = ["--steps", "20", "--seeds", "2", "--points", "1000", "--samples", "200"]
TINY += ["--network.width", "8", "--batch-size", "16", "--out", "out"]
# Two cells that can be done and two that cannot.
FOUR = [*TINY, "--generators", "1", "2", "--spectral-norm", "no", "--losses", "mgan", "softmax", "--gates", "triplet"]
NAMES = ["k1-plain-softmax-triplet", "k2-plain-softmax-triplet"]


def cell_files():
    return {path.stem: (path.stat().st_mtime_ns, path.read_text()) for path in Path("out/cells").glob("*")}


@pytest.fixture
def done(monkeypatch):
    """The names of the cells that are done, by something that trains nothing."""
    names = []

    def work(config, folder):
        names.append(config.method_name)
        mean = {"mean": float(config.method.generators), "std": None, "seeds": 2}
        return {"modes": mean, "high_quality": mean, "reverse_kl": mean}

    monkeypatch.setattr(ablation, "on_mixture", lambda options, console: work)
    return names


def noise(images):
    info = {"description": "noise", "sha256": "0" * 64, "source": "packaged", "warning": None}
    labels = np.zeros(32, np.int32)
    return Dataset(images, labels, images[:8], labels[:8], info)


def test_the_whole_grid_has_36_cells_and_names_the_known_methods():
    cells = grid.configure(grid.Options())
    assert len({cell.name for cell in cells}) == 36
    assert all(cell.config for cell in cells)
    named = {cell.method_name: cell.name for cell in cells if cell.method_name}
    assert named == {
        "gan": "k1-plain-cross-entropy-none",
        "relativistic": "k1-plain-softmax-none",
        "sngan": "k1-sn-cross-entropy-none",
        "stackelberg": "k2-plain-cross-entropy-none",
        "psg": "k2-plain-softmax-triplet",
        "psg-ungated": "k2-plain-softmax-none",
        "psg-sn": "k2-sn-softmax-triplet",
    }


def test_trains_and_evaluates_a_cell_on_a_mixture():
    arguments = [*TINY, "--generators", "2", "--spectral-norm", "no", "--losses", "softmax", "--gates", "triplet"]
    assert ablation.main(arguments) == 0
    record = json.loads(Path(f"out/cells/{NAMES[1]}.json").read_text())
    assert record["settings"]["method"]["generators"] == 2
    assert record["settings"]["seeds"] == len(record["result"]["per_seed"]) == 2
    assert record["command"].startswith("python -m experiments.ablation --steps 20")
    assert "psg" in Path("out/results.md").read_text()


def test_does_the_cells_then_nothing_and_shows_why_cells_are_impossible(done, capsys):
    assert ablation.main(FOUR) == 0
    assert done == NAMES
    first, shown = cell_files(), capsys.readouterr().out
    assert sorted(first) == NAMES
    results, text = json.loads(Path("out/results.json").read_text()), Path("out/results.md").read_text()
    assert list(results["cells"]) == ["k1-plain-mgan-triplet", NAMES[0], "k2-plain-mgan-triplet", NAMES[1]]
    assert results["cells"][NAMES[1]] == json.loads(first[NAMES[1]][1])
    assert "use --method.gate none" in results["cells"]["k1-plain-mgan-triplet"]["impossible"]
    for words in (shown, text):
        assert all(word in words for word in (*NAMES, "psg", "modes (of 8)", "impossible: k1-plain-mgan-triplet, k2-"))

    assert ablation.main(FOUR) == 0
    assert done == NAMES
    assert cell_files() == first
    assert "2 of 2 cells are done already" in capsys.readouterr().out
    assert Path("out/results.md").read_text() == text


def test_a_cell_done_with_other_settings_is_refused(done, refusal):
    assert ablation.main(FOUR) == 0
    before = cell_files()
    error = refusal(ablation.main, [*FOUR, "--steps", "5", "--optimizer.beta1", "0.25"])
    assert "steps: 20 -> 5" in error
    assert "optimizer.beta1: 0.5 -> 0.25" in error
    assert "k1-plain-softmax-triplet.json" in error
    assert cell_files() == before


def test_one_cell_is_done_alone_when_it_is_named(done, refusal):
    assert ablation.main([*FOUR, "--cells", NAMES[1]]) == 0
    assert done == NAMES[1:]
    assert "not done" in Path("out/results.md").read_text()
    assert f"Did you mean '{NAMES[1]}'?" in refusal(ablation.main, [*FOUR, "--cells", "k2-softmax"])


def test_a_grid_that_is_all_impossible_says_so(capsys):
    assert ablation.main([*TINY, "--generators", "1", "--losses", "mad-gan", "--gates", "none"]) == 0
    shown = capsys.readouterr().out
    assert "naming the generator of an image needs at least two" in shown


MNIST = ["--task", "mnist", "--epochs", "2", "--batch-size", "4", "--network.width", "4", "--network.latent-size", "6"]
MNIST += ["--generators", "2", "--spectral-norm", "no", "--losses", "softmax", "mad-gan", "--gates", "triplet"]
MNIST += ["--network.name", "mlp", "--out", "out"]


def test_on_images_it_resumes_and_reports_the_papers_statistics(images, monkeypatch):
    monkeypatch.setattr("psgjax.data.dataset.load", lambda config, progress: noise(images))
    assert ablation.main(MNIST) == 0
    first = cell_files()
    assert list(first) == NAMES[1:]
    record = json.loads(first[NAMES[1]][1])
    assert record["settings"]["data"]["sha256"] == "0" * 64
    assert record["result"]["steps"] == 16
    assert record["result"]["loss_at_equilibrium"]["generator"] == pytest.approx(np.log(3))
    assert Path(f"out/runs/{NAMES[1]}/metrics.jsonl").exists()
    text = Path("out/results.md").read_text()
    assert "above chance" in text

    monkeypatch.setattr(loop, "train", None)
    assert ablation.main(MNIST) == 0
    assert cell_files() == first
    assert Path("out/results.md").read_text() == text


def test_on_images_a_stop_keeps_what_is_done_and_a_divergence_is_a_result(images, capsys, monkeypatch):
    monkeypatch.setattr("psgjax.data.dataset.load", lambda config, progress: noise(images))

    def train(config, data, folder, console, stop):
        if "majority" in config.method_name:
            stop.signal = 2
            return loop.Outcome(3, finished=False)
        raise loop.Diverged("a loss is not finite")

    monkeypatch.setattr(loop, "train", train)
    assert ablation.main([*MNIST, "--gates", "triplet", "majority"]) == 130
    assert list(cell_files()) == NAMES[1:]
    assert "run the same command again" in capsys.readouterr().out
    assert ablation.main(MNIST) == 0
    assert "diverged" in Path("out/results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--generators", "0"], "generators is 0"),
        (["--generators"], "--generators names none"),
        (["--losses"], "--losses names none"),
        (["--seeds", "0"], "seeds is 0"),
        (["--epochs", "3"], "--epochs 3 with --task mixture"),
        (["--task", "mnist", "--epochs", "3"], "are both given"),
        (["--network.name", "dcgan28"], "network.name dcgan "),
        (["--batch-size", "1001"], "batch_size 1001"),
        (["--steps", "0"], "steps is 0"),
        (["--out", "file"], "is a file"),
        (["--out", "full"], "full/results.md is of no run"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, message, occupied, refusal):
    assert message in refusal(ablation.main, [*TINY, *arguments])
