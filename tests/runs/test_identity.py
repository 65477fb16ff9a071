"""A run is its settings and its images: it goes on wherever these are, and nowhere else; and what lies in its folder may stay."""

import dataclasses
import errno
import json
import os
import shutil
import sys

import numpy as np
import pytest
from conftest import IMAGE, tiny
from small_runs import StopAfter, timeless, train
from sources import contents, load, write

from experiments import mnist
from psgjax.config import Config, ConfigError, Data
from psgjax.data.dataset import fingerprints
from psgjax.runs import folder as runfolder
from psgjax.schema import from_json, to_json

SMALL = ["--methods", "gan", "--steps", "2", "--network.width", "2", "--network.latent-size", "3", "--batch-size", "8"]
SMALL += ["--network.name", "mlp", "--evaluation-epochs", "0"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def silent(line):
    pass


def refused(capsys, *arguments):
    """The one line with which the command ends."""
    capsys.readouterr()
    assert mnist.main([str(each) for each in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_first_command_goes_on_without_a_network_or_with_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert mnist.main(SMALL) == 0
    assert "warning: Only the 5,000 packaged images" in capsys.readouterr().out
    lines = timeless(tmp_path / "runs/mnist/gan")
    for _ in range(2):
        assert mnist.main(SMALL) == 0
        assert "gan: finished already" in capsys.readouterr().out
        monkeypatch.undo()  # now there is one, but the run began with the others
        monkeypatch.chdir(tmp_path)
    assert timeless(tmp_path / "runs/mnist/gan") == lines
    warnings = json.loads((tmp_path / "runs/mnist/summary.json").read_text())["warnings"]
    assert any("Only the 5,000 packaged images" in text for text in warnings)


def test_a_run_goes_on_where_its_images_are_and_is_judged_by_no_others(tmp_path, monkeypatch, capsys):
    write(tmp_path / "here", contents())
    assert mnist.main([*SMALL, "--data.dir", "here"]) == 0
    config = runfolder.read_config(tmp_path / "runs/mnist/gan")
    folder = tmp_path / "runs/mnist/gan"
    assert mnist.main([*SMALL, "--data.dir", "./here/../here"]) == 0
    assert mnist.main(SMALL) == 0  # where they were
    monkeypatch.chdir("/")
    assert runfolder.data_of(folder, config, silent).info["train_images"] == 40
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rename(tmp_path / "there")
    assert "here does not exist" in refused(capsys, *SMALL)
    with pytest.raises(ConfigError, match="here does not exist"):
        runfolder.data_of(folder, config, silent)
    assert len(runfolder.data_of(folder, config, silent, Data(dir=tmp_path / "there")).images) == 40
    assert mnist.main([*SMALL, "--data.dir", "there", "--data.source", "idx"]) == 0
    assert str(runfolder.data_of(folder, config, silent).info["dir"]) == str(tmp_path / "there")

    for split, what in (("train", "training images"), ("t10k", "labels or held-out images")):
        files = contents()
        name = f"{split}-images-idx3-ubyte"
        files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
        shutil.rmtree(tmp_path / "there")
        write(tmp_path / "there", files)
        message = (
            f"the {what} are not those that .*gan began with: then .*SHA-256 [0-9a-f]{{12}}.*, now .*[0-9a-f]{{12}}"
        )
        with pytest.raises(ConfigError, match=message + ".*--data.dir"):
            runfolder.data_of(folder, config, silent)
        assert f"the {what} are not those" in refused(capsys, *SMALL, "--data.dir", "there")
        # Nor does another method beside it.
        assert f"the {what} are not those" in refused(capsys, *SMALL, "--data.dir", "there", "--methods", "sngan")


def test_runs_of_earlier_versions_are_read(data, tmp_path):
    config = tiny("gan", steps=4)
    train(config, data, tmp_path / "run", StopAfter(1))
    path, environment = tmp_path / "run/config.json", tmp_path / "run/env.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "warning": "of the loader"}))
    known = json.loads(environment.read_text())
    assert {"sha256", "description"} <= set(known["data"])
    known["data"].pop("held_out_sha256", None)
    environment.write_text(json.dumps(known))
    assert runfolder.read_config(tmp_path / "run") == config
    assert train(config, data, tmp_path / "run").finished
    assert from_json(Config, to_json(config)) == config


def test_a_run_that_has_lost_the_record_of_its_images_is_refused(data, tmp_path):
    config = tiny("gan", steps=2)
    train(config, data, tmp_path / "run")
    (tmp_path / "run/env.json").unlink()
    with pytest.raises(ConfigError, match=r"env\.json is missing, which says what the run trains on; restore it"):
        train(config, data, tmp_path / "run")


def test_where_the_images_lie_and_how_they_came_is_no_setting(data, tmp_path):
    config = tiny("gan", steps=2)
    train(config, data, tmp_path / "run")
    for place in (Data(source="idx", dir=tmp_path), Data(source="tfds"), Data(train_images=32)):
        assert train(dataclasses.replace(config, data=place), data, tmp_path / "run").finished
    with pytest.raises(ConfigError, match=r"data\.flip: False -> True"):
        train(dataclasses.replace(config, data=Data(flip=True)), data, tmp_path / "run")


# What else lies in the folder.


def test_what_would_not_be_overwritten_may_stay(tmp_path):
    write(tmp_path / "here", contents())
    theirs = [tmp_path / "out" / name for name in ("log", ".gitkeep", "thesis/chapter.tex", "gan/notes")]
    ours = [tmp_path / "out/gan" / name for name in ("lock", ".config.json.partial")]  # killed in its first moment
    for path in (*theirs, *ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    (tmp_path / "out/gan/checkpoints").mkdir()
    assert mnist.main([*SMALL, "--data.dir", "here", "--out", "out"]) == 0
    assert [path.read_text() for path in theirs] == ["precious"] * len(theirs)


@pytest.mark.parametrize(
    "name", ["report.html", "figures/a.png", "gan/metrics.jsonl", "gan/checkpoints/0/x", "gan/config.json"]
)
def test_what_would_be_overwritten_is_refused(name, tmp_path, capsys):
    write(tmp_path / "here", contents())
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    line = refused(capsys, *SMALL, "--data.dir", "here", "--out", "out")
    assert "out/" in line
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]
    assert path.read_text() == "precious"


@pytest.mark.uncovered
def test_a_home_is_found_and_addresses_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write(tmp_path / "home/digits", contents())
    assert mnist.main([*SMALL, "--data.dir", "~/digits", "--out", "~/run"]) == 0
    assert (tmp_path / "home/run/gan/config.json").is_file()
    assert not (tmp_path / "~").exists()
    before = sorted(os.listdir(tmp_path))
    for option in ("--out", "--data.dir"):
        for address in ("gs://bucket/run", "s3://bucket", "https://a.b/c"):
            line = refused(capsys, *SMALL, option, address)
            assert f"{option} {address} is not on this machine" in line
        assert "~nobody-here/x" in refused(capsys, *SMALL, option, "~nobody-here/x")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("number", ["ENOTSUP", "EOPNOTSUPP", "ENOLCK", "ENOSYS"])
def test_a_file_system_without_locks_is_not_one_in_use(number, tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(runfolder.fcntl, "flock", flock)
    told = []
    with runfolder.alone(tmp_path, told.append):
        pass
    assert told == [f"the file system of {tmp_path} has no locks: see that no other process trains there"]


def test_fingerprints_cover_all_that_a_run_is_trained_on_or_measured_by(tmp_path):
    whole = load(source="idx", dir=write(tmp_path / "here", contents()))
    kept = {key: whole.info[key] for key in ("sha256", "held_out_sha256")}
    arrays = [np.copy(getattr(whole, name)) for name in ("images", "labels", "held_out_images", "held_out_labels")]
    assert fingerprints(*arrays) == kept
    for index, array in enumerate(arrays):
        array.flat[0] += 1
        different = {key for key, value in fingerprints(*arrays).items() if value != kept[key]}
        assert different == {"sha256" if index == 0 else "held_out_sha256"}
        array.flat[0] -= 1


# A data set from Python.


def refused_data(tmp_path, config, data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(config, data, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("side", [7, 30])
def test_sides_that_do_not_fit_are_refused_before_anything_is_written(side, data, tmp_path):
    images = np.zeros((8, side, side, 1), np.uint8)
    other = dataclasses.replace(
        data, images=images, held_out_images=images, labels=images[:, 0, 0, 0], held_out_labels=None
    )
    refused_data(tmp_path, tiny("gan", network=IMAGE), other, f"network.name dcgan.* takes .*, not {side}x{side}")


def test_one_class_is_refused_where_samples_are_scored_and_trained_on_where_not(data, tmp_path):
    one = dataclasses.replace(data, labels=np.full(32, 3, np.int32))
    refused_data(tmp_path, tiny("gan", evaluation_epochs=1), one, "labels are all 3: .* needs two classes")
    assert train(tiny("gan", steps=1), one, tmp_path / "run").finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((8, 8, 8, 1), np.float32)}, r"images is 'float32 \[8, 8, 8, 1\]'; it must be uint8"),
        ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, "images is .*N at least 1"),
        ({"images": np.zeros((8, 8, 8), np.uint8)}, "images is .*; it must be uint8"),
        (
            {"held_out_images": np.zeros((8, 4, 8, 1), np.uint8)},
            "held_out_images is .*; it must be of the training images' size",
        ),
        ({"labels": np.zeros(3, np.int32)}, r"labels is \[3\]; it must be one for each of 32 images"),
        ({"info": {}}, "info.*description.* is None; it must be a text"),
    ],
)
def test_arrays_that_nothing_can_be_trained_on_are_refused(changes, message, data, tmp_path):
    refused_data(tmp_path, tiny("gan"), dataclasses.replace(data, **changes), message)
