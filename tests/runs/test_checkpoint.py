"""A checkpoint is as it was written or is not used: damage is found, set aside and never read; what fails in a save is one line."""

import dataclasses
import os
import shutil
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import pytest
from conftest import first_state, like, same, tiny

from psgjax.runs import checkpoint
from psgjax.runs.checkpoint import CheckpointError, Checkpoints

CONFIG = tiny()
LIKE = like(CONFIG)


def state_of(step):
    return dataclasses.replace(first_state(CONFIG), step=jnp.int32(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_of(step), {"seconds": float(step)})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FAULTS = {
    "a flipped bit": flip,
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", FAULTS)
def test_damage_to_any_file_is_found_and_the_checkpoint_before_is_used(case, saved, folder, capfd):
    names = sorted(path.relative_to(folder / "2") for path in (folder / "2").rglob("*") if path.is_file())
    assert len(names) > 8
    for name in names:
        if (case, name.name) == ("missing", "sha256.json"):
            continue
        FAULTS[case](folder / "2" / name)
        with Checkpoints(folder) as checkpoints, pytest.raises(CheckpointError, match="step 2 in .* is damaged"):
            checkpoints.restore(LIKE)
        assert (folder / "2").exists(), "who only reads moves nothing"
        told = []
        with Checkpoints(folder, tell=told.append) as checkpoints:
            assert checkpoints.steps() == [1]
            if name == names[-1]:
                state, progress = checkpoints.restore(LIKE)
                assert same(state, state_of(1))
                assert progress == {"seconds": 1.0}
        assert len(told) == 1
        assert "step 2 in" in told[0]
        assert "set aside as damaged-2" in told[0]
        assert (folder / "damaged-2").is_dir()
        shutil.rmtree(folder / "damaged-2")
        shutil.copytree(saved / "2", folder / "2")
    assert capfd.readouterr().err == ""


def test_nothing_that_is_set_aside_is_lost_and_a_run_with_nothing_else_is_not_begun_again(folder):
    for expected in ("damaged-2", "damaged-2-1"):
        flip(folder / "2/progress/metadata")
        with Checkpoints(folder, tell=lambda text: None) as checkpoints:
            checkpoints.save(state_of(2), {"seconds": 2.0})
        assert (folder / expected).is_dir()
    for step in (1, 2):
        flip(folder / f"{step}/state/_METADATA")
    for _ in range(2):  # the second time, all that is left was set aside before
        with (
            pytest.raises(CheckpointError, match="can be used .*damaged-1, damaged-2.* delete that folder"),
            Checkpoints(folder, tell=lambda text: None) as checkpoints,
        ):
            checkpoints.restore(LIKE)
    shutil.rmtree(folder)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(LIKE) is None


def test_another_version_is_no_damage(folder):
    like = dataclasses.replace(LIKE, step=jax.ShapeDtypeStruct((2,), jnp.int32))
    with Checkpoints(folder, tell=pytest.fail) as checkpoints, pytest.raises(CheckpointError, match="another version"):
        checkpoints.restore(like)
    (folder / "2/sha256.json").unlink()  # before hashes were kept, or killed just before they were
    with Checkpoints(folder, tell=pytest.fail) as checkpoints:
        assert same(checkpoints.restore(LIKE)[0], state_of(2))


def test_a_folder_deleted_while_the_run_goes_on_is_made_again(folder, capfd):
    told = []
    with Checkpoints(folder, tell=told.append) as checkpoints:
        shutil.rmtree(folder)
        checkpoints.save(state_of(3), {})
    assert told == [f"{folder} was deleted while the run went on; it is made again"]
    with Checkpoints(folder) as checkpoints:
        assert same(checkpoints.restore(LIKE)[0], state_of(3))
    assert capfd.readouterr().err == ""


def test_a_save_that_fails_is_one_line_at_the_latest_at_the_end(disk, capfd):
    folder = disk / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(1), {})
    (disk / "full").write_bytes(bytes(3 * 2**20))
    listing = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder)
    checkpoints.save(state_of(2), {})
    with pytest.raises(
        CheckpointError, match="step 2 could not be saved in .*: No space left on device. .* same command"
    ):
        checkpoints.close()
    assert sorted(folder.rglob("*")) == listing
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(2), {})
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoints.save(state_of(3), {})
        (disk / "full").unlink()
        checkpoints.save(state_of(3), {})
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 3]
        assert same(checkpoints.restore(LIKE)[0], state_of(3))
    assert capfd.readouterr().err == ""


NAMES = ["[1]", "x[!y]", "gs:", "gs:/b", "back\\slash", "\udcff", "한글 *?", " a\n", "%20#~"]


def test_whatever_a_folder_is_called_its_checkpoints_are_read_again(scratch, tmp_path):
    for i, name in enumerate(NAMES):
        folder = tmp_path / str(i) / name / "checkpoints"
        with Checkpoints(folder, tell=pytest.fail) as checkpoints:
            checkpoints.save(state_of(i), {"seconds": 1.0})
        state, progress = checkpoint.read(folder, LIKE)
        assert (int(state.step), progress) == (i, {"seconds": 1.0})
        assert os.listdir(folder) == [str(i)]
    assert os.listdir(tmp_path / "temporary") == []


def test_who_only_reads_changes_nothing(folder, tmp_path):
    (folder / "3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp").mkdir(parents=True)  # a save under way
    (folder / "damaged-1").mkdir()
    listing = sorted(folder.rglob("*"))
    assert same(checkpoint.read(folder, LIKE)[0], state_of(2))
    assert int(checkpoint.read(folder, LIKE, step=1)[0].step) == 1
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; it has those of 1, 2"):
        checkpoint.read(folder, LIKE, step=3)
    assert sorted(folder.rglob("*")) == listing
    assert checkpoint.read(tmp_path / "none", LIKE) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("moment", ["_fault", "_hashes", "_orbax", "_check"])
def test_a_state_deleted_while_it_is_read_is_answered_with_the_newer_one(moment, folder, tmp_path, monkeypatch):
    original, newer = getattr(checkpoint, moment), tmp_path / "newer"
    with Checkpoints(newer) as training:
        training.save(state_of(3), {})

    def late(*arguments):
        monkeypatch.setattr(checkpoint, moment, original)
        (newer / "3").rename(folder / "3")
        for step in ("1", "2"):
            (folder / step).rename(newer / step)
        return original(*arguments)

    monkeypatch.setattr(checkpoint, moment, late)
    assert same(checkpoint.read(folder, LIKE)[0], state_of(3))
    assert os.listdir(folder) == ["3"]


def test_many_folders_are_saved_at_once(tmp_path):
    with ExitStack() as several:
        opened = [several.enter_context(Checkpoints(tmp_path / str(i))) for i in range(8)]
        for step in range(4):
            for checkpoints in opened:
                checkpoints.save(state_of(step), {})
    assert all(checkpoint.saved_steps(tmp_path / str(i)) == [2, 3] for i in range(8))
