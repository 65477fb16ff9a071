"""Images from every source train, stop, go on to the bits that the same arrays give undisturbed, and are scored."""

import numpy as np
import pytest
import sources
from conftest import same, tiny
from PIL import Image
from small_runs import StopAfter, timeless, train

import psgjax
from psgjax.config import Data
from psgjax.data import dataset
from psgjax.evaluation import fitting

RAMP = np.linspace(0, 200, 64).reshape(8, 8, 1)  # has an up and a down, which rotation features tell
COLOUR = (RAMP + np.random.default_rng(0).integers(0, 56, (147, 8, 8, 3))).astype(np.uint8)
GREY, LABELS = COLOUR[..., :1], np.arange(147, dtype=np.uint8) % 49
FLOAT = COLOUR.astype(np.float32)
CONFIG = tiny(batch_size=16, evaluation_epochs=9, evaluation_samples=24)


def parts(array):
    return array[:98], array[98:]


def idx(folder, labels=None):
    for split, images in zip(("train", "t10k"), parts(GREY[..., 0]), strict=True):
        (folder / f"k49-{split}-images-idx3-ubyte").write_bytes(sources.idx_bytes(images))
    for split, each in zip(("train", "t10k"), () if labels is None else parts(labels), strict=False):
        (folder / f"k49-{split}-labels-idx1-ubyte").write_bytes(sources.idx_bytes(each))
    return {"source": "idx", "dir": folder}


def npz(folder, images, **settings):
    train, test = parts(images)
    np.savez(folder / "a.npz", x_train=train, x_test=test)
    return {"source": "array", "dir": folder / "a.npz", **settings}


def pngs(folder):
    for part, images in zip(("train", "test"), parts(COLOUR), strict=True):
        (folder / part).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / part / f"{i}.png")
    return {"source": "folder", "dir": folder}


@pytest.fixture
def _quick(tmp_path, monkeypatch):
    """What scores are taken by is trained in a moment, and kept for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_PIXELS", 64 * 3000)
    monkeypatch.setattr(fitting, "_MOST_EPOCHS", 30)


def comparable(folder):
    """What a run logged, but for what its images are called."""
    lines = timeless(folder)
    return [{**line, "evaluation": {**line.pop("evaluation", {}), "reference_description": ""}} for line in lines]


COLOURS = {  # the same images in different files
    "NHWC": lambda folder: npz(folder, COLOUR),
    "NCHW": lambda folder: npz(folder, np.moveaxis(COLOUR, -1, 1)),
    "0 to 1": lambda folder: npz(folder, FLOAT / 255, range="0..1"),
    "-1 to 1": lambda folder: npz(folder, FLOAT / 127.5 - 1),
    "folder": pngs,
}


@pytest.mark.uncovered
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("made", "images", "labels", "distance"),
    [
        pytest.param({"idx": idx}, GREY, None, "fd_rotations", id="IDX without labels"),
        pytest.param({"idx": lambda folder: idx(folder, LABELS)}, GREY, LABELS, "fcd", id="IDX of 49 classes"),
        pytest.param(COLOURS, COLOUR, None, "fd_rotations", id="colours"),
    ],
)
def test_every_source_trains_and_goes_on_as_the_arrays_would(made, images, labels, distance, tmp_path):
    (one, other), names = parts(images), (None, None) if labels is None else parts(labels)
    arrays = psgjax.Dataset.from_arrays(one, names[0], held_out=(other, names[1]), name="arrays")
    train(CONFIG, arrays, tmp_path / "whole")
    settings = {}
    for name, make in made.items():
        (tmp_path / name).mkdir()
        settings[name] = Data(**make(tmp_path / name))
        assert sources.same(dataset.load(settings[name], lambda line: None), arrays)
    steps, first, last = [], next(iter(made)), list(made)[-1]
    for stop, name in (
        (StopAfter(1), first),
        (StopAfter(2), last),
        (None, last),
    ):  # one run, begun here and gone on with there
        data = dataset.load(settings[name], lambda line: None)
        steps.append(train(CONFIG, data, tmp_path / "run", stop).step)
    assert 0 < steps[0] < steps[1] < steps[2] == CONFIG.steps
    run, whole = (psgjax.load(tmp_path / name) for name in ("run", "whole"))
    assert same(run.state, whole.state)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
    assert np.isfinite(run.metrics[-1]["evaluation"][distance])
