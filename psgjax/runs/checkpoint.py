"""Checkpoints of a run: complete or absent, and checked before they are read. The only file that imports orbax."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from psgjax.config import ConfigError
from psgjax.files import write_atomically
from psgjax.leaves import leaf_name
from psgjax.method.state import TrainState, copied, with_key_data, with_typed_key

Progress = dict[str, Any]

_HASHES = "sha256.json"
_PARTIAL = ".orbax-checkpoint-tmp"  # in the names of what is being written, as Orbax has it, or being deleted
_ALONE = (
    threading.Lock()
)  # Orbax counts its saves in the process: of two at once, one may wait for the other's number, in vain
_SLACK = 2**20  # bytes that a checkpoint takes beside its arrays, at most


class CheckpointError(ConfigError):
    """A checkpoint that cannot be written, is damaged, or does not fit the run that reads it."""


class Checkpoints(AbstractContextManager):
    """The last states of a run, for the process that trains it; leaving the context waits for the save.

    A thread saves beside the device's next call; what goes wrong there is raised by the next `save`, `restore`, `wait` or `close`.
    Orbax does not see a flipped bit, and meets a file cut short or a full disk with pages on standard error: so the files' hashes
    are kept beside them, and room is asked for first.
    """

    def __init__(self, folder: Path, keep: int = 2, tell: Callable[[str], None] | None = None) -> None:
        """Make the folder if need be, and clear away what an interrupted save left there.

        Args:
            folder: Of no other process that trains.
            keep: The number of states that are kept.
            tell: Hears, in a sentence each, which damaged states are set aside. Without it they are left where they are.
        """
        self._folder, self._keep, self._say = folder, keep, tell or (lambda text: None)
        folder.mkdir(parents=True, exist_ok=True)
        with _plain(folder):
            pass
        for path in folder.glob(f"*{_PARTIAL}*"):
            shutil.rmtree(path)
        for step in saved_steps(folder) if tell else ():
            self._set_aside_if_damaged(step)
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way."""
        try:
            self.wait()
        finally:
            self._saver.shutdown()

    def wait(self) -> None:
        """Return when the save under way is complete.

        Raises:
            CheckpointError: If it failed; what was saved before stays.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def steps(self) -> list[int]:
        """The steps whose states are saved.

        Raises:
            CheckpointError: If nothing is left but what was set aside.
        """
        self.wait()
        return saved_steps(self._folder)

    def drop_after(self, step: int) -> None:
        """Delete the states of later steps."""
        for later in self.steps():
            if later > step:
                self._delete(later)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save in the background; a step that is saved already is left as it is. The state may be donated at once.

        Raises:
            CheckpointError: If the save before this one failed.
        """
        step = int(state.step)
        if step not in self.steps():
            self._saving = self._saver.submit(self._write, step, copied(state), progress)

    def restore(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """`read` of the latest state."""
        self.wait()
        return read(self._folder, like)

    def _write(self, step: int, state: TrainState, progress: Progress) -> None:
        # On the host: of several processes the first saves alone, and what is saved fits any mesh.
        arrays = jax.tree.map(np.asarray, with_key_data(state))
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), progress=ocp.args.JsonSave(progress))
        try:
            if not self._folder.is_dir():
                self._folder.mkdir()
                self._say(f"{self._folder} was deleted while the run went on; it is made again")
            _reserve(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK)
            with _ALONE, _plain(self._folder) as folder, _orbax() as orbax:
                orbax.save(folder / str(step), args=items)
            path = self._folder / str(step)
            write_atomically(path / _HASHES, json.dumps(_hashes(path)))
            for old in saved_steps(self._folder)[: -self._keep]:
                self._delete(old)
        except Exception as error:  # Orbax and what it stands on raise several types for one cause
            cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved in {self._folder}: {cause}. What was saved before stays; "
                "put that right and run the same command again."
            ) from error

    def _delete(self, step: int) -> None:
        """Under another name first: whoever reads, or comes after this process was killed, meets it complete or not at all."""
        path = self._folder / f"{step}{_PARTIAL}"
        (self._folder / str(step)).rename(path)
        shutil.rmtree(path)

    def _set_aside_if_damaged(self, step: int) -> None:
        path = self._folder / str(step)
        if fault := _fault(path):
            names = (f"damaged-{step}" + (f"-{i}" if i else "") for i in itertools.count())
            aside = next(self._folder / name for name in names if not (self._folder / name).exists())
            path.rename(aside)
            self._say(
                f"the checkpoint of step {step} in {self._folder} is damaged: {fault}; it is set aside as {aside.name}"
            )


