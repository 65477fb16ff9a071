"""Checkpoints of a run: complete or absent. The only file that imports orbax."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

from psgjax.config import ConfigError
from psgjax.step import TrainState

Progress = dict[str, Any]


class CheckpointError(ConfigError):
    """A checkpoint that does not fit the run that reads it."""


def arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Every leaf of a state by its name, such as generators.params.Dense_0.kernel, in the names' order; keys as their numbers."""
    found = {
        _name(path): jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    return {name: np.asarray(found[name]) for name in sorted(found)}


def digest(state: TrainState) -> str:
    """SHA-256 of a state: name, dtype, shape and bytes of every leaf. Equal where two states are equal bit for bit."""
    hashed = hashlib.sha256()
    for name, array in arrays(state).items():
        hashed.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return hashed.hexdigest()


class Checkpoints:
    """The last states of a run, each with its progress (JSON), under one folder; leaving the context waits for the save."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Open the folder, which keeps so many states, and clear away what an interrupted save left there."""
        # Of several processes the first alone reads and writes: Orbax must not wait for the others.
        alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="psgjax")
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=True,
            create=False,
            **({"multiprocessing_options": alone} if jax.process_count() > 1 else {}),
        )
        folder.mkdir(parents=True, exist_ok=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way."""
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Return when the save under way is complete."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The steps whose states are saved."""
        return list(self._manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Delete the states of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save in the background; a step that is saved already is left as it is. The state may be donated at once."""
        step = int(state.step)
        if step not in self.steps():
            copied = jax.tree.map(jnp.copy, state)
            items = ocp.args.Composite(state=ocp.args.StandardSave(copied), progress=ocp.args.JsonSave(progress))
            self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The latest state and its progress, or None where nothing is saved.

        Args:
            like: A state of the run's shapes and dtypes, abstract or not, with the shardings that the restored one shall have
                (an abstract one without: the first device), whatever those of the saved one were.

        Raises:
            CheckpointError: If what is saved has other shapes or dtypes (Orbax would cast the latter silently).
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or first), like
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        self._check(step, target)
        restored = self._manager.restore(step, args=items)
        return restored.state, restored.progress

    def _check(self, step: int, target: TrainState) -> None:
        metadata = self._manager.item_metadata(step)
        saved = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(metadata.state.tree)[0]}
        for path, leaf in jax.tree_util.tree_flatten_with_path(target)[0]:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # saved as its numbers
                leaf = jax.eval_shape(jax.random.key_data, leaf)
            found = saved.get(_name(path))
            if found is None or tuple(found.shape) != leaf.shape or str(found.dtype) != str(leaf.dtype):
                given = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
                raise CheckpointError(
                    f"the checkpoint of step {step} in {self._manager.directory} holds {given} for {_name(path)}, and this run "
                    f"needs {leaf.dtype}{list(leaf.shape)}; another version wrote it: finish it there, or choose another --out."
                )


def _name(path: tuple) -> str:
    return ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)
