"""Checkpoints of a run: complete or absent, and checked before they are read. The only file that imports orbax."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from psgjax.config import ConfigError
from psgjax.state import TrainState, copied, from_numbers, numbers
from psgjax.tracking import write_atomically

Progress = dict[str, Any]

_HASHES = "sha256.json"
_SLACK = 2**20  # bytes that a checkpoint takes beside its arrays, at most


class CheckpointError(ConfigError):
    """A checkpoint that cannot be written, is damaged, or does not fit the run that reads it."""


def arrays(state: Any) -> dict[str, np.ndarray]:
    """Every leaf of a state by its name, such as generators.params.Dense_0.kernel, in the names' order; keys as their numbers."""
    found = {
        leaf_name(path): jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    return {name: np.asarray(found[name]) for name in sorted(found)}


def digest(state: Any) -> str:
    """SHA-256 of a state: name, dtype, shape and bytes of every leaf. Equal where two states are equal bit for bit."""
    hashed = hashlib.sha256()
    for name, array in arrays(state).items():
        hashed.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return hashed.hexdigest()


class Checkpoints:
    """The last states of a run, each with its progress (JSON), under one folder; leaving the context waits for the save.

    A thread saves beside the device's next call; what goes wrong there is raised by the next `save`, `restore`, `wait` or `close`.
    Orbax does not see a flipped bit, and meets a file cut short or a full disk with pages on standard error: so the files' hashes
    are kept beside them, and room is asked for first.
    """

    def __init__(self, folder: Path, keep: int = 2, tell: Callable[[str], None] | None = None) -> None:
        """Open the folder, which keeps so many states, and clear away what an interrupted save left there.

        Args:
            folder: Made if need be.
            keep: How many states it keeps.
            tell: Given by the one who trains the run: hears, in a sentence each, which damaged states are set aside. Without it
                they are left where they are.
        """
        # Of several processes the first alone reads and writes: Orbax must not wait for the others.
        alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="psgjax")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
            create=False,
            **({"multiprocessing_options": alone} if jax.process_count() > 1 else {}),
        )
        folder.mkdir(parents=True, exist_ok=True)
        registry = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),  # what is saved is a copy already
            (jax.Array, ocp.type_handlers.ArrayHandler()),  # there are none, but Orbax warns
        )
        handlers = {
            # Trained weights hardly shrink, and what compresses them is kept in memory.
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False),
            "progress": ocp.JsonCheckpointHandler(),
        }
        self._folder, self._tell = folder, tell
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        if tell:
            for step in self._manager.all_steps():
                self._set_aside_if_damaged(step, tell)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way."""
        try:
            self.wait()
        finally:
            self._saver.shutdown()
            self._manager.close()

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
        steps, damaged = sorted(self._manager.all_steps()), sorted(path.name for path in self._folder.glob("damaged-*"))
        if damaged and not steps:
            raise CheckpointError(
                f"{self._folder} holds no checkpoint that can be used ({', '.join(damaged)}); put a sound copy in its place, "
                "or delete that folder to begin the run again."
            )
        return steps

    def drop_after(self, step: int) -> None:
        """Delete the states of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save in the background; a step that is saved already is left as it is. The state may be donated at once.

        Raises:
            CheckpointError: If the save before this one failed.
        """
        step = int(state.step)
        if step not in self.steps():
            self._saving = self._saver.submit(self._write, step, copied(state), progress)

    def _write(self, step: int, state: TrainState, progress: Progress) -> None:
        # On the host: of several processes the first saves alone, and what is saved fits any mesh.
        arrays = jax.tree.map(np.asarray, numbers(state))
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), progress=ocp.args.JsonSave(progress))
        try:
            if not self._folder.is_dir():
                self._folder.mkdir()
                self._manager.reload()
                if self._tell:
                    self._tell(f"{self._folder} was deleted while the run went on; it is made again")
            _reserve(self._folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK)
            self._manager.save(step, args=items)
            path = self._folder / str(step)
            write_atomically(path / _HASHES, json.dumps(_hashes(path)))
        except Exception as error:  # Orbax and what it stands on raise several types for one cause
            cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(
                f"the checkpoint of step {step} could not be saved in {self._folder}: {cause}. What was saved before stays; "
                "put that right and run the same command again."
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The latest state and its progress, or None where nothing is saved.

        Args:
            like: A state of the run's shapes and dtypes, abstract or not, with the shardings that the restored one shall have
                (an abstract one without: the first device), whatever those of the saved one were.

        Raises:
            CheckpointError: If what is saved has other shapes or dtypes (Orbax would cast the latter silently) or is damaged, or
                if nothing is left but what was set aside.
        """
        step = max(self.steps(), default=None)
        if step is None:
            return None
        fault = _fault(self._folder / str(step))
        if fault:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} is damaged: {fault}. Run the training command again: it goes on "
                "from the one before."
            )
        arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), jax.eval_shape(numbers, like))
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), arrays)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(arrays, restore_args=as_arrays), progress=ocp.args.JsonRestore()
        )
        self._check(step, arrays)
        restored = self._manager.restore(step, args=items)
        first = jax.local_devices()[0]
        state = jax.tree.map(
            lambda leaf, like: jax.device_put(leaf, like.sharding or first), from_numbers(restored.state), like
        )
        return state, restored.progress

    def _set_aside_if_damaged(self, step: int, tell: Callable[[str], None]) -> None:
        path = self._folder / str(step)
        fault = _fault(path)
        if fault:
            names = (f"damaged-{step}" + (f"-{i}" if i else "") for i in itertools.count())
            aside = next(self._folder / name for name in names if not (self._folder / name).exists())
            path.rename(aside)
            self._manager.reload()
            tell(
                f"the checkpoint of step {step} in {self._folder} is damaged: {fault}; it is set aside as {aside.name}"
            )

    def _check(self, step: int, target: TrainState) -> None:
        metadata = self._manager.item_metadata(step)
        saved = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(metadata.state.tree)[0]}
        for path, leaf in jax.tree_util.tree_flatten_with_path(target)[0]:
            found = saved.get(leaf_name(path))
            if found is None or tuple(found.shape) != leaf.shape or str(found.dtype) != str(leaf.dtype):
                given = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
                raise CheckpointError(
                    f"the checkpoint of step {step} in {self._manager.directory} holds {given} for {leaf_name(path)}, and this run "
                    f"needs {leaf.dtype}{list(leaf.shape)}; another version wrote it: finish it there, or choose another --out."
                )


def leaf_name(path: tuple) -> str:
    """The dotted name of a leaf from its path in a tree, such as generators.params.Dense_0.kernel."""
    return ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def _reserve(folder: Path, size: int) -> None:
    """Raise the system's error here and now where a folder cannot take so many bytes."""
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
