"""What a run leaves in its folder: settings, environment, lock, metrics, pictures, checkpoints."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psgjax import schema
from psgjax.config import Config, ConfigError
from psgjax.data.dataset import Dataset
from psgjax.data.pictures import image_grid, to_pixels, write_png
from psgjax.environment import other_bits, provenance, versions
from psgjax.files import write_atomically
from psgjax.method.state import TrainState
from psgjax.runs.checkpoint import CheckpointError, Checkpoints
from psgjax.runs.identity import check_folder
from psgjax.runs.identity import data_of as data_of
from psgjax.runs.identity import read_config as read_config
from psgjax.runs.metrics import Line, MetricsFile, distance_name, distance_of, read_lines

_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)  # of a file system that has none


@contextmanager
def alone(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the run folder for this process; the operating system lets go of it when the process ends, however it ends.

    Args:
        folder: The run's.
        tell: Hears a sentence where the file system has no locks; then nothing is held.

    Raises:
        ConfigError: If another process holds it, with that one's number and host.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            raise ConfigError(
                f"{folder} is in use by {holder}; wait for it, stop it, or choose another --out."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            tell(f"the file system of {folder} has no locks: see that no other process trains there")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def environment(config: Config, data: Dataset, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
    """What env.json records: command, commit, versions, hardware, how it was shared, data."""
    shape = {"steps_per_epoch": config.steps_per_epoch(len(data.images)), "image_shape": data.images.shape[1:]}
    return {**provenance(), "mesh": mesh and dict(mesh.shape), **shape, "data": data.info}


def _keep_environment(path: Path, now: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Write env.json, or add this resumption to it, and where the images were found this time; say if bits will differ."""
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))  # `check_folder` has read it
        if said := other_bits(before, now):
            tell(said)
        keys = ("command", "commit", "versions", "parts", "device", "cores", "flags", "mesh", "started")
        resumed = [*before.get("resumed", []), {key: now[key] for key in keys if key in now}]
        warning = now["data"].get("warning") or before["data"].get("warning")
        now = {**before, "data": {**now["data"], "warning": warning}, "resumed": resumed}
    write_atomically(path, json.dumps(now, indent=2) + "\n")


class RunFolder:
    """The folder of one run while it trains."""

    def __init__(self, path: Path, config: Config, checkpoints: Checkpoints) -> None:
        """`opened` makes these."""
        self.path, self.config, self.checkpoints = path, config, checkpoints
        self.last_line: Line | None = None
        self.on_line: Callable[[Line], None] = lambda line: None
        self._metrics: MetricsFile | None = None
        self._best: Checkpoints | None = None
        self._least = np.inf

    def begin(self, step: int) -> None:
        """Continue metrics.jsonl, and the search for the best state, after that step."""
        self._metrics = MetricsFile(self.path / "metrics.jsonl", step)
        lines = read_lines(self.path / "metrics.jsonl")
        self.last_line = lines[-1] if lines else None
        if self.config.evaluation_epochs:
            self._best = Checkpoints(self.path / "best", keep=1)
            self._best.drop_after(step)
            scored = {line["step"]: distance_of(line["evaluation"]) for line in lines if "evaluation" in line}
            self._least = min((scored[kept] for kept in self._best.steps() if kept in scored), default=np.inf)

    def check_features(self, name: str, sha256: str | None = None, tell: Callable[[str], None] | None = None) -> None:
        """Refuse to score by other features than so far, whose distances mean something else.

        Args:
            name: What samples will be compared by.
            sha256: Of it, where it is known.
            tell: Hears a sentence where that alone differs, as of what psgjax trained elsewhere; if not given, it is refused, too.

        Raises:
            ConfigError: If they are others.
        """
        lines = [line["evaluation"] for line in read_lines(self.path / "metrics.jsonl") if "evaluation" in line]
        scores: Line = next((each for each in reversed(lines) if "features_sha256" in each), {})
        if not scores or (name, sha256 or scores["features_sha256"]) == (scores["features"], scores["features_sha256"]):
            return
        now = name + (f" (SHA-256 {sha256[:12]})" if sha256 else "")
        said = f"{self.path} was scored by the features {scores['features']} (SHA-256 {scores['features_sha256'][:12]}) so far"
        if name != scores["features"] or tell is None:
            raise ConfigError(f"{said}, and now it would be by {now}; give the same again, or choose another --out.")
        tell(f"{said}, and now it is by {now}")

    def save(self, state: TrainState, seconds: float) -> None:
        """Save the state in the background, with the seconds trained so far, the settings and the versions."""
        if self._best:  # first: a run that goes on from here has the best of what came before
            self._best.wait()
        settings = json.loads(schema.to_json(self.config))
        self.checkpoints.save(state, {"seconds": seconds, "config": settings, "versions": versions()})

    def write(self, line: Line) -> None:
        """Append one line to metrics.jsonl."""
        assert self._metrics
        self._metrics.write(line)
        self.last_line = line
        self.on_line(line)

    def offer(self, state: TrainState, scores: dict[str, Any]) -> None:
        """Keep the state in best/ if none before it had a smaller Fréchet distance, which is FCD where there are labels."""
        assert self._best
        distance = distance_of(scores)
        if distance < self._least:
            self._least = distance
            self._best.save(state, {str(distance_name(scores)): distance})

    def picture(self, epoch: float, images: np.ndarray) -> None:
        """A grid of images [K, n, H, W, C] in [-1, 1] under samples/."""
        (self.path / "samples").mkdir(exist_ok=True)
        write_png(self.path / "samples" / f"epoch-{int(np.ceil(epoch)):04d}.png", image_grid(to_pixels(images)))

    def close(self) -> None:
        """Close what `begin` opened."""
        for file in (self._metrics, self._best):
            if file:
                file.close()


