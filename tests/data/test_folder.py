"""A folder of image files as a set: which files are read, as which class, how often, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from picture_folders import everything, fill, read, rows
from PIL import Image
from sources import load, refused, same

from psgjax import kept
from psgjax.config import Data
from psgjax.data import dataset, folder

pytestmark = pytest.mark.usefixtures("own_cache")


def test_what_is_read_is_what_lies_there_a_tenth_held_out_the_same_from_anywhere(tmp_path):
    images = fill(tmp_path / "a")
    loaded, told = read(tmp_path / "a")
    assert everything(loaded) == rows(images)
    assert (len(loaded.images), len(loaded.held_out_images)) == (18, 2)
    assert (loaded.labels, loaded.held_out_labels, loaded.info["classes"]) == (None, None, None)
    assert (loaded.info["name"], loaded.info["source"]) == ("a", "folder")
    assert told == []
    (tmp_path / "b").mkdir()
    for i, path in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        path.rename(tmp_path / "b" / f"other {i}.png")
    assert same(read(tmp_path / "b")[0], loaded)
    assert same(dataset.Dataset.from_arrays(images), loaded)
    assert same(load(dir=tmp_path / "b"), loaded)


def test_subfolders_are_classes(tmp_path):
    images = {name: fill(tmp_path / "a" / name / "deeper", 10) for name in ("cat", "ant", "bee")}
    loaded, told = read(tmp_path / "a", held_out=0.2)
    assert loaded.info["classes"] == ["ant", "bee", "cat"]
    assert (np.bincount(loaded.labels).tolist(), np.bincount(loaded.held_out_labels).tolist()) == ([8] * 3, [2] * 3)
    for number, name in enumerate(loaded.info["classes"]):
        chosen = loaded.images[loaded.labels == number], loaded.held_out_images[loaded.held_out_labels == number]
        assert rows(*chosen) == rows(images[name])
    assert told == []
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "stray.png")
    loaded, told = read(tmp_path / "a")
    assert loaded.labels is None
    assert told == [f"{tmp_path / 'a'}: no labels, for which all images must lie in two or more subfolders"]


def test_folders_called_train_and_test_are_what_they_are_called(tmp_path):
    parts = {
        (part, name): fill(tmp_path / "a" / part / name, 6)
        for part in ("train", "test", "val")
        for name in ("cat", "dog")
    }
    loaded, told = read(tmp_path / "a")
    assert loaded.info["classes"] == ["cat", "dog"]
    assert rows(loaded.images) == rows(parts["train", "cat"], parts["train", "dog"])
    assert rows(loaded.held_out_images) == rows(parts["test", "cat"], parts["test", "dog"])
    assert told == [
        f"{tmp_path / 'a'}: train is trained on, test is held out",
        f"{tmp_path / 'a'}: 12 images in val are not used",
    ]
    refused(tmp_path / "a", ["data.held_out 0.5", "leave it out"], source="folder", dir=tmp_path / "a", held_out=0.5)


def test_what_is_no_image_is_skipped_and_counted(tmp_path):
    place = tmp_path / "a"
    images = fill(place, 6)
    for name in ("._0.png", ".hidden.png", "notes.txt", "d.heic"):
        (place / name).write_bytes(b"x")
    (place / ".git").mkdir()
    Image.new("RGB", (8, 8)).save(place / ".git" / "a.png")
    loaded, told = read(place)
    assert everything(loaded) == rows(images)
    (line,) = told
    assert "5 (" in line
    assert "and 2 more) skipped" in line


def test_links_are_followed_but_not_in_circles(tmp_path):
    place, elsewhere = tmp_path / "a", tmp_path / "elsewhere"
    images, other = fill(place / "one", 4), fill(elsewhere, 4)
    (place / "two").symlink_to(elsewhere)
    (place / "one" / "up").symlink_to(place)
    (place / "one" / "here").symlink_to(".")
    (elsewhere / "back").symlink_to(place)
    (place / "one" / "file.png").symlink_to(elsewhere / "000.png")
    loaded, told = read(place)
    assert everything(loaded) == rows(images, other)
    assert loaded.info["classes"] == ["one", "two"]
    assert len(loaded.images) + len(loaded.held_out_images) == 9
    assert told == [f"{place}: 3 (one/here, one/up, two/back) not followed: links to folders that are read in any case"]


def test_the_second_start_reads_one_file(tmp_path, monkeypatch):
    place = tmp_path / "a"
    fill(place, 12)
    (place / "text.png").write_text("<!DOCTYPE html>")
    first, told = read(place, broken=0.1)
    decode = folder._decode
    monkeypatch.setattr(folder, "_decode", None)
    again, told_again = read(place, broken=0.1)
    assert same(first, again)
    assert told == told_again
    monkeypatch.setattr(folder, "_decode", decode)
    (path,) = (tmp_path / "cache").rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (b"", whole[:500], whole.replace(whole[500:600], bytes(100))):
        path.write_bytes(damaged)
        assert same(read(place, broken=0.1)[0], first)
    times = os.stat(place / "000.png")
    other = (place / "001.png").read_bytes()
    (place / "000.png").write_bytes(other)
    os.utime(place / "000.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not same(read(place, broken=0.1)[0], first)


def test_without_a_place_for_the_cache_it_goes_on_and_says_so_once(tmp_path, monkeypatch):
    images = fill(tmp_path / "a", 12)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "file")
    loaded, told = read(tmp_path / "a")
    assert everything(loaded) == rows(images)
    (line,) = told
    assert line.startswith("the images could not be kept, and will be read file by file again next time")


def test_of_many_files_those_that_are_asked_for_are_read(tmp_path):
    images = fill(tmp_path / "a", 60)
    loaded, _ = read(tmp_path / "a", train_images=18)
    again, _ = read(tmp_path / "a", train_images=18)
    assert same(loaded, again)
    assert len(loaded.images) == 18
    assert len(loaded.held_out_images) == 2
    assert everything(loaded) < rows(images)


def test_how_far_it_has_come_is_shown(tmp_path):
    fill(tmp_path / "a", 12)
    shown = []

    def track(items, count, what):
        shown.append((count, what))
        return items

    dataset.load(Data(source="folder", dir=tmp_path / "a"), print, track)
    assert shown[:3] == [(12, "looking at image files"), (12, "reading images"), (12, "ordering images")]


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda place: None, ["does not exist"]),
        (lambda place: place.write_text(""), ["is not a folder"]),
        (lambda place: place.mkdir(), ["holds no image files", ".webp"]),
        (lambda place: (place.mkdir(), (place / "a.txt").write_text("")), ["no image files, but 1 (a.txt)"]),
        (lambda place: fill(place, 1), ["1 image(s)", "at least two"]),
    ],
)
def test_folders_without_images_are_refused(tmp_path, make, fragments):
    make(tmp_path / "a")
    refused(tmp_path / "a" if (tmp_path / "a").is_dir() else tmp_path, fragments, source="folder", dir=tmp_path / "a")


def test_images_that_memory_does_not_hold_are_refused_with_both_numbers(tmp_path, monkeypatch):
    fill(tmp_path / "a", 12)
    monkeypatch.setattr(folder.memory, "available", lambda: 1 << 20)
    refused(
        tmp_path / "a",
        ["12 images of 256x256 need 4.5 MiB, and 1.0 MiB of memory are free", "--data.size"],
        source="folder",
        dir=tmp_path / "a",
        size=256,
    )


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    refused(tmp_path, ["data.transpose True", "data.source idx"], source="folder", dir=tmp_path, transpose=True)
    refused(tmp_path, ["data.dir", "tfds"], source="packaged", dir=tmp_path)


def test_ctrl_c_ends_it_at_once(tmp_path):
    fill(tmp_path / "a", 200)
    code = (
        "import sys, time; from psgjax.data import dataset, folder; from psgjax.config import Data; from pathlib import Path\n"
        "def slow(*args, **kwargs): time.sleep(0.5)\n"
        "folder._decode = slow\n"
        "def track(items, count, what):\n"
        "    for item in items: raise KeyboardInterrupt\n"
        "dataset.load(Data(source='folder', dir=Path(sys.argv[1])), print, track)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, timeout=20)
    assert "KeyboardInterrupt" in done.stderr
