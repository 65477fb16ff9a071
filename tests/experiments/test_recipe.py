"""The recipe's table: its rows, a task of each kind from end to end, and a cell made again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import mnist, recipe, recipe_tasks, stacked_digits, stacked_mnist
from psgjax.config import Network
from psgjax.data.dataset import Dataset
from psgjax.evaluation import fitting
from psgjax.shell import Stop
from psgjax.switches import METHODS
from psgjax.training import loop

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

TINY = ["--tasks", "ring", "--steps", "4", "--seeds", "2", "--points", "200", "--samples", "50", "--out", "out"]


def configs(**options):
    chosen = recipe.Options(**options)
    task = recipe_tasks.tasks(chosen, chosen.steps, chosen.data, Console(quiet=True), Stop())["grid"]()
    return recipe.configured(chosen, task)


def test_rows_are_the_named_methods_and_what_is_changed_of_them():
    found = configs()
    for name, config in found.items():
        if name in METHODS:
            assert config.method == METHODS[name]
        assert config.optimizer.learning_rate == 1e-3
        assert (config.batch_size, config.steps) == (64 * recipe.ROWS[name].batches, 4000)
    assert found["choice-k4"].method == dataclasses.replace(METHODS["choice"], generators=4)
    assert dataclasses.replace(found["choice"].method, generators=1) == METHODS["r3gan"]
    assert found["gan-pack2"].method.pack == 2
    assert (found["r3gan-batch4"].batch_size, found["r3gan-batch4"].steps) == (256, 4000)
    assert found["r3gan-wide"].network.width == 2 * found["r3gan"].network.width
    costs = [recipe.operations(found[name], (1, 1, 2)) for name in ("gan", "gan-r1r2", "choice-k4", "r3gan-wide")]
    assert costs == sorted(costs)  # a wide row costs more than the one that it is to be compared with


def test_a_cell_is_done_once_and_made_again_with_the_same_figures(capsys):
    assert recipe.main([*TINY, "--rows", "gan-r1r2"]) == 0
    record = json.loads(Path("out/cells/ring-gan-r1r2.json").read_text())
    assert record["settings"]["seeds"] == [seed["seed"] for seed in record["result"]["per_seed"]] == [0, 1]
    assert record["command"].startswith("python -m experiments.recipe --tasks ring")
    assert "commit" in record  # None without git
    assert "gan-r1r2" in Path("out/results.md").read_text()
    assert recipe.main([*TINY, "--rows", "gan-r1r2", "--cells", "ring-gan-r1r2"]) == 0
    assert "ring-gan-r1r2: the same result as before" in capsys.readouterr().out
    assert (
        recipe.main([*TINY, "--rows", "gan-r1r2", "wgan-gp", "--show"]) == 0
    )  # of one there is no cell, and none is done
    assert [path.name for path in Path("out/cells").glob("*.json")] == ["ring-gan-r1r2.json"]
    (row,) = [line for line in Path("out/results.md").read_text().splitlines() if "wgan-gp |" in line]
    assert set(row.split()) == {"|", "wgan-gp", "–", "0"}
    assert recipe.main([*TINY, "--show", "--cells", "ring-gan"]) == 2
    assert "--show would do nothing" in capsys.readouterr().err
    assert recipe.main([*TINY, "--rows", "gann"]) == 2
    assert "unknown row 'gann'" in capsys.readouterr().err


def test_images_have_a_cell_and_a_run_for_each_seed(images, monkeypatch):
    counts = {"train_images": 64, "held_out_images": 16}
    info = {
        "name": "noise",
        "description": "noise",
        **counts,
        "sha256": "0" * 64,
        "source": "packaged",
        "warning": None,
    }
    images, labels = np.concatenate([images, images]), np.zeros(64, np.int32)
    monkeypatch.setattr(
        recipe_tasks, "_dataset", lambda settings, console: Dataset(images, labels, images[:16], labels[:16], info)
    )
    small = {"epochs": 1, "network": Network("mlp", 4, 3)}
    monkeypatch.setitem(mnist.PRESETS, "quick", dataclasses.replace(mnist.PRESETS["quick"], **small))
    quick = dataclasses.replace(stacked_mnist.PRESETS["quick"], **small, images=64)
    monkeypatch.setitem(stacked_mnist.PRESETS, "quick", quick)
    monkeypatch.setattr(fitting, "for_data", lambda data, say: recipe)  # a classifier that is never asked
    monkeypatch.setattr(stacked_digits, "evaluate", lambda folder, classifier, samples: {"modes": 7, "kl": 1.5})
    arguments = ["--tasks", "stacked_mnist", "--rows", "gan", "--seeds", "2", "--out", "out"]
    assert recipe.main(arguments) == 0
    assert sorted(path.stem for path in Path("out/cells").glob("*")) == ["stacked_mnist-gan-0", "stacked_mnist-gan-1"]
    assert Path("out/runs/stacked_mnist-gan-1/metrics.jsonl").is_file()
    settings = json.loads(Path("out/cells/stacked_mnist-gan-1.json").read_text())["settings"]
    assert settings["images"].keys() == {"name", "train_images", "held_out_images", "sha256"}
    assert "| gan | 7 ± 0 | 1.50 ± 0.00 | 2 |" in Path("out/results.md").read_text()
    monkeypatch.setattr(loop, "train", trained)
    assert recipe.main(["--tasks", "mnist", "--rows", "gan", "psg", "--seeds", "1", "--out", "other"]) == 0
    text = Path("other/results.md").read_text()
    assert "| gan | 9.50 | 0.600 | 0.100 | 0.50 | 1 |" in text
    assert "| psg | – | – | – | – | 1 |" in text
    assert Path("other/accuracy.png").read_bytes()[:4] == b"\x89PNG"


def trained(config, data, folder, console, stop):
    """A run of `gan` on MNIST that is finished, and one of another method that diverged."""
    if config.method_name != "gan":
        raise loop.Diverged("not finite")
    folder.mkdir(parents=True)
    evaluation = {"fcd": 9.5, "coverage": 0.6, "histogram_kl": 0.1}
    line = {"epoch": 1, "step": config.steps, "evaluation": evaluation, "held_out_accuracy": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return loop.Outcome(config.steps, finished=True)