@contextmanager
def opened(
    path: Path, config: Config, data: Dataset, mesh: jax.sharding.Mesh | None, tell: Callable[[str], None]
) -> Iterator[RunFolder]:
    """A run's folder, made if need be and held for this process, with its settings and environment written down.

    Args:
        path: The folder.
        config: The run's.
        data: What it trains on.
        mesh: The devices that share the work, where there are several.
        tell: Hears, in a sentence each, which damaged checkpoints are set aside.

    Raises:
        ConfigError: If another process holds it, or the data are not those that the run began with.
    """
    path.mkdir(parents=True, exist_ok=True)
    with alone(path, tell):
        check_folder(path, config, data)  # another process may have begun here before this one held it
        if not (path / "config.json").exists():
            write_atomically(path / "config.json", schema.to_json(config))
        _keep_environment(path / "env.json", environment(config, data, mesh), tell)
        with Checkpoints(path / "checkpoints", tell=tell) as checkpoints:
            run = RunFolder(path, config, checkpoints)
            try:
                yield run
            finally:
                run.close()


def restore(runs: Sequence[RunFolder], like: TrainState) -> list[tuple[TrainState, dict[str, Any]]]:
    """State and progress of each run at the last step that all have saved; newer states are deleted. Empty where none is saved.

    Args:
        runs: Saved one after the other at the same steps, each save complete before the next step's begins.
        like: A state of the runs' shapes and dtypes, abstract or not.

    Raises:
        CheckpointError: If no step is common to all though some have been trained on, or a checkpoint does not fit.
    """
    saved = [set(run.checkpoints.steps()) for run in runs]
    last = max(set.intersection(*saved), default=-1)
    if last < 0 and len(set.union(*saved)) > 1:  # one alone: the very first save was cut off
        steps = "; ".join(f"{run.path.name}: {sorted(own) or 'none'}" for run, own in zip(runs, saved, strict=True))
        raise CheckpointError(
            f"the seeds in {runs[0].path.parent} have no checkpoint of the same step ({steps}); restore what was deleted, "
            "or choose another --out."
        )
    for run in runs:
        run.checkpoints.drop_after(last)
    found = [run.checkpoints.restore(like) for run in runs]
    return [each for each in found if each]
