"""How a classifier is made: what it learns and from what, the cache, and the command that makes the shipped one."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from bars import COUNT, EPOCHS, fit, toy
from conftest import same

from experiments import train_classifier
from psgjax.data import dataset as data
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation import fitting


def dataset(**info):
    images, labels = toy()
    about = {"name": "bars", "canonical": False, "source": "idx"}
    about |= {"sha256": hashlib.sha256(images.data).hexdigest(), **info}
    return data.Dataset(images[:COUNT], labels[:COUNT], images[COUNT:], labels[COUNT:], about)


# Training.


def test_it_learns_what_can_be_learnt(trained):
    assert trained.info["accuracy"] >= 0.9
    assert (trained.info["train_images"], trained.info["held_out_images"]) == (COUNT, 20)
    assert (trained.classes, trained.image_shape) == (3, (8, 8, 1))


def test_training_follows_from_the_seed(trained):
    losses = []
    again = fit(progress=lambda epoch, loss: losses.append((epoch, loss)))
    assert same(again.params, trained.params)
    assert again.info == trained.info
    assert [epoch for epoch, _ in losses] == list(range(1, EPOCHS + 1))
    assert losses[-1][1] < losses[0][1]
    assert not same(fit(seed=1).params, trained.params)


def test_its_training_is_shown_epoch_by_epoch():
    seen = []

    def track(items, count, what):
        for item in items:
            seen.append((item, count))
            yield item

    fit(progress=lambda epoch, loss: seen.append(epoch), track=track)
    assert seen == [each for epoch in range(EPOCHS) for each in ((epoch, EPOCHS), epoch + 1)]


def test_without_held_out_images_a_tenth_is_held_out():
    images, labels = toy()
    info = fitting.fit(images[: COUNT + 7], labels[: COUNT + 7], epochs=EPOCHS, held_out=None).info
    assert (info["train_images"], info["held_out_images"]) == (COUNT, 7)


def test_images_are_moved_by_up_to_two_pixels_of_28():
    images = np.zeros((500, 28, 28, 1), np.uint8)
    images[:, 10, 20] = 255
    moved = np.asarray(fitting._shift(jax.numpy.asarray(images), jax.random.key(0)))
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 500
    assert set(rows) == set(range(8, 13))
    assert set(columns) == set(range(18, 23))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"labels": np.zeros(COUNT, np.int32), "held_out": None}, "one class"),
        ({"labels": np.zeros(63, np.int32)}, r"64 images have labels of the shape \[63\]"),
        ({"labels": np.full(COUNT, -1)}, "whole numbers from 0"),
        ({"labels": np.zeros(COUNT)}, "labels are float64"),
        (
            {"images": np.zeros((COUNT, 10, 10, 1), np.uint8)},
            "10x10; the classifier takes sides that are multiples of 4",
        ),
    ],
)
def test_what_it_cannot_be_trained_on(change, message):
    images, labels = toy()
    with pytest.raises(ValueError, match=message):
        fitting.fit(**{"images": images[:COUNT], "labels": labels[:COUNT], "epochs": 1, **change})


# By data set.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_LEAST_EPOCHS", EPOCHS)
    monkeypatch.setattr(fitting, "_CLASSIFIER_PIXELS", 0)
    return tmp_path / "cache" / "psgjax" / "classifiers"


def test_mnist_has_the_shipped_one_and_images_without_labels_have_none(packaged, cache):
    assert fitting.for_data(packaged) is classifiers.shipped()
    assert fitting.for_data(dataclasses.replace(dataset(), labels=np.zeros(0, np.int32))) is None
    assert not cache.exists()


def test_other_data_have_one_of_their_own_trained_once(cache, monkeypatch):
    told = []
    first = fitting.for_data(dataset(), told.append)
    assert "training a classifier for bars on 64 images, 12 epochs" in told[0]
    assert first.info["held_out_images"] == 20
    assert first.info["data"] == "bars"
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(fitting, "fit", None)
    again = fitting.for_data(dataset(), told.append)
    assert same(again.params, first.params)
    assert again.info == first.info


def test_what_calls_itself_mnist_and_is_not_has_one_of_its_own(cache):
    own = fitting.for_data(dataset(name="mnist"), lambda line: None)
    assert own.image_shape == (8, 8, 1)


def test_other_labels_are_other_data(cache):
    data = dataset()
    fitting.for_data(data, lambda line: None)
    fitting.for_data(dataclasses.replace(data, labels=data.labels[::-1].copy()), lambda line: None)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_in_the_cache_is_set_aside_and_replaced(cache):
    first = fitting.for_data(dataset(), lambda line: None)
    (path,) = cache.iterdir()
    whole, cut = path.read_bytes(), path.read_bytes()[:-9]
    path.write_bytes(cut)
    told = []
    again = fitting.for_data(dataset(), told.append)
    assert "Set aside" in told[0]
    assert same(again.params, first.params)
    assert path.read_bytes() == whole
    assert path.with_suffix(".damaged").read_bytes() == cut


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")
    told = []
    assert fitting.for_data(dataset(), told.append).classes == 3
    assert "could not be kept" in told[-1]


# The command.


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("--epochs 3 --data.source idx --data.dir /some/where", "--epochs 3 --data.source idx --data.dir FOLDER"),
        ("--data.dir=/some/where --out=/else/x.safetensors --seed 1", "--data.dir FOLDER --seed 1"),
        ("--out /else/x.safetensors --seed 1", "--seed 1"),
        ("", ""),
    ],
)
def test_the_recorded_command_names_no_folder(given, recorded):
    assert train_classifier.public(given.split()) == f"python -m experiments.train_classifier {recorded}".strip()


def test_the_command_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda config, progress: dataset(description="bars", warning=None))
    out = tmp_path / "new" / "c.safetensors"
    assert train_classifier.main(["--epochs", str(EPOCHS), "--out", str(out)]) == 0
    found = classifiers.read(out)
    shown = capsys.readouterr().out
    assert found.info["sha256"] in shown
    assert f"{out.stat().st_size:,} bytes" in shown
    assert found.info["command"] == "python -m experiments.train_classifier --epochs 12"
    assert found.info["epochs"] == EPOCHS
    assert {"jax", "flax"} <= set(found.info["versions"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--out", "weights.bin"], "weights.bin must be a file whose name ends in .safetensors"),
        (["--data.source", "idx", "--data.dir", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_classifier.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
