"""README: its Python runs as it stands, its table has every method, and it is short."""

import re
from pathlib import Path

import numpy as np
import pytest

import psgjax
from psgjax.evaluation import fitting

pytestmark = pytest.mark.uncovered

README = (Path(psgjax.__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_MOST_EPOCHS", 10)
    many = np.tile(images, (3, 1, 1, 1))
    np.save("images.npy", many)
    small = {"network": psgjax.Network("mlp", width=4, latent_size=4), "batch_size": 16, "evaluation_samples": 24}
    data = psgjax.Dataset.from_arrays(many, np.arange(96) % 2)
    psgjax.train(
        "psg", data, steps=2, out="runs/mnist/psg", evaluation_epochs=1, **small
    )  # what the quick start leaves
    train = psgjax.train
    monkeypatch.setattr(psgjax, "train", lambda *given, **named: train(*given, **named, **small), raising=False)
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["run"].config.method_name == "psg"
    assert callable(names["step"])
    assert len(psgjax.load("runs/mine").metrics) == 20


def test_the_readme_names_every_method_and_has_at_most_900_words():
    assert set(re.findall(r"`([a-z0-9-]+)`", README.split("## Methods")[1].split("## Commands")[0])) >= set(
        psgjax.methods()
    )
    assert len(re.sub(r"\||---:?", " ", README).split()) <= 900
