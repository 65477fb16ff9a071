"""What goes wrong in the middle of a run, or after it: one line that says so, nothing lost, and the run goes on where it can."""

import contextlib
import os
import re
import shutil
import subprocess

import pytest
from conftest import same, tiny
from small_runs import StopAfter, final_state, timeless, train

from psgjax.runs import folder as runfolder
from psgjax.runs.checkpoint import Checkpoints
from psgjax.shell import run_command
from psgjax.training import loop


class Once(loop.Stop):
    """Never stops the run, but does something in its middle."""

    def __init__(self, looks, act):
        self.looks, self.act = looks, act

    @property
    def signal(self):
        self.looks -= 1
        if self.looks == 0:
            self.act()
        return 0


class Waiting(Checkpoints):
    """Saves at once: nothing is under way when a test breaks something."""

    def save(self, state, progress):
        super().save(state, progress)
        self.wait()


@pytest.fixture
def saving_always(monkeypatch):
    monkeypatch.setattr(runfolder, "Checkpoints", Waiting)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)


def refused(capfd, message, work):
    """Whether a command that does this says so in one line, with status 2."""
    assert run_command(work) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error), error


@pytest.mark.uncovered
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(saving_always, data, disk, tmp_path, capfd):
    config = tiny("gan", steps=40)
    train(config, data, tmp_path / "whole")

    def fill():
        with contextlib.suppress(OSError), (disk / "full").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    refused(capfd, "No space left on device", lambda: train(config, data, disk / "run", Once(3, fill)))
    assert 0 < int(final_state(config, disk / "run").step) < 40
    refused(capfd, "No space left on device", lambda: train(config, data, disk / "run"))
    (disk / "full").unlink()
    assert train(config, data, disk / "run").finished
    assert timeless(disk / "run") == timeless(tmp_path / "whole")
    assert same(final_state(config, disk / "run"), final_state(config, tmp_path / "whole"))


@pytest.mark.uncovered
def test_a_folder_that_cannot_be_written_is_one_line_and_stays(data, disk, capfd):
    config = tiny("gan", steps=4)
    train(config, data, disk / "run", StopAfter(1))
    before = {path: path.is_file() and path.read_bytes() for path in disk.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for name in ("run", "other"):
        refused(capfd, f"Read-only file system: .*{name}", lambda name=name: train(config, data, disk / name))
    assert {path: path.is_file() and path.read_bytes() for path in disk.rglob("*")} == before
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert train(config, data, disk / "run").finished


@pytest.mark.uncovered
def test_checkpoints_deleted_while_the_run_goes_on_are_made_again(saving_always, data, tmp_path, capfd):
    config = tiny("gan", steps=40)
    train(config, data, tmp_path / "whole")
    folder = tmp_path / "cut"
    train(config, data, folder, Once(3, lambda: shutil.rmtree(folder / "checkpoints")))
    assert same(final_state(config, folder), final_state(config, tmp_path / "whole"))
    assert timeless(folder) == timeless(tmp_path / "whole")
    assert capfd.readouterr().err == ""


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(saving_always, data, tmp_path, capfd):
    config = tiny("gan", steps=20)
    train(config, data, tmp_path / "run")
    lines, state = timeless(tmp_path / "run"), final_state(config, tmp_path / "run")
    os.truncate(tmp_path / "run/checkpoints/20/state/manifest.ocdbt", 10)
    assert train(config, data, tmp_path / "run").finished
    assert timeless(tmp_path / "run") == lines
    assert same(final_state(config, tmp_path / "run"), state)
    assert (tmp_path / "run/checkpoints/damaged-20").is_dir()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"1" + data[1:]]
)
def test_metrics_that_are_cut_short_are_refused_and_left_alone(damage, data, tmp_path, capfd):
    config = tiny("gan", steps=20)
    train(config, data, tmp_path / "run")
    path = tmp_path / "run/metrics.jsonl"
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    refused(
        capfd, "metrics.jsonl is cut short or damaged: the line of step", lambda: train(config, data, tmp_path / "run")
    )
    assert path.read_bytes() == damage(sound)
    path.write_bytes(sound)
    assert train(config, data, tmp_path / "run").finished