def saved_steps(folder: Path) -> list[int]:
    """The steps whose states are saved in a folder of checkpoints, ascending; empty where there is no such folder. Changes nothing.

    Raises:
        CheckpointError: If nothing is left but what was set aside.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    steps = sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
    damaged = [name for name in names if name.startswith("damaged-")]
    if damaged and not steps:
        raise CheckpointError(
            f"{folder} holds no checkpoint that can be used ({', '.join(damaged)}); put a sound copy in its place, "
            "or delete that folder to begin the run again."
        )
    return steps


def read(folder: Path, like: TrainState, step: int | None = None) -> tuple[TrainState, Progress] | None:
    """A state and its progress from a folder of checkpoints, or None where nothing is saved. Changes nothing.

    A run may train meanwhile: where it deletes a state that is being read, a newer one is there, and is read in its place.

    Args:
        folder: Holds a folder for each step.
        like: A state of the run's shapes and dtypes, abstract or not, with the shardings that the restored one shall have
            (an abstract one without: the first device), whatever those of the saved one were.
        step: One of `saved_steps`; the latest where none is given.

    Raises:
        CheckpointError: If what is saved has other shapes or dtypes (Orbax would cast the latter silently) or is damaged, if that
            step is not there, or if nothing is left but what was set aside.
    """
    while steps := saved_steps(folder):
        wanted = steps[-1] if step is None else step
        if wanted not in steps:
            raise CheckpointError(f"{folder} has no checkpoint of step {wanted}; it has those of {str(steps)[1:-1]}.")
        try:
            return _read(folder / str(wanted), like)
        except (CheckpointError, OSError, ValueError) as error:
            if wanted not in saved_steps(folder):
                continue
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"the checkpoint of step {wanted} in {folder} cannot be read: {error}") from error
    return None


def _read(path: Path, like: TrainState) -> tuple[TrainState, Progress]:
    if fault := _fault(path):
        raise CheckpointError(
            f"the checkpoint of step {path.name} in {path.parent} is damaged: {fault}. Where an earlier one is kept, the training "
            "command goes on from that."
        )
    arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), jax.eval_shape(with_key_data, like))
    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arrays)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(arrays, restore_args=as_arrays), progress=ocp.args.JsonRestore()
    )
    with _ALONE, _plain(path.parent) as folder, _orbax() as orbax:
        _check(path, orbax.metadata(folder / path.name).item_metadata.state.tree, arrays)
        restored = orbax.restore(folder / path.name, args=items)
    first = jax.local_devices()[0]
    state = jax.tree.map(
        lambda leaf, like: jax.device_put(leaf, like.sharding or first), with_typed_key(restored.state), like
    )
    return state, restored.progress


def _check(path: Path, tree: Any, target: TrainState) -> None:
    saved = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    for where, leaf in jax.tree_util.tree_flatten_with_path(target)[0]:
        found = saved.get(leaf_name(where))
        if found is None or tuple(found.shape) != leaf.shape or str(found.dtype) != str(leaf.dtype):
            given = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
            raise CheckpointError(
                f"the checkpoint of step {path.name} in {path.parent} holds {given} for {leaf_name(where)}, and this run "
                f"needs {leaf.dtype}{list(leaf.shape)}; another version wrote it: finish it there, or choose another --out."
            )


def _orbax() -> ocp.Checkpointer:
    """Writes a folder complete or not at all, and reads one."""
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),  # what is saved is a copy already
        (jax.Array, ocp.type_handlers.ArrayHandler()),  # there are none, but Orbax warns
    )
    # Of several processes the first alone reads and writes: Orbax must not wait for the others.
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="psgjax")
    several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(**several),
        # Trained weights hardly shrink, and what compresses them is kept in memory.
        state=ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False, **several),
        progress=ocp.JsonCheckpointHandler(**several),
    )
    return ocp.Checkpointer(handler, **several)


@contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder under a name that Orbax takes as it is: brackets are a pattern to it, gs: a bucket, a backslash an error."""
    folder = folder.absolute()
    if re.fullmatch(r"[\w./ -]*", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="psgjax-") as temporary:
        alias = Path(temporary) / "checkpoints"
        alias.symlink_to(folder, target_is_directory=True)
        yield alias


def _reserve(folder: Path, size: int) -> None:
    """Raise the system's error here and now where a folder cannot take that number of bytes."""
    path = folder / "room.tmp"
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    finally:
        path.unlink(missing_ok=True)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder but the one that keeps them."""
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and _HASHES not in path.name):
        with path.open("rb") as file:
            hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _fault(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, if anything; one without hashes, cut off before they were kept, passes."""
    if not (folder / _HASHES).exists():
        return None
    try:
        kept = dict(json.loads((folder / _HASHES).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return f"{_HASHES} cannot be read"
    now = _hashes(folder)
    changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
    return f"{changed[0]} is not what was written" if changed else None
